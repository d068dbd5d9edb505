"""What the parts of the stand-in hand to each other."""

import enum
import functools
import time
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True)
class Call:
    """Hold one request as it was received; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    query: str = ""

    @functools.cached_property
    def json(self) -> Any:
        """Parse the body; raises `orjson.JSONDecodeError`, a ValueError."""
        return orjson.loads(self.body)


@dataclass(frozen=True)
class Served:
    """State what one answer truly cost, whatever its `usage` claimed."""

    response_id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    at: float = field(default_factory=time.time, compare=False)
    """Seconds since 1970, when the answer was decided."""

    @property
    def total_tokens(self) -> int:
        """Return the sum that a team should be charged."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def request_id(self) -> str:
        """Return the `x-request-id` that the answer bears."""
        return f"req_{self.response_id.rpartition('-')[2]}"


class Refusal(Exception):
    """Answer with an error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps({"error": {"message": message, "type": type, "param": param, "code": code}})


class Ending(enum.Enum):
    """Name what becomes of the connection after a script."""

    KEEP = enum.auto()
    CLOSE = enum.auto()
    CUT = enum.auto()
    RESET = enum.auto()
    HANG = enum.auto()


@dataclass
class Answer:
    """Say what to send: the whole body as one part, or the events of a stream."""

    parts: list[bytes]
    served: Served | None = None
    status: int = 200
    content_type: str = "application/json"
    is_stream: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Script:
    """Say how to send it: wait so many seconds, write these bytes, and so on."""

    steps: list[tuple[float, bytes]]
    ending: Ending
    served: Served | None = None


@dataclass(frozen=True)
class Question:
    """Hold what a request asks for, whichever endpoint it came to."""

    body: dict[str, Any]
    text: str  # directives included
    prompt_tokens: int
    prompts: int = 1
    is_chat: bool = False


@dataclass(frozen=True)
class Output:
    """Hold what one choice says, one token a piece; with `tool` the pieces are its arguments."""

    pieces: list[str]
    finish_reason: str
    tool: str | None = None

"""Usage: read it from an answer or its events, estimate it before a call, count it where nobody reported it."""

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import toktok  # its tables, 65 MB, are loaded by the first count, not by this import

from tokenrouter.metering import sse
from tokenrouter.metering.estimate import estimate_text_tokens

ENCODING = "o200k_base"
# No model takes as much as this in one call, so who reports more is wrong.
ABSURD_TOKENS = 10_000_000

# Source: OpenAI's cookbook, "How to count tokens with tiktoken": three tokens a message and its role, one more for a
# name, three before the answer.
MESSAGE_TOKENS = 4
NAME_TOKENS = 1
ANSWER_START_TOKENS = 3
TOOL_TOKENS = 12
CALL_TOKENS = 8
# Flat figures for what is not text; an image's is the most that OpenAI's vision pricing gives for one in high detail.
IMAGE_TOKENS = 1445
AUDIO_TOKENS = 1500
FILE_TOKENS = 3000


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, as reported or as counted by us."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum of what two parts of an answer report."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
        )


def read_usage(document: object) -> Usage | None:
    """Return the usage that an answer or an event reports; None where there is none, or none to be believed.

    A total counts as it is reported, also where it is not the sum; without one the sum counts. Responses, images and
    sound report input and output tokens in place of prompt and completion tokens.
    """
    usage = document.get("usage") if isinstance(document, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    total = usage.get("total_tokens")
    counts = [count for count in (prompt, completion, total) if count is not None]
    if not counts or not all(type(count) is int and 0 <= count <= ABSURD_TOKENS for count in counts):
        return None
    prompt, completion = prompt or 0, completion or 0
    return Usage(prompt, completion, prompt + completion if total is None else total)


_tables_are_loaded = threading.Event()
_loading_tables = threading.Lock()


def _load_tables() -> None:
    """Load the encoding's tables once: threads that count at the same time would each load their own."""
    with _loading_tables:
        if not _tables_are_loaded.is_set():
            toktok.batch_count([""], ENCODING, threads=1)
            _tables_are_loaded.set()


def count_tokens(texts: Iterable[str]) -> int:
    """Count the tokens of texts by OpenAI's present encoding; the first call loads it."""
    if not _tables_are_loaded.is_set():
        _load_tables()
    return sum(toktok.batch_count(list(texts), ENCODING, threads=1))


@dataclass
class Prompt:
    """What a request gives the model to read: its texts, and tokens for all that is not text."""

    texts: list[str] = field(default_factory=list)
    flat_tokens: int = 0

    def estimate(self) -> int:
        """Return a figure at or above the true one, in microseconds."""
        return self.flat_tokens + estimate_text_tokens("\n".join(self.texts))

    def count(self) -> int:
        """Return the exact figure for the texts."""
        return self.flat_tokens + count_tokens(self.texts)


def read_chat_prompt(body: Mapping[str, Any]) -> Prompt:
    """Gather what a chat completion's model reads. What has no known shape is left to the provider to refuse."""
    prompt = Prompt(flat_tokens=ANSWER_START_TOKENS)
    for message in _dicts(body.get("messages")):
        prompt.flat_tokens += MESSAGE_TOKENS
        _read_content(message.get("content"), prompt)
        if isinstance(name := message.get("name"), str):
            prompt.flat_tokens += NAME_TOKENS
            prompt.texts.append(name)
        for text in _call_texts(message):
            prompt.flat_tokens += CALL_TOKENS
            prompt.texts.append(text)
    for key in ("tools", "functions"):
        for tool in _dicts(body.get(key)):
            prompt.flat_tokens += TOOL_TOKENS
            prompt.texts.append(orjson.dumps(tool).decode())
    if isinstance(schema := body.get("response_format"), dict) and "json_schema" in schema:
        prompt.texts.append(orjson.dumps(schema).decode())
    return prompt


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _read_content(content: object, prompt: Prompt) -> None:
    if isinstance(content, str):
        prompt.texts.append(content)
        return
    for part in _dicts(content):
        kind = part.get("type")
        if kind == "image_url":
            prompt.flat_tokens += IMAGE_TOKENS
        elif kind == "input_audio":
            prompt.flat_tokens += AUDIO_TOKENS
        elif kind == "file":
            prompt.flat_tokens += FILE_TOKENS
        else:
            prompt.texts += [text for key in ("text", "refusal") if isinstance(text := part.get(key), str)]


def _call_texts(message: Mapping[str, Any]) -> list[str]:
    """Return the names and arguments of the function calls in a message or a delta."""
    functions = [call.get("function") for call in _dicts(message.get("tool_calls"))] + [message.get("function_call")]
    return [
        text
        for function in functions
        if isinstance(function, dict)
        for key in ("name", "arguments")
        if isinstance(text := function.get(key), str)
    ]


CONTENT = re.compile(rb'"content"\s*:\s*"([^"]*)"')
NO_EVENT = b"\0"  # begins and ends none
TEXT_KEYS = ("content", "reasoning_content", "reasoning", "refusal", "text")


def answer_texts(document: object) -> list[str]:
    """Return every text that an answer or an event brings, over all choices."""
    texts: list[str] = []
    for choice in _dicts(document.get("choices") if isinstance(document, dict) else None):
        for part in (choice.get("message"), choice.get("delta"), choice):
            if isinstance(part, dict):
                texts += [text for key in TEXT_KEYS if isinstance(text := part.get(key), str)]
                texts += _call_texts(part)
    return texts


def _plain_text(choices: object) -> str | None:
    """Return the text of the one choice whose delta is nothing else, as nearly all are; half the work of a chunk."""
    if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict):
        choice = choices[0]
        delta = choice.get("delta")
        if isinstance(delta, dict) and len(delta) == 1 and not choice.get("finish_reason"):
            text = delta.get("content")
            return text if isinstance(text, str) and "text" not in choice and "message" not in choice else None
    return None


def parse_json(data: bytes) -> Any:
    """Return the JSON value, or None where there is none."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


class StreamMeter:
    """Watch the events of one streamed answer: what arrived, what it cost, and whether it came to its end."""

    def __init__(self) -> None:
        """Start before the first event."""
        self.usage: Usage | None = None
        self.done = False  # [DONE] was seen
        self.failed = False  # the provider sent an error
        self.ended = False  # either of these, after which nothing counts
        self.reported = False  # the event that only reports usage was seen, after which nothing of an answer comes
        self.began = False  # something of an answer was seen
        self._finished: set[str] = set()  # the choices that said why they ended
        self._text = bytearray()  # all that arrived; a list of its pieces would take several times as much
        self._estimated_tokens = 0
        self._estimated_bytes = 0
        self._before_text = self._after_text = NO_EVENT

    def read(self, event: bytes) -> bool:
        """Take note of an event; return whether it is the extra one that only reports usage."""
        return not self.read_like_last(event) and self._read_whole(event)

    def read_like_last(self, data: bytes) -> bool:
        """Take note of bytes that are one event and differ from an earlier chunk in its text alone, or return False."""
        if data.startswith(self._before_text) and data.endswith(self._after_text):
            text = data[len(self._before_text) : -len(self._after_text)]
            if b'"' not in text and b"\\" not in text:
                self._text += text
                return True
        return False

    def _read_whole(self, event: bytes) -> bool:
        data = sse.event_data(event)
        if data.strip() == b"[DONE]":
            self.done = self.ended = True
            return False
        document = parse_json(data)
        if not isinstance(document, dict):
            return False
        if document.get("error"):
            self.failed = self.ended = True
            return False
        choices = document.get("choices")
        if (text := _plain_text(choices)) is not None and not document.get("usage"):
            self.began = True
            self._text += text.encode()
            self._remember(event)
            return False
        self.usage = read_usage(document) or self.usage
        self._text += "".join(answer_texts(document)).encode()
        self.began = self.began or bool(choices)
        self._finished |= {str(choice.get("index")) for choice in _dicts(choices) if choice.get("finish_reason")}
        only_usage = choices == [] and isinstance(document.get("usage"), dict)
        self.reported = self.reported or only_usage
        return only_usage

    def _remember(self, event: bytes) -> None:
        """Keep what surrounds the text of a plain chunk: one that differs in its text alone need not be parsed.

        That holds where the event has no escapes, so that its one `content` is the one whose text was read.
        """
        if b"\\" not in event and event.count(b'"content"') == 1 and (text := CONTENT.search(event)):
            self._before_text, self._after_text = event[: text.start(1)], event[text.end(1) :]

    def is_whole(self, choices: int) -> bool:
        """Tell whether nothing is missing though [DONE] never came."""
        return self.done or self.reported or len(self._finished) >= choices

    def completion_tokens(self) -> int:
        """Count what has arrived, exactly."""
        return count_tokens([self._text.decode(errors="replace")])

    def estimated_tokens(self) -> int:
        """Estimate what has arrived; each call looks only at what is new, so it may come often."""
        new = bytes(self._text[self._estimated_bytes :])
        self._estimated_bytes += len(new)
        self._estimated_tokens += estimate_text_tokens(new.decode(errors="replace"))
        return self._estimated_tokens

"""The faults that a text asks for, in `[[name=value]]`."""

from __future__ import annotations  # the types of the fields are read as they are written

import functools
import re
from dataclasses import dataclass, fields
from typing import Any

from tokenrouter.standin.values import Refusal

HTML = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1></body></html>"
STRANGE_BODIES = {
    "html": ("text/html; charset=utf-8", HTML),
    "text": ("text/plain", b"upstream connect error"),
    "empty": ("application/json", b""),
    "json": ("application/json", b'{"detail":"Something went wrong"}'),
}
NEWLINES = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
ALLOWED = {
    "usage": re.compile("none|zero|negative|absurd|string|float|null|total_only|no_total|mismatch|every|duration"),
    "body": re.compile("|".join(STRANGE_BODIES)),
    "newline": re.compile("|".join(NEWLINES)),
    "framing": re.compile("chunked|close|split"),
}
FLAGS = {"1": True, "yes": True, "0": False, "no": False}
DIRECTIVE = re.compile(r"\[\[\s*([a-z_]+=[^\s\]]*(?:\s+[a-z_]+=[^\s\]]*)*)\s*\]\]")


@dataclass(frozen=True)
class Faults:
    """List the directives and what each is when nobody asks; N counts events of a stream, bytes of another body."""

    words: int | None = None  # length of the completion, before max_tokens
    prompt_tokens: int | None = None  # the truth about the prompt
    delay: float = 0.0  # seconds before the status line
    first: float = 0.0  # seconds between the headers and the body
    gap: float = 0.0  # seconds between events
    status: int = 0  # 300 and above: an error in OpenAI's shape
    code: str | None = None
    type: str | None = None
    message: str | None = None  # with _ for spaces
    retry_after: str | None = None
    body: str | None = None  # instead of the answer; status is 500 unless given
    redirect: str | None = None  # answer 307 with this Location
    usage: str | None = None
    cached_tokens: int = 0  # of the prompt, as the usage tells them
    cost: float | None = None  # in dollars, told with the usage
    cut: int | None = None  # close after N
    reset: int | None = None  # the same with a TCP RST
    half_chunk: int | None = None  # close in the middle of what follows N events
    hang: int | None = None  # send nothing after N, but stay
    silent: bool = False  # never answer
    drop: bool = False  # close without a byte
    error_event: int | None = None  # end with an error event after N events
    failed: int | None = None  # let a response fail after N events
    done: bool = True
    newline: str = "lf"
    space: bool = True  # after the colon of a field
    comments: bool = False
    event_names: bool = False
    framing: str | None = None  # split: HTTP chunks and TCP writes of 1 to 7 bytes
    unicode: bool = False
    big: int | None = None  # one piece of N bytes, counted as one token
    burst: bool = False
    stamp: bool = False  # each piece tells when it was sent, by the monotonic clock, in nanoseconds
    content_type: str | None = None
    json_for_stream: bool = False
    gzip: bool = False
    length: int = 0  # error of Content-Length; with a positive one the connection is closed
    refuse_stream_options: bool = False


FAITHFUL = Faults()
KINDS = {each.name: str(each.type).removesuffix(" | None") for each in fields(Faults)}


def directives(text: str, defaults: dict[str, str]) -> Faults:
    """Read the faults that a text asks for, over the defaults for all calls."""
    found = DIRECTIVE.findall(text) if "[[" in text else []
    if not found and not defaults:
        return FAITHFUL
    requested = dict(pair.split("=", 1) for block in found for pair in block.split())
    return read_faults(tuple({**defaults, **requested}.items()))


@functools.lru_cache(maxsize=1024)
def read_faults(pairs: tuple[tuple[str, str], ...]) -> Faults:
    """Build the faults from names and values, remembering them; raises Refusal on an unknown one."""
    values = {}
    for key, text in pairs:
        try:
            values[key] = read_value(key, str(text))
        except (KeyError, ValueError) as error:
            raise Refusal(400, f"Unknown directive: {key}={text}", code="unknown_directive") from error
    return Faults(**values)


def read_value(key: str, text: str) -> Any:
    """Convert one value to the type of its field; raises KeyError or ValueError."""
    kind = KINDS[key]
    if kind == "bool":
        return FLAGS[text]
    if kind == "str":
        if key in ALLOWED and not ALLOWED[key].fullmatch(text):
            raise ValueError(text)
        return text
    number = int(text) if kind == "int" else float(text)
    if not number >= 0 and key != "length":  # `not >=` also catches nan
        raise ValueError(text)
    return number

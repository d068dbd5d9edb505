"""Play the provider on loopback: OpenAI's API in made-up words, with exact token counts and faults on demand.

`flask demo`, the tests and the benchmarks call it in place of a paid account. One thread runs one event loop. An answer
is decided at once, as a `Script` of waits and bytes, and the connection only plays it: a fault is a change of the
script. It is asked for in the text of the last message, `[[cut=3 gap=0.1]]`, or for all calls in `provider.defaults`;
the fields of `Faults` are the list. Any model name is served: refusing one is the proxy's task.
"""

from __future__ import annotations

import asyncio
import base64
import enum
import functools
import inspect
import itertools
import re
import secrets
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import unquote

import orjson

DEFAULT_MODELS = ("GPT-5-nano", "GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-pro")
BACKLOG = 4096  # benchmarks open a thousand connections in one moment
SENTENCES = "This is the TokenRouter demo; no paid provider was called. {} Every word of this is one completion token."
UNICODE_WORDS = ("漢字", "👩‍💻", "e\u0301a\u0308", "한국어", "naïve", "🇺🇳")
HTML = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1></body></html>"
STRANGE_BODIES = {
    "html": ("text/html; charset=utf-8", HTML),
    "text": ("text/plain", b"upstream connect error"),
    "empty": ("application/json", b""),
    "json": ("application/json", b'{"detail":"Something went wrong"}'),
}
NEWLINES = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
ALLOWED = {
    "usage": re.compile("none|zero|negative|absurd|string|float|null|total_only|no_total|mismatch|every"),
    "body": re.compile("|".join(STRANGE_BODIES)),
    "newline": re.compile("|".join(NEWLINES)),
    "framing": re.compile("chunked|close|split"),
}
FLAGS = {"1": True, "yes": True, "0": False, "no": False}
DIRECTIVE = re.compile(r"\[\[\s*([a-z_]+=[^\s\]]*(?:\s+[a-z_]+=[^\s\]]*)*)\s*\]\]")
REASONS = {status.value: status.phrase for status in HTTPStatus}
RUN, SERIAL = secrets.token_hex(6), itertools.count(1)


@dataclass(frozen=True)
class Call:
    """Hold one request as it was received; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

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

    @property
    def total_tokens(self) -> int:
        """Return the sum that a team should be charged."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def request_id(self) -> str:
        """Return the `x-request-id` that the answer bears."""
        return f"req_{self.response_id.rpartition('-')[2]}"


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
    cut: int | None = None  # close after N
    reset: int | None = None  # the same with a TCP RST
    half_chunk: int | None = None  # close in the middle of what follows N events
    hang: int | None = None  # send nothing after N, but stay
    silent: bool = False  # never answer
    drop: bool = False  # close without a byte
    error_event: int | None = None  # end with an error event after N events
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
STAMP = b"t0000000000000000000"
KINDS = {each.name: str(each.type).removesuffix(" | None") for each in fields(Faults)}


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


# Directives


def directives(text: str, defaults: dict[str, str]) -> Faults:
    """Read the faults that a text asks for, over the defaults for all calls."""
    found = DIRECTIVE.findall(text) if "[[" in text else []
    if not found and not defaults:
        return FAITHFUL
    asked = dict(pair.split("=", 1) for block in found for pair in block.split())
    return read_faults(tuple({**defaults, **asked}.items()))


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


# Requests


def texts(content: Any) -> list[str]:
    """Return the text parts of a message's content."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def read_chat(body: dict[str, Any]) -> Question:
    """Read the messages; 3 tokens a message and 3 for the answer's start are added, as OpenAI counts."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "'messages' must be an array of messages.", param="messages")
    spoken = [texts(message.get("content")) for message in messages]
    characters = sum(len(text) for each in spoken for text in each)
    tokens = max(1, characters // 4) + 3 * len(messages) + 3
    return Question(body, "\n".join(spoken[-1]), tokens, is_chat=True)


def read_prompts(field_name: str, body: dict[str, Any]) -> Question:
    """Read a string, strings, a token array or token arrays."""
    value = body.get(field_name)
    prompts = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    if not all(isinstance(prompt, str | list) for prompt in prompts):
        raise Refusal(400, f"'{field_name}' must be text or tokens.", param=field_name)
    written = [prompt for prompt in prompts if isinstance(prompt, str)]
    tokens = sum(map(len, written)) // 4 + sum(len(prompt) for prompt in prompts if isinstance(prompt, list))
    return Question(body, "\n".join(written), max(1, tokens), len(prompts))


def whole(body: dict[str, Any], name: str) -> int:
    """Return a positive integer of the request, or 0 where there is none."""
    value = body.get(name) or 0
    if not isinstance(value, int):
        raise Refusal(400, f"'{name}' must be an integer.", param=name)
    return max(0, value)


# Answers


def new_id(prefix: str) -> str:
    """Return an id that no other answer of any run has."""
    return f"{prefix}{RUN}{next(SERIAL):08d}"


def pieces_of(text: str) -> list[str]:
    """Split a text into words, each with the space after it."""
    return re.findall(r"\S+\s*|\s+", text)


def prose(text: str, faults: Faults) -> list[str]:
    """Return the words of a plain answer, with a bit of the question among them."""
    if faults.big is not None:
        return ["x" * faults.big]
    if faults.stamp:
        return [STAMP.decode()] * (faults.words or 1)
    echo = " ".join(DIRECTIVE.sub(" ", text).strip()[:40].split())
    words = SENTENCES.format(f'You asked: "{echo}".' if echo else "").split()
    words = [*UNICODE_WORDS, *words] if faults.unicode else words
    length = len(words) if faults.words is None else faults.words
    words = list(itertools.islice(itertools.cycle(words), length))
    return [word + " " for word in words[:-1]] + words[-1:]


def instance(schema: Any, root: Any, entered: frozenset[str] = frozenset()) -> Any:
    """Make a small value that a JSON schema accepts; `entered` holds the references that lead here."""
    if not isinstance(schema, dict):
        return None
    if reference := schema.get("$ref"):
        target = functools.reduce(lambda at, key: at.get(key, {}), reference.split("/")[1:], root)
        return None if reference in entered else instance(target, root, entered | {reference})
    for key in ("anyOf", "oneOf", "allOf"):
        if options := schema.get(key):
            # A type that contains itself ends only by an option that does not lead back.
            fresh = [option for option in options if option.get("$ref") not in entered]
            return instance((fresh or options)[0], root, entered)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    return plain_instance(schema, lambda inner: instance(inner, root, entered))


def plain_instance(schema: dict[str, Any], inside: Callable[[Any], Any]) -> Any:
    """Make a value of the schema's `type`; `inside` makes those of its parts."""
    kind = schema.get("type") or ("object" if "properties" in schema else "null")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: inside(inner) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [inside(schema.get("items")) for _ in range(schema.get("minItems", 0))]
        case "string":
            return "demo".ljust(schema.get("minLength", 0), "o")[: schema.get("maxLength")]
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return min(low, schema.get("maximum", schema.get("exclusiveMaximum", low + 1) - 1))
        case "boolean":
            return True
    return None


def dumped_pieces(value: Any) -> list[str]:
    """Serialise with line breaks: the spaces make several pieces, so a stream and a limit have where to cut."""
    return pieces_of(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def speak(question: Question, faults: Faults) -> Output:
    """Decide what every choice says: a tool call, JSON or prose, within the limit asked for."""
    pieces, reason, tool = content(question, faults)
    limits = [limit for name in ("max_tokens", "max_completion_tokens") if (limit := whole(question.body, name))]
    if limits and len(pieces) > min(limits):
        pieces, reason = pieces[: min(limits)], "length"
    return Output(pieces, reason, tool)


def content(question: Question, faults: Faults) -> tuple[list[str], str, str | None]:
    """Return the pieces, finish_reason and tool of an unlimited answer."""
    body = question.body
    tools = body.get("tools") if question.is_chat else None
    if tools and body.get("tool_choice") != "none" and body["messages"][-1].get("role") == "user":
        function = tools[0].get("function", {})
        parameters = function.get("parameters", {})
        return dumped_pieces(instance(parameters, parameters) or {}), "tool_calls", function.get("name", "")
    wanted = (body.get("response_format") or {}) if question.is_chat else {}
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema", {}).get("schema", {})
        return dumped_pieces(instance(schema, schema)), "stop", None
    if wanted.get("type") == "json_object":
        return dumped_pieces({"answer": "".join(prose(question.text, faults))}), "stop", None
    return prose(question.text, faults), "stop", None


def usage_member(kind: str | None, prompt: int, completion: int) -> dict[str, Any]:
    """Return the `usage` to merge into an answer, bent as the directive says."""
    truth = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    match kind:
        case "none":
            return {}
        case "null":
            return {"usage": None}
        case "zero":
            return {"usage": dict.fromkeys(truth, 0)}
        case "negative":
            return {"usage": {name: -count for name, count in truth.items()}}
        case "string":
            return {"usage": {name: str(count) for name, count in truth.items()}}
        case "float":
            return {"usage": {name: count + 0.5 for name, count in truth.items()}}
        case "absurd":
            return {"usage": {**truth, "prompt_tokens": 675947905, "total_tokens": 675947905 + completion}}
        case "mismatch":
            return {"usage": {**truth, "total_tokens": prompt + completion + 7}}
        case "total_only":
            return {"usage": {"total_tokens": prompt + completion}}
        case "no_total":
            return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion}}
    details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}}
    return {"usage": {**truth, **details}}


def answer_completion(question: Question, faults: Faults) -> Answer:
    """Answer a chat or a legacy completion, as JSON or as a stream."""
    body = question.body
    if faults.refuse_stream_options and "stream_options" in body:
        raise Refusal(400, "Unrecognized request argument supplied: stream_options", param="stream_options")
    output, choices = speak(question, faults), question.prompts * (whole(body, "n") or 1)
    prompt = question.prompt_tokens if faults.prompt_tokens is None else faults.prompt_tokens
    response_id = new_id("chatcmpl-" if question.is_chat else "cmpl-")
    served = Served(response_id, body["model"], prompt, len(output.pieces) * choices)
    if body.get("stream") and not faults.json_for_stream:
        return event_stream(list(chunks(question, output, choices, served, faults)), served, faults)
    frame = common(served, "chat.completion" if question.is_chat else "text_completion")
    said = [{"index": index, **whole_choice(question, output)} for index in range(choices)]
    usage = usage_member(faults.usage, prompt, served.completion_tokens)
    return Answer([orjson.dumps({**frame, "choices": said, **usage})], served)


def common(served: Served, kind: str) -> dict[str, Any]:
    """Return the fields that every chat or text object starts with."""
    head = {"id": served.response_id, "object": kind, "created": int(time.time()), "model": served.model}
    return {**head, "system_fingerprint": "fp_demo"}


def whole_choice(question: Question, output: Output) -> dict[str, Any]:
    """Return one choice of a JSON answer, without its index."""
    text = "".join(output.pieces)
    ending = {"logprobs": None, "finish_reason": output.finish_reason}
    if not question.is_chat:
        return {"text": text, **ending}
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if output.tool is not None:
        message |= {"content": None, "tool_calls": [tool_call(output.tool, text)]}
    return {"message": message, **ending}


def tool_call(name: str, arguments: str) -> dict[str, Any]:
    """Return a call of the named function, under a new id."""
    return {"id": new_id("call_"), "type": "function", "function": {"name": name, "arguments": arguments}}


def turns(question: Question, output: Output) -> Iterator[tuple[dict[str, Any], str | None, int]]:
    """Yield what each chunk of a choice says, its finish_reason and its tokens."""
    if not question.is_chat:
        yield from (({"text": piece}, None, 1) for piece in output.pieces)
        yield {"text": ""}, output.finish_reason, 0
        return
    opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if output.tool is not None:
        opening |= {"content": None, "tool_calls": [{"index": 0, **tool_call(output.tool, "")}]}
    yield {"delta": opening}, None, 0
    for piece in output.pieces:
        arguments = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        yield {"delta": {"content": piece} if output.tool is None else arguments}, None, 1
    yield {"delta": {}}, output.finish_reason, 0


def chunks(question: Question, output: Output, choices: int, served: Served, faults: Faults) -> Iterator[bytes]:
    """Yield the data of a stream's events, as OpenAI's: `usage` is null until the last, if it was asked for."""
    frame = common(served, "chat.completion.chunk" if question.is_chat else "text_completion")
    tells_usage = bool((question.body.get("stream_options") or {}).get("include_usage")) and faults.usage != "none"
    usage: dict[str, Any] = {"usage": None} if tells_usage else {}
    sent = 0
    for part, finish_reason, tokens in turns(question, output):
        for index in range(choices):
            sent += tokens
            if faults.usage == "every":
                usage = usage_member("every", served.prompt_tokens, sent)
            choice = {"index": index, **part, "logprobs": None, "finish_reason": finish_reason}
            yield orjson.dumps({**frame, "choices": [choice], **usage})
    if tells_usage:
        usage = usage_member(faults.usage, served.prompt_tokens, served.completion_tokens)
        yield orjson.dumps({**frame, "choices": [], **usage})


def event_stream(datas: list[bytes], served: Served, faults: Faults) -> Answer:
    """Write the events of a stream in the dialect asked for."""
    if faults.error_event is not None:
        datas = [*datas[: faults.error_event], asked_error(faults, 500).body]
    elif faults.done:
        datas.append(b"[DONE]")
    newline, colon = NEWLINES[faults.newline], b": " if faults.space else b":"
    before = b"data" + colon
    if faults.event_names:
        before = b"event" + colon + b"message" + newline + before
    if faults.comments:
        before = b": ping" + newline * 2 + before
    events = [before + data + newline * 2 for data in datas]
    whole_answer = served if faults.error_event is None else None
    return Answer(events, whole_answer, content_type="text/event-stream; charset=utf-8", is_stream=True)


def answer_embeddings(question: Question, faults: Faults) -> Answer:
    """Answer with one vector for each input."""
    body = question.body
    prompt = question.prompt_tokens if faults.prompt_tokens is None else faults.prompt_tokens
    value = vector(whole(body, "dimensions") or 1536, body.get("encoding_format") == "base64")
    rows = [{"object": "embedding", "index": index, "embedding": value} for index in range(question.prompts)]
    usage = usage_member(faults.usage, prompt, 0)
    for name in ("completion_tokens", "prompt_tokens_details", "completion_tokens_details"):
        (usage.get("usage") or {}).pop(name, None)
    reply = {"object": "list", "data": rows, "model": body["model"], **usage}
    return Answer([orjson.dumps(reply)], Served(new_id("embd-"), body["model"], prompt, 0))


@functools.lru_cache(maxsize=64)
def vector(dimensions: int, is_base64: bool) -> list[float] | str:
    """Return a vector of length one, the same for every text: meaning is not on offer here."""
    packed = struct.pack(f"<{dimensions}f", *[dimensions**-0.5] * dimensions)
    return base64.b64encode(packed).decode() if is_base64 else list(struct.unpack(f"<{dimensions}f", packed))


def asked_error(faults: Faults, status: int) -> Refusal:
    """Return the error that the directives word."""
    message = (faults.message or "The_server_had_an_error_while_processing_your_request.").replace("_", " ")
    usual = {401: "authentication_error", 429: "rate_limit_error"}
    fallback = usual.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return Refusal(status, message, code=faults.code, type=faults.type or fallback)


def asked_failure(faults: Faults) -> Answer | None:
    """Return the answer of a directive that replaces the real one, if there is any."""
    if faults.redirect:
        return Answer([b""], status=307, headers={"location": faults.redirect})
    headers = {"retry-after": faults.retry_after} if faults.retry_after else {}
    if faults.body:
        content_type, body = STRANGE_BODIES[faults.body]
        return Answer([body], status=faults.status or 500, content_type=content_type, headers=headers)
    if faults.status >= 300:
        return Answer([asked_error(faults, faults.status).body], status=faults.status, headers=headers)
    return None


# Scripts


def stage(answer: Answer, faults: Faults) -> Script:
    """Turn an answer into waits and writes, broken where the directives say so."""
    if faults.silent:
        return Script([], Ending.HANG)
    if faults.drop:
        return Script([(faults.delay, b"")], Ending.CUT)
    parts = compressed(answer.parts) if faults.gzip else answer.parts
    is_chunked = faults.framing == "chunked" or (answer.is_stream and faults.framing != "close")
    head = head_of(answer, faults, sum(map(len, parts)), is_chunked)
    frames = [chunk(part, faults) for part in parts] if is_chunked else parts
    frames, ending = broken_off(frames, answer.is_stream, faults)
    if is_chunked and ending is Ending.KEEP:
        frames = [*frames[:-1], b"".join([*frames[-1:], b"0\r\n\r\n"])]
    if ending is Ending.KEEP and (faults.framing == "close" or faults.length > 0):
        ending = Ending.CLOSE
    served = answer.served if ending in (Ending.KEEP, Ending.CLOSE) else None
    return Script(timed(head, frames, faults), ending, served)


def head_of(answer: Answer, faults: Faults, length: int, is_chunked: bool) -> bytes:
    """Write the status line and the headers, with the blank line."""
    status = answer.status if answer.status != 200 else faults.status or 200
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}"]
    lines.append(f"content-type: {faults.content_type or answer.content_type}")
    if is_chunked:
        lines.append("transfer-encoding: chunked")
    elif faults.framing == "close":
        lines.append("connection: close")
    else:
        lines.append(f"content-length: {max(0, length + faults.length)}")
    if faults.gzip:
        lines.append("content-encoding: gzip")
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += ["openai-processing-ms: 5", "openai-organization: org-demo", "set-cookie: provider=secret"]
    request_id = answer.served.request_id if answer.served else new_id("req_")
    lines += ["x-ratelimit-remaining-tokens: 150000", f"x-request-id: {request_id}", "", ""]
    return "\r\n".join(lines).encode()


def compressed(parts: list[bytes]) -> list[bytes]:
    """Compress so that each part can be read as soon as it arrives."""
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts]
    return [*packed[:-1], packed[-1] + packer.flush()]


def tiny(data: bytes) -> Iterator[bytes]:
    """Cut bytes into pieces of 1 to 7."""
    at = 0
    for size in itertools.cycle((1, 2, 5, 3, 7, 4, 6)):
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size


def chunk(part: bytes, faults: Faults) -> bytes:
    """Write one part as an HTTP chunk, or as many if it is to be split."""
    # A client's HTTP library joins TCP segments within one HTTP chunk, so a split has to cut both.
    pieces = tiny(part) if faults.framing == "split" else [part] if part else []
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def broken_off(frames: list[bytes], is_stream: bool, faults: Faults) -> tuple[list[bytes], Ending]:
    """Keep what is sent before the asked break."""
    stops = ((faults.cut, Ending.CUT), (faults.reset, Ending.RESET), (faults.hang, Ending.HANG))
    for limit, ending in stops:
        if limit is not None:
            return frames[:limit] if is_stream else [b"".join(frames)[:limit]], ending
    if faults.half_chunk is None:
        return frames, Ending.KEEP
    whole_frames, half = frames[: faults.half_chunk], frames[faults.half_chunk : faults.half_chunk + 1]
    return whole_frames + [frame[: len(frame) // 2] for frame in half], Ending.CUT


def timed(head: bytes, frames: list[bytes], faults: Faults) -> list[tuple[float, bytes]]:
    """Put the waits between the writes."""
    if faults.burst:
        frames = [b"".join(frames)]
    steps = list(zip(itertools.chain([faults.first], itertools.repeat(faults.gap)), frames, strict=False))
    if faults.framing == "split":
        steps = [(0 if at else wait, piece) for wait, frame in steps for at, piece in enumerate(tiny(frame))]
    elif steps and not faults.first:
        return [(faults.delay, head + steps[0][1]), *steps[1:]]  # one system call less
    return [(faults.delay, head), *steps]


# Server


def read_call(buffer: bytearray, send: Callable[[bytes], None]) -> Generator[None, None, Call]:
    """Take one request out of a buffer, yielding while bytes are missing; raises ValueError if it is not HTTP."""
    head = (yield from take_until(buffer, b"\r\n\r\n")).decode("latin-1")
    first_line, *lines = head.split("\r\n")
    method, target, _ = first_line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        send(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = yield from take_chunks(buffer)
    else:
        body = yield from take(buffer, int(headers.get("content-length", 0)))
    return Call(method, target.partition("?")[0], headers, body)


def take_until(buffer: bytearray, mark: bytes) -> Generator[None, None, bytes]:
    """Take what stands before a mark, and the mark itself."""
    while (end := buffer.find(mark)) < 0:
        yield
    taken = bytes(buffer[:end])
    del buffer[: end + len(mark)]
    return taken


def take(buffer: bytearray, size: int) -> Generator[None, None, bytes]:
    """Take so many bytes."""
    while len(buffer) < size:
        yield
    taken = bytes(buffer[:size])
    del buffer[:size]
    return taken


def take_chunks(buffer: bytearray) -> Generator[None, None, bytes]:
    """Take a body in chunks, to the end of its trailers."""
    chunks_read = []
    while size := int((yield from take_until(buffer, b"\r\n")).partition(b";")[0], 16):
        chunks_read.append((yield from take(buffer, size)))
        yield from take(buffer, 2)
    while (yield from take_until(buffer, b"\r\n")):
        pass  # trailers
    return b"".join(chunks_read)


class Connection(asyncio.Protocol):
    """Read requests and play their scripts, one at a time."""

    transport: asyncio.Transport
    reading: Generator[None, None, Call]

    def __init__(self, provider: StandInProvider) -> None:
        self.provider = provider
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray()
        self.script: Script | None = None  # being played
        self.steps: Iterator[tuple[float, bytes]] = iter(())
        self.steps_left = 0
        self.timer: asyncio.TimerHandle | None = None
        self.is_full = False  # the client does not read as fast as we write
        self.closes = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the transport and wait for a request."""
        self.transport = transport
        # Any byte not yet taken by the kernel halts the script: an answer counts as finished once it has left.
        transport.set_write_buffer_limits(high=0)
        self.reading = read_call(self.buffer, transport.write)
        self.provider.connections.add(self)

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing of a request has come since the last answer."""
        return self.script is None and inspect.getgeneratorstate(self.reading) == inspect.GEN_CREATED

    def data_received(self, data: bytes) -> None:
        """Collect bytes until they make a request."""
        self.buffer += data
        self.read_on()

    def read_on(self) -> None:
        """Answer the next request if it is complete and none is being answered."""
        if self.script or self.transport.is_closing():
            return
        try:
            next(self.reading)
        except StopIteration as complete:
            self.answer(complete.value)
        except ValueError:
            self.transport.abort()

    def answer(self, call: Call) -> None:
        """Start to play the answer of a call."""
        self.reading = read_call(self.buffer, self.transport.write)
        self.closes = call.headers.get("connection", "").lower() == "close"
        self.script = self.provider.respond(call)
        self.steps, self.steps_left = iter(self.script.steps), len(self.script.steps)
        self.play()

    def play(self) -> None:
        """Write until the script says to wait or the client is slow."""
        while self.script and not (self.is_full or self.timer or self.transport.is_closing()):
            if not self.steps_left:
                self.end(self.script.ending)
                return
            wait_s, data = next(self.steps)
            if wait_s:
                self.timer = self.loop.call_later(wait_s, self.wake, data)
            else:
                self.write(data)

    def wake(self, data: bytes) -> None:
        """Go on after a wait."""
        self.timer = None
        self.write(data)
        self.play()

    def write(self, data: bytes) -> None:
        """Write one step of the script."""
        self.steps_left -= 1
        # Booked before the last bytes leave: who has read them finds the record.
        if not self.steps_left and self.script and self.script.served:
            self.provider.finished.append(self.script.served)
        self.transport.write(data.replace(STAMP, b"t%019d" % time.monotonic_ns()) if STAMP in data else data)

    def end(self, ending: Ending) -> None:
        """Do with the connection what the script says."""
        if ending is Ending.HANG:
            return
        self.script = None
        if ending is Ending.RESET:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        if ending is not Ending.KEEP or self.closes:
            self.transport.abort()  # nothing waits to be written here
        elif self.buffer:
            self.loop.call_soon(self.read_on)

    def pause_writing(self) -> None:
        """Halt the script."""
        self.is_full = True

    def resume_writing(self) -> None:
        """Go on once all is written."""
        self.is_full = False
        self.play()

    def eof_received(self) -> None:
        """Take a closed sending side for a client that has left."""
        self.forsake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up, whoever closed the connection."""
        self.forsake()
        self.provider.connections.discard(self)

    def forsake(self) -> None:
        """Stop the script, and count it as aborted: the client has gone."""
        script = self.forget()
        if script:
            self.provider.aborted += 1
            if script.served and not self.steps_left:
                self.provider.finished.remove(script.served)

    def forget(self) -> Script | None:
        """Stop the script and its timer, and return it."""
        script, self.script = self.script, None
        if self.timer:
            self.timer.cancel()
            self.timer = None
        return script


class StandInProvider:
    """Serve OpenAI's API on loopback from a thread of its own, recording what was asked and what was truly served.

    `calls` is filled as requests arrive, `finished` before an answer's last bytes leave; the counters of sockets and of
    aborted answers follow the client by a moment. After `stop()` it can start again on the same port.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        models: Sequence[str] = DEFAULT_MODELS,
        record_calls: bool = True,
    ) -> None:
        self.host, self.port, self.api_key, self.models = host, port, api_key, tuple(models)
        self.record_calls = record_calls  # a long benchmark need not keep every body
        self.defaults: dict[str, str] = {}
        self.calls: list[Call] = []
        self.finished: list[Served] = []
        self.aborted = 0
        self.connections: set[Connection] = set()
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """Return the root to configure; its port is known after `start()`."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def open_connections(self) -> int:
        """Return how many sockets are open now."""
        return len(self.connections)

    @property
    def tokens_served(self) -> int:
        """Return the total tokens of all finished answers."""
        return sum(served.total_tokens for served in tuple(self.finished))

    def start(self) -> Self:
        """Listen and return; raises OSError if the port is taken."""
        listener = socket.create_server((self.host, self.port), backlog=BACKLOG)
        self.port = listener.getsockname()[1]
        self._loop, self._stopping = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="stand-in-provider", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close every socket at once and wait for the thread; does nothing if it is not running."""
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def close_idle(self) -> None:
        """Close the connections that wait for a request, and return when they are closed."""
        asyncio.run_coroutine_threadsafe(self._close_idle(), self._loop).result()

    async def _close_idle(self) -> None:
        idle = {each for each in self.connections if each.is_idle}
        for connection in idle:
            connection.transport.abort()
        while idle & self.connections:
            await asyncio.sleep(0)

    def _run(self, listener: socket.socket) -> None:
        with closing(self._loop):
            self._loop.run_until_complete(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await self._loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
        await self._stopping.wait()
        server.close()
        # A connection may just be in the hands of a task of the loop's own, which is waited for too.
        while self.connections or len(asyncio.all_tasks()) > 1:
            for connection in tuple(self.connections):
                connection.forget()
                connection.transport.abort()
            await asyncio.sleep(0)

    def respond(self, call: Call) -> Script:
        """Record a call and decide its answer."""
        if self.record_calls:
            self.calls.append(call)
        try:
            return stage(*self._answer(call))
        except Refusal as refusal:
            return stage(Answer([refusal.body], status=refusal.status), FAITHFUL)
        except (AttributeError, IndexError, KeyError, TypeError) as error:  # a field of the wrong type, deep inside
            refusal = Refusal(400, f"Invalid request: {error!r}")
            return stage(Answer([refusal.body], status=400), FAITHFUL)

    def _answer(self, call: Call) -> tuple[Answer, Faults]:
        self._check_key(call.headers.get("authorization", ""))
        if call.method == "GET" and (call.path + "/").startswith("/v1/models/"):
            faults = directives("", self.defaults)
            return asked_failure(faults) or self._list_models(call.path[len("/v1/models/") :]), faults
        if call.method != "POST" or call.path not in ROUTES:
            raise Refusal(404, f"Unknown request URL: {call.method} {call.path}.", code="unknown_url")
        read, answer = ROUTES[call.path]
        question = read(json_object(call))
        faults = directives(question.text, self.defaults)
        return asked_failure(faults) or answer(question, faults), faults

    def _check_key(self, authorization: str) -> None:
        bearer_token = authorization.removeprefix("Bearer ")
        if self.api_key is not None and bearer_token != self.api_key:
            # OpenAI shows as much of it, so what leaks a provider's answer leaks a part of the key.
            masked = f"{bearer_token[:4]}****{bearer_token[-4:]}" if len(bearer_token) > 12 else "****"
            raise Refusal(401, f"Incorrect API key provided: {masked}.", code="invalid_api_key")

    def _list_models(self, model_id: str) -> Answer:
        rows = [{"id": name, "object": "model", "created": 1754000000, "owned_by": "demo"} for name in self.models]
        if not model_id:
            return Answer([orjson.dumps({"object": "list", "data": rows})])
        for row in rows:
            if row["id"] == unquote(model_id):
                return Answer([orjson.dumps(row)])
        raise Refusal(404, f"The model '{unquote(model_id)}' does not exist.", code="model_not_found", param="model")


def json_object(call: Call) -> dict[str, Any]:
    """Return the request's body; raises Refusal if it is not an object with a model."""
    try:
        body = call.json
    except ValueError as error:
        raise Refusal(400, "We could not parse the JSON body of your request.") from error
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        raise Refusal(400, "you must provide a model parameter", param="model")
    return body


Reader = Callable[[dict[str, Any]], Question]
ROUTES: dict[str, tuple[Reader, Callable[[Question, Faults], Answer]]] = {
    "/v1/chat/completions": (read_chat, answer_completion),
    "/v1/completions": (functools.partial(read_prompts, "prompt"), answer_completion),
    "/v1/embeddings": (functools.partial(read_prompts, "input"), answer_embeddings),
}

"""Answer chats, completions and embeddings, and with the errors that are asked for."""

import base64
import functools
import struct
import time
from collections.abc import Iterator
from typing import Any

import orjson

from tokenrouter.standin.faults import NEWLINES, STRANGE_BODIES, Faults
from tokenrouter.standin.questions import whole
from tokenrouter.standin.values import Answer, Output, Question, Refusal, Served
from tokenrouter.standin.words import dumped_pieces, instance, new_id, prose

EVENTS = "text/event-stream; charset=utf-8"


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


def usage_member(faults: Faults, prompt: int, completion: int) -> dict[str, Any]:
    """Return the `usage` to merge into an answer, bent as the directive says."""
    truth = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    match faults.usage:
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
    details = {
        "prompt_tokens_details": {"cached_tokens": faults.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    cost = {} if faults.cost is None else {"cost": faults.cost}
    return {"usage": {**truth, **details, **cost}}


def token_usage(faults: Faults, prompt: int, completion: int) -> dict[str, Any]:
    """Return the same in the words of the newer endpoints: input and output."""
    usage = usage_member(faults, prompt, completion).get("usage")
    if usage is None:
        return {} if faults.usage == "none" else {"usage": None}
    names = {name: name.replace("prompt", "input").replace("completion", "output") for name in usage}
    return {"usage": {names[name]: count for name, count in usage.items()}}


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
    usage = usage_member(faults, prompt, served.completion_tokens)
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
                usage = usage_member(faults, served.prompt_tokens, sent)
            choice = {"index": index, **part, "logprobs": None, "finish_reason": finish_reason}
            yield orjson.dumps({**frame, "choices": [choice], **usage})
    if tells_usage:
        usage = usage_member(faults, served.prompt_tokens, served.completion_tokens)
        yield orjson.dumps({**frame, "choices": [], **usage})


def event_stream(datas: list[bytes], served: Served, faults: Faults) -> Answer:
    """Write the events of a stream in the dialect asked for."""
    if faults.error_event is not None:
        datas = [*datas[: faults.error_event], requested_error(faults, 500).body]
    elif faults.done:
        datas.append(b"[DONE]")
    events = [written(data, "message" if faults.event_names else "", faults) for data in datas]
    whole_answer = served if faults.error_event is None else None
    return Answer(events, whole_answer, content_type=EVENTS, is_stream=True)


def typed_stream(events: list[dict[str, Any]], served: Served, faults: Faults) -> Answer:
    """Write events that name their type, twice; no [DONE] ends them."""
    parts = [written(orjson.dumps(event), event["type"], faults) for event in events]
    whole_answer = served if faults.error_event is None and faults.failed is None else None
    return Answer(parts, whole_answer, content_type=EVENTS, is_stream=True)


def written(data: bytes, name: str, faults: Faults) -> bytes:
    """Write one event in the dialect asked for."""
    newline, colon = NEWLINES[faults.newline], b": " if faults.space else b":"
    lines = b"event" + colon + name.encode() + newline if name else b""
    comment = b": ping" + newline * 2 if faults.comments else b""
    return comment + lines + b"data" + colon + data + newline * 2


def answer_embeddings(question: Question, faults: Faults) -> Answer:
    """Answer with one vector for each input."""
    body = question.body
    prompt = question.prompt_tokens if faults.prompt_tokens is None else faults.prompt_tokens
    value = vector(whole(body, "dimensions") or 1536, body.get("encoding_format") == "base64")
    rows = [{"object": "embedding", "index": index, "embedding": value} for index in range(question.prompts)]
    usage = usage_member(faults, prompt, 0)
    for name in ("completion_tokens", "prompt_tokens_details", "completion_tokens_details"):
        (usage.get("usage") or {}).pop(name, None)
    reply = {"object": "list", "data": rows, "model": body["model"], **usage}
    return Answer([orjson.dumps(reply)], Served(new_id("embd-"), body["model"], prompt, 0))


@functools.lru_cache(maxsize=64)
def vector(dimensions: int, is_base64: bool) -> list[float] | str:
    """Return a vector of length one, the same for every text: meaning is not on offer here."""
    packed = struct.pack(f"<{dimensions}f", *[dimensions**-0.5] * dimensions)
    return base64.b64encode(packed).decode() if is_base64 else list(struct.unpack(f"<{dimensions}f", packed))


def requested_error(faults: Faults, status: int) -> Refusal:
    """Return the error that the directives word."""
    message = (faults.message or "The_server_had_an_error_while_processing_your_request.").replace("_", " ")
    usual = {401: "authentication_error", 429: "rate_limit_error"}
    fallback = usual.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return Refusal(status, message, code=faults.code, type=faults.type or fallback)


def requested_failure(faults: Faults) -> Answer | None:
    """Return the answer of a directive that replaces the real one, if there is any."""
    if faults.redirect:
        return Answer([b""], status=307, headers={"location": faults.redirect})
    headers = {"retry-after": faults.retry_after} if faults.retry_after else {}
    if faults.body:
        content_type, body = STRANGE_BODIES[faults.body]
        return Answer([body], status=faults.status or 500, content_type=content_type, headers=headers)
    if faults.status >= 300:
        return Answer([requested_error(faults, faults.status).body], status=faults.status, headers=headers)
    return None

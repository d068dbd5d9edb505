"""Answer responses, as JSON or as a stream of typed events."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import orjson

from tokenrouter.standin.answers import requested_error, token_usage, typed_stream
from tokenrouter.standin.faults import Faults
from tokenrouter.standin.questions import whole
from tokenrouter.standin.values import Answer, Output, Question, Served
from tokenrouter.standin.words import dumped_pieces, instance, new_id, prose

Event = dict[str, Any]
ECHOED: Event = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}


def answer_response(question: Question, faults: Faults) -> Answer:
    """Answer with a message, JSON, or a call of the first tool."""
    output = respond(question, faults)
    prompt = question.prompt_tokens if faults.prompt_tokens is None else faults.prompt_tokens
    served = Served(new_id("resp_"), question.body["model"], prompt, len(output.pieces))
    response = whole_response(question, output, served, faults)
    if not question.body.get("stream") or faults.json_for_stream:
        return Answer([orjson.dumps(response)], served)
    events = [{**event, "sequence_number": at} for at, event in enumerate(typed_events(response, output))]
    return typed_stream(broken_events(events, response, faults), served, faults)


def respond(question: Question, faults: Faults) -> Output:
    """Decide what the answer says, within the limit asked for."""
    body = question.body
    tools = [tool for tool in body.get("tools") or () if tool.get("type") == "function"]
    output_format = (body.get("text") or {}).get("format") or {}
    tool = None
    if tools and body.get("tool_choice") != "none" and question.text:
        tool = tools[0]["name"]
        parameters = tools[0].get("parameters", {})
        pieces = dumped_pieces(instance(parameters, parameters) or {})
    elif output_format.get("type") == "json_schema":
        pieces = dumped_pieces(instance(output_format["schema"], output_format["schema"]))
    else:
        pieces = prose(question.text, faults)
    limit = whole(body, "max_output_tokens") or len(pieces)
    return Output(pieces[:limit], "stop" if limit >= len(pieces) else "length", tool)


def whole_response(question: Question, output: Output, served: Served, faults: Faults) -> dict[str, Any]:
    """Return the response as it is at its end."""
    status = "completed" if output.finish_reason == "stop" else "incomplete"
    return {
        "id": served.response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
        "model": served.model,
        "output": [output_item(output, status)],
        **{name: question.body.get(name) or value for name, value in ECHOED.items()},
        **token_usage(faults, served.prompt_tokens, served.completion_tokens),
    }


def output_item(output: Output, status: str) -> dict[str, Any]:
    """Return the one item of the output."""
    text = "".join(output.pieces)
    if output.tool is not None:
        call = {"type": "function_call", "id": new_id("fc_"), "call_id": new_id("call_")}
        return {**call, "name": output.tool, "arguments": text, "status": status}
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "id": new_id("msg_"), "status": status, "role": "assistant", "content": content}


def typed_events(response: dict[str, Any], output: Output) -> Iterator[Event]:
    """Yield the events that build a response up."""
    started = {**response, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    (item,) = response["output"]
    yield {"type": "response.output_item.added", "output_index": 0, "item": started_item(item)}
    place = {"item_id": item["id"], "output_index": 0}
    yield from said(place, item, output) if output.tool is None else called(place, item, output)
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def started_item(item: dict[str, Any]) -> dict[str, Any]:
    """Return the item before it says anything."""
    empty: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
    return {**item, **empty, "status": "in_progress"}


def said(place: Event, item: dict[str, Any], output: Output) -> Iterator[Event]:
    """Yield the events of a message's text."""
    (part,) = item["content"]
    place = {**place, "content_index": 0}
    yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
    for piece in output.pieces:
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": part}


def called(place: Event, item: dict[str, Any], output: Output) -> Iterator[Event]:
    """Yield the events of a function call's arguments."""
    for piece in output.pieces:
        yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
    arguments = {"name": item["name"], "arguments": item["arguments"]}
    yield {"type": "response.function_call_arguments.done", **place, **arguments}


def broken_events(events: list[Event], response: dict[str, Any], faults: Faults) -> list[Event]:
    """Let the response fail, or an error end it, after as many events as were asked for."""
    stop = faults.failed if faults.error_event is None else faults.error_event
    if stop is None:
        return events
    error = orjson.loads(requested_error(faults, 500).body)["error"]
    reported_error = {"code": error["code"] or "server_error", "message": error["message"]}
    if faults.failed is not None:
        failed = {**response, "status": "failed", "error": reported_error, "output": []}
        last: Event = {"type": "response.failed", "response": failed}
    else:
        last = {"type": "error", **reported_error, "param": None}
    return [*itertools.islice(events, stop), {**last, "sequence_number": min(stop, len(events))}]

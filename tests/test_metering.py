"""Usage as reported, prompts as estimated and counted, streams as watched, and the one decision about a quota."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random

import pytest
import toktok
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from splintr import Tokenizer

from tokenrouter import prepare
from tokenrouter.errors import QuotaExceeded, QuotaReserved
from tokenrouter.ledger.rules import Balance, CallRequest, Grant, decide
from tokenrouter.metering import counting
from tokenrouter.metering.counting import ENCODING, count_tokens
from tokenrouter.metering.meter import StreamState
from tokenrouter.metering.prompts import read_chat_prompt
from tokenrouter.metering.streams import StreamMeter
from tokenrouter.metering.texts import answer_texts
from tokenrouter.metering.usage import Report, Usage, merge, read_usage
from tokenrouter.periods import UTC_ZONE

# Usage


def booked(document: object, prompt: int = 100, completion: int = 50) -> Usage:
    """Return what is booked of a report, where a half that is missing counts so much."""
    report = read_usage(document)
    assert report is not None
    return report.usage(lambda: prompt, lambda: completion)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 20}, Usage(5, 3, 20)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 1}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 0}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": None}, Usage(5, 3, 8)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0)),
        ({"prompt_tokens": 5.0, "completion_tokens": 3.0}, Usage(5, 3, 8)),
        ({"input_tokens": 5, "output_tokens": 3}, Usage(5, 3, 8)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 5, "output_tokens": 3}, Usage(5, 3, 8)),
        ({"prompt_tokens": 5, "input_tokens": 7, "completion_tokens": 3}, Usage(7, 3, 10)),
        ({"total_tokens": 180, "prompt_tokens_details": {"cached_tokens": -1}, "cost": "x"}, Usage(100, 80, 180)),
    ],
)
def test_usage_is_what_is_reported(usage: dict, expected: Usage):
    assert booked({"usage": usage}) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5}, Usage(5, 50, 55)),
        ({"prompt_tokens": 5, "completion_tokens": None, "total_tokens": None}, Usage(5, 50, 55)),
        ({"completion_tokens": 3}, Usage(100, 3, 103)),
        ({"prompt_tokens": 5, "total_tokens": 9}, Usage(5, 4, 9)),
        ({"completion_tokens": 3, "total_tokens": 9}, Usage(6, 3, 9)),
        ({"total_tokens": 8}, Usage(8, 0, 8)),
    ],
)
def test_half_that_is_missing_is_what_the_total_leaves_or_is_counted(usage: dict, expected: Usage):
    assert booked({"usage": usage}) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"choices": [{"usage": {"prompt_tokens": 5, "completion_tokens": 3}}]},
        {"choices": [None, {"usage": None}, {"usage": {"prompt_tokens": 5, "completion_tokens": 3}}]},
        {"x_groq": {"id": "x", "usage": {"prompt_tokens": 5, "completion_tokens": 3}}},
        {"usage": None, "x_groq": {"usage": {"prompt_tokens": 5, "completion_tokens": 3}}},
        {"usage": None, "choices": [{"usage": {"prompt_tokens": 5, "completion_tokens": 3}}]},
    ],
)
def test_usage_is_found_where_providers_put_it(document: dict):
    assert booked(document) == Usage(5, 3, 8)


LIES = [-1, 10**9, 10**30, "8", 8.5, True, [8], {"total": 8}, float("inf"), float("nan")]


@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens"])
@pytest.mark.parametrize("lie", LIES)
def test_usage_with_one_absurd_figure_is_no_usage(field: str, lie: object):
    assert read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, field: lie}}) is None


@pytest.mark.parametrize(
    "document",
    [None, [], "usage", 7, {}, *({"usage": usage} for usage in (None, {}, [], 8, "8", True, {"tokens": 8}))],
)
def test_document_without_usage_has_none(document: object):
    assert read_usage(document) is None


@given(st.lists(st.builds(Report, *[st.none() | st.integers(0, 1000)] * 3), min_size=1, max_size=5), st.randoms())
def test_reports_say_the_same_in_whatever_order_they_come(reports: list[Report], random: Random):
    first = merge(reports)
    random.shuffle(reports)
    assert merge(reports) == first and first.merged(first) == first


# Prompts


def chat(*contents: object, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **fields}


def tokens(body: dict[str, object]) -> int:
    return read_chat_prompt(body).count()


def added_by(*contents: object) -> int:
    return tokens(chat(*contents)) - tokens(chat([]))


def test_message_costs_as_openai_says():
    """Source: OpenAI's cookbook: three a message, its role, its content, and three before the answer."""
    assert read_chat_prompt(chat("Hello!")).count() == 3 + 1 + count_tokens("Hello!") + 3
    assert read_chat_prompt(chat("Hello!", "Hello!")).count() == 2 * (3 + 1 + count_tokens("Hello!")) + 3


def test_text_parts_cost_what_their_text_costs():
    parts = [{"type": "text", "text": "Hello!"}, {"type": "refusal", "refusal": "No."}]
    assert added_by(parts) == count_tokens("Hello!") + count_tokens("No.")


def test_name_costs_its_text_and_one_more():
    named = {"messages": [{"role": "user", "content": "", "name": "Beatrice"}]}
    assert read_chat_prompt(named).count() - read_chat_prompt(chat("")).count() == 1 + count_tokens("Beatrice")


TOOL = {"type": "function", "function": {"name": "find_book", "description": "Find a book.", "parameters": {}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"functions": [TOOL["function"]]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "a book to be found"}}}},
    ],
)
def test_tools_and_schemas_cost_at_least_their_text(fields: dict):
    assert read_chat_prompt(chat("", **fields)).count() >= read_chat_prompt(chat("")).count() + 8


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"a": "a book"}'}}]},
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": {"a": "a book"}}}]},
        {"tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "find", "input": '{"a": "a book"}'}}]},
        {"function_call": {"name": "find", "arguments": '{"a": "a book"}'}},
    ],
)
def test_calls_of_functions_cost_their_name_and_arguments(message: dict):
    body = {"messages": [{"role": "assistant", "content": None, **message}]}
    assert read_chat_prompt(body).count() >= read_chat_prompt(chat("")).count() + count_tokens(
        """find{"a": "a book"}"""
    )


@pytest.mark.parametrize("where", [lambda call: call, lambda call: call["function"]], ids=["call", "function"])
def test_text_counts_in_whatever_field_of_a_call_it_stands(where: Callable[[dict], dict]):
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    before = tokens({"messages": [{"tool_calls": [call]}]})
    where(call)["unheard_of"] = ENGLISH
    assert tokens({"messages": [{"tool_calls": [call]}]}) == before + count_tokens(ENGLISH)


ODD = [None, True, 0, -1.5, "text", [], {}, [None], [[]], [{}], {"type": "text"}, [{"type": 7, "text": 7}], [[[{}]]]]
FIELDS = ["messages", "tools", "functions", "response_format", "tool_choice"]
MESSAGE_FIELDS = ["content", "name", "role", "tool_calls", "function_call"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_unknown_shapes_never_raise(odd: object):
    bodies = [{field: odd} for field in FIELDS]
    bodies += [{"messages": [odd, {field: odd}, {field: [odd]}]} for field in MESSAGE_FIELDS]
    bodies += [{"messages": [{"tool_calls": [{"function": odd}], "function_call": {"name": odd, "arguments": odd}}]}]
    bodies += [{"messages": [{"content": [{"type": kind, kind: odd, "text": odd}]}]} for kind in ("image_url", "text")]
    for body in bodies:
        assert tokens(body) >= 0


ENGLISH = "The clerk placed the invoice on the desk and waited twenty minutes for an answer. "


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "unheard_of"])
def test_text_counts_in_whatever_field_of_a_message_it_stands(field: str):
    message = {"role": "assistant", "content": "ok", field: ENGLISH}
    without = {"role": "assistant", "content": "ok"}
    assert tokens({"messages": [message]}) == tokens({"messages": [without]}) + count_tokens(ENGLISH)


@pytest.mark.parametrize("value", [ENGLISH, [ENGLISH], {"deep": [{"within": ENGLISH}]}, [[[[ENGLISH]]]]])
def test_text_counts_in_whatever_field_of_the_body_it_stands(value: object):
    assert tokens(chat("", unheard_of=value)) == tokens(chat("")) + count_tokens(ENGLISH)


HARD_TEXTS = {
    "one punctuation": "!" * 3000,
    "rare line ends": "\r\v\f" * 1000,
    "rare script": "ꙮ" * 500,
    "combining accents": "\u0301" * 500,
    "emoji": "👩‍👩‍👧" * 100,
    "half a surrogate": "party \ud83c" * 10,
    "the encoding's own tokens": " ".join(Tokenizer.from_pretrained(ENCODING).special_tokens()),
    "what looks like them": "<|a|><|/b <|/ c|><||d|>/<|é|><|a <|endoftext|",
    "long": "The quick brown fox. <|endoftext|> " * 5000,
    "long, of one kind": "漢" * 200_000,
    "nothing": "",
}


@pytest.mark.parametrize("name", HARD_TEXTS)
def test_no_text_is_estimated_far_below_its_tokens(name: str):
    text = HARD_TEXTS[name]
    readable = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    assert added_by(text) == toktok.batch_count([readable], ENCODING)[0]


@pytest.mark.parametrize(
    "field", ["user", "metadata", "client_metadata", "reasoning_effort", "stop", "tool_choice", "service_tier"]
)
def test_field_that_the_model_does_not_read_counts_nothing(field: str):
    assert tokens(chat("", **{field: ENGLISH})) == tokens(chat(""))


def test_text_of_any_depth_is_counted_without_recursion():
    deep: object = ENGLISH
    for _ in range(100_000):
        deep = [deep]
    assert added_by(deep) == count_tokens(ENGLISH)


# Answers and streams


def answer(**message: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}}]}


def test_every_text_of_an_answer_is_counted():
    call = {"function": {"name": "find", "arguments": "{}"}}
    message = {"content": "one", "reasoning_content": "two", "refusal": "three", "tool_calls": [call], "audio": None}
    choices = [{"message": message}, {"index": 1, "delta": {"content": "four"}}, {"index": 2, "text": "five"}, None]
    assert answer_texts({"choices": choices}).tokens() == sum(
        map(count_tokens, ["one", "two", "three", "find", "{}", "four", "five"])
    )


SHAPES = {
    "parts": {"content": [{"type": "text", "text": ENGLISH}]},
    "thinking parts": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": ENGLISH}]}]},
    "transcript": {"content": None, "audio": {"id": "a", "data": "QUJD" * 5000, "transcript": ENGLISH}},
    "reasoning details": {"reasoning_details": [{"type": "reasoning.text", "text": ENGLISH, "signature": "x" * 900}]},
    "unheard of": {"unheard_of": {"within": ENGLISH}},
    "mirrored reasoning": {"reasoning": ENGLISH, "reasoning_content": ENGLISH},
    "mirrored details": {"reasoning": ENGLISH, "reasoning_details": [{"type": "reasoning.text", "text": ENGLISH}]},
    "mirrored in a new field": {"content": ENGLISH, "unheard_of": ENGLISH},
    "mirrored by a gateway": {
        "reasoning_content": ENGLISH,
        "thinking_blocks": [{"type": "thinking", "thinking": ENGLISH, "signature": "x" * 900}],
        "provider_specific_fields": {"thinking_blocks": [{"thinking": ENGLISH}], "citations": ["no"] * 90},
    },
    "sound of a few letters": {"audio": {"id": "a", "data": "QUJD", "transcript": ENGLISH}},
    "sources beside": {"content": ENGLISH, "context": {"citations": [{"content": "no " * 900}]}},
    "signature beside": {"content": ENGLISH, "extra_content": {"google": {"thought_signature": "x" * 900}}},
    "picture in bare base64": {"content": ENGLISH, "images": ["QUJD" * 900, "QUJD" * 900]},
    "picture beside": {"content": ENGLISH, "images": [{"image_url": {"url": "data:image/png;base64," + "A" * 9000}}]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_text_of_an_answer_is_counted_once_in_whatever_shape_it_comes(shape: str):
    assert answer_texts(answer(**SHAPES[shape])).tokens() == count_tokens(ENGLISH)


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "find", "arguments": '{"a":"a book"}'}},
        {"function": {"name": "find", "arguments": {"a": "a book"}}},
        {"type": "custom", "custom": {"name": "find", "input": '{"a":"a book"}'}},
        {"name": "find", "arguments": '{"a":"a book"}'},
        {"name": "find", "parameters": {"a": "a book"}},
    ],
)
def test_call_counts_its_name_and_arguments_in_whatever_dress(call: dict):
    expected = count_tokens("find") + count_tokens('{"a":"a book"}')
    assert answer_texts(answer(tool_calls=[call])).tokens() == expected
    assert answer_texts(answer(tool_calls=[call, call])).tokens() == 2 * expected


def test_thought_in_an_object_is_none_of_what_is_said():
    message = {"content": ENGLISH, "reasoning": {"content": "Let me think of it."}}
    assert answer_texts(answer(**message)).tokens() == count_tokens(ENGLISH) + count_tokens("Let me think of it.")


def test_choices_that_do_not_tell_their_number_are_counted_each():
    choices = [{"message": {"content": ENGLISH}}, {"index": None, "message": {"content": ENGLISH}}]
    assert answer_texts({"choices": choices}).tokens() == 2 * count_tokens(ENGLISH)


def test_encrypted_reasoning_counts_a_token_for_eight_characters():
    details = [{"type": "reasoning.encrypted", "data": "gAAAAAB" * 800}]
    assert answer_texts(answer(reasoning_details=details)).tokens() == 700
    assert added_by([{"type": "reasoning", "encrypted_content": "gAAAAAB" * 800}]) == 700
    assert answer_texts(answer(encrypted_content="gAAAAAB" * 800)).tokens() == 700
    assert added_by([{"type": "redacted_thinking", "data": "gAAAAAB" * 800}]) == 700


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_answers_of_unknown_shape_never_raise(odd: object):
    documents = [odd, {"choices": odd}, {"choices": [odd]}, {"choices": [{"delta": odd, "message": odd, "text": odd}]}]
    documents += [{"choices": [{"delta": {"content": odd, "tool_calls": odd}}], "usage": odd, "error": odd}]
    for document in documents:
        assert answer_texts(document).tokens() >= 0
        StreamMeter().read(event(document))


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(content: str, **fields: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": content}, **fields}]})


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_meter_counts_what_arrived():
    meter = StreamMeter()
    words = ["This ", "is ", "counted ", "as ", "one ", "text."]
    for word in words:
        assert meter.read(delta(word)) is False
    assert meter.completion_tokens() == count_tokens("".join(words))
    assert (meter.state, meter.is_whole(1), meter.report) == (StreamState.ANSWERING, False, None)


def test_running_count_of_a_meter_grows_and_is_never_less_than_the_count():
    meter, counts = StreamMeter(), [0]
    for _ in range(20):
        meter.read(delta(ENGLISH))
        counts.append(meter.running_tokens())
    assert counts == sorted(counts) and meter.running_tokens() == counts[-1]
    assert counts[-1] >= meter.completion_tokens()


WORDS = ENGLISH.split(" ")
SO_FAR = [" ".join(WORDS[: at + 1]) for at in range(len(WORDS))]
NEW = [text.removeprefix(before) for before, text in zip(["", *SO_FAR], SO_FAR, strict=False)]


@pytest.mark.parametrize(
    "parts",
    [
        [{"delta": {"content": new}, "message": {"content": text}} for new, text in zip(NEW, SO_FAR, strict=True)],
        [{"delta": {}, "message": {"content": text}} for text in SO_FAR],
        [{"delta": None, "message": {"content": new}} for new in NEW],
        [*[{"delta": {"content": new}} for new in NEW], {"delta": {}, "message": {"content": SO_FAR[-1]}}],
        [{"delta": {"reasoning": new, "reasoning_content": new}} for new in NEW],
        [
            {"delta": {"reasoning": new, "reasoning_details": [{"text": new}] if at else []}}
            for at, new in enumerate(NEW)
        ],
    ],
    ids=[
        "beside its pieces",
        "so far alone",
        "in pieces called message",
        "at the end once more",
        "mirrored",
        "in part",
    ],
)
def test_text_of_a_stream_is_counted_once_however_often_it_comes(parts: list[dict]):
    meter = StreamMeter()
    for part in parts:
        meter.read(event({"choices": [{"index": 0, **part}]}))
    assert meter.completion_tokens() == count_tokens(SO_FAR[-1])


def test_chunks_without_parsing_go_to_the_choice_that_they_are_of():
    meter = StreamMeter()
    for index in (0, 0, 1, 1, 0):
        meter.read(event({"choices": [{"index": index, "delta": {"content": " fox"}}]}))
    assert meter.completion_tokens() == count_tokens(" fox fox fox") + count_tokens(" fox fox")


@pytest.mark.parametrize(
    ("document", "is_extra"),
    [
        ({"choices": [], "usage": USAGE}, True),
        ({"choices": [], "usage": {}}, True),
        ({"choices": [], "usage": None}, False),
        ({"choices": []}, False),
        ({"choices": [], "prompt_filter_results": [{}]}, False),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE}, False),
        ({"usage": USAGE}, True),
        ({"choices": None, "usage": USAGE}, True),
        ({"choices": [], "cost": "0"}, True),
        ({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": USAGE}, True),
        ({"choices": [], "usage": USAGE, "citations": ["https://a.example"]}, False),
        ({"choices": [], "usage": USAGE, "obfuscation": "xYz"}, True),
        ({"choices": [], "usage": USAGE, "x_groq": {"id": "r", "usage": USAGE}}, True),
        ({"choices": [], "usage": USAGE, "x_groq": {"id": "r", "error": "No."}}, False),
    ],
)
def test_event_is_extra_where_usage_or_a_cost_is_all_that_it_brings(document: dict, is_extra: bool):
    assert StreamMeter().read(event(document)) is is_extra


def test_of_the_reports_that_can_be_believed_the_largest_figures_count():
    meter = StreamMeter()
    for usage in (USAGE, {**USAGE, "total_tokens": 9}, {"total_tokens": -1}, None, dict.fromkeys(USAGE, 0)):
        meter.read(event({"choices": [{"delta": {}}], "usage": usage}))
    assert meter.report == Report(5, 3, 9)


def test_text_behind_an_empty_piece_of_the_same_frame_is_something_of_an_answer():
    meter = StreamMeter()
    for each in (delta(""), delta("Hello"), delta("", finish_reason="stop"), b"data: [DONE]\n\n"):
        meter.read(each)
    assert meter.state is StreamState.WHOLE
    assert meter.completion_tokens() == count_tokens("Hello")


@pytest.mark.parametrize("beside", [{"x_groq": {"usage": USAGE}}, {"usage": USAGE}])
def test_usage_beside_a_plain_text_is_read(beside: dict):
    meter = StreamMeter()
    meter.read(delta("A"))
    meter.read(event({"choices": [{"index": 0, "delta": {"content": "B"}}], **beside}))
    assert meter.report == Report(5, 3, 8)


@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"event: x\ndata: [DONE] \n\n"])
def test_done_ends_a_stream(done: bytes):
    meter = StreamMeter()
    meter.read(delta("A"))
    meter.read(done)
    assert meter.state is StreamState.WHOLE


@pytest.mark.parametrize(
    "before",
    [
        [],
        [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}],
        [{"choices": [{"index": 0, "delta": {"content": ""}}]}],
        [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}],
        [{"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}],
    ],
)
def test_done_behind_nothing_ends_an_empty_stream(before: list[dict]):
    meter = StreamMeter()
    for each in (*map(event, before), b"data: [DONE]\n\n"):
        meter.read(each)
    assert meter.state is StreamState.EMPTY and meter.state.has_nothing


@pytest.mark.parametrize(
    "something",
    [
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "", "arguments": ""}}]}}]},
        {"choices": [{"index": 0, "delta": {"images": [{"type": "image_url", "image_url": {"url": "x"}}]}}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}},
    ],
)
def test_call_medium_or_usage_is_something_of_an_answer(something: dict):
    meter = StreamMeter()
    meter.read(event(something))
    meter.read(b"data: [DONE]\n\n")
    assert meter.state is StreamState.WHOLE


@pytest.mark.parametrize("before", [[], [delta("Z")]], ids=["first", "in the middle"])
def test_usage_before_the_text_does_not_make_a_cut_stream_whole(before: list[bytes]):
    meter = StreamMeter()
    for each in (*before, event({"choices": [], "usage": USAGE})):
        meter.read(each)
    assert meter.is_whole(1)
    meter.read(delta("A"))
    meter.read(delta("B"))
    assert not meter.is_whole(1)


@pytest.mark.parametrize(("before", "state"), [([], StreamState.REFUSED), ([delta("A")], StreamState.BROKEN)])
@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "No."}},
        {"error": "No."},
        {"object": "error", "message": "No."},
        {"detail": "No."},
        {"text": "No.", "error_code": 50001},
        {"choices": None, "base_resp": {"status_code": 1008}},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]},
        {"choices": [{"index": 0, "delta": {}, "error": {"message": "No."}}]},
        {"choices": [{"index": 0, "delta": {"content": ""}}], "error": {"message": "No."}},
        {"type": "error", "message": "No."},
        {"code": 500, "msg": "No.", "data": None},
        {"success": False, "errors": [{"code": 7000}]},
        b'event: error\ndata: {"message": "No."}\n\n',
        b"id: 1\r\nevent:error\r\ndata: No.\r\n\r\n",
        b'error: {"code": 400, "message": "No."}\n\n',
    ],
)
def test_error_ends_a_stream_in_whatever_shape(before: list[bytes], state: StreamState, error: dict | bytes):
    meter = StreamMeter()
    for each in (*before, error if isinstance(error, bytes) else event(error)):
        meter.read(each)
    assert meter.state is state and state.has_ended and state.has_failed


def test_error_beside_a_text_ends_a_stream_too():
    meter = StreamMeter()
    meter.read(delta("A"))
    meter.read(event({"choices": [{"index": 0, "delta": {"content": "B"}}], "error": {"message": "No."}}))
    assert meter.state is StreamState.BROKEN


def test_usage_in_an_error_is_read():
    meter = StreamMeter()
    meter.read(event({"error": {"message": "No."}, "usage": USAGE}))
    assert (meter.state, meter.report) == (StreamState.BROKEN, Report(5, 3, 8))


@pytest.mark.parametrize(
    "beside",
    [
        {"error": None},
        {"error": {}},
        {"code": 0, "msg": "success"},
        {"success": True},
        {"code": 200, "message": "OK"},
        {"code": "success", "message": "", "data": [{}]},
    ],
)
def test_what_says_that_all_is_well_is_no_error(beside: dict):
    meter = StreamMeter()
    meter.read(event({"choices": [{"index": 0, "delta": {"content": "A"}}], **beside}))
    meter.read(event(beside))
    assert meter.state is StreamState.ANSWERING


@pytest.mark.parametrize(
    "data", [b": ping\n\n", b"\n\n", b"data: {\n\n", b"data: 7\n\n", b"data: \xff\n\n", b"id: 1\n\n"]
)
def test_what_is_no_json_is_no_answer_and_no_end(data: bytes):
    meter = StreamMeter()
    assert meter.read(data) is False
    assert (meter.state, meter.completion_tokens()) == (StreamState.WAITING, 0)


def test_reason_why_a_choice_ended_finishes_a_stream():
    meter = StreamMeter()
    meter.read(delta("", finish_reason=None))
    meter.read(delta("", finish_reason="null"))
    assert not meter.is_whole(1)
    meter.read(delta("", finish_reason="length"))
    assert (meter.is_whole(1), meter.is_whole(2), meter.state.has_ended) == (True, False, False)


# The decision about a quota

QUOTAS = [None, 0, 1, 15, 16, 17, 31, 40, 100, 1000, 1024, 1100, 5000]
USES = [0, 1, 20, 990, 6000]
HOLDS = [0, 1, 30, 500]
PROMPTS = [0, 1, 16, 60]
OUTPUTS = [(0, 0), (1, 1), (1, 16), (1, 50), (1, 1024), (3, 3), (3, 48), (3, 3072), (128, 131072)]
RESERVES = [1, 128, 1024]


def contract(quota: int | None, used: int, held: int, prompt: int, output: int, choices: int, reserve: int) -> object:
    """Decide by the words of the contract alone: the tokens to hold and the limit, or the code of the refusal."""
    if quota is None:
        return prompt + output, None
    left = quota - used - held
    if prompt + output <= left:
        return prompt + output, None
    # "each choice limited to": an endpoint without text output has no choice to limit
    is_worth_it = left - prompt >= reserve or (held == 0 and left - prompt >= 16 * choices)
    if choices and is_worth_it and left - prompt >= choices:  # "at least 1", and not above the quota
        return left, (left - prompt) // choices
    return "quota_reserved" if held and quota - used - prompt >= 16 * choices else "insufficient_quota"


def decided(quota: int | None, used: int, held: int, prompt: int, output: int, choices: int, reserve: int) -> object:
    call_request = CallRequest(
        request_id="r",
        team_id=1,
        team_name="t",
        token_id=1,
        token_prefix="tr-12345",
        model="m",
        endpoint="/v1/chat/completions",
        stream=False,
        created_at=datetime.now(UTC),
        prompt_tokens=prompt,
        output_tokens=output,
        choices=choices,
    )
    try:
        grant: Grant = decide(
            list(Balance("this team", quota, 0, used, held).limits(None, "USD")), call_request, reserve, UTC_ZONE
        )
    except (QuotaExceeded, QuotaReserved) as refusal:
        return refusal.code
    return grant.held_tokens, grant.output_limit


@pytest.mark.parametrize("quota", QUOTAS)
def test_quota_is_decided_as_the_contract_says(quota: int | None):
    cases = itertools.product(USES, HOLDS, PROMPTS, OUTPUTS, RESERVES)
    for used, held, prompt, (choices, output), reserve in cases:
        case = (quota, used, held, prompt, output, choices, reserve)
        assert (case, decided(*case)) == (case, contract(*case))


@pytest.mark.parametrize("quota", QUOTAS[1:])
def test_no_grant_holds_more_than_is_left_or_limits_to_more_than_was_asked(quota: int):
    for used, held, prompt, (choices, output), reserve in itertools.product(USES, HOLDS, PROMPTS, OUTPUTS, RESERVES):
        match decided(quota, used, held, prompt, output, choices, reserve):
            case tokens, limit:
                assert tokens <= quota - used - held
                assert limit is None or 0 < limit * choices < output


def test_what_workers_are_copied_from_has_the_tables(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    counting._tokenizer.cache_clear()
    prepare(may_ask=False)
    assert counting._tokenizer.cache_info().currsize == 1


@pytest.mark.slow
def test_loading_the_tables_leaves_no_thread_whose_locks_a_fork_would_copy():
    code = "import os; from tokenrouter.metering.counting import load_tables; load_tables(); "
    code += "print(os.listdir('/proc/self/task') == [str(os.getpid())])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ran.stdout == "True\n", ran.stderr

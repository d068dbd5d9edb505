"""Typed event streams: what is read of each event, and when the stream is over."""

import json
from typing import Any

import pytest

from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.meter import StreamState
from tokenrouter.metering.texts import response_texts
from tokenrouter.metering.typed_streams import TypedMeter
from tokenrouter.metering.usage import Report
from tokenrouter.payload.endpoints import IMAGES, RESPONSES, SPEECH, TRANSCRIPTIONS

USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


def event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def read(*events: bytes, endpoint=RESPONSES, answers: int = 1) -> TypedMeter:
    meter = TypedMeter(endpoint.last_events, answers)
    assert [meter.read(each) for each in events] == [False] * len(events)
    return meter


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.done", "response.cancelled"])
def test_last_event_of_a_response_ends_it_and_brings_usage_and_id(kind: str):
    meter = read(event(kind, response={"id": "resp_1", "usage": USAGE}))
    assert meter.state is StreamState.WHOLE and meter.is_whole(1)
    assert (meter.report, meter.response_id) == (Report(3, 4, 7), "resp_1")


FAILURES = [
    event("response.failed", response={}),
    event("error", message="x"),
    event("response.done", response={"status": "failed", "error": None}),
    event("response.completed", response={"status": "completed", "error": {"code": "server_error"}}),
    b'data: {"error": {"message": "x"}}\n\n',
]


@pytest.mark.parametrize("last", FAILURES)
def test_failure_ends_a_response(last: bytes):
    meter = read(event("response.output_text.delta", delta="a"), last)
    assert meter.state is StreamState.BROKEN and not meter.is_whole(1)


@pytest.mark.parametrize("kind", ["response.created", "response.queued", "response.in_progress", "error"])
def test_opening_events_are_nothing_of_an_answer(kind: str):
    assert read(event(kind, response={"usage": None})).state.has_nothing


SOMETHING: dict[str, dict[str, Any]] = {
    "response.output_item.added": {"item": {"type": "web_search_call", "id": "ws_1"}},
    "response.output_text.delta": {"delta": "a"},
    "response.image_generation_call.partial_image": {"partial_image_b64": "QUJD" * 30},
    "response.unheard.of": {"within": {"text": "a"}},
}


@pytest.mark.parametrize("kind", SOMETHING)
def test_text_call_or_medium_is_something_of_an_answer(kind: str):
    assert read(event(kind, **SOMETHING[kind])).state is StreamState.ANSWERING


MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": []}


@pytest.mark.parametrize(
    "before",
    [
        [],
        [event("response.output_item.added", output_index=0, sequence_number=1, item=MESSAGE)],
        [event("response.output_text.delta", item_id="msg_1", delta="", logprobs=[], obfuscation="x")],
        [event("response.unheard.of", item_id="msg_1", output_index=0)],
    ],
)
def test_response_that_brings_nothing_is_empty(before: list[bytes]):
    usage = dict.fromkeys(USAGE, 0)
    last = event("response.completed", response={"id": "r", "output": [MESSAGE], "usage": usage})
    assert read(event("response.created", response={}), *before, last).state is StreamState.EMPTY


def test_type_may_stand_in_the_events_own_line_alone():
    meter = read(
        b'event: response.output_text.delta\ndata: {"delta": "One two"}\n\n',
        b'event: response.completed\r\ndata: {"response": {"id": "r"}}\r\n\r\n',
    )
    assert (meter.state, meter.response_id) == (StreamState.WHOLE, "r")
    assert meter.completion_tokens() == count_tokens("One two")


TEXT = "One two three four"
ITEM = {**MESSAGE, "content": [{"type": "output_text", "text": TEXT}]}
DELTA = event("response.output_text.delta", item_id="msg_1", output_index=0, delta=TEXT)
REPEATED = {
    "by its id, then by its number": [
        event("response.output_text.delta", item_id="msg_1", delta=TEXT),
        event("response.output_item.done", output_index=0, item=ITEM),
    ],
    "by no name, then by its id": [
        event("response.output_text.done", text=TEXT),
        event("response.output_item.done", item=ITEM),
    ],
    "by no name at all": [
        event("response.output_text.delta", delta=TEXT),
        event("response.output_item.done", item={"content": ITEM["content"]}),
    ],
    "under an id that changes": [DELTA, event("response.output_item.done", output_index=0, item={**ITEM, "id": "x"})],
    "as a part alone": [event("response.content_part.done", output_index=0, part=ITEM["content"][0])],
    "as a text, a part and an item": [
        DELTA,
        event("response.output_text.done", item_id="msg_1", output_index=0, text=TEXT),
        event("response.content_part.done", item_id="msg_1", output_index=0, part=ITEM["content"][0]),
        event("response.output_item.done", output_index=0, item=ITEM),
    ],
    "as a thought and its summary": [
        event("response.reasoning_text.delta", output_index=0, delta=TEXT),
        event("response.reasoning_summary_text.delta", output_index=0, delta="One two"),
    ],
}


def test_items_without_names_are_counted_each():
    item = {"type": "message", "content": ITEM["content"]}
    meter = read(*[event("response.output_item.done", item=item)] * 2)
    assert meter.completion_tokens() == 2 * count_tokens(TEXT)


@pytest.mark.parametrize("way", REPEATED)
def test_text_of_a_response_is_counted_once_however_often_it_comes(way: str):
    assert read(*REPEATED[way]).completion_tokens() == count_tokens(TEXT)


def test_texts_of_deltas_and_names_of_functions_are_counted():
    meter = read(
        event("response.output_item.added", item={"type": "function_call", "name": "weather"}),
        event("response.function_call_arguments.delta", delta='{"city":'),
        event("response.reasoning_summary_text.delta", delta="Thinking"),
        event("response.audio.delta", delta="QUJD" * 1000),
        event("response.output_audio.delta", delta="QUJD" * 1000),
        event("response.output_text.done", text="Thinking"),
    )
    assert meter.completion_tokens() == count_tokens("weather") + count_tokens('{"city":Thinking')
    assert meter.running_tokens() == meter.completion_tokens()


def test_whole_answer_in_the_last_event_counts_in_place_of_its_pieces():
    output = [{"type": "message", "content": [{"type": "output_text", "text": "One two three"}]}]
    meter = read(
        event("response.output_text.delta", delta="One"), event("response.completed", response={"output": output})
    )
    assert (meter.report, meter.completion_tokens()) == (None, count_tokens("One two three"))


def test_texts_of_a_response_are_its_messages_reasoning_and_calls():
    output = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "a"}]},
        {"type": "function_call", "name": "b", "arguments": "c", "call_id": "call_1"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "d"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "e", "annotations": [{"text": "no"}]}]},
    ]
    assert response_texts({"output": output}).tokens() == 5


@pytest.mark.parametrize("document", [None, [], {}, {"output": None}, {"output": "text"}, {"output": [1, None, "x"]}])
def test_what_is_no_response_has_no_texts(document: object):
    assert response_texts(document).tokens() == 0


@pytest.mark.parametrize("data", [b"data: [DONE]\n\n", b": ping\n\n", b"data: [1]\n\n", b"data: {\n\n", b"\n\n"])
def test_what_is_no_typed_event_changes_nothing(data: bytes):
    meter = read(data)
    assert meter.state is StreamState.WAITING and not meter.is_whole(1)


def test_type_that_is_no_text_is_passed_over():
    assert not read(b'data: {"type": ["response.completed"], "delta": 1}\n\n').state.has_ended


def test_later_report_takes_nothing_of_an_earlier_one():
    early = event("response.in_progress", response={"usage": {"input_tokens": 9}})
    late = event("response.completed", response={"usage": {"input_tokens": 0, "output_tokens": 4}})
    assert read(early, late).report == Report(9, 4, None)


def test_each_image_has_its_last_event_and_its_usage():
    done = event("image_generation.completed", usage=USAGE)
    partial = event("image_generation.partial_image", b64_json="AAAA")
    assert not read(partial, done, endpoint=IMAGES, answers=2).state.has_ended
    meter = read(partial, done, partial, done, endpoint=IMAGES, answers=2)
    assert (meter.state.has_ended, meter.report) == (True, Report(6, 8, 14))


def test_fewer_images_than_asked_for_are_a_whole_answer():
    assert read(event("image_generation.completed"), endpoint=IMAGES, answers=2).is_whole(2)


@pytest.mark.parametrize(
    ("endpoint", "kind"), [(SPEECH, "speech.audio.done"), (TRANSCRIPTIONS, "transcript.text.done")]
)
def test_sound_is_over_with_its_last_event(endpoint, kind: str):
    meter = read(event(kind, usage=USAGE), endpoint=endpoint)
    assert (meter.state.has_ended, meter.report) == (True, Report(3, 4, 7))
    assert not read(event("response.completed"), endpoint=endpoint).state.has_ended

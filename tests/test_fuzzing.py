"""Bytes and documents at random: what reads them raises only its own errors, and no cut changes what it reads."""

import re
from itertools import pairwise
from typing import Any

import orjson
import pytest
from conftest import PROVIDER_KEY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_transport import outcome

from tokenrouter import config, payload
from tokenrouter.errors import InvalidRequest
from tokenrouter.metering.prompts import read_chat_prompt, read_response_prompt
from tokenrouter.metering.sse import EventSplitter, event_data
from tokenrouter.metering.streams import StreamMeter
from tokenrouter.metering.texts import answer_texts
from tokenrouter.metering.typed_streams import LastEvents, TypedMeter
from tokenrouter.metering.usage import ABSURD_TOKENS, read_usage
from tokenrouter.untrusted_json import parse_cut_json, parse_json

pytestmark = pytest.mark.slow

at_random = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

OURS = config.load({"PROVIDER_API_KEY": PROVIDER_KEY})
LAST = LastEvents(frozenset({"response.completed"}), frozenset({"response.failed", "error"}))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
# Names that the code looks for, so that more than a few of the documents get past its first look.
NAMES = re.findall(
    r"\w+",
    "model messages content role name prompt input n best_of max_tokens max_completion_tokens max_output_tokens stream "
    "stream_options include_usage tools tool_calls function arguments functions response_format json_schema text type "
    "usage prompt_tokens completion_tokens total_tokens input_tokens output_tokens choices delta message index error "
    "finish_reason response output id instructions previous_response_id image_url input_audio file item",
)
documents = st.dictionaries(
    st.sampled_from(NAMES),
    st.recursive(
        json_values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
        max_leaves=12,
    ),
    max_size=8,
)
fragments = st.sampled_from(
    [b"data: ", b"data:", b"\n", b"\r", b"\r\n", b"\n\n", b": x", b"[DONE]", b'{"a":1}', b"\xff"]
)
streams = st.lists(st.binary(max_size=6) | fragments, max_size=25).map(b"".join)
cuts = st.lists(st.integers(0, 400), max_size=8)


def pieces_of(data: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in at)})
    return [data[start:end] for start, end in pairwise(bounds)]


@at_random
@given(streams, cuts)
@example(b"\r\r\n\n", [1])
def test_events_are_the_same_however_a_stream_is_cut(stream: bytes, at: list[int]):
    def split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
        splitter = EventSplitter()
        events = [event for piece in pieces for event in splitter.feed(piece)]
        return events, splitter.rest()

    events, rest = split(pieces_of(stream, at))
    assert b"".join(events) + rest == stream
    assert [line for event in events if (line := event_data(event))] == [
        line for event in split([stream])[0] if (line := event_data(event))
    ]


heads = st.lists(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.0 204\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"X: y\r\n",
        ]
    )
    | st.binary(max_size=4),
    max_size=5,
).map(b"".join)
bodies = st.lists(
    st.binary(max_size=8)
    | st.sampled_from([b"5\r\nhello\r\n", b"0\r\n\r\n", b"5\r\n", b"\r\n", b"a;x=y\r\n", b"0", b"x"]),
    max_size=10,
).map(b"".join)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"


@at_random
@given(st.just(CHUNKED) | heads, bodies, cuts)
def test_what_an_answer_is_does_not_depend_on_its_cuts(head: bytes, body: bytes, at: list[int]):
    sent = head + b"\r\n" + body
    assert outcome(pieces_of(sent, at)) == outcome([sent])


@at_random
@given(documents)
def test_usage_is_none_or_can_be_believed(document: dict[str, Any]):
    report = read_usage(document)
    usage = report and report.usage(lambda: 7, lambda: 9)
    assert usage is None or all(
        0 <= tokens <= 2 * ABSURD_TOKENS
        for tokens in (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    )
    assert usage is None or usage.total_tokens >= usage.prompt_tokens + usage.completion_tokens


@at_random
@given(json_values)
def test_what_is_no_document_reports_no_usage(value: Any):
    assert read_usage(value) is None or isinstance(value, dict)
    assert answer_texts(value).tokens() >= 0


@at_random
@given(st.binary(max_size=100) | documents.map(orjson.dumps))
def test_parsers_of_answers_never_raise(data: bytes):
    parse_json(data)
    for end in range(len(data)):
        parse_cut_json(data[:end])


@at_random
@given(documents, st.sampled_from([b"%b", b"\xef\xbb\xbf%b", b"\n\n%b", b"%b\n"]))
def test_lenient_parser_reads_what_the_strict_one_does(document: dict[str, Any], dress: bytes):
    data = orjson.dumps(document)
    assert parse_json(dress % data) == orjson.loads(data)


@at_random
@given(json_values)
def test_any_value_within_a_prompt_is_counted(value: Any):
    for body in ({"messages": value}, {"messages": [{"role": "user", "content": value}]}, {"unheard_of": value}):
        assert read_chat_prompt(body).count() >= 0
    assert read_response_prompt({"input": value, "tools": value, "text": value}).count() >= 0


event_texts = documents.map(lambda document: b"data: " + orjson.dumps(document) + b"\n\n") | streams


@at_random
@given(st.lists(event_texts, max_size=6))
@pytest.mark.parametrize("new_meter", [StreamMeter, lambda: TypedMeter(LAST, 1)], ids=["chunks", "typed events"])
def test_meters_take_any_events(new_meter: Any, events: list[bytes]):
    meter, rest = new_meter(), EventSplitter()
    for event in events:
        for whole in rest.feed(event):
            if not meter.take_plain_chunk(whole):
                meter.read(whole)
    assert meter.running_tokens() >= 0
    assert meter.completion_tokens() >= 0


words = st.text(st.characters(blacklist_categories=["Cs"]), max_size=6)


@at_random
@given(st.lists(words, min_size=1, max_size=8), cuts)
def test_count_of_a_stream_does_not_depend_on_its_cuts(texts: list[str], at: list[int]):
    def counted(pieces: list[bytes]) -> int:
        meter, splitter = StreamMeter(), EventSplitter()
        for piece in pieces:
            if splitter.is_empty and meter.take_plain_chunk(piece):
                continue
            for event in splitter.feed(piece):
                meter.read(event)
        return meter.completion_tokens()

    events = [
        b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n\n" for text in texts
    ]
    assert counted(pieces_of(b"".join(events), at)) == counted(events)


@at_random
@given(st.sampled_from(payload.ENDPOINTS), documents)
def test_checker_accepts_or_names_the_field(endpoint: payload.Endpoint, document: dict[str, Any]):
    refusal = None
    try:
        model = payload.model_of(document, "GPT-5-nano")
        call = payload.check(endpoint, document, model, OURS)
    except InvalidRequest as error:
        refusal = error
    if refusal is not None:
        assert re.split(r"[.\[]", refusal.param)[0] in document
        return
    assert min(call.prompt_tokens, call.output_tokens, call.choices) >= 0
    assert orjson.loads(call.encode())["model"] == model


@at_random
@given(st.binary(max_size=200) | documents.map(orjson.dumps))
def test_parser_of_bodies_returns_an_object_or_refuses(data: bytes):
    try:
        body = payload.parse(data)
    except InvalidRequest:
        return
    assert isinstance(body, dict)


@at_random
@given(st.dictionaries(st.sampled_from(["n", "stream", "model", "prompt"]), st.text(max_size=25), max_size=4))
def test_fields_of_a_form_never_raise(fields: dict[str, str]):
    assert set(payload.form_body(fields)) == set(fields)

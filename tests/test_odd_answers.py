"""Answers in another dress than their label or their request says, and what is booked of those that break off."""

import json
import math
from collections.abc import Iterator

import pytest
from conftest import HELLO, Member, stored
from flask.testing import FlaskClient
from rawhttp import ScriptedProvider

from tokenrouter import reports
from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.prompts import read_chat_prompt
from tokenrouter.untrusted_json import parse_cut_json, parse_json

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
TEXT = "The clerk placed the invoice on the desk."
USAGE = {"prompt_tokens": 900, "completion_tokens": 20, "total_tokens": 920}
PROMPT = read_chat_prompt(HELLO).count()


@pytest.fixture
def raw() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as raw:
        yield raw


@pytest.fixture
def settings(settings: dict[str, str], raw: ScriptedProvider) -> dict[str, str]:
    return {**settings, "PROVIDER_BASE_URL": raw.url, "ALLOWED_MODELS": "*"}


def answer(body: bytes, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def broken_off(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\nno size of a chunk\r\n" % (len(body), body)


def booked(team: Member) -> tuple[str, int, str]:
    (call,) = [reports.log_view(row) for row in reports.newest_calls(None, 2)]
    assert stored(team).held_tokens == 0
    return call["status"], call["charged_tokens"], call["usage_source"]


def chat(content: str, **more: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"content": content, **more}}], "usage": USAGE}).encode()


@pytest.mark.parametrize("requested", [True, False])
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/octet-stream"])
def test_stream_is_known_by_its_first_bytes(
    client: FlaskClient, team: Member, raw: ScriptedProvider, kind: str, requested: bool
):
    event = {"choices": [{"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}], "usage": USAGE}
    stream = f": ping\n\ndata: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
    raw.scripts = [[answer(stream, kind)]]
    reply = client.post(CHAT, json={**HELLO, "stream": requested}, headers=team.headers)
    assert (reply.data, reply.mimetype) == (stream, "text/event-stream")
    assert booked(team) == ("ok", 920, "provider")


@pytest.fixture
def impatience(settings: dict[str, str]) -> None:
    settings["PROVIDER_READ_TIMEOUT"] = "0.5"


@pytest.mark.usefixtures("impatience")
def test_first_event_is_passed_on_before_the_next_comes(client: FlaskClient, team: Member, raw: ScriptedProvider):
    event = f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': TEXT}}]})}\n\n".encode()
    raw.scripts = [[answer(event + b" " * 99, "text/event-stream")[:-99]]]
    reply = client.post(CHAT, json={**HELLO, "stream": True}, headers=team.headers)
    assert next(iter(reply.response)) == event


def test_transcript_that_begins_as_an_event_does_is_a_text(client: FlaskClient, team: Member, raw: ScriptedProvider):
    raw.scripts = [[answer(b"data: two of them were lost.", "text/plain")]]
    form = {"model": "w", "response_format": "text"}
    headers = {**team.headers, "Content-Type": "multipart/form-data"}
    reply = client.post("/v1/audio/transcriptions", data=form, headers=headers)
    assert (reply.status_code, reply.mimetype) == (200, "text/plain")
    assert booked(team) == ("ok", 0, "none")


CUT = {
    "behind its usage": (chat(TEXT)[:-1], 920, "provider"),
    "in its text": (chat(TEXT).partition(b" desk")[0], PROMPT + count_tokens(TEXT[:-6]), "estimated"),
    "in encrypted reasoning": (
        b'{"choices":[{"message":{"content":null,"encrypted_content":"' + b"gAAAAAB" * 800,
        PROMPT + 700,
        "estimated",
    ),
    "in a picture": (
        b'{"choices":[{"message":{"images":[{"image_url":{"url":"data:image/png;base64,' + b"iVBORw" * 900,
        PROMPT,
        "estimated",
    ),
    "in the figures of its tokens": (
        b'{"choices":[{"message":{"content":"Hi"},"logprobs":{"content":[' + b'{"token":"a","logprob":-1.5},' * 200,
        PROMPT + 1,
        "estimated",
    ),
    "before its text": (b'{"id":"c","choi', PROMPT, "estimated"),
}


@pytest.mark.parametrize("where", CUT)
def test_json_that_breaks_off_costs_what_came_of_its_texts(
    client: FlaskClient, team: Member, raw: ScriptedProvider, where: str
):
    body, charged, source = CUT[where]
    raw.scripts = [[broken_off(body)]]
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 502
    assert booked(team) == ("provider_error", charged, source)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"choices": []},
        {"choices": [{"message": {"role": "assistant", "content": ""}}], "usage": {"prompt_tokens": 0}},
        {"detail": "The model is asleep."},
        {"success": False, "errors": [{"code": 7000}], "result": None},
    ],
)
def test_json_that_brings_nothing_costs_nothing(
    client: FlaskClient, team: Member, raw: ScriptedProvider, document: dict
):
    raw.scripts = [[answer(json.dumps(document).encode())]]
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200
    assert booked(team) == ("provider_error", 0, "none")


def test_error_under_200_costs_the_usage_it_reports(client: FlaskClient, team: Member, raw: ScriptedProvider):
    raw.scripts = [[answer(json.dumps({"error": {"message": "Too slow."}, "usage": USAGE}).encode())]]
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200
    assert booked(team) == ("provider_error", 920, "provider")


@pytest.mark.parametrize("document", [{}, {"object": "list", "data": []}, {"data": None, "usage": {"total_tokens": 0}}])
def test_answer_without_a_vector_costs_nothing(
    client: FlaskClient, team: Member, raw: ScriptedProvider, document: dict
):
    raw.scripts = [[answer(json.dumps(document).encode())]]
    assert client.post(EMBEDDINGS, json={"model": "e", "input": "Hi"}, headers=team.headers).status_code == 200
    assert booked(team)[:2] == ("provider_error", 0)


WHOLE = {
    "id": "c",
    "n": 12,
    "t": True,
    "x": None,
    "l": [1, -2.5e-3, [[]], {}],
    "s": 'a"\\é😀 \\u12 {[,:',
    "u": {"a": 1},
}


@pytest.mark.parametrize("ascii_alone", [True, False])
def test_json_is_read_as_far_as_it_came(ascii_alone: bool):
    data = json.dumps(WHOLE, ensure_ascii=ascii_alone).encode()
    assert parse_cut_json(data) == WHOLE
    for end in range(1, len(data)):
        assert isinstance(parse_cut_json(data[:end]), dict), data[:end]


@pytest.mark.parametrize("data", [b"", b"<html>", b"}", b'{"a":[1}', b"[" * 5000, b"[" + b"[]," * 200_000])
def test_what_is_no_json_or_too_large_is_not_read(data: bytes):
    assert parse_cut_json(data) is None


LENIENT = {
    "line ends in a text": (b'{"a":"b\n\t\x01c"}', {"a": "b\n\t\x01c"}),
    "infinity": (b'{"a":[Infinity,-Infinity]}', {"a": [math.inf, -math.inf]}),
    "half a surrogate pair": (b'{"a":"b\\ud83c"}', {"a": "b\ud83c"}),
    "no UTF-8": (b'{"a":"b\xff"}', {"a": "b\ufffd"}),
    "byte order mark": (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
}


@pytest.mark.parametrize("name", LENIENT)
def test_lenient_reader_takes_what_others_write(name: str):
    data, value = LENIENT[name]
    assert parse_json(data) == value
    assert math.isnan(parse_json(b"[NaN]")[0])

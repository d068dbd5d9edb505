"""Answers in another dress than their label or their request says, and what is booked of those that break off."""

import json
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


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/octet-stream"])
def test_stream_that_nobody_requested_is_known_by_its_first_bytes(
    client: FlaskClient, team: Member, raw: ScriptedProvider, kind: str
):
    event = {"choices": [{"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}], "usage": USAGE}
    stream = f": ping\n\ndata: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
    raw.scripts = [[answer(stream, kind)]]
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert (reply.data, reply.mimetype) == (stream, "text/event-stream")
    assert booked(team) == ("ok", 920, "provider")


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


def test_line_ends_and_the_like_within_a_text_are_read():
    assert parse_json(b'{"a":"b\n\t\x01c"}') == {"a": "b\n\t\x01c"}

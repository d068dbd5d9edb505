"""What a provider may answer at most: beyond it the call ends, its connection closes, and memory stays small."""

import gzip
import tracemalloc

import pytest
from conftest import HELLO, Member, eventually, hello, stored
from flask.testing import FlaskClient

from tokenrouter import reports
from tokenrouter.relay import handler, streams
from tokenrouter.standin import Ending, Script, StandInProvider

CHAT = "/v1/chat/completions"
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
PIECE = b"x" * 2**16
MEGABYTES = 2**20


@pytest.fixture
def most_bytes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lower both ceilings, so that the tests are quick."""
    monkeypatch.setattr(handler, "MOST_ANSWER_BYTES", MEGABYTES)
    monkeypatch.setattr(streams, "MOST_EVENT_BYTES", MEGABYTES)
    return MEGABYTES


def answers(monkeypatch: pytest.MonkeyPatch, provider: StandInProvider, *pieces: bytes) -> None:
    monkeypatch.setattr(provider, "respond", lambda call: Script([(0, piece) for piece in pieces], Ending.CUT))


def test_ceilings_are_those_that_are_promised():
    assert (handler.MOST_ANSWER_BYTES, streams.MOST_EVENT_BYTES) == (64 * 2**20, 16 * 2**20)


def test_json_answer_beyond_its_ceiling_is_502_and_costs_its_prompt(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, most_bytes: int
):
    answers(monkeypatch, provider, JSON_HEAD + b'\r\n{"choices": "', *[PIECE] * 40)
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (502, "provider_bad_response")
    (call,) = reports.newest_calls(None, 2)
    assert (call.status, call.charged_tokens) == ("provider_error", call.prompt_tokens)
    assert stored(team).held_tokens == 0
    assert eventually(lambda: provider.open_connections == 0)


def test_event_beyond_its_ceiling_ends_the_stream_and_costs_what_arrived(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, most_bytes: int
):
    said = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}\n\n'
    answers(monkeypatch, provider, STREAM_HEAD + said + b"data: ", *[PIECE] * 40)
    reply = client.post(CHAT, json=hello(stream=True), headers=team.headers)
    assert reply.data.startswith(said) and b"provider_bad_response" in reply.data and b"[DONE]" not in reply.data
    (call,) = reports.newest_calls(None, 2)
    assert (call.status, call.completion_tokens) == ("provider_error", 1)
    assert stored(team).held_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_compressed_answer_that_unfolds_without_end_takes_little_memory(
    client: FlaskClient,
    team: Member,
    provider: StandInProvider,
    monkeypatch: pytest.MonkeyPatch,
    most_bytes: int,
    stream: bool,
):
    client.post(CHAT, json=hello("usage=none"), headers=team.headers)  # loads what a first call loads
    bomb = gzip.compress(b"x" * 100 * MEGABYTES)
    head = JSON_HEAD if not stream else STREAM_HEAD.removesuffix(b"\r\n")
    answers(monkeypatch, provider, head + b"content-encoding: gzip\r\n\r\n", bomb)
    tracemalloc.start()
    reply = client.post(CHAT, json=hello(stream=stream), headers=team.headers)
    body, peak = reply.data, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert b"provider_bad_response" in body
    assert peak < 16 * MEGABYTES
    assert stored(team).held_tokens == 0

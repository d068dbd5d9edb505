"""The table of endings: however an answer ends, its call is booked once, at the right price, and its hold is gone."""

import json
import time
from collections.abc import Iterator

import pytest
from conftest import PROVIDER_KEY, Member, eventually, hello, stored
from flask.testing import FlaskClient
from pairs import BOTH_DATABASES, by_pairs
from werkzeug.test import TestResponse

from tokenrouter import reports
from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.prompts import read_chat_prompt
from tokenrouter.standin import Ending, Script, StandInProvider

pytestmark = pytest.mark.both_databases

CHAT = "/v1/chat/completions"


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, **getattr(request, "param", {})}


IMPATIENT = pytest.mark.parametrize("settings", [{"PROVIDER_READ_TIMEOUT": "0.4"}], indirect=True)


def ask(client: FlaskClient, team: Member, directives: str, **fields: object) -> TestResponse:
    """Call, and read the answer to its end."""
    with client.post(CHAT, json=hello(directives, **fields), headers=team.headers) as reply:
        reply.get_data()
    return reply


def documents(stream: bytes) -> list[dict]:
    """Return what the events of a stream carry, [DONE] left out."""
    datas = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(data) for data in datas if data != "[DONE]"]


def said(stream: bytes) -> str:
    """Return the text that the events of a stream bring."""
    choices = [choice for document in documents(stream) for choice in document.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def assert_booked(team: Member, status: str, charged: int, source: str) -> None:
    (call,) = [reports.log_view(row) for row in reports.newest_calls(None, 2)]
    assert (call["status"], call["charged_tokens"], call["usage_source"]) == (status, charged, source)
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (charged, 0)


def prompt_of(directives: str) -> int:
    return read_chat_prompt(hello(directives)).count()


# Whole answers


WHOLE = ["", "framing=close", "framing=split", "usage=every", "comments=1", "burst=1"]


@by_pairs(("stream", [False, True]), ("directives", WHOLE), BOTH_DATABASES)
def test_whole_answer_is_charged_as_reported(
    client: FlaskClient, team: Member, provider: StandInProvider, directives: str, stream: bool
):
    assert ask(client, team, directives, stream=stream).status_code == 200
    assert_booked(team, "ok", provider.tokens_served, "provider")


@pytest.mark.parametrize("stream", [False, True])
def test_usage_of_zero_is_believed(client: FlaskClient, team: Member, stream: bool):
    ask(client, team, "usage=zero", stream=stream)
    assert_booked(team, "ok", 0, "provider")


def test_whole_stream_without_usage_is_charged_by_its_texts(client: FlaskClient, team: Member):
    reply = ask(client, team, "usage=none", stream=True)
    assert_booked(team, "ok", prompt_of("usage=none") + count_tokens(said(reply.data)), "estimated")


def test_whole_json_without_usage_is_charged_by_its_texts(client: FlaskClient, team: Member):
    reply = ask(client, team, "usage=none")
    text = reply.json["choices"][0]["message"]["content"]
    assert_booked(team, "ok", prompt_of("usage=none") + count_tokens(text), "estimated")


def test_stream_that_ends_after_its_usage_without_done_is_whole(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = ask(client, team, "done=no", stream=True)
    assert not any("error" in document for document in documents(reply.data))
    assert_booked(team, "ok", provider.tokens_served, "provider")


# Nothing of an answer came


NOTHING = [
    ("status=500", 500),
    ("status=429", 429),
    ("status=401", 502),
    ("body=html", 500),
    ("drop=1", 502),
    ("cut=0", 502),
    ("reset=0", 502),
    ("status=200 body=html", 502),
    ("status=200 body=empty", 502),
]


@by_pairs(("stream", [False, True]), ("directives, status", NOTHING), BOTH_DATABASES)
def test_failure_before_an_answer_costs_nothing(
    client: FlaskClient, team: Member, directives: str, status: int, stream: bool
):
    assert ask(client, team, directives, stream=stream).status_code == status
    assert_booked(team, "provider_error", 0, "none")


@IMPATIENT
@by_pairs(("stream", [False, True]), ("directives", ["silent=1", "hang=0"]), BOTH_DATABASES)
def test_silence_before_an_answer_costs_nothing(client: FlaskClient, team: Member, directives: str, stream: bool):
    assert ask(client, team, directives, stream=stream).status_code == 504
    assert_booked(team, "provider_error", 0, "none")


def test_stream_whose_first_event_is_an_error_costs_nothing(client: FlaskClient, team: Member):
    reply = ask(client, team, "error_event=0 code=overloaded", stream=True)
    assert [document["error"]["code"] for document in documents(reply.data)] == ["overloaded"]
    assert b"[DONE]" not in reply.data
    assert_booked(team, "provider_error", 0, "none")


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("rest", [b"", b": ping\n\n", b": ping\n\nevent: message\n", b"\n\n: ping"])
def test_stream_of_comments_that_is_cut_costs_nothing(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, rest: bytes
):
    monkeypatch.setattr(provider, "respond", lambda call: Script([(0, HEAD + b": ping\n\n" + rest)], Ending.CUT))
    reply = ask(client, team, "", stream=True)
    assert [document["error"]["code"] for document in documents(reply.data)] == ["provider_bad_response"]
    assert_booked(team, "provider_error", 0, "none")


# The provider broke off


BROKEN = [
    ("cut=5", "provider_bad_response"),
    ("reset=5", "provider_bad_response"),
    ("half_chunk=5", "provider_bad_response"),
    ("cut=5 framing=close", "provider_bad_response"),
    ("cut=5 newline=crlf comments=1", "provider_bad_response"),
    ("hang=5", "provider_timeout"),
    ("error_event=5 code=overloaded", "overloaded"),
]


@IMPATIENT
@pytest.mark.parametrize(("directives", "code"), BROKEN)
def test_broken_stream_ends_with_one_error_event_and_costs_what_arrived(
    client: FlaskClient, team: Member, directives: str, code: str
):
    reply = ask(client, team, directives, stream=True)
    *_, last = documents(reply.data)
    assert (reply.status_code, last["error"]["code"]) == (200, code)
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert reply.data.count(b'{"error"') == 1 and reply.data.endswith(b"}\n\n")
    assert b"[DONE]" not in reply.data
    text = said(reply.data)
    assert text.split()[:2] == ["This", "is"]
    assert_booked(team, "provider_error", prompt_of(directives) + count_tokens(text), "estimated")


BROKEN_JSON = [
    ("cut=60", 502),
    ("reset=60", 502),
    ("hang=60", 504),
    ("length=7", 502),
    ("cut=60 framing=chunked", 502),
    ("half_chunk=0 framing=split", 502),
]


@IMPATIENT
@by_pairs(("directives, status", BROKEN_JSON), ("stream", [False, True]), BOTH_DATABASES)
def test_broken_json_is_502_or_504_and_costs_at_least_its_prompt(
    client: FlaskClient, team: Member, directives: str, status: int, stream: bool
):
    reply = ask(client, team, f"{directives} json_for_stream=1", stream=stream)
    assert reply.status_code == status
    charged = stored(team).settled_tokens
    prompt = prompt_of(f"{directives} json_for_stream=1")
    assert prompt <= charged < prompt + 250
    assert_booked(team, "provider_error", charged, "provider" if directives == "length=7" else "estimated")


@IMPATIENT
@by_pairs(
    ("directives", ["cut=5", "reset=5", "half_chunk=5", "hang=5", "error_event=5", "cut=5 framing=close"]),
    ("prompt_tokens", [0, 5000]),
    BOTH_DATABASES,
)
def test_usage_reported_before_the_break_counts_where_it_is_more(
    client: FlaskClient, team: Member, directives: str, prompt_tokens: int
):
    directives = f"{directives} usage=every prompt_tokens={prompt_tokens}"
    reply = ask(client, team, directives, stream=True)
    *_, last = documents(reply.data)
    assert "error" in last
    reported = documents(reply.data)[-2]["usage"]["total_tokens"]
    estimated = prompt_of(directives) + count_tokens(said(reply.data))
    assert (reported > estimated) == (prompt_tokens > 0)
    assert_booked(team, "provider_error", max(reported, estimated), "provider")


HALF_EVENTS = [b'data: {"cho', b"data: [DO", b": pi", b"event: mess", b'data: {"choices":[]}\n']


@pytest.mark.parametrize("half", HALF_EVENTS)
def test_error_event_stands_alone_after_half_an_event(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, half: bytes
):
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    monkeypatch.setattr(provider, "respond", lambda call: Script([(0, HEAD + event + half)], Ending.CUT))
    blocks = ask(client, team, "", stream=True).data.split(b"\n\n")
    assert blocks[0] + b"\n\n" == event
    assert json.loads(blocks[-2].removeprefix(b"data: "))["error"]["code"] == "provider_bad_response"
    assert_booked(team, "provider_error", prompt_of("") + 1, "estimated")


def test_stream_cut_between_its_last_word_and_its_usage_is_broken(client: FlaskClient, team: Member):
    """Role, two words and the reason come, the usage that was asked for does not, and the framing shows the break."""
    reply = ask(client, team, "words=2 cut=4", stream=True)
    assert "error" in documents(reply.data)[-1]
    assert reports.newest_calls(None, 1)[0].status == "provider_error"


# The client left


@pytest.fixture
def left(client: FlaskClient, team: Member) -> Iterator[bytes]:
    """What a client got that left after the first words of a stream that never ends."""
    reply = client.post(CHAT, json=hello("hang=4", stream=True), headers=team.headers)
    pieces, got = reply.iter_encoded(), b""
    while got.count(b"data:") < 4:
        got += next(pieces)
    reply.close()
    return got


def test_client_that_leaves_pays_prompt_and_what_arrived(team: Member, left: bytes):
    assert said(left)
    assert_booked(team, "client_closed", prompt_of("hang=4") + count_tokens(said(left)), "estimated")


def test_provider_sees_the_connection_closed_when_the_client_leaves(provider: StandInProvider, left: bytes):
    assert eventually(lambda: provider.aborted == 1)
    assert eventually(lambda: provider.open_connections == 0)


def test_client_that_leaves_before_the_first_event_pays_its_prompt(client: FlaskClient, team: Member):
    client.post(CHAT, json=hello("hang=1", stream=True), headers=team.headers).close()
    assert_booked(team, "client_closed", prompt_of("hang=1"), "estimated")


@pytest.mark.parametrize("prompt_tokens", [0, 5000])
def test_usage_reported_before_the_client_left_counts_where_it_is_more(
    client: FlaskClient, team: Member, prompt_tokens: int
):
    directives = f"usage=every hang=4 prompt_tokens={prompt_tokens} framing=close"
    reply = client.post(CHAT, json=hello(directives, stream=True), headers=team.headers)
    pieces, got = reply.iter_encoded(), b""
    while got.count(b"data:") < 4:
        got += next(pieces)
    reply.close()
    estimated = prompt_of(directives) + count_tokens(said(got))
    reported = documents(got)[-1]["usage"]["total_tokens"]
    assert (reported > estimated) == (prompt_tokens > 0)
    assert_booked(team, "client_closed", max(reported, estimated), "provider")


def test_client_that_leaves_once_all_was_read_from_the_provider_is_ok(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    body = hello("burst=1 framing=close words=3", stream=True)  # one read brings all of it
    reply = client.post(CHAT, json=body, headers=team.headers)
    piece = next(reply.iter_encoded())
    reply.close()
    assert b'"finish_reason":"stop"' in piece and b"[DONE]" not in piece
    assert_booked(team, "ok", provider.tokens_served, "provider")


def test_client_that_leaves_after_done_is_ok(client: FlaskClient, team: Member, provider: StandInProvider):
    reply = client.post(CHAT, json=hello("", stream=True), headers=team.headers)
    for piece in reply.iter_encoded():
        if b"[DONE]" in piece:
            break
    assert_booked(team, "ok", provider.tokens_served, "provider")
    reply.close()
    assert_booked(team, "ok", provider.tokens_served, "provider")


def test_stream_is_booked_before_done_leaves(client: FlaskClient, team: Member):
    reply = client.post(CHAT, json=hello("gap=0.01 words=3", stream=True), headers=team.headers)
    seen = [(b"[DONE]" in piece, stored(team).settled_tokens > 0) for piece in reply.iter_encoded()]
    reply.close()
    assert seen[-1] == (True, True)
    assert not any(booked for done, booked in seen if not done)


# The connection afterwards


@by_pairs(
    ("stream", [False, True]),
    ("directives", ["", "framing=split", "done=no", "framing=chunked", "usage=none", "gzip=1"]),
    BOTH_DATABASES,
)
def test_connection_is_used_again_after_a_whole_answer(
    client: FlaskClient, team: Member, provider: StandInProvider, directives: str, stream: bool
):
    for _ in range(3):
        ask(client, team, directives, stream=stream)
    assert (provider.open_connections, len(provider.calls)) == (1, 3)


@IMPATIENT
@pytest.mark.parametrize("directives", ["hang=5", "hang=0", "silent=1"])
def test_connection_is_closed_after_a_stream_that_fell_silent(
    client: FlaskClient, team: Member, provider: StandInProvider, directives: str
):
    ask(client, team, directives, stream=True)
    assert eventually(lambda: provider.open_connections == 0)
    assert provider.aborted == 1


@pytest.mark.parametrize("tail", [b"0\r\n\r\n", b""])
def test_provider_that_keeps_the_connection_open_after_done_does_not_keep_the_caller(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, tail: bytes
):
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    head = HEAD.replace(b"connection: close", b"transfer-encoding: chunked")
    sent = head + b"%x\r\n%b\r\n" % (len(event), event) + tail
    monkeypatch.setattr("tokenrouter.provider.replies.LAST_BYTES_TIMEOUT_S", 0.2)
    monkeypatch.setattr(provider, "respond", lambda call: Script([(0, sent)], Ending.HANG))
    reply = ask(client, team, "", stream=True)
    assert reply.data == event
    assert_booked(team, "ok", prompt_of("") + 1, "estimated")


def test_providers_key_reaches_no_one_by_any_ending(client: FlaskClient, team: Member):
    for directives in ("", "cut=5", "error_event=2", "status=401", "status=500", "redirect=http://127.0.0.1:1/"):
        for stream in (False, True):
            reply = ask(client, team, directives, stream=stream)
            assert PROVIDER_KEY not in reply.text + str(reply.headers)


@pytest.mark.parametrize(("limit", "least", "most"), [(200, 200, 200), (5, 230, 330)])
def test_callers_output_limit_bounds_a_count_of_ours_unless_it_was_clearly_ignored(
    client: FlaskClient, team: Member, limit: int, least: int, most: int
):
    body = hello("usage=none words=40 big=2000", max_tokens=limit)
    client.post("/v1/chat/completions", json=body, headers=team.headers)
    assert least <= reports.newest_calls(None, 1)[0].completion_tokens <= most


LEFT_EARLY = "words=3 gap=0.1"


def test_client_that_leaves_shortly_before_the_end_pays_what_the_provider_reports(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = client.post("/v1/chat/completions", json=hello(LEFT_EARLY, stream=True), headers=team.headers)
    next(reply.response)
    reply.close()
    assert_booked(team, "ok", provider.tokens_served, "provider")


def test_client_that_leaves_long_before_the_end_is_read_on_for_two_seconds_at_most(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = client.post("/v1/chat/completions", json=hello("words=900 gap=0.1", stream=True), headers=team.headers)
    next(reply.response)
    started = time.monotonic()
    reply.close()
    assert 1.5 < time.monotonic() - started < 10  # of ninety
    assert reports.newest_calls(None, 1)[0].status == "client_closed"
    assert eventually(lambda: provider.open_connections == 0)


def test_answer_that_cannot_be_counted_leaves_no_hold(
    client: FlaskClient, team: Member, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> int:
        raise RecursionError

    monkeypatch.setattr("tokenrouter.metering.texts.AnswerTexts.tokens", fail)
    assert ask(client, team, "usage=none").status_code == 200
    assert_booked(team, "ok", prompt_of("usage=none"), "estimated")
    assert stored(team).held_tokens == 0

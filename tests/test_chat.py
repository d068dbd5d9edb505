"""A chat completion, whole and streamed, relayed byte for byte and metered."""

import http.client
import json
import re

import pytest
from conftest import HELLO, PROVIDER_KEY, Member, hello, stored
from flask.testing import FlaskClient
from pairs import BOTH_DATABASES, by_pairs

from tokenrouter import reports
from tokenrouter.metering.prompts import read_chat_prompt
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases

CHAT = "/v1/chat/completions"


def last_call() -> dict[str, object]:
    return reports.log_view(reports.newest_calls(None, 1)[0])


def test_answer_is_the_providers_own_bytes(client: FlaskClient, team: Member, provider: StandInProvider):
    reply = client.post(CHAT, json=hello("unicode=1"), headers=team.headers)
    assert reply.status_code == 200
    assert reply.json["id"] == provider.finished[0].response_id
    assert json.dumps(reply.json, ensure_ascii=False, separators=(",", ":")).encode() == reply.data


def test_usage_is_charged_as_reported(client: FlaskClient, team: Member, provider: StandInProvider):
    client.post(CHAT, json=HELLO, headers=team.headers)
    assert stored(team).settled_tokens == provider.tokens_served > 0
    assert stored(team).held_tokens == 0


def test_log_row_tells_the_call(client: FlaskClient, team: Member, provider: StandInProvider):
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    call = last_call()
    served = provider.finished[0]
    assert call["request_id"] == reply.headers["x-request-id"]
    assert (call["team"], call["token"], call["model"]) == ("team", team.bearer_token[:8], "GPT-5-nano")
    assert (call["status"], call["status_code"], call["stream"]) == ("ok", 200, False)
    assert (call["prompt_tokens"], call["completion_tokens"]) == (served.prompt_tokens, served.completion_tokens)
    assert call["total_tokens"] == call["charged_tokens"] == served.total_tokens
    assert call["usage_source"] == "provider"
    assert call["latency_ms"] >= call["first_byte_ms"] >= 0


def test_missing_model_becomes_the_default(client: FlaskClient, team: Member, provider: StandInProvider):
    client.post(CHAT, json={"messages": HELLO["messages"]}, headers=team.headers)
    assert provider.calls[0].json["model"] == "GPT-5-nano"


def test_every_field_is_passed_on(client: FlaskClient, team: Member, provider: StandInProvider):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000}}
    sent = hello(temperature=0.5, seed=7, x_new_field={"a": [1, None, "é"]}, response_format={"type": "text"}, n=2)
    sent["messages"].append({"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]})
    client.post(CHAT, json=sent, headers=team.headers)
    assert provider.calls[0].json == sent


def test_only_listed_request_headers_go_to_the_provider(client: FlaskClient, team: Member, provider: StandInProvider):
    strange = {"Cookie": "a=b", "OpenAI-Organization": "org", "OpenAI-Project": "p", "Idempotency-Key": "k", "X-A": "b"}
    client.post(
        CHAT, json=HELLO, headers={**team.headers, **strange, "User-Agent": "probe/1", "X-Forwarded-For": "9.9.9.9"}
    )
    names = set(provider.calls[0].headers)
    assert names == {"host", "user-agent", "accept-encoding", "content-length", "content-type", "authorization"}
    assert provider.calls[0].headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert provider.calls[0].headers["user-agent"] == "probe/1"


def test_only_listed_response_headers_come_back(client: FlaskClient, team: Member):
    headers = client.post(CHAT, json=HELLO, headers=team.headers).headers
    assert headers["openai-processing-ms"]
    assert "x-ratelimit-remaining-tokens" not in headers
    assert "set-cookie" not in headers
    assert "openai-organization" not in headers
    assert headers["x-request-id"].startswith("req_")


def test_compressed_answer_is_relayed_plain(client: FlaskClient, team: Member):
    reply = client.post(CHAT, json=hello("gzip=1"), headers=team.headers)
    assert "content-encoding" not in reply.headers
    assert reply.json["usage"]


def test_stream_is_relayed_and_charged(client: FlaskClient, team: Member, provider: StandInProvider):
    reply = client.post(CHAT, json=hello(stream=True), headers=team.headers)
    assert reply.mimetype == "text/event-stream"
    assert reply.data.endswith(b"data: [DONE]\n\n")
    assert stored(team).settled_tokens == provider.tokens_served > 0
    assert last_call()["stream"] is True


def test_usage_event_is_asked_for_and_dropped_unless_the_caller_asked(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    plain = client.post(CHAT, json=hello(stream=True), headers=team.headers).data
    asked = client.post(
        CHAT, json=hello(stream=True, stream_options={"include_usage": True}), headers=team.headers
    ).data
    assert provider.calls[0].json["stream_options"] == {"include_usage": True}
    assert b'"choices":[]' not in plain
    assert b'"choices":[]' in asked
    assert plain.count(b"data:") + 1 == asked.count(b"data:")


def test_callers_other_stream_options_are_kept(client: FlaskClient, team: Member, provider: StandInProvider):
    client.post(CHAT, json=hello(stream=True, stream_options={"include_obfuscation": False}), headers=team.headers)
    assert provider.calls[0].json["stream_options"] == {"include_obfuscation": False, "include_usage": True}


def test_refused_stream_options_are_left_out_on_a_second_try(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = client.post(CHAT, json=hello("refuse_stream_options=1", stream=True), headers=team.headers)
    assert reply.data.endswith(b"data: [DONE]\n\n")
    assert ["stream_options" in call.json for call in provider.calls] == [True, False]
    assert last_call()["usage_source"] == "estimated"


def test_stream_options_that_the_caller_set_are_not_tried_without(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    body = hello("refuse_stream_options=1", stream=True, stream_options={"include_usage": True})
    assert client.post(CHAT, json=body, headers=team.headers).status_code == 400
    assert len(provider.calls) == 1


SHAPES = [
    "space=no",
    "newline=crlf",
    "newline=cr",
    "comments=1",
    "event_names=1",
    "framing=close",
    "framing=split unicode=1",
    "framing=split newline=crlf unicode=1",
    "burst=1",
    "usage=every",
    "big=5000000",
    "space=no newline=crlf comments=1 event_names=1 framing=split unicode=1",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_stream_of_every_legal_shape_is_metered(
    client: FlaskClient, team: Member, provider: StandInProvider, shape: str
):
    reply = client.post(CHAT, json=hello(shape, stream=True), headers=team.headers)
    assert b"[DONE]" in reply.data
    call = last_call()
    assert (call["status"], call["usage_source"]) == ("ok", "provider")
    assert call["charged_tokens"] == provider.tokens_served


@pytest.mark.parametrize("shape", SHAPES)
def test_stream_of_every_legal_shape_is_relayed_byte_for_byte(
    client: FlaskClient, team: Member, provider: StandInProvider, shape: str
):
    body = json.dumps(hello(shape, stream=True, stream_options={"include_usage": True}))
    relayed = client.post(CHAT, data=body, headers=team.headers).data
    connection = http.client.HTTPConnection(provider.host, provider.port)
    connection.request("POST", CHAT, body, {"Authorization": f"Bearer {PROVIDER_KEY}"})
    direct = connection.getresponse().read()
    connection.close()
    assert _without_what_differs(relayed) == _without_what_differs(direct)


def _without_what_differs(stream: bytes) -> bytes:
    return re.sub(rb'"id":"[^"]+"|"created":\d+', b"", stream)


@by_pairs(
    ("usage", ["none", "negative", "absurd", "string", "float", "null"]), ("stream", [False, True]), BOTH_DATABASES
)
def test_unusable_usage_is_replaced_by_a_count_of_the_texts(
    client: FlaskClient, team: Member, usage: str, stream: bool
):
    reply = client.post(CHAT, json=hello(f"usage={usage} words=50", stream=stream), headers=team.headers)
    assert reply.status_code == 200
    reply.get_data()
    call = last_call()
    assert (call["status"], call["usage_source"]) == ("ok", "estimated")
    assert 45 <= call["completion_tokens"] <= 80
    assert stored(team).settled_tokens == call["charged_tokens"] == call["prompt_tokens"] + call["completion_tokens"]


def test_total_alone_is_charged_and_divided_by_our_count_of_the_prompt(client: FlaskClient, team: Member):
    body = hello("usage=total_only prompt_tokens=100 words=7")
    client.post(CHAT, json=body, headers=team.headers)
    call, prompt = last_call(), read_chat_prompt(body).count()
    assert (call["prompt_tokens"], call["completion_tokens"], call["charged_tokens"]) == (prompt, 107 - prompt, 107)
    assert call["usage_source"] == "provider"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [("zero", (0, 0, 0)), ("no_total", (100, 7, 107)), ("mismatch", (100, 7, 114))],
)
def test_odd_usage_is_charged_as_reported(client: FlaskClient, team: Member, usage: str, expected: tuple[int, ...]):
    client.post(CHAT, json=hello(f"usage={usage} prompt_tokens=100 words=7"), headers=team.headers)
    call = last_call()
    assert (call["prompt_tokens"], call["completion_tokens"], call["charged_tokens"]) == expected
    assert call["usage_source"] == "provider"


def test_every_response_has_its_own_request_id(client: FlaskClient):
    ids = {client.get(path).headers["x-request-id"] for path in ("/v1/models", "/v1/nothing", "/v1", "/elsewhere")}
    assert len(ids) == 4

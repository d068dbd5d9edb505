"""The fields that we add to a request, where the provider refuses them: left out once, and from then on."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import HELLO, Member, stored
from flask.testing import FlaskClient
from requests_mock import Adapter

from tokenrouter import reports
from tokenrouter.payload import additions
from tokenrouter.provider import client as provider_client

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
ANSWER = {"id": "c", "choices": [{"message": {"role": "assistant", "content": "Hi"}}], "usage": USAGE}
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}],"usage":%b}\n\ndata: [DONE]\n\n'
    % json.dumps(USAGE).encode()
)


def named(field: str, **fields: Any) -> dict[str, Any]:
    return {"type": "extra_forbidden", "loc": ["body", field], "msg": "no such field here", **fields}


SHAPES: dict[str, Callable[[str], tuple[int, object]]] = {
    "param": lambda field: (400, {"error": {"message": "No.", "param": field}}),
    "message": lambda field: (400, {"error": {"message": f"Unrecognized request argument supplied: {field}"}}),
    "list under detail": lambda field: (422, {"detail": [named(field, input={"a": 1})]}),
    "detail within message": lambda field: (422, {"object": "error", "message": {"detail": [named(field)]}}),
    "text at the top": lambda field: (400, {"object": "error", "message": f"[{{'loc': ('body', '{field}')}}]"}),
    "plain text": lambda field: (400, f"json: unknown field {field!r}"),
    "error is a text": lambda field: (400, {"error": f"property {field} is not known"}),
    "camel case": lambda field: (400, [{"error": {"message": f"Cannot find {field.title().replace('_', '')}."}}]),
    "python's own": lambda field: (500, f"TypeError: create() got an unexpected keyword argument '{field}'"),
    "words alone": lambda field: (400, {"error": {"message": "Extra inputs are not permitted"}}),
    "other words": lambda field: (422, {"message": "The request has an unsupported parameter."}),
    "letters beyond ASCII": lambda field: (400, {"error": {"message": "API 调用参数有误"}}),
    "keys": lambda field: (400, {"error": {"message": "Unrecognized key(s) in object"}}),
    "vague": lambda field: (400, "Bad request: invalid parameter"),
    "type alone": lambda field: (422, {"detail": [{"type": "extra_forbidden"}]}),
}


class Strict:
    """A provider that refuses fields, in whatever shape; it remembers what it was sent."""

    def __init__(self) -> None:
        self.refuses = {"stream_options"}
        self.shape = SHAPES["param"]
        self.sent: list[dict[str, Any]] = []

    def answer(self, request: Any, context: Any) -> bytes:
        body = json.loads(request.body)
        self.sent.append(body)
        if found := self.refuses & set(body):
            context.status_code, document = self.shape(min(found))
            return document.encode() if isinstance(document, str) else json.dumps(document).encode()
        context.headers["Content-Type"] = "text/event-stream" if body.get("stream") else "application/json"
        return EVENTS if body.get("stream") else json.dumps(ANSWER).encode()


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Strict:
    strict, adapter = Strict(), Adapter()
    for path in ("chat/completions", "completions", "responses"):
        adapter.register_uri("POST", f"https://provider.example/v1/{path}", content=strict.answer)
    monkeypatch.setattr(provider_client, "ProviderAdapter", lambda **_: adapter)
    return strict


@pytest.fixture
def settings(settings: dict[str, str], strict: Strict, request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, "PROVIDER_BASE_URL": "https://provider.example/v1", **getattr(request, "param", {})}


limited = pytest.mark.parametrize("settings", [{"MAX_OUTPUT_TOKENS": "512"}], indirect=True, ids=["limited"])


def ask(client: FlaskClient, team: Member, **fields: object) -> int:
    with client.post(CHAT, json={**HELLO, **fields}, headers=team.headers) as reply:
        reply.get_data()
    return reply.status_code


@pytest.mark.parametrize("shape", SHAPES)
def test_refused_request_for_usage_is_left_out_once_and_from_then_on(
    client: FlaskClient, team: Member, strict: Strict, shape: str
):
    strict.shape = SHAPES[shape]
    assert [ask(client, team, stream=True), ask(client, team, stream=True)] == [200, 200]
    assert ["stream_options" in body for body in strict.sent] == [True, False, False]
    assert stored(team).settled_tokens == 22


@limited
@pytest.mark.parametrize("shape", SHAPES)
def test_refused_limit_is_written_as_max_tokens_once_and_from_then_on(
    client: FlaskClient, team: Member, strict: Strict, shape: str
):
    strict.refuses, strict.shape = {"max_completion_tokens"}, SHAPES[shape]
    assert [ask(client, team), ask(client, team)] == [200, 200]
    limits = [{name: body[name] for name in body if name.startswith("max_")} for body in strict.sent]
    assert limits == [{"max_completion_tokens": 512}, {"max_tokens": 512}, {"max_tokens": 512}]


def test_limit_that_a_low_quota_sets_is_written_as_max_tokens_too(client: FlaskClient, new_team, strict: Strict):
    strict.refuses = {"max_completion_tokens"}
    team = new_team(quota_tokens=600)
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert reply.status_code == 200
    assert strict.sent[1]["max_tokens"] == int(reply.headers["x-tokenrouter-output-limit"])


@limited
def test_both_additions_are_left_out_at_the_one_further_try(client: FlaskClient, team: Member, strict: Strict):
    strict.refuses = {"stream_options", "max_completion_tokens"}
    assert ask(client, team, stream=True) == 200
    assert len(strict.sent) == 2
    assert (strict.sent[1]["max_tokens"], strict.refuses & set(strict.sent[1])) == (512, set())


@limited
def test_only_the_field_that_was_named_is_left_out_from_then_on(client: FlaskClient, team: Member, strict: Strict):
    strict.refuses = {"max_completion_tokens"}
    ask(client, team, stream=True)
    ask(client, team, stream=True)
    assert strict.sent[2]["stream_options"] == {"include_usage": True}
    assert len(strict.sent) == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_field_that_the_caller_wrote_is_not_tried_without(
    client: FlaskClient, team: Member, strict: Strict, shape: str
):
    strict.refuses, strict.shape = {"stream_options", "max_completion_tokens"}, SHAPES[shape]
    status = ask(client, team, stream=True, stream_options={"include_usage": True}, max_completion_tokens=5)
    assert status == SHAPES[shape]("")[0]
    assert len(strict.sent) == 1


def test_callers_other_stream_options_are_still_sent_at_the_further_try(
    client: FlaskClient, team: Member, strict: Strict
):
    strict.refuses = {"stream_options"}
    ask(client, team, stream=True, stream_options={"include_obfuscation": False})
    assert [body["stream_options"] for body in strict.sent] == [
        {"include_obfuscation": False, "include_usage": True},
        {"include_obfuscation": False},
    ]


@pytest.mark.parametrize("status", [401, 402, 403, 408, 409, 413, 429, 502, 503])
def test_error_that_is_about_no_field_is_not_tried_again(
    client: FlaskClient, team: Member, strict: Strict, status: int
):
    strict.shape = lambda field: (status, {"error": {"message": f"Unknown parameter {field}"}})
    ask(client, team, stream=True)
    assert len(strict.sent) == 1


def test_error_about_something_else_is_told_and_not_tried_again(client: FlaskClient, team: Member, strict: Strict):
    strict.shape = lambda field: (400, {"error": {"message": "The prompt is too long."}})
    assert ask(client, team, stream=True) == 400
    assert len(strict.sent) == 1


def test_vague_words_that_name_a_field_of_the_callers_are_not_tried_again(
    client: FlaskClient, team: Member, strict: Strict
):
    strict.shape = lambda field: (400, {"error": {"message": "Invalid parameter: temperature is 3."}})
    assert ask(client, team, stream=True, temperature=3) == 400
    assert len(strict.sent) == 1


def test_what_the_further_try_is_refused_for_is_told_and_not_remembered(
    client: FlaskClient, team: Member, strict: Strict
):
    strict.refuses, strict.shape = {"x"}, SHAPES["words alone"]
    assert ask(client, team, stream=True, x=1) == 400
    assert len(strict.sent) == 2
    assert ask(client, team, stream=True) == 200
    assert "stream_options" in strict.sent[2]
    assert reports.log_view(reports.newest_calls(None, 1)[0])["usage_source"] == "provider"


def test_what_was_learned_is_the_models_own(client: FlaskClient, team: Member, strict: Strict):
    ask(client, team, stream=True)
    ask(client, team, stream=True, model="GPT-5-mini")
    assert "stream_options" in strict.sent[2]


def test_what_one_team_learned_changes_nothing_for_another(client: FlaskClient, team: Member, new_team, strict: Strict):
    ask(client, team, stream=True)
    ask(client, new_team("other"), stream=True)
    assert "stream_options" in strict.sent[2]


def test_what_was_learned_is_tried_anew_after_an_hour(
    client: FlaskClient, team: Member, strict: Strict, monkeypatch: pytest.MonkeyPatch
):
    ask(client, team, stream=True)
    now = additions.time.monotonic()
    monkeypatch.setattr(additions.time, "monotonic", lambda: now + 3601)
    ask(client, team, stream=True)
    assert "stream_options" in strict.sent[2]


@pytest.mark.parametrize("settings", [{"ALLOWED_MODELS": "*"}], indirect=True, ids=["all models"])
def test_memory_of_refusals_is_bounded(
    client: FlaskClient, team: Member, strict: Strict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(additions, "MOST_REMEMBERED", 2)
    for model in ("a", "b", "c", "b", "a"):
        ask(client, team, stream=True, model=model)
    asked = [body["model"] for body in strict.sent if "stream_options" in body]
    assert asked == ["a", "b", "c", "a"]

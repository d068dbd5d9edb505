"""What belongs to the whole account stays closed, and a response goes on only from one of the same team."""

import json

import pytest
from conftest import Member, stored
from flask.testing import FlaskClient
from sending import MODEL, body_of, fetch

from tokenrouter import ledger, payload, reports, runtime
from tokenrouter.database.tables import db
from tokenrouter.standin import StandInProvider

BOTH = pytest.mark.both_databases


def events_of(stream: bytes) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


# What stays closed


CLOSED = [
    ("GET", "files"),
    ("POST", "files"),
    ("GET", "files/file-1/content"),
    ("DELETE", "files/file-1"),
    ("POST", "uploads"),
    ("GET", "batches"),
    ("POST", "batches"),
    ("POST", "batches/b/cancel"),
    ("GET", "fine_tuning/jobs"),
    ("POST", "fine_tuning/jobs"),
    ("GET", "vector_stores"),
    ("POST", "vector_stores"),
    ("POST", "vector_stores/vs/search"),
    ("GET", "assistants"),
    ("POST", "threads"),
    ("POST", "threads/t/runs"),
    ("GET", "chat/completions/chatcmpl-1"),
    ("POST", "chat/completions/chatcmpl-1"),
    ("DELETE", "chat/completions/chatcmpl-1"),
    ("GET", "chat/completions/chatcmpl-1/messages"),
    ("GET", "responses/resp-1"),
    ("DELETE", "responses/resp-1"),
    ("POST", "responses/resp-1/cancel"),
    ("GET", "responses/resp-1/input_items"),
    ("POST", "responses/input_tokens"),
    ("POST", "responses/compact"),
    ("POST", "conversations"),
    ("GET", "conversations/conv-1/items"),
    ("POST", "containers"),
    ("POST", "evals"),
    ("POST", "videos"),
    ("POST", "realtime/sessions"),
    ("POST", "realtime/client_secrets"),
    ("GET", "organization/usage/completions"),
    ("POST", "organization/projects"),
    ("POST", "engines/GPT-5-nano/completions"),
    ("POST", "chat/completions/../../files"),
    ("POST", "chat//completions"),
    ("POST", "Chat/Completions"),
    ("POST", "unheard/of"),
]


def test_what_belongs_to_the_whole_account_is_unknown_here(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    for method, path in CLOSED:
        reply = client.open(f"/v1/{path}", method=method, json=body_of("chat/completions"), headers=team.headers)
        assert (path, reply.status_code, reply.json["error"]["code"]) == (path, 404, "unknown_url")
        assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "chat/completions"), ("GET", "responses"), ("DELETE", "models/GPT-5-nano"), ("PUT", "audio/speech")],
)
def test_other_methods_of_what_is_served_are_not_forwarded(
    client: FlaskClient, team: Member, provider: StandInProvider, method: str, path: str
):
    reply = client.open(f"/v1/{path}", method=method, headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (405, "method_not_allowed")
    assert provider.calls == []


CLOSED_FIELDS = [
    ("background", True, "background"),
    ("background", "yes", "background"),
    ("conversation", "conv-1", "conversation"),
    ("conversation", {"id": "conv-1"}, "conversation"),
    ("previous_response_id", 1, "previous_response_id"),
    ("previous_response_id", ["resp_1"], "previous_response_id"),
]


@pytest.mark.parametrize(("field", "value", "param"), CLOSED_FIELDS)
def test_field_that_reaches_into_the_account_is_refused(
    client: FlaskClient, team: Member, provider: StandInProvider, field: str, value: object, param: str
):
    reply = fetch(client, team, "responses", **{field: value})
    assert (reply.status_code, reply.json["error"]["param"]) == (400, param)
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


def test_closed_fields_may_be_null_or_off(client: FlaskClient, team: Member):
    body = body_of("responses") | {"background": False, "conversation": None, "previous_response_id": None}
    assert client.post("/v1/responses", json=body, headers=team.headers).status_code == 200


# Responses that go on from earlier ones


@BOTH
def test_response_goes_on_from_one_of_the_same_team(client: FlaskClient, team: Member, provider: StandInProvider):
    first = fetch(client, team, "responses").json
    assert fetch(client, team, "responses", previous_response_id=first["id"], max_output_tokens=20).status_code == 200
    assert provider.calls[1].json["previous_response_id"] == first["id"]
    alone = payload.check(payload.ENDPOINTS[2], body_of("responses"), MODEL, runtime.current().settings).prompt_tokens
    assert reports.newest_calls(None, 1)[0].held_tokens == alone + first["usage"]["total_tokens"] + 20


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_response_of_another_team_is_not_found(
    client: FlaskClient, team: Member, new_team, provider: StandInProvider, stream: bool
):
    other = new_team("other")
    fetch(client, team, "responses", stream=stream)
    response_id = provider.finished[0].response_id
    assert fetch(client, team, "responses", previous_response_id=response_id).status_code == 200
    reply = fetch(client, other, "responses", previous_response_id=response_id)
    assert (reply.status_code, reply.json["error"]["param"]) == (404, "previous_response_id")
    assert len(provider.calls) == 2
    assert stored(other).held_tokens == 0


@BOTH
@pytest.mark.parametrize("response_id", ["", "resp_unknown", "x" * 100_000])
def test_response_that_nobody_was_given_is_not_found(
    client: FlaskClient, team: Member, provider: StandInProvider, response_id: str
):
    reply = fetch(client, team, "responses", previous_response_id=response_id)
    assert (reply.status_code, reply.json["error"]["param"]) == (404, "previous_response_id")
    assert provider.calls == []


@pytest.mark.parametrize("directives", ["failed=8", "cut=8", "status=500"])
def test_response_that_failed_cannot_be_gone_on_from(
    client: FlaskClient, team: Member, provider: StandInProvider, directives: str
):
    reply = fetch(client, team, "responses", directives, stream=True)
    if directives != "status=500":
        response_id = events_of(reply.data)[0]["response"]["id"]
        assert fetch(client, team, "responses", previous_response_id=response_id).status_code == 404
    with db.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM responses").scalar() == 0


def test_response_that_is_not_stored_cannot_be_gone_on_from(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    first = fetch(client, team, "responses", store=False).json
    assert provider.calls[0].json["store"] is False
    assert fetch(client, team, "responses", previous_response_id=first["id"]).status_code == 404


@BOTH
def test_response_is_remembered_by_all_workers_and_after_a_restart(client: FlaskClient, team: Member):
    first = fetch(client, team, "responses").json
    readers = runtime.current().readers
    assert ledger.tokens_of_response(readers, team.team.id, first["id"]) == first["usage"]["total_tokens"]
    assert ledger.tokens_of_response(readers, team.team.id + 1, first["id"]) is None

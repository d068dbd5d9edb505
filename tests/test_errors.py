"""The table of errors: one shape, the right status, type, code and headers, in the order of the checks."""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from conftest import HELLO, PROVIDER_KEY, Member, Server, hello, stored
from flask.testing import FlaskClient
from pairs import BOTH_DATABASES, by_pairs
from werkzeug.test import TestResponse

from tokenrouter import payload, reports
from tokenrouter.database import engine
from tokenrouter.database.tables import ApiToken, Team, db
from tokenrouter.metering.streams import StreamMeter
from tokenrouter.relay import handler, streams
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases

CHAT = "/v1/chat/completions"
MOST_BYTES = 100_000
TOO_LARGE = b" " * (MOST_BYTES + 1)
ONCE_ONLY = {"x-should-retry": "false"}
IN_A_SECOND = {"Retry-After": "1"}


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, "MAX_REQUEST_BYTES": str(MOST_BYTES), **getattr(request, "param", {})}


@pytest.fixture(autouse=True)
def left_answers_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read an answer on only shortly once its client left."""
    monkeypatch.setattr(streams, "LEFT_CALL_S", 0.1)


@pytest.fixture
def disabled(new_team) -> Member:
    member = new_team("disabled")
    change(member, active=False)
    return member


@pytest.fixture
def occupied(client: FlaskClient, new_team) -> Iterator[TestResponse]:
    """A stream of another team that goes on until the test ends or closes it."""
    reply = client.post(CHAT, json=hello("hang=2", stream=True), headers=new_team("busy").headers)
    assert reply.status_code == 200
    yield reply
    reply.close()


def change(member: Member, **values: object) -> None:
    with db.engine.begin() as connection:
        connection.execute(db.update(Team).where(Team.id == member.team.id).values(**values))


def change_token(member: Member, **values: object) -> None:
    with db.engine.begin() as connection:
        connection.execute(db.update(ApiToken).where(ApiToken.team_id == member.team.id).values(**values))


def rows() -> list[dict[str, object]]:
    return [reports.log_view(row) for row in reports.newest_calls(None, 100)]


def assert_error(
    reply: TestResponse,
    status: int,
    code: str | None,
    *,
    type_: str = "invalid_request_error",
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> str:
    """Compare all that an error consists of, and return its message."""
    assert (reply.status_code, reply.mimetype) == (status, "application/json"), reply.data
    assert reply.headers["x-request-id"].startswith("req_")
    given = {name: reply.headers[name] for name in ("x-should-retry", "Retry-After") if name in reply.headers}
    assert given == (headers or {})
    assert list(reply.json) == ["error"]
    error = dict(reply.json["error"])
    message = error.pop("message")
    assert error == {"type": type_, "param": param, "code": code}
    assert isinstance(message, str) and message
    return message


# Who may call


def test_missing_unknown_revoked_and_expired_tokens_get_the_same_401(client: FlaskClient, new_team):
    revoked, expired, deleted = new_team("revoked"), new_team("expired"), new_team("deleted")
    now = datetime.now(UTC)
    change_token(revoked, revoked_at=now)
    change_token(expired, expires_at=now - timedelta(seconds=1))
    change(deleted, deleted_at=now)
    senders = [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer tr-unknown"}, {"Authorization": "Basic eA=="}]
    senders += [{"Authorization": "Bearer t\xf6ken"}, {"Authorization": f"Bearer {PROVIDER_KEY}"}]
    senders += [member.headers for member in (revoked, expired, deleted)]
    replies = [client.post(CHAT, json=HELLO, headers=headers) for headers in senders]
    for reply in replies:
        assert_error(reply, 401, "invalid_api_key")
    assert len({reply.data for reply in replies}) == 1
    assert rows() == []


def test_disabled_team_gets_403_and_a_row(client: FlaskClient, disabled: Member):
    reply = client.post(CHAT, headers=disabled.headers)
    assert_error(reply, 403, "team_disabled")
    assert_rejected(reply, 403)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/GPT-5-nano", "/v1/usage", "/usage/data"])
def test_disabled_teams_look_at_models_or_use_is_no_failed_call(client: FlaskClient, disabled: Member, path: str):
    assert_error(client.get(path, headers=disabled.headers), 403, "team_disabled")
    assert rows() == []


def assert_rejected(reply: TestResponse, status: int) -> None:
    (row,) = rows()
    assert row["request_id"] == reply.headers["x-request-id"]
    assert (row["status"], row["status_code"]) == ("rejected", status)
    assert (row["charged_tokens"], row["usage_source"]) == (0, "none")


# Where and how much


@by_pairs(
    ("path", ["/v1", "/v1/", "/v1/nothing", "/v1/chat/completions/", "/v1/organization/usage"]),
    ("method", ["GET", "POST", "DELETE"]),
    BOTH_DATABASES,
)
def test_unknown_path_gets_404(client: FlaskClient, path: str, method: str):
    assert_error(client.open(path, method=method), 404, "unknown_url")


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("DELETE", CHAT), ("POST", "/v1/models")])
def test_wrong_method_gets_405(client: FlaskClient, team: Member, method: str, path: str):
    reply = client.open(path, method=method, headers=team.headers)
    assert_error(reply, 405, "method_not_allowed")
    assert method not in reply.headers["Allow"]


def test_body_over_the_limit_gets_413(client: FlaskClient, team: Member, provider: StandInProvider):
    assert_error(client.post(CHAT, data=TOO_LARGE, headers=team.headers), 413, "request_too_large")
    assert (rows(), provider.calls) == ([], [])


def test_body_at_the_limit_is_taken(client: FlaskClient, team: Member):
    assert client.post(CHAT, data=json.dumps(HELLO).ljust(MOST_BYTES), headers=team.headers).status_code == 200


@pytest.mark.sqlite_only
def test_chunked_body_over_the_limit_gets_413(server: Server):
    bearer = {"Authorization": f"Bearer {server.create_team()}"}
    reply = requests.post(server.url + CHAT, data=iter([b" " * MOST_BYTES, b"  "]), headers=bearer, timeout=10)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


# What is asked


BAD_JSON = {
    "empty": b"",
    "truncated": b'{"messages": [',
    "array": b"[]",
    "text": b'"text"',
    "null": b"null",
    "number": b"1",
    "NaN": b'{"temperature": NaN}',
    "infinity": b'{"temperature": Infinity}',
    "trailing comma": b'{"a": 1,}',
    "two documents": b"{}{}",
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "utf-16": json.dumps(HELLO).encode("utf-16"),
    "form": b"model=GPT-5-nano",
    "deep arrays": b"[" * 10_000 + b"]" * 10_000,
    "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
}


def test_body_that_is_no_json_object_gets_400(client: FlaskClient, team: Member, provider: StandInProvider):
    for data in BAD_JSON.values():
        reply = client.post(CHAT, data=data, headers=team.headers, content_type="application/json")
        assert_error(reply, 400, None)
        assert (rows(), provider.calls) == ([], []), data[:20]


BAD_FIELDS = {
    "messages": ["Hello!", {"role": "user"}, 1, True],
    "model": [1, ["GPT-5-nano"], {"id": "GPT-5-nano"}, False],
    "stream": ["yes", 1, [], {}],
    "stream_options": [True, [], "include_usage"],
    "tools": ["search", {"type": "function"}],
    "n": ["2", -1, 1.5, True, 10**9, 10**30, []],
    "max_tokens": [-1, "5", 1.5, True, 10**30, []],
    "max_completion_tokens": [-1, "5", 1.5, True, 10**30, {}],
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_field_of_the_wrong_type_gets_400_that_names_it(
    client: FlaskClient, team: Member, provider: StandInProvider, field: str
):
    for value in BAD_FIELDS[field]:
        assert_error(client.post(CHAT, json={**HELLO, field: value}, headers=team.headers), 400, None, param=field)
        assert (rows(), provider.calls) == ([], []), value


def test_null_counts_as_a_field_left_out(client: FlaskClient, team: Member):
    fields = dict.fromkeys(("model", "stream", "stream_options", "tools", "n", "max_tokens", "max_completion_tokens"))
    assert client.post(CHAT, json=hello(**fields), headers=team.headers).status_code == 200


@by_pairs(("field", ["tools", "metadata"]), ("depth", [200, 300, 900]), BOTH_DATABASES)
def test_nested_json_is_passed_on_or_refused_but_never_breaks_us(
    client: FlaskClient, team: Member, field: str, depth: int
):
    data = json.dumps(hello())[:-1] + f', "{field}": [{{"a": ' + "[" * depth + "]" * depth + "}]}"
    assert client.post(CHAT, data=data, headers=team.headers).status_code in (200, 400)
    assert stored(team).held_tokens == 0


@pytest.mark.parametrize("model", ["GPT-4", "GPT-5-nano ", "", "GPT-5-*", "x" * 5000])
def test_model_that_is_not_allowed_gets_404_with_those_that_are(
    client: FlaskClient, team: Member, provider: StandInProvider, model: str
):
    reply = client.post(CHAT, json={**HELLO, "model": model}, headers=team.headers)
    message = assert_error(reply, 404, "model_not_found", param="model")
    assert all(name in message for name in ("GPT-5-nano", "GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-pro"))
    assert len(message) < 500
    assert_rejected(reply, 404)
    assert provider.calls == []


def test_models_that_the_teams_list_leaves_are_named(client: FlaskClient, team: Member):
    change(team, models="GPT-5-mini,Gemini-*,Claude")
    message = assert_error(client.post(CHAT, json=HELLO, headers=team.headers), 404, "model_not_found", param="model")
    assert "GPT-5-mini" in message and "Gemini-2.5-pro" in message
    assert "Claude" not in message


# Quota and places


def test_exhausted_team_gets_429_with_its_figures(client: FlaskClient, new_team, provider: StandInProvider):
    team = new_team(quota_tokens=2000)
    client.post(CHAT, json=hello("prompt_tokens=1995 words=1"), headers=team.headers)
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    message = assert_error(reply, 429, "insufficient_quota", type_="insufficient_quota", headers=ONCE_ONLY)
    assert message.startswith("Quota exceeded")
    assert {1996, 0, 2000} <= numbers(message)
    assert (rows()[0]["status"], rows()[0]["status_code"]) == ("rejected", 429)
    assert len(provider.calls) == 1


def numbers(message: str) -> set[int]:
    return {int(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]*", message)}


def test_quota_of_zero_blocks(client: FlaskClient, new_team, provider: StandInProvider):
    reply = client.post(CHAT, json=HELLO, headers=new_team(quota_tokens=0).headers)
    assert_error(reply, 429, "insufficient_quota", type_="insufficient_quota", headers=ONCE_ONLY)
    assert_rejected(reply, 429)
    assert provider.calls == []


def test_quota_that_calls_in_flight_have_reserved_gets_429_for_now(client: FlaskClient, new_team):
    team = new_team(quota_tokens=1100)
    running = client.post(CHAT, json=hello("hang=2", stream=True), headers=team.headers)
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    message = assert_error(reply, 429, "quota_reserved", type_="rate_limit_error", headers=IN_A_SECOND)
    assert {0, stored(team).held_tokens, 1100} <= numbers(message)
    assert (rows()[0]["status"], rows()[0]["status_code"]) == ("rejected", 429)
    running.close()
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200


@pytest.mark.parametrize("settings", [{"THREADS": "1"}], indirect=True)
def test_call_beyond_all_places_gets_503(client: FlaskClient, team: Member, occupied: TestResponse):
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert_error(reply, 503, "overloaded", type_="api_error", headers=IN_A_SECOND)
    assert len(rows()) == 1
    occupied.close()
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200


@pytest.mark.parametrize("settings", [{"TEAM_CALLS": "2"}], indirect=True)
def test_call_beyond_the_teams_places_gets_503_and_other_teams_go_on(client: FlaskClient, team: Member, new_team):
    running = [client.post(CHAT, json=hello("hang=2", stream=True), headers=team.headers) for _ in range(2)]
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert_error(reply, 503, "overloaded", type_="api_error", headers=IN_A_SECOND)
    assert client.post(CHAT, json=HELLO, headers=new_team("other").headers).status_code == 200
    for each in running:
        each.close()
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200


FAILURES = ["status=500", "drop=1", "cut=0", "cut=5", "status=200 body=html", "status=401", "words=3"]


@pytest.mark.parametrize("settings", [{"THREADS": "1"}], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
def test_place_is_given_back_after_every_ending(client: FlaskClient, team: Member, stream: bool):
    for failure in FAILURES:
        with client.post(CHAT, json=hello(failure, stream=stream), headers=team.headers) as reply:
            reply.get_data()
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200


# The order of the checks: each request is wrong in two ways, and hears of the first


def test_path_comes_before_size(client: FlaskClient):
    assert_error(client.post("/v1/nothing", data=TOO_LARGE), 404, "unknown_url")


def test_method_comes_before_size(client: FlaskClient):
    assert_error(client.put(CHAT, data=TOO_LARGE), 405, "method_not_allowed")


def test_size_comes_before_token(client: FlaskClient):
    assert_error(client.post(CHAT, data=TOO_LARGE), 413, "request_too_large")


def test_size_comes_before_disabled_team(client: FlaskClient, disabled: Member):
    assert_error(client.post(CHAT, data=TOO_LARGE, headers=disabled.headers), 413, "request_too_large")
    assert rows() == []


def test_token_comes_before_disabled_team(client: FlaskClient, disabled: Member):
    change_token(disabled, revoked_at=datetime.now(UTC))
    assert_error(client.post(CHAT, json=HELLO, headers=disabled.headers), 401, "invalid_api_key")


def test_token_comes_before_body(client: FlaskClient):
    assert_error(client.post(CHAT, data=b"{"), 401, "invalid_api_key")


def test_disabled_team_comes_before_body(client: FlaskClient, disabled: Member):
    assert_error(client.post(CHAT, data=b"{", headers=disabled.headers), 403, "team_disabled")


def test_body_comes_before_model(client: FlaskClient, team: Member):
    reply = client.post(CHAT, json=hello(model="GPT-4", n="2"), headers=team.headers)
    assert_error(reply, 400, None, param="n")
    assert rows() == []


@pytest.fixture
def own_call(client: FlaskClient, team: Member) -> Iterator[TestResponse]:
    """A stream of the team's own."""
    with client.post(CHAT, json=hello("hang=2", stream=True), headers=team.headers) as reply:
        assert reply.status_code == 200
        yield reply


@pytest.mark.usefixtures("own_call")
@pytest.mark.parametrize("settings", [{"TEAM_CALLS": "1"}], indirect=True)
def test_disabled_team_comes_before_its_place(client: FlaskClient, team: Member):
    change(team, active=False)
    assert_error(client.post(CHAT, json=HELLO, headers=team.headers), 403, "team_disabled")


@pytest.mark.usefixtures("own_call")
@pytest.mark.parametrize("settings", [{"TEAM_CALLS": "1"}], indirect=True)
def test_place_of_the_team_comes_before_body(client: FlaskClient, team: Member):
    reply = client.post(CHAT, data="{", headers=team.headers)
    assert_error(reply, 503, "overloaded", type_="api_error", headers=IN_A_SECOND)


@pytest.mark.parametrize("settings", [{"THREADS": "1"}], indirect=True)
def test_body_comes_before_places(client: FlaskClient, team: Member, occupied: TestResponse):
    assert_error(client.post(CHAT, data="{", headers=team.headers), 400, None)


@pytest.mark.parametrize("settings", [{"THREADS": "1"}], indirect=True)
def test_model_comes_before_places(client: FlaskClient, team: Member, occupied: TestResponse):
    reply = client.post(CHAT, json={**HELLO, "model": "GPT-4"}, headers=team.headers)
    assert_error(reply, 404, "model_not_found", param="model")


@pytest.mark.parametrize("settings", [{"THREADS": "1"}], indirect=True)
def test_places_come_before_quota(client: FlaskClient, new_team, occupied: TestResponse):
    reply = client.post(CHAT, json=HELLO, headers=new_team(quota_tokens=0).headers)
    assert_error(reply, 503, "overloaded", type_="api_error", headers=IN_A_SECOND)


# The provider's failures


PROVIDERS = [
    ("drop=1", 502, "provider_unreachable", {}),
    ("status=401", 502, "provider_auth_failed", ONCE_ONLY),
    ("status=401 body=html", 502, "provider_auth_failed", ONCE_ONLY),
    ("status=403 code=invalid_api_key", 502, "provider_auth_failed", ONCE_ONLY),
    ("status=403 code=authentication_error", 502, "provider_auth_failed", ONCE_ONLY),
    ("status=402 message=Balance_of_12.34_USD", 503, "provider_quota_exhausted", ONCE_ONLY),
    ("status=429 code=insufficient_quota message=Balance_of_12.34_USD", 503, "provider_quota_exhausted", ONCE_ONLY),
    ("status=429 type=insufficient_quota message=Balance_of_12.34_USD", 503, "provider_quota_exhausted", ONCE_ONLY),
    ("redirect=http://127.0.0.1:1/", 502, "provider_bad_response", {}),
    ("status=204 body=empty", 502, "provider_bad_response", {}),
    ("status=200 body=html", 502, "provider_bad_response", {}),
    ("status=200 body=text", 502, "provider_bad_response", {}),
    ("status=200 body=empty", 502, "provider_bad_response", {}),
    ("cut=0", 502, "provider_bad_response", {}),
    ("half_chunk=0 framing=chunked", 502, "provider_bad_response", {}),
    ("body=html", 500, "provider_error", {}),
    ("body=json status=422", 422, "provider_error", {}),
    ("body=empty status=503", 503, "provider_error", {}),
    ("body=text status=429 retry_after=7", 429, "provider_error", {"Retry-After": "7"}),
]


@pytest.mark.parametrize(("directives", "status", "code", "headers"), PROVIDERS)
def test_failure_of_the_provider_has_its_row_of_the_table(
    client: FlaskClient, team: Member, directives: str, status: int, code: str, headers: dict[str, str]
):
    reply = client.post(CHAT, json=hello(directives), headers=team.headers)
    message = assert_error(reply, status, code, type_="api_error", headers=headers)
    assert PROVIDER_KEY not in message and "12.34" not in message
    assert (stored(team).held_tokens, rows()[0]["status"]) == (0, "provider_error")


@pytest.mark.parametrize("settings", [{"PROVIDER_READ_TIMEOUT": "0.3"}], indirect=True)
@by_pairs(("stream", [False, True]), ("directives", ["silent=1", "hang=0"]), BOTH_DATABASES)
def test_silent_provider_gets_504(client: FlaskClient, team: Member, directives: str, stream: bool):
    reply = client.post(CHAT, json=hello(directives, stream=stream), headers=team.headers)
    assert_error(reply, 504, "provider_timeout", type_="api_error", headers=ONCE_ONLY)


RELAYED = [
    ("status=400 code=context_length_exceeded", 400, "invalid_request_error", "context_length_exceeded", {}),
    ("status=403 code=country_not_supported", 403, "invalid_request_error", "country_not_supported", {}),
    ("status=404", 404, "invalid_request_error", None, {}),
    ("status=429 retry_after=7.5", 429, "rate_limit_error", None, {"Retry-After": "7.5"}),
    ("status=500", 500, "server_error", None, {}),
    ("status=503", 503, "server_error", None, {}),
]


@by_pairs(("stream", [False, True]), ("directives, status, type_, code, headers", RELAYED), BOTH_DATABASES)
def test_any_other_error_of_the_provider_is_relayed(
    client: FlaskClient,
    team: Member,
    directives: str,
    status: int,
    type_: str,
    code: str | None,
    headers: dict[str, str],
    stream: bool,
):
    reply = client.post(CHAT, json=hello(directives, stream=stream), headers=team.headers)
    assert_error(reply, status, code, type_=type_, headers=headers)
    assert (stored(team).settled_tokens, rows()[0]["status"]) == (0, "provider_error")


# Our own failures


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.1)


@pytest.fixture
def other_writer(impatient: None, team: Member, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that has locked the database."""
    with closing(sqlite3.connect(tmp_path / "tokenrouter.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other


@pytest.mark.sqlite_only
def test_locked_database_gets_503_and_the_provider_is_not_called(
    other_writer: sqlite3.Connection, client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert_error(reply, 503, "storage_unavailable", type_="api_error")
    assert provider.calls == []
    other_writer.rollback()
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200
    assert stored(team).held_tokens == 0


@pytest.mark.sqlite_only
def test_refusal_stands_while_the_database_cannot_log_it(
    other_writer: sqlite3.Connection, client: FlaskClient, team: Member
):
    reply = client.post(CHAT, json={**HELLO, "model": "GPT-4"}, headers=team.headers)
    assert_error(reply, 404, "model_not_found", param="model")


@pytest.mark.sqlite_only  # PostgreSQL calls a missing table a mistake of ours
def test_database_that_is_gone_gets_503(client: FlaskClient, team: Member):
    with db.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE api_tokens RENAME TO elsewhere")
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert_error(reply, 503, "storage_unavailable", type_="api_error")


def crash(*_: object, **__: object) -> None:
    raise RuntimeError("a detail that nobody outside may see")


@pytest.mark.parametrize(
    ("place", "name"),
    [(handler, "authenticate"), (payload, "check"), (handler, "_send"), (handler, "read_usage")],
)
def test_crash_gets_500_without_its_reason_and_leaves_no_hold(
    client: FlaskClient, team: Member, monkeypatch: pytest.MonkeyPatch, place: object, name: str
):
    monkeypatch.setattr(place, name, crash)
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    message = assert_error(reply, 500, None, type_="api_error")
    assert "detail" not in message and "Traceback" not in message
    assert stored(team).held_tokens == 0
    assert all(row["status"] != "pending" for row in rows())


def test_crash_in_mid_stream_is_an_error_event_and_the_end(
    client: FlaskClient, team: Member, monkeypatch: pytest.MonkeyPatch
):
    real = StreamMeter.take_plain_chunk
    monkeypatch.setattr(
        StreamMeter, "take_plain_chunk", lambda meter, data: crash() if b"demo;" in data else real(meter, data)
    )
    reply = client.post(CHAT, json=hello("gap=0.01", stream=True), headers=team.headers)
    events = reply.data.decode().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["type"] == "api_error"
    assert "[DONE]" not in reply.text and "detail" not in reply.text
    assert stored(team).held_tokens == 0


def test_answer_is_taken_for_what_it_says_it_is_whatever_the_provider_sends(client: FlaskClient, team: Member):
    """A page of the provider's must not run in a browser as one of ours."""
    answers = [
        client.post("/v1/chat/completions", json=hello(directives, **fields), headers=team.headers)
        for directives, fields in (
            ("", {}),
            ("", {"stream": True}),
            ("content_type=text/html", {}),
            ("status=502 body=html", {}),
        )
    ]
    answers += [client.get(path) for path in ("/v1/models", "/v1/nothing", "/api/teams", "/usage/data")]
    assert [answer.headers.get("X-Content-Type-Options") for answer in answers] == ["nosniff"] * len(answers)

"""Who called before is known by his token, and yet every change of team and token counts from the next call on."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from conftest import HELLO, Member, hello, stored
from flask.testing import FlaskClient
from sqlalchemy import update

from tokenrouter import auth, reports, runtime
from tokenrouter.database.tables import ApiToken, Team, db
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases

CHAT = "/v1/chat/completions"
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


def change(kind: type[Team] | type[ApiToken], member: Member, **values: object) -> None:
    """Change a row by hand, as another process would."""
    is_theirs = Team.id == member.team.id if kind is Team else ApiToken.team_id == member.team.id
    with db.engine.begin() as connection:
        connection.execute(update(kind).where(is_theirs).values(**values))


def code_of(client: FlaskClient, member: Member, body: object = HELLO) -> str | int:
    """Call, and return the code of the refusal, or the status."""
    data = {"data": body} if isinstance(body, bytes) else {"json": body}
    reply = client.post(CHAT, **data, headers=member.headers)
    return reply.status_code if reply.status_code == 200 else reply.json["error"]["code"]


@pytest.fixture
def known(client: FlaskClient, team: Member) -> Member:
    """A team that called before."""
    assert code_of(client, team) == 200
    return team


INVALID, DISABLED = "invalid_api_key", "team_disabled"


@pytest.mark.parametrize("body", [HELLO, b"{", {**HELLO, "model": "no such model"}, {**HELLO, "n": -1}])
@pytest.mark.parametrize(
    ("kind", "values", "code"),
    [
        (ApiToken, {"revoked_at": LONG_AGO}, INVALID),
        (ApiToken, {"expires_at": LONG_AGO}, INVALID),
        (Team, {"deleted_at": LONG_AGO}, INVALID),
        (Team, {"active": False}, DISABLED),
    ],
)
def test_caller_who_may_call_no_more_is_told_so_whatever_else_is_wrong(
    client: FlaskClient,
    known: Member,
    provider: StandInProvider,
    kind: type[Team] | type[ApiToken],
    values: dict[str, object],
    code: str,
    body: object,
):
    change(kind, known, **values)
    assert [code_of(client, known, body) for _ in range(2)] == [code, code]
    assert len(provider.calls) == 1
    assert stored(known).held_tokens == 0


def test_models_are_those_of_now(client: FlaskClient, known: Member, app):
    change(Team, known, models="GPT-5-mini")
    assert code_of(client, known) == "model_not_found"
    assert code_of(client, known, {**HELLO, "model": "GPT-5-mini"}) == 200
    change(Team, known, models=None)
    assert code_of(client, known) == 200
    refused = [row for row in reports.newest_calls(None, 100) if row.status == "rejected"]
    assert len(refused) == 1


def test_widened_models_hold_at_once(client: FlaskClient, new_team: Callable[..., Member]):
    member = new_team("narrow", models="GPT-5-mini")
    assert code_of(client, member, {**HELLO, "model": "GPT-5-mini"}) == 200
    change(Team, member, models=None)
    assert code_of(client, member) == 200
    assert [row.status for row in reports.newest_calls(None, 100)] == ["ok", "ok"]


def test_name_in_the_log_is_that_of_now(client: FlaskClient, known: Member):
    change(Team, known, name="renamed")
    assert code_of(client, known) == 200
    assert [row.team_name for row in reports.newest_calls(None, 10)] == ["renamed", "team"]


def test_quota_is_that_of_now(client: FlaskClient, known: Member):
    change(Team, known, quota_tokens=0)
    assert code_of(client, known) == "insufficient_quota"
    (row,) = [row for row in reports.newest_calls(None, 100) if row.status == "rejected"]
    assert row.repeats == 1


@pytest.mark.sqlite_only
def test_quota_that_cannot_be_read_refuses_the_next_call(client: FlaskClient, known: Member):
    with closing(sqlite3.connect(db.engine.url.database, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE teams SET quota_tokens = '2.5M'")
    assert code_of(client, known) == DISABLED


def test_every_slot_is_given_back(client: FlaskClient, known: Member):
    for number in range(3):
        change(Team, known, name=f"team {number}")
        assert code_of(client, known) == 200
    change(Team, known, active=False)
    assert code_of(client, known) == DISABLED
    slots = runtime.of(client.application).slots
    assert (slots._taken, dict(slots._taken_by_team)) == (0, {})


def test_limit_that_only_we_wrote_is_still_ours_once_a_call_was_checked_again(
    client: FlaskClient, known: Member, provider: StandInProvider
):
    change(Team, known, quota_tokens=1000)
    change(Team, known, name="renamed")
    assert code_of(client, known, hello("words=1")) == 200
    assert "max_completion_tokens" in provider.calls[-1].json


def test_known_callers_are_not_looked_up_again(client: FlaskClient, known: Member, monkeypatch: pytest.MonkeyPatch):
    def look_up(*_: object) -> None:
        raise AssertionError("looked up again")

    monkeypatch.setattr(auth, "authenticate", look_up)
    assert code_of(client, known) == 200


def test_known_callers_are_of_a_bounded_number(client: FlaskClient, known: Member, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auth, "MOST_KNOWN", 1)
    callers = runtime.of(client.application).callers
    callers.remember("Bearer tr-other", callers.find(known.headers["Authorization"]))
    assert callers.find(known.headers["Authorization"]) is None
    assert callers.find("Bearer tr-other") is not None

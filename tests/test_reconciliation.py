"""The log beside the provider's own record: an hour of traffic with faults, whose gap is explained to the token."""

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from conftest import Member, chat
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import func, select, update

from tokenrouter import runtime
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ProviderEntry, ProviderFetch, RequestLog, db
from tokenrouter.errors import InvalidRequest
from tokenrouter.matching import Reason
from tokenrouter.provider import history
from tokenrouter.provider_record import fetch
from tokenrouter.reconciliation import Line, gaps_of, reconcile
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases
UTC_ZONE = ZoneInfo("UTC")


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe"}


def fetched() -> int:
    return fetch(db.engine, runtime.current().account).entries


def let_time_pass() -> None:
    """Let the record have been fetched later: what it lacks of the minutes before that may still come."""
    with writing(db.engine) as connection:
        connection.execute(update(ProviderFetch).values(until=datetime.now(UTC) + timedelta(minutes=5)))


def lines(key_name: str | None = None) -> list[Line]:
    today = datetime.now(UTC).date()
    return reconcile(db.engine, today - timedelta(days=1), today + timedelta(days=1), UTC_ZONE, key_name).lines


def test_what_agrees_has_no_gap(client: FlaskClient, team: Member, provider: StandInProvider):
    for model in ("GPT-5-nano", "gpt-5-nano", "GPT-5-mini"):
        chat(client, team, "prompt_tokens=10 words=5", model=model)
    assert fetched() == 3
    assert [(line.model.lower(), line.ours.calls, line.theirs.calls, line.gap_tokens) for line in lines()] == [
        ("gpt-5-mini", 1, 1, 0),
        ("gpt-5-nano", 2, 2, 0),
    ]
    assert list(gaps_of(lines())) == []


def test_gap_is_explained_to_the_token(client: FlaskClient, team: Member, provider: StandInProvider):
    chat(client, team, "prompt_tokens=10 words=5")
    chat(client, team, "prompt_tokens=100 words=50 usage=none")  # estimated here, and told there
    with writing(db.engine) as connection:  # what the provider billed and we do not know of, and the other way round
        gone = select(func.max(RequestLog.id)).scalar_subquery()
        connection.execute(update(RequestLog).where(RequestLog.id == gone).values(model="elsewhere"))
    chat(client, team, "prompt_tokens=30 words=3 usage=none")
    fetched()
    let_time_pass()
    found = lines()
    total = sum(line.gap_tokens for line in found)
    gaps = dict(gaps_of(found))
    assert sum(sums.tokens for sums in gaps.values()) == total
    assert gaps[Reason.THEIRS_ALONE].tokens == 150
    assert set(gaps) == {Reason.THEIRS_ALONE, Reason.OURS_ALONE, Reason.ESTIMATED}


def test_history_is_fetched_once(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "PAGE", 2)
    monkeypatch.setattr("tokenrouter.provider_record.SETTLES_WITHIN", timedelta(0))
    for _ in range(7):
        chat(client, team)
    assert fetched() == 7
    chat(client, team)
    pages = len(provider.calls)
    assert fetched() == 1
    assert len(provider.calls) - pages <= 2
    with db.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(ProviderEntry)).scalar() == 8


def test_entry_that_showed_nothing_at_first_is_taken_anew(client: FlaskClient, team: Member, provider: StandInProvider):
    chat(client, team)
    fetched()
    with writing(db.engine) as connection:
        connection.execute(update(ProviderEntry).values(points=0, cost=0))
    assert (fetched(), fetched()) == (1, 0)


def test_other_keys_of_the_account_can_be_left_out(client: FlaskClient, team: Member, provider: StandInProvider):
    chat(client, team)
    fetched()
    let_time_pass()
    assert lines("another")[0].theirs.calls == 0
    assert lines("demo")[0].theirs.calls == 1


def test_provider_without_a_record_says_so(app: Flask):
    runtime.current().account.kind = "deepseek"
    with pytest.raises(InvalidRequest, match="no API that tells its record"):
        fetched()


def test_command_tells_both_sides(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    chat(client, team, "prompt_tokens=10 words=5")
    chat(client, team, "prompt_tokens=100 words=50 usage=none")
    told = json.loads(runner.invoke(args=["provider", "reconcile", "--json"]).output)
    (line,) = told["data"]
    assert (line["calls"], line["provider_calls"], line["provider_tokens"]) == (2, 2, 165)
    assert line["gap_tokens"] == sum(gap["tokens"] for gap in told["gaps"])
    assert "estimated" in runner.invoke(args=["provider", "reconcile"]).output

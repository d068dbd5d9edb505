"""The provider's record as it is kept: fetched in steps, resumed, and honest about failures."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from conftest import Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from tokenrouter import provider_record, runtime
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ProviderEntry, ProviderFetch, ProviderStretch, db
from tokenrouter.errors import APIError
from tokenrouter.provider import history
from tokenrouter.provider_record import Fetched, fetch, fetch_quietly, kept
from tokenrouter.reconciliation import first_day, reconcile
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases
UTC_ZONE = ZoneInfo("UTC")


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe"}


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAGE", 2)


def fetched(most_s: float | None = None) -> Fetched:
    return fetch(db.engine, runtime.current().account, most_s)


def ids() -> set[str]:
    with db.engine.connect() as connection:
        return set(connection.execute(select(ProviderEntry.id)).scalars())


@pytest.mark.usefixtures("small_pages")
def test_what_was_left_is_read_on_the_next_time(client: FlaskClient, team: Member, provider: StandInProvider):
    for _ in range(7):
        chat(client, team)
    assert fetched(most_s=-1) == Fetched(2, is_whole=False)
    assert kept(db.engine).is_unfinished
    for _ in range(3):
        chat(client, team)
    assert fetched(most_s=-1).is_whole is False
    assert fetched() == Fetched(6, is_whole=True)
    assert ids() == {served.response_id for served in provider.finished}
    assert not kept(db.engine).is_unfinished


@pytest.mark.usefixtures("small_pages")
def test_days_before_what_was_read_are_not_compared(client: FlaskClient, team: Member):
    for _ in range(6):
        chat(client, team)
    fetched(most_s=-1)
    today = datetime.now(UTC).date()
    found = reconcile(db.engine, today - timedelta(days=1), today + timedelta(days=1), UTC_ZONE)
    assert (found.ours.calls, found.theirs.calls, found.pairs) == (1, 1, [])


def test_failure_is_told_and_what_was_kept_stays(
    client: FlaskClient, team: Member, provider: StandInProvider, caplog: pytest.LogCaptureFixture
):
    chat(client, team)
    fetched()
    until = kept(db.engine).until
    provider.account.faults = {"status": "401"}
    with pytest.raises(APIError):
        fetched()
    fetch_quietly(db.engine, runtime.current().account)
    found = kept(db.engine)
    assert (found.until, len(ids())) == (until, 1)
    assert "refuses this service's key" in (found.error or "") and "The provider's record cannot be had" in caplog.text
    provider.account.faults = {}
    fetched()
    assert kept(db.engine).error is None


def test_stretch_that_is_gone_at_the_provider_is_given_up(app: Flask):
    long_ago = datetime.now(UTC) - timedelta(days=31)
    with writing(db.engine) as connection:
        connection.execute(ProviderStretch.__table__.insert().values(after="gone", read_to=long_ago))
    assert fetched().is_whole and not kept(db.engine).is_unfinished


def test_call_of_the_last_minutes_may_still_come_and_is_not_missed(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    chat(client, team)
    provider.finished.clear()
    fetched()
    today = datetime.now(UTC).date()
    days = today - timedelta(days=1), today + timedelta(days=1)
    assert reconcile(db.engine, *days, UTC_ZONE).lines == []
    with writing(db.engine) as connection:
        connection.execute(update(ProviderFetch).values(until=datetime.now(UTC) + timedelta(minutes=5)))
    assert reconcile(db.engine, *days, UTC_ZONE).ours.calls == 1


def test_page_compares_as_many_days_as_it_can(client: FlaskClient, team: Member):
    for _ in range(3):
        chat(client, team)
    today = datetime.now(UTC).date()
    days = today - timedelta(days=9), today
    assert first_day(db.engine, *days, UTC_ZONE) == days[0]
    assert first_day(db.engine, *days, UTC_ZONE, most=2) == days[1]


def test_it_is_fetched_by_the_clock_where_the_provider_has_one(app: Flask):
    assert provider_record.TASK in {task.name for task in runtime.current().jobs._tasks}

"""The days of a provider that tells only the running one, as OpenRouter does: kept as they pass, beside our costs."""

from datetime import UTC, date, datetime, timedelta

import pytest
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from tokenrouter import prices, provider_days, runtime
from tokenrouter.account import refresh
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ProviderDay, db
from tokenrouter.money import BILLION
from tokenrouter.provider.account import Spending
from tokenrouter.provider_days import Day
from tokenrouter.reconciliation import reconcile_days
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases
DAY = date(2026, 11, 25)
NEXT = DAY + timedelta(days=1)


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "openrouter"}


def tell(day: date, hour: int, today: int, ever: int | None, key: str = "demo", minute: int = 5) -> datetime:
    at = datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
    with writing(db.engine) as connection:
        provider_days.keep(connection, at, Spending(today, ever, key))
    return at


def kept() -> list[Day]:
    return provider_days.days(db.engine, DAY, NEXT)


def test_running_day_is_as_of_its_last_reading(app: Flask):
    tell(DAY, 9, 100, 5_100)
    at = tell(DAY, 23, 300, 5_300)
    assert kept() == [Day(DAY, 300, at, is_whole=False)]


def test_next_day_tells_what_was_spent_until_midnight(app: Flask):
    at = tell(DAY, 23, 300, 5_300)
    tell(NEXT, 7, 40, 5_390)
    assert kept()[0] == Day(DAY, 350, at, is_whole=True)
    tell(NEXT, 8, 90, 5_440)
    assert kept()[0].cost == 350


@pytest.mark.parametrize(("ever", "key"), [(None, "demo"), (5_390, "another"), (90, "demo")])
def test_day_stays_open_where_the_next_cannot_tell(app: Flask, ever: int | None, key: str):
    tell(DAY, 23, 300, 5_300)
    tell(NEXT, 7, 40, ever, key)
    assert not kept()[0].is_whole


def test_at_midnight_nothing_is_kept_since_clocks_may_not_agree_on_the_day(app: Flask):
    tell(DAY, 0, 9_000, 9_000, minute=0)
    tell(DAY, 23, 9_000, 9_000, minute=59)
    assert kept() == []


def test_day_stands_beside_what_our_calls_of_it_cost(client: FlaskClient, team: Member, provider: StandInProvider):
    prices.set_price("*", 40 * BILLION, 40 * BILLION, by=TESTER)
    provider.account.kind = "openrouter"
    chat(client, team, "prompt_tokens=1000 words=1500")
    refresh(db.engine, runtime.current().account)
    today = datetime.now(UTC).date()
    (day,) = reconcile_days(db.engine, today, today)
    assert (day.theirs, day.ours, day.unpriced_calls, day.is_whole) == (BILLION // 10, BILLION // 10, 0, False)
    chat(client, team, "prompt_tokens=1000 words=1500")  # after the reading, so no gap
    assert reconcile_days(db.engine, today, today)[0].agrees
    with writing(db.engine) as connection:
        connection.execute(update(ProviderDay).values(is_whole=True))
    assert not reconcile_days(db.engine, today, today)[0].agrees

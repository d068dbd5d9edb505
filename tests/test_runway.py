"""How long the paid account lasts, by what the provider told in the last days, or by what the administrator typed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import insert

from tokenrouter import prices
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import AccountCheck, db
from tokenrouter.money import BILLION
from tokenrouter.runway import Runway, runway, set_balance

pytestmark = pytest.mark.both_databases
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def keep(app: Flask) -> Callable[..., None]:
    def keep(at: datetime, **values: object) -> None:
        row = {"state": "good", "words": "", "currency": "USD", "spent": 0, "is_typed": False, **values}
        with writing(db.engine) as connection:
            connection.execute(insert(AccountCheck).values(at=at, **row))

    return keep


def left() -> Runway:
    found = runway(db.engine, NOW)
    assert found is not None
    return found


def test_nothing_is_left_to_tell_where_nobody_told(app: Flask):
    assert runway(db.engine, NOW) is None


def test_it_lasts_as_long_as_the_pace_of_the_last_week_lets_it(keep: Callable[..., None]):
    keep(NOW - 9 * DAY, points=9_000_000)  # too long ago
    for days, points in ((4, 1_000_000), (3, 900_000), (2, 1_700_000), (1, 1_500_000), (0, 1_400_000)):
        keep(NOW - days * DAY, points=points, money=points * 1000, next_grant_at=NOW + 20 * DAY)
    found = left()
    assert found.points == 1_400_000
    assert found.lasts_until == NOW + 14 * DAY  # 400,000 in four days; what rose was a grant
    assert found.ends_before_grant == 6 * DAY


def test_grant_that_comes_in_time_is_no_reason_to_warn(keep: Callable[..., None]):
    keep(NOW - DAY, money=20 * BILLION)
    keep(NOW, money=10 * BILLION, next_grant_at=NOW + DAY / 2)
    assert (left().lasts_until, left().ends_before_grant) == (NOW + DAY, None)


@pytest.mark.parametrize(("history", "fall"), [(timedelta(hours=5), 100), (DAY, 0), (timedelta(0), 0)])
def test_of_too_little_history_or_use_no_end_is_told(keep: Callable[..., None], history: timedelta, fall: int):
    keep(NOW - history, points=1000)
    keep(NOW, points=1000 - fall)
    assert (left().points, left().lasts_until) == (1000 - fall, None)


def test_check_that_failed_leaves_what_was_told_before(keep: Callable[..., None]):
    keep(NOW - DAY, points=1000)
    keep(NOW, state="unreachable")
    assert (left().points, left().at) == (1000, NOW - DAY)


def test_account_that_is_empty_ends_now(keep: Callable[..., None]):
    keep(NOW - DAY, points=1000)
    keep(NOW, points=-10)
    assert left().lasts_until == NOW


def test_typed_balance_is_counted_down_by_what_calls_cost(client: FlaskClient, team: Member):
    prices.set_price("*", BILLION, BILLION, by=TESTER)
    chat(client, team)
    set_balance(db.engine, 10 * BILLION, "USD", by=TESTER)
    chat(client, team)
    found = runway(db.engine)
    assert found is not None and found.is_typed
    assert found.money == 10 * BILLION - 28_000


def test_what_the_provider_tells_goes_before_what_was_typed(keep: Callable[..., None]):
    keep(NOW - DAY, points=1000)
    set_balance(db.engine, 10 * BILLION, "USD", by=TESTER)
    assert (left().points, left().is_typed) == (1000, False)


@pytest.mark.parametrize(
    ("lasts", "grant", "words", "is_soon"),
    [
        (6 * DAY, 9 * DAY, "the account lasts until Tuesday, 3 days before the next monthly grant.", True),
        (8 * DAY, 8.5 * DAY, "until 3 December, less than a day before the next monthly grant.", True),
        (9 * DAY, 8 * DAY, "until 4 December, beyond the next monthly grant.", False),
        (40 * DAY, None, "the account lasts until 4 January 2027.", False),
        (2 * DAY, None, "the account lasts until Friday.", True),
        (DAY / 24, None, "the account lasts until today, 14:00.", True),
        (0 * DAY, 8 * DAY, "Nothing is left.", True),
        (None, 8 * DAY, "How long it lasts is not known yet", False),
    ],
)
def test_runway_is_told_in_a_sentence(lasts: timedelta | None, grant: timedelta | None, words: str, is_soon: bool):
    lasts_until, at = (None if each is None else NOW + each for each in (lasts, grant))
    left = Runway(NOW, 1000, None, "USD", at, 500, False, lasts_until)
    assert words in left.words(ZoneInfo("Europe/Berlin"), NOW)
    assert left.ends_soon(NOW) == is_soon


def test_account_that_is_not_used_says_so(keep: Callable[..., None]):
    keep(NOW - DAY, points=1000)
    keep(NOW, points=1000)
    assert left().words(ZoneInfo("UTC"), NOW) == "Nothing was used in the last 7 days."


def test_next_grant_is_told_with_its_points():
    left = Runway(NOW, 1000, None, "USD", NOW + 3 * DAY, 1_000_000, False, None)
    words = "The next monthly grant comes on Saturday: 1,000,000 points."
    assert left.grant_words(ZoneInfo("UTC"), NOW) == words

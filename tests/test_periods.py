"""When quotas begin anew, in all zones and over all oddities of calendars and clocks."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenrouter.periods import Renewal, in_words, is_renewal, midnight

BERLIN, UTC_ZONE = ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")


def at(text: str, zone: ZoneInfo = UTC_ZONE) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def upcoming(renewal: Renewal, begin: str, count: int, zone: ZoneInfo = UTC_ZONE) -> list[str]:
    """Return the next instants after a local time, as local times."""
    instant, found = at(begin, zone), []
    for _ in range(count):
        instant = renewal.next_after(instant, zone)
        found.append(datetime.fromtimestamp(instant, zone).strftime("%Y-%m-%d %H:%M"))
    return found


def test_never_is_never():
    assert Renewal().next_after(at("2026-11-27"), BERLIN) is None
    assert Renewal().basis(BERLIN) is None


def test_daily_is_every_midnight_though_days_have_23_or_25_hours():
    spring = upcoming(Renewal("daily"), "2026-03-28 12:00", 3, BERLIN)
    assert spring == ["2026-03-29 00:00", "2026-03-30 00:00", "2026-03-31 00:00"]
    autumn = upcoming(Renewal("daily"), "2026-10-24 12:00", 3, BERLIN)
    assert autumn == ["2026-10-25 00:00", "2026-10-26 00:00", "2026-10-27 00:00"]
    hours = [at(day, BERLIN) for day in ("2026-10-25", "2026-10-26")]
    assert hours[1] - hours[0] == 25 * 3600


def test_weekly_is_every_monday():
    assert upcoming(Renewal("weekly"), "2026-11-27 10:00", 2, BERLIN) == ["2026-11-30 00:00", "2026-12-07 00:00"]
    assert upcoming(Renewal("weekly"), "2026-11-30 00:00", 1, BERLIN) == ["2026-12-07 00:00"]


@pytest.mark.parametrize("year", [2027, 2028])
@pytest.mark.parametrize("day", [1, 28, 29, 30, 31])
def test_day_of_the_month_never_drifts(year: int, day: int):
    found = upcoming(Renewal("monthly", day), f"{year - 1}-12-31 12:00", 13)
    lengths = [31, 29 if year == 2028 else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31]
    years = [*[year] * 12, year + 1]
    months = [*range(1, 13), 1]
    wanted = [f"{y}-{m:02}-{min(day, length):02} 00:00" for y, m, length in zip(years, months, lengths, strict=True)]
    assert found == wanted


def test_midnight_that_does_not_exist_is_the_first_instant_after_it():
    sao_paulo = ZoneInfo("America/Sao_Paulo")  # 2018-11-04 began at 01:00
    instant = Renewal("daily").next_after(at("2018-11-03 12:00", sao_paulo), sao_paulo)
    assert datetime.fromtimestamp(instant, sao_paulo).strftime("%d %H:%M") == "04 01:00"
    assert datetime.fromtimestamp(instant - 1, sao_paulo).strftime("%d %H:%M:%S") == "03 23:59:59"


def test_day_that_does_not_exist_begins_with_the_next():
    apia = ZoneInfo("Pacific/Apia")  # had no 30 December 2011
    assert midnight(date(2011, 12, 30), apia) == midnight(date(2011, 12, 31), apia)
    assert upcoming(Renewal("daily"), "2011-12-29 12:00", 2, apia) == ["2011-12-31 00:00", "2012-01-01 00:00"]


def test_midnight_that_comes_twice_renews_once():
    havana = ZoneInfo("America/Havana")  # on 2026-11-01 clocks go from 01:00 back to 00:00
    first = Renewal("daily").next_after(at("2026-10-31 12:00", havana), havana)
    then = datetime.fromtimestamp(Renewal("daily").next_after(first, havana), havana)
    assert (then.day, then.hour) == (2, 0)


@given(
    st.floats(min_value=0, max_value=4e9),
    st.sampled_from(sorted(available_timezones())),
    st.one_of(
        st.sampled_from([Renewal("daily"), Renewal("weekly")]),
        st.integers(1, 31).map(lambda day: Renewal("monthly", day)),
    ),
)
def test_next_is_later_and_no_earlier_one_is_left_out(instant: float, name: str, renewal: Renewal):
    zone = ZoneInfo(name)
    following = renewal.next_after(instant, zone)
    assert following > instant
    assert following - instant <= {"daily": 2, "weekly": 8, "monthly": 32}[renewal.every] * 86400 + 86400
    middle = (instant + following) / 2
    assert middle >= following or renewal.next_after(middle, zone) == following


@pytest.mark.parametrize(
    ("every", "day", "can_be_read"),
    [
        ("never", None, True),
        ("daily", None, True),
        ("weekly", None, True),
        ("monthly", 31, True),
        ("monthly", None, True),
        ("monthly", 0, False),
        ("monthly", 32, False),
        ("weekly", 1, False),
        ("yearly", None, False),
        (None, None, False),
        (1, None, False),
    ],
)
def test_what_a_database_has_is_checked(every: object, day: object, can_be_read: bool):
    assert is_renewal(every, day) is can_be_read


def test_instant_in_words():
    assert in_words(at("2026-12-01", BERLIN), BERLIN) == "1 December 2026 at 00:00 Europe/Berlin"
    assert datetime.fromtimestamp(at("2026-12-01", BERLIN), UTC).hour == 23

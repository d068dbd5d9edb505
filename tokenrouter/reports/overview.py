"""What the dashboard shows: how much is used, by whom, what is in flight, and what failed.

Sums are of the daily totals and hold what deleted teams used.
"""

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, literal_column, select
from sqlalchemy.engine import Connection

from tokenrouter.database.log_status import PENDING
from tokenrouter.database.sums import NOTHING, Sums
from tokenrouter.database.tables import GroupUsageDaily, RequestLog, Team, UsageDaily
from tokenrouter.reports.daily_sums import Scope, read_sums, total
from tokenrouter.reports.days import day_of
from tokenrouter.reports.reading import reading

Unit = Literal["tokens", "money"]
Step = Literal["day", "week", "month"]

SHOWN_TEAMS = 8
OTHER_TEAMS = "Other teams"
DELETED_TEAMS = "Deleted teams"


@dataclass(frozen=True)
class Period:
    """Use from the day `since` until now, and on the earlier days named by `previous_label`."""

    label: str
    since: date
    current: Sums
    previous_label: str
    previous: Sums


@dataclass(frozen=True)
class Overview:
    """The figures at the top of the dashboard."""

    today: Period
    week: Period
    month: Period
    in_flight: int
    held_tokens: int

    @property
    def error_rate(self) -> float | None:
        """Errors as a share of the calls that ended today, 0.0 to 1.0; None before the first."""
        sums = self.today.current
        return sums.errors / sums.requests if sums.requests else None


@dataclass(frozen=True)
class Series:
    """The use by day of a team, or of something else, whose `team_id` is None."""

    team_id: int | None
    name: str
    amounts: list[int]
    """Tokens, or their known cost in billionths."""
    is_rest: bool = False
    """Whether it sums up all others."""


@dataclass(frozen=True)
class DailyUse:
    """Days, and series with an amount for each of them."""

    days: list[date]
    series: list[Series]
    unit: Unit = "tokens"
    step: Step = "day"
    """What each day stands for: itself, or the week or month that it begins."""

    @property
    def rest_share(self) -> float:
        """The share of the rest, 1.0 being all."""
        total = sum(sum(each.amounts) for each in self.series)
        return sum(sum(each.amounts) for each in self.series if each.is_rest) / total if total else 0.0

    def with_one_series_but_the_rest(self) -> "DailyUse":
        """Return the same with all series but the rest merged into one."""
        biggest, rest = (
            [each for each in self.series if not each.is_rest],
            [each for each in self.series if each.is_rest],
        )
        amounts = [sum(at) for at in zip(*(each.amounts for each in biggest), strict=True)]
        return replace(self, series=[Series(None, f"The {len(biggest)} biggest", amounts), *rest])


# The status is spelled out, not bound: only so can an index of some statuses alone serve.
IN_FLIGHT = select(func.count()).select_from(RequestLog).where(RequestLog.status == literal_column(f"'{PENDING}'"))
HELD = select(func.coalesce(func.sum(Team.held_tokens), 0))


def overview(now: datetime) -> Overview:
    """Return the use of today, of this week since Monday and of this month, and what is in flight.

    Each is compared with as many days from the start of the previous period. Those are whole days, although today is
    not over: the daily totals have no hours.
    """
    today = day_of(now)
    monday, first = today - timedelta(days=today.weekday()), today.replace(day=1)
    last_monday, last_first = monday - timedelta(days=7), (first - timedelta(days=1)).replace(day=1)
    with reading() as connection:
        days = _sums_by_day(connection, min(last_monday, last_first), today)
        in_flight = connection.execute(IN_FLIGHT).scalar_one()
        held_tokens = int(connection.execute(HELD).scalar_one())
    return Overview(
        today=_period(days, "Today", today, today, today - timedelta(days=1), "all of yesterday"),
        week=_period(days, "This week", monday, today, last_monday, _last_week(today)),
        month=_period(days, "This month", first, today, last_first, _last_month(last_first, first, today)),
        in_flight=in_flight,
        held_tokens=held_tokens,
    )


def _last_week(today: date) -> str:
    return "Monday last week" if today.weekday() == 0 else f"Mon–{today:%a} last week"


def _last_month(last_first: date, first: date, today: date) -> str:
    last_day = min(today.day, (first - last_first).days)
    return f"1 {last_first:%B}" if last_day == 1 else f"1–{last_day} {last_first:%B}"


def _period(days: dict[date, Sums], label: str, since: date, today: date, earlier: date, previous_label: str) -> Period:
    """Compare the days since `since` with as many since `earlier`, if there are as many."""
    until = min(earlier + (today - since), since - timedelta(days=1))
    return Period(label, since, _total(days, since, today), previous_label, _total(days, earlier, until))


def _total(days: dict[date, Sums], first: date, last: date) -> Sums:
    return total(sums for day, sums in days.items() if first <= day <= last)


def _sums_by_day(connection: Connection, first: date, last: date) -> dict[date, Sums]:
    sums = ("requests", "errors", "total_tokens", "cost", "priced_tokens")
    return {day: each for (day,), each in read_sums(connection, ("day",), Scope(first, last, sums=sums)).items()}


def use_per_day(
    days: int, now: datetime, team_id: int | None = None, group_id: int | None = None, unit: Unit = "tokens"
) -> DailyUse:
    """Return what was used on each of the last `days` days, today the last, by team, or of the one team or group.

    Of all teams the eight that used most come first, then the rest together, then the deleted ones; whoever used
    nothing is left out.
    """
    today = day_of(now)
    shown = [today - timedelta(days=back) for back in reversed(range(days))]
    with reading() as connection:
        if group_id is not None:
            amounts = _amounts(connection, shown, unit, GroupUsageDaily.group_id == group_id, table=GroupUsageDaily)
            return DailyUse(shown, [Series(None, "This group", amounts)], unit)
        if team_id is None:
            return DailyUse(shown, _series(connection, shown, unit), unit)
        name = connection.execute(select(Team.name).where(Team.id == team_id)).scalar_one()
        amounts = _amounts(connection, shown, unit, UsageDaily.team_id == team_id)
        return DailyUse(shown, [Series(team_id, name, amounts)], unit)


def _series(connection: Connection, days: list[date], unit: Unit) -> list[Series]:
    """Split what was used on these days; its deleted part and the eight biggest are asked for, the rest is left."""
    names = dict(connection.execute(select(Team.id, Team.name).where(Team.deleted_at.is_(None))).all())
    biggest = [team_id for team_id in _biggest_first(connection, days, unit) if team_id in names][:SHOWN_TEAMS]
    series = [
        Series(team_id, names[team_id], _amounts(connection, days, unit, UsageDaily.team_id == team_id))
        for team_id in biggest
    ]
    gone = select(Team.id).where(Team.deleted_at.is_not(None))
    deleted = Series(None, DELETED_TEAMS, _amounts(connection, days, unit, UsageDaily.team_id.in_(gone)), is_rest=True)
    whole = _sums_by_day(connection, days[0], days[-1])
    parts = zip(*(each.amounts for each in (*series, deleted)), strict=True)
    rest = [measure(whole.get(day, NOTHING), unit) - sum(part) for day, part in zip(days, parts, strict=True)]
    return [each for each in (*series, Series(None, OTHER_TEAMS, rest, is_rest=True), deleted) if any(each.amounts)]


def _biggest_first(connection: Connection, days: list[date], unit: Unit) -> list[int]:
    scope = Scope(days[0], days[-1], sums=("requests", "total_tokens", "cost"))
    used = {team_id: measure(sums, unit) for (team_id,), sums in read_sums(connection, ("team",), scope).items()}
    return sorted(used, key=lambda team_id: (-used[team_id], team_id))


def measure(sums: Sums, unit: Unit) -> int:
    """Return the tokens, or their cost as far as it is known."""
    return sums.total_tokens if unit == "tokens" else sums.cost


def _column(table: type[UsageDaily | GroupUsageDaily], unit: Unit) -> Any:
    return table.total_tokens if unit == "tokens" else table.cost


def _amounts(
    connection: Connection,
    days: list[date],
    unit: Unit,
    *conditions: ColumnElement[bool],
    table: type[UsageDaily | GroupUsageDaily] = UsageDaily,
) -> list[int]:
    query = select(table.day, func.sum(_column(table, unit))).where(table.day.between(days[0], days[-1]), *conditions)
    found: dict[date, Any] = dict(connection.execute(query.group_by(table.day)).all())
    return [int(found.get(day, 0)) for day in days]

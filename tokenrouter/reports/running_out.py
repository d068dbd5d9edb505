"""Until when quotas and budgets last, by the pace of days with calls, so that weekends do not mislead."""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import NamedTuple

from flask import current_app
from sqlalchemy import ColumnElement, and_, func, literal_column, or_, select
from sqlalchemy.engine import Connection

from tokenrouter.database.tables import Group, GroupUsageDaily, Team, UsageDaily
from tokenrouter.reports.days import day_of
from tokenrouter.reports.limits import Use

PACE_DAYS = 28
WEEK = 7
LONGEST_DAYS = 3650
SOON_DAYS = 7
KEPT_S = 300  # what the days before today took, of all teams: nearly nothing of it still changes
KEPT_IN = "tokenrouter.paces"

Kind = type[Team | Group]


class Amount(NamedTuple):
    """Tokens, and their cost in billionths."""

    tokens: float = 0
    cost: float = 0

    def plus(self, other: "Amount") -> "Amount":
        """Add both."""
        return Amount(self.tokens + other.tokens, self.cost + other.cost)


NO_AMOUNT = Amount()


@dataclass
class Pace:
    """The use on the days with calls of the last four weeks, and the use of today so far."""

    first: date | None = None
    """The first of these days."""
    days: int = 0
    taken: Amount = NO_AMOUNT
    weekdays: set[int] = field(default_factory=set)
    today: Amount = NO_AMOUNT

    def add(self, day: date, amount: Amount) -> None:
        """Count a day before today."""
        self.first = min(self.first or day, day)
        self.days += 1
        self.taken = self.taken.plus(amount)
        self.weekdays.add(day.weekday())

    def expected(self, today: date) -> list[Amount]:
        """Return the expected use of each weekday, from Monday to Sunday: the average of the days with calls.

        It is that of all of them, since four Mondays tell little of the next. A weekday takes nothing that has come
        since the first of these days and never had a call.
        """
        mean = Amount(*(sum_ / self.days for sum_ in self.taken)) if self.days else self.today
        first = self.first or today
        came = {(first + timedelta(days=at)).weekday() for at in range(min(WEEK, (today - first).days))}
        return [NO_AMOUNT if weekday in came - self.weekdays else mean for weekday in range(WEEK)]


@dataclass(frozen=True)
class End:
    """The day on which a quota or budget will be used up, or that it already is."""

    day: date
    is_used_up: bool = False


def is_limited(kind: Kind) -> ColumnElement[bool]:
    """Return the SQL condition for those limited by a quota or budget other than 0."""
    limits = [kind.quota_tokens, kind.budget]
    is_open = and_(*(or_(limit.is_(None), limit != 0) for limit in limits))
    conditions = [or_(*(limit.is_not(None) for limit in limits)), is_open]
    return and_(*conditions, Team.active) if kind is Team else and_(*conditions)


def end_of(use: Use, pace: Pace, now: datetime) -> End | None:
    """Return when tokens or budget will be used up, whichever is sooner, at the pace of the days with calls.

    None if they last: without a limit, without use in the last four weeks, if the quota renews before, or for ten
    years. Also None for a limit of 0, which blocks on purpose.
    """
    if 0 in (use.quota_tokens, use.budget):
        return None
    today, expected = day_of(now), pace.expected(day_of(now))
    renews = day_of(use.renews_at) if use.renews_at is not None else today + timedelta(days=LONGEST_DAYS)
    ends = []
    for which, left in enumerate(_lefts(use)):
        if left is not None and left <= 0:
            return End(today, is_used_up=True)
        takes = [each[which] for each in expected]
        if left is not None and (day := _last_day(left, takes, pace.today[which], today, renews)) is not None:
            ends.append(End(day))
    return min(ends, key=lambda end: end.day, default=None)


def _lefts(use: Use) -> tuple[int | None, int | None]:
    """Return what is left of quota and budget if calls in flight are settled as estimated."""
    budget = None if use.budget is None else use.budget + use.extra_budget - (use.cost or 0) - use.held_cost
    return use.remaining_tokens, budget


def _last_day(left: float, expected: Sequence[float], used_today: float, today: date, renews: date) -> date | None:
    """Go day by day until nothing is left; None if the renewal comes first, or after ten years."""
    weekly = sum(expected)
    if not weekly or left / weekly * WEEK > LONGEST_DAYS:
        return None
    day, takes = today, max(0.0, expected[today.weekday()] - used_today)
    while takes < left and day < renews:
        left -= takes
        whole_weeks = max(0, int(left / weekly) - 1)
        left -= whole_weeks * weekly
        day += timedelta(days=1 + WEEK * whole_weeks)
        takes = expected[day.weekday()]
    return day if day < renews else None


def read_paces(
    connection: Connection, kind: Kind, now: datetime, ids: Collection[int] | None = None
) -> dict[int, Pace]:
    """Return the paces of all or some teams or groups; those without calls are missing."""
    today = day_of(now)
    first = today - timedelta(days=PACE_DAYS - 1)
    paces = _kept_past(connection, kind, first, today) if ids is None else _past(connection, kind, first, today, ids)
    of_today = _read_days(connection, kind, today, today + timedelta(days=1), ids)
    return paces | {id_: replace(paces.get(id_, Pace()), today=amount) for id_, ((_, amount),) in of_today.items()}


def _kept_past(connection: Connection, kind: Kind, first: date, today: date) -> dict[int, Pace]:
    """Return the paces before today, cached for some minutes: for thousands of teams reading takes a while."""
    kept: dict[Kind, tuple[date, float, dict[int, Pace]]] = current_app.extensions.setdefault(KEPT_IN, {})
    of_day, read_at, paces = kept.get(kind, (None, 0.0, {}))
    if of_day != today or time.monotonic() - read_at > KEPT_S:
        paces = _past(connection, kind, first, today)
        kept[kind] = today, time.monotonic(), paces
    return paces


def _past(
    connection: Connection, kind: Kind, first: date, today: date, ids: Collection[int] | None = None
) -> dict[int, Pace]:
    paces: dict[int, Pace] = {}
    for id_, days in _read_days(connection, kind, first, today, ids).items():
        pace = paces[id_] = Pace()
        for day, amount in days:
            pace.add(day, amount)
    return paces


Days = dict[int, list[tuple[date, Amount]]]


def _read_days(
    connection: Connection, kind: Kind, since: date, before: date, ids: Collection[int] | None = None
) -> Days:
    daily: type[UsageDaily | GroupUsageDaily] = UsageDaily if kind is Team else GroupUsageDaily
    owner = UsageDaily.team_id if kind is Team else GroupUsageDaily.group_id
    key = owner + literal_column("0")  # so that SQLite follows the days' index; by the teams' it would read all days
    query = select(key, daily.day, func.sum(daily.total_tokens), func.sum(daily.cost)).group_by(key, daily.day)
    query = query.where(daily.day >= since, daily.day < before, daily.total_tokens > 0)
    if ids is not None:
        query = query.where(owner.in_(ids))
    days: Days = {}
    for owner_id, day, tokens, cost in connection.execute(query):
        days.setdefault(owner_id, []).append((day, Amount(int(tokens), int(cost))))
    return days


def ends_of(
    connection: Connection, kind: Kind, uses: Iterable[Use], now: datetime, *, all_of_them: bool = False
) -> dict[int, End]:
    """Return when each of these will be used up, by id, if that is before its renewal."""
    uses = list(uses)
    paces = read_paces(connection, kind, now, None if all_of_them else [use.id for use in uses])
    nothing = Pace()
    found = {use.id: end_of(use, paces.get(use.id, nothing), now) for use in uses}
    return {id_: end for id_, end in found.items() if end is not None}

"""The report of use from one day to another, by whom and of what, beside the period before."""

import calendar
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, select, true
from sqlalchemy.engine import Connection

from tokenrouter.database.sums import NOTHING, Sums
from tokenrouter.database.tables import ApiToken, Group, Team
from tokenrouter.errors import InvalidRequest
from tokenrouter.figures import counted
from tokenrouter.natural_order import natural_key
from tokenrouter.reports.daily_sums import (
    DIMENSIONS,
    NOT_KEPT,
    Dimension,
    Key,
    Only,
    Scope,
    folded,
    read_sums,
    total,
)
from tokenrouter.reports.days import day_of
from tokenrouter.reports.overview import DailyUse, Series, Step, Unit, measure
from tokenrouter.reports.reading import reading

MOST_DIMENSIONS = 2
SHOWN = 10
SHOWN_SUMS = ("requests", "errors", "total_tokens", "cost", "priced_tokens")
FEW: tuple[Dimension, ...] = ("model", "group")
"""Dimensions that have few keys."""
MOST_DAYS_DRAWN, MOST_WEEKS_DRAWN = 45, 27
MOST_OF_OTHERS = 0.5
"""If the rest is more than this share, the chart merges the biggest, which would be too small to see."""
MOST_BY_ID = 500
NO_MODEL = "No model named"
NO_GROUP = "In no group"
NO_TOKEN = "Not kept by token"


@dataclass(frozen=True)
class Days:
    """A range of days, both inclusive."""

    since: date
    until: date

    def __len__(self) -> int:
        return (self.until - self.since).days + 1


@dataclass(frozen=True)
class Subject:
    """The subject of a row: `id` is that of a team, group or token, otherwise None."""

    kind: Dimension
    name: str
    id: int | None = None
    is_deleted: bool = False
    label: str | None = None
    """Of a token, whose name is how it begins."""
    team: str | None = None
    team_id: int | None = None

    @property
    def is_nothing(self) -> bool:
        """Tell whether it stands for use in no group, or not kept by token."""
        return self.kind in ("group", "token") and self.id is None and not self.is_deleted


@dataclass(frozen=True)
class Line:
    """The use of one subject, or of a second one within it, and the use before if comparable."""

    subjects: tuple[Subject, ...]
    sums: Sums
    before: Sums | None = None


@dataclass(frozen=True)
class Report:
    """A whole report by one or two dimensions, most tokens first; days are in their order."""

    days: Days
    days_before: Days
    by: tuple[Dimension, ...]
    lines: list[Line]
    total: Sums
    before: Sums


@dataclass(frozen=True)
class Row:
    """A line of the panel's report, with its part of each column."""

    subject: Subject
    sums: Sums
    before: Sums | None
    parts: list[Sums]
    """The sums of the columns, and of all others together if there are more."""


@dataclass(frozen=True)
class Table:
    """What the panel shows of a report: some rows in the wanted order, and the biggest of the second dimension."""

    days: Days
    days_before: Days
    by: tuple[Dimension, ...]
    rows: list[Row]
    all_rows: int
    columns: list[Subject]
    other_columns: int
    total: Sums
    before: Sums
    chart: DailyUse
    biggest: list[Series]
    """The series that the chart merges, each by itself; empty if it shows each."""


# periods

PERIODS = {
    "this-week": "This week",
    "last-week": "Last week",
    "this-month": "This month",
    "last-month": "Last month",
    "90-days": "Last 90 days",
}
WEEK = timedelta(days=7)


def period_days(period: str, today: date) -> Days:
    """Return the days of one of PERIODS: weeks begin on Monday, and the running ones end today."""
    monday, first = today - timedelta(days=today.weekday()), today.replace(day=1)
    last_month_ended = first - timedelta(days=1)
    return {
        "this-week": Days(monday, today),
        "last-week": Days(monday - WEEK, monday - timedelta(days=1)),
        "this-month": Days(first, today),
        "last-month": Days(last_month_ended.replace(day=1), last_month_ended),
        "90-days": Days(today - timedelta(days=89), today),
    }[period]


def days_before(days: Days, today: date) -> Days:
    """Return the days to compare with: as many, right before.

    Whole months are compared with as many months, and a month or a week that runs with the same days of the one before.
    """
    since, until = days.since, days.until
    if since.day == 1 and _is_last_of_month(until):
        months = 12 * (until.year - since.year) + until.month - since.month + 1
        return Days(_months_back(since, months), since - timedelta(days=1))
    if since.day == 1 and until == today and until.month == since.month and until.year == since.year:
        first, last = _months_back(since, 1), since - timedelta(days=1)
        return Days(first, min(first + (until - since), last))
    if since.weekday() == 0 and len(days) < WEEK.days and until == today:
        return Days(since - WEEK, until - WEEK)
    return Days(since - timedelta(days=len(days)), since - timedelta(days=1))


def _is_last_of_month(day: date) -> bool:
    return day.day == calendar.monthrange(day.year, day.month)[1]


def _months_back(first: date, months: int) -> date:
    year, month = divmod(12 * first.year + first.month - 1 - months, 12)
    return date(year, month + 1, 1)


def check_days(since: date, until: date) -> Days:
    """Return the days from one to another.

    Raises InvalidRequest if these are none, or lie where no calendar goes.
    """
    if until < since:
        raise InvalidRequest(f"The period ends on {until}, before it begins on {since}.", param="until")
    if since.year < 2000 or until.year > 2999:
        raise InvalidRequest("A period lies between the years 2000 and 2999.", param="since")
    return Days(since, until)


def check_dimensions(names: Sequence[str]) -> tuple[Dimension, ...]:
    """Return the dimensions of a report: one, or a second one within it.

    Raises InvalidRequest.
    """
    for name in names:
        if name not in DIMENSIONS:
            known = ", ".join(DIMENSIONS)
            raise InvalidRequest(f"A report is by one or two of {known}; {name[:40]!r} is none of them.", param="by")
    if not 1 <= len(names) <= MOST_DIMENSIONS or len(set(names)) != len(names):
        raise InvalidRequest("A report is by one dimension, or by two different ones.", param="by")
    if {"group", "token"} == set(names):
        raise InvalidRequest(NOT_KEPT, param="by")
    return tuple(name for each in names for name in DIMENSIONS if name == each)  # the same, with their type


# the report


def usage_report(days: Days, by: tuple[Dimension, ...], today: date) -> Report:
    """Sum up what was used on these days, by one dimension, or by the second within the first.

    Raises InvalidRequest for groups by token, of which no totals are kept.
    """
    earlier = days_before(days, today)
    with reading() as connection:
        found = read_sums(connection, by, _scope(days))
        before = read_sums(connection, by, _scope(earlier)) if len(by) == 1 and "day" not in by else {}
        all_before = total(before.values()) if before else _everything(connection, earlier)
        keys = dict.fromkeys((*found, *before))
        named = _subjects(connection, by, keys)
    lines = [
        Line(
            tuple(named[kind, value] for kind, value in zip(by, key, strict=True)),
            found.get(key, NOTHING),
            before.get(key, NOTHING) if len(by) == 1 and "day" not in by else None,
        )
        for key in keys
    ]
    lines.sort(key=lambda line: (-line.sums.total_tokens, -line.sums.requests, [each.name for each in line.subjects]))
    if "day" in by:
        lines.sort(key=lambda line: line.subjects[by.index("day")].name)
    return Report(days, earlier, by, lines, total(found.values()), all_before)


def usage_table(
    days: Days,
    by: tuple[Dimension, ...],
    today: date,
    *,
    unit: Unit = "tokens",
    sort: str = "tokens",
    descending: bool = True,
    limit: int | None = None,
) -> Table:
    """Return the report as the panel shows it: `sort` is a key of SORTS, `limit` how many rows are shown.

    Of rows that are not shown, and of columns that are not, nothing is read but their sums.
    Raises InvalidRequest as `usage_report`.
    """
    earlier, first, second = days_before(days, today), by[0], by[1:]
    with reading() as connection:
        read = Readings(connection, days, by)
        found = read.by(first)
        named = _subjects(connection, by[:1], [(key,) for key in _candidates(found, sort, descending, limit)])
        shown = _sorted(found, {key: each for (_, key), each in named.items()}, sort, descending)[:limit]
        before_scope = _scope(earlier, SHOWN_SUMS)
        only: Only = {} if limit is None or first in FEW else {first: shown}
        before = {} if first == "day" else read_sums(connection, (first,), before_scope, only)
        columns = read.by(second[0]) if second else {}
        biggest = sorted(columns, key=lambda key: (-measure(columns[key], unit), str(key)))[:SHOWN]
        if second == ("day",):
            biggest.sort()
        parts = read.within(by, {**only, second[0]: biggest}) if second else {}
        column_names = _subjects(connection, second, [(key,) for key in biggest])
        all_before = total(before.values()) if before and not only else _everything(connection, earlier)
        chart = _chart(read, unit)
    biggest_drawn = []
    if chart.rest_share > MOST_OF_OTHERS:
        biggest_drawn = [each for each in chart.series if not each.is_rest]
        chart = chart.with_one_series_but_the_rest()
    rows = [
        Row(
            named[first, key],
            found[key],
            None if first == "day" else before.get((key,), NOTHING),
            _parts(found[key], [parts.get((key, each), NOTHING) for each in biggest], len(columns)),
        )
        for key in shown
    ]
    names = [column_names[second[0], key] for key in biggest] if second else []
    sums = total(found.values()), all_before
    return Table(days, earlier, by, rows, len(found), names, len(columns) - len(biggest), *sums, chart, biggest_drawn)


SORTS: dict[str, Callable[[Sums], int]] = {
    "tokens": lambda sums: sums.total_tokens,
    "calls": lambda sums: sums.requests,
    "failures": lambda sums: sums.errors,
    "cost": lambda sums: sums.cost,
}
"""Besides "name", which sorts days by date and names in natural order."""


def _candidates(found: dict[Any, Sums], sort: str, descending: bool, limit: int | None) -> list[Any]:
    """Return the keys that may be among the first, including ties with the last of them."""
    if sort == "name" or limit is None or limit >= len(found):
        return list(found)
    amounts = {key: SORTS[sort](sums) for key, sums in found.items()}
    last = sorted(amounts.values(), reverse=descending)[limit - 1]
    return [key for key, amount in amounts.items() if (amount >= last if descending else amount <= last)]


def _sorted(found: dict[Any, Sums], named: dict[Any, Subject], sort: str, descending: bool) -> list[Any]:
    """Return the keys that are named, in the wanted order."""
    keys = sorted(named, key=lambda key: natural_key(named[key].name))
    if sort == "name":
        return keys[::-1] if descending else keys
    return sorted(keys, key=lambda key: SORTS[sort](found[key]), reverse=descending)


def _parts(sums: Sums, parts: list[Sums], columns: int) -> list[Sums]:
    return [*parts, sums.plus(total(parts), -1)] if columns > len(parts) else parts


class Readings:
    """Reads the panel's report, no table more often than necessary."""

    def __init__(self, connection: Connection, days: Days, dimensions: tuple[Dimension, ...]) -> None:
        """Read dimensions with few keys by day at once, for rows, columns and chart."""
        self.connection, self.days, self.dimensions = connection, days, dimensions
        self._scope = _scope(days, SHOWN_SUMS)
        self._found: dict[Dimension, dict[Any, Sums]] = {}
        self._daily: dict[Dimension, dict[Key, Sums]] = {
            name: read_sums(connection, ("day", name), self._scope) for name in dimensions if name in FEW
        }

    def by(self, name: Dimension) -> dict[Any, Sums]:
        """Return the sums by one dimension."""
        if name not in self._found:
            self._found[name] = self._by(name)
        return self._found[name]

    def _by(self, name: Dimension) -> dict[Any, Sums]:
        if name in self._daily:
            return folded(self._daily[name], 1)
        if name == "day" and self._daily:
            return folded(next(iter(self._daily.values())), 0)
        return {key: sums for (key,), sums in read_sums(self.connection, (name,), self._scope).items()}

    def within(self, by: tuple[Dimension, ...], only: Only) -> dict[Key, Sums]:
        """Return the sums by two dimensions, of these keys only."""
        if by[0] != "day" or by[1] not in self._daily:
            return read_sums(self.connection, by, self._scope, only)
        wanted = [(at, set(only[name])) for at, name in enumerate(by) if name in only]
        daily = self._daily[by[1]]
        return {key: sums for key, sums in daily.items() if all(key[at] in keys for at, keys in wanted)}


def _scope(days: Days, sums: tuple[str, ...] = Sums._fields) -> Scope:
    return Scope(days.since, days.until, sums=sums)


def _everything(connection: Connection, days: Days) -> Sums:
    return read_sums(connection, (), _scope(days)).get((), NOTHING)


Subjects = dict[tuple[Dimension, Any], Subject]


def _subjects(connection: Connection, by: tuple[Dimension, ...], keys: Iterable[Key]) -> Subjects:
    """Name what keys stand for."""
    wanted: defaultdict[Dimension, set[Any]] = defaultdict(set)
    for key in keys:
        for kind, value in zip(by, key, strict=False):
            wanted[kind].add(value)
    named = {"team": _teams, "group": _groups, "token": _tokens}
    subjects: Subjects = {}
    for kind, values in wanted.items():
        known = named[kind](connection, values) if kind in named else {}
        subjects |= {(kind, value): known.get(value) or _subject(kind, value) for value in values}
    return subjects


def _subject(kind: Dimension, value: Any) -> Subject:
    """Name a model, a day, use in no group or of no token, or what was deleted from the database by hand."""
    if kind == "model":
        return Subject(kind, value or NO_MODEL)
    if value is None:
        return Subject(kind, NO_GROUP if kind == "group" else NO_TOKEN)
    return Subject(kind, str(value)) if kind == "day" else Subject(kind, f"{kind} {value}", is_deleted=True)


def _teams(connection: Connection, wanted: set[Any]) -> dict[int, Subject]:
    query = select(Team.id, Team.name, Team.deleted_at.is_not(None)).where(_is_of(Team.id, wanted))
    return {id_: Subject("team", name, id_, is_deleted) for id_, name, is_deleted in connection.execute(query)}


def _groups(connection: Connection, wanted: set[Any]) -> dict[int, Subject]:
    query = select(Group.id, Group.name, Group.deleted_at.is_not(None)).where(_is_of(Group.id, wanted))
    return {id_: Subject("group", name, id_, is_deleted) for id_, name, is_deleted in connection.execute(query)}


def _tokens(connection: Connection, wanted: set[Any]) -> dict[int, Subject]:
    columns = ApiToken.id, ApiToken.prefix, ApiToken.label, ApiToken.team_id, Team.name, Team.deleted_at.is_not(None)
    query = select(*columns).join(Team, Team.id == ApiToken.team_id).where(_is_of(ApiToken.id, wanted))
    return {
        id_: Subject("token", f"{prefix}…", id_, is_deleted, label, team, team_id)
        for id_, prefix, label, team_id, team, is_deleted in connection.execute(query)
    }


def _is_of(id_column: Any, wanted: set[Any]) -> ColumnElement[bool]:
    """Return the condition for these ids; many are better served by reading all."""
    return id_column.in_(wanted - {None}) if len(wanted) <= MOST_BY_ID else true()


# the chart


def use_by_model(days: int, now: datetime, unit: Unit = "tokens") -> DailyUse:
    """Return what was used on each of the last days by model, for where teams are so many that none is to be seen."""
    today = day_of(now)
    shown = Days(today - timedelta(days=days - 1), today)
    with reading() as connection:
        return _chart(Readings(connection, shown, ("model",)), unit)


def _chart(read: Readings, unit: Unit) -> DailyUse:
    """Return what was used by day, or by month where the days are many, of the ten biggest and of the rest."""
    dimension = next((name for name in read.dimensions if name != "day"), None)
    whole = {day: measure(each, unit) for day, each in read.by("day").items()}
    if dimension is None:
        return _by_step(read.days, [(Series(None, "All", []), whole)], unit)
    sums = read.by(dimension)
    biggest = sorted(sums, key=lambda key: (-measure(sums[key], unit), str(key)))[:SHOWN]
    named = _subjects(read.connection, (dimension,), [(key,) for key in biggest])
    found: dict[Any, dict[date, int]] = {key: {} for key in biggest}
    for (day, key), each in read.within(("day", dimension), {dimension: biggest}).items():
        found[key][day] = measure(each, unit)
    drawn = [(_series(named[dimension, key]), amounts) for key, amounts in found.items()]
    rest = {day: amount - sum(each.get(day, 0) for each in found.values()) for day, amount in whole.items()}
    others = Series(None, counted(len(sums) - len(biggest), "other"), [], is_rest=True)
    return _by_step(read.days, [*drawn, (others, rest)], unit)


def _by_step(days: Days, drawn: list[tuple[Series, dict[date, int]]], unit: Unit) -> DailyUse:
    step, begin_of, steps = _steps(days)
    series = []
    for each, amounts in drawn:
        summed: Counter[date] = Counter()
        for day, amount in amounts.items():
            summed[begin_of(day)] += amount
        series.append(replace(each, amounts=[summed[begin] for begin in steps]))
    return DailyUse(steps, [each for each in series if any(each.amounts)], unit, step)


def _steps(days: Days) -> tuple[Step, Callable[[date], date], list[date]]:
    """Return what a chart has a bar for, how that of a day is found, and all of them."""
    step: Step
    if len(days) <= MOST_DAYS_DRAWN:
        step, begin_of = "day", _same_day
    elif len(days) <= MOST_WEEKS_DRAWN * WEEK.days:
        step, begin_of = "week", _monday
    else:
        step, begin_of = "month", _first_of_month
    every = (days.since + timedelta(days=at) for at in range(len(days)))
    return step, begin_of, list(dict.fromkeys(map(begin_of, every)))


def _same_day(day: date) -> date:
    return day


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _first_of_month(day: date) -> date:
    return day.replace(day=1)


def _series(subject: Subject) -> Series:
    words = [subject.name, subject.label or "", f"({subject.team})" if subject.team else ""]
    name = " ".join(word for word in words if word)
    return Series(subject.id if subject.kind == "team" and not subject.is_deleted else None, name, [])

"""Sums of the daily totals by one or two of their dimensions: team, group, token, model and day."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from types import MappingProxyType
from typing import Any, Literal, get_args

from sqlalchemy import BigInteger, ColumnElement, Select, and_, cast, func, literal_column, select, union_all
from sqlalchemy.engine import Connection

from tokenrouter.database.rollups import ONE_DAY, ROLLUPS, Rollup, last_of
from tokenrouter.database.sums import NOTHING, Sums
from tokenrouter.database.tables import (
    ApiToken,
    GroupUsageDaily,
    TokenUsageDaily,
    UsageDaily,
    UsageTotals,
    UsageTotalsKept,
    clamp_id,
)
from tokenrouter.errors import InvalidRequest

Dimension = Literal["team", "group", "model", "day", "token"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
Key = tuple[Any, ...]
"""An id, a model or a day for each dimension; None is what belongs to no group, or is not known by token."""
Only = Mapping[Dimension, Collection[Any]]
"""The keys to read of a dimension."""
ALL: Only = MappingProxyType({})
NOT_KEPT = "Use of a group is not kept by token. Ask for one of them, and for team, model or day."


def total(sums: Iterable[Sums]) -> Sums:
    """Add them all up."""
    columns = list(zip(*sums, strict=True))
    return Sums(*map(sum, columns)) if columns else NOTHING


@dataclass(frozen=True)
class Scope:
    """Which sums to read, of which days, both inclusive, and of which team or group; None means any."""

    since: date | None = None
    until: date | None = None
    team_id: int | None = None
    group_id: int | None = None
    sums: tuple[str, ...] = Sums._fields
    """The sums to read, including `requests`; all others are 0."""


def folded(sums: Mapping[Key, Sums], at: int) -> dict[Any, Sums]:
    """Add up what differs in other dimensions than the one at this place of the keys."""
    parts: dict[Any, list[Sums]] = {}
    for key, each in sums.items():
        parts.setdefault(key[at], []).append(each)
    return {key: total(each) for key, each in parts.items()}


def read_sums(connection: Connection, by: tuple[Dimension, ...], scope: Scope, only: Only = ALL) -> dict[Key, Sums]:
    """Return what was used, by one dimension or two, or by none.

    Use is of the group in which it was booked, wherever the team is now. What is in no group, and what was used before
    the use of tokens was kept, has None for its key, so that all rows together are everything.
    Raises InvalidRequest for groups by token, of which no totals are kept.
    """
    if "token" in by and ("group" in by or scope.group_id is not None):
        raise InvalidRequest(NOT_KEPT, param="group_by")
    found = _read(connection, by, scope, only)
    left_out = next((name for name in by if name in ("group", "token")), None)
    if left_out is None or scope.group_id is not None or None not in only.get(left_out, (None,)):
        return found
    return found | _rest(connection, by, left_out, scope, only, found)


def _rest(
    connection: Connection,
    by: tuple[Dimension, ...],
    left_out: Dimension,
    scope: Scope,
    only: Only,
    found: dict[Key, Sums],
) -> dict[Key, Sums]:
    """Return the use outside of groups, or not kept by token; None stands for these in its keys."""
    at, others = by.index(left_out), tuple(name for name in by if name != left_out)
    everything = _read(connection, others, scope, only)
    if left_out in only:
        wider = {name: values for name, values in only.items() if name != left_out}
        found = {
            (*key[:at], None, *key[at:]): sums
            for key, sums in _read(connection, others, scope, wider, left_out).items()
        }
    parts: dict[Key, Sums] = {}
    for key, sums in found.items():
        other = key[:at] + key[at + 1 :]
        parts[other] = parts.get(other, NOTHING).plus(sums)
    left = {(*key[:at], None, *key[at:]): sums.plus(parts.get(key, NOTHING), -1) for key, sums in everything.items()}
    return {key: sums for key, sums in left.items() if sums.requests > 0}


def _read(
    connection: Connection, by: tuple[Dimension, ...], scope: Scope, only: Only, kept_by: Dimension | None = None
) -> dict[Key, Sums]:
    """Read what is kept by these dimensions, and by one more: of days that are summed up, those sums."""
    needed = {*by} | {name for name, id_ in (("team", scope.team_id), ("group", scope.group_id)) if id_ is not None}
    daily = next(each for each in DAILY if needed | ({kept_by} if kept_by else set()) <= each.columns.keys())
    parts, left = [], [scope]
    for summed in SUMMED:
        if summed.is_of(daily) and needed <= summed.columns.keys():
            gaps, left = left, []
            for gap in gaps:
                kept = summed.kept_days(connection, gap)
                if kept:
                    parts.append(_sums(summed, by, replace(gap, since=kept[0], until=kept[-1]), only))
                left += _gaps([(day, last_of(summed.rollup.span, day)) for day in kept], gap)
    parts += [_sums(daily, by, gap, only) for gap in left]
    rows = connection.execute(_added_up(by, parts)).all() if parts else ()
    at = len(by)
    found = {tuple(row[:at]): Sums._make(row[at:]) for row in rows}
    return {key: sums for key, sums in found.items() if sums.requests}


def _added_up(by: tuple[Dimension, ...], parts: list[Select[Any]]) -> Select[Any]:
    """Add up what parts of the days sum to, in the database: it takes the fewest rows of Python's."""
    if len(parts) == 1:
        return parts[0]
    every = union_all(*parts).subquery()
    keys = [every.c[name] for name in by]
    return select(*keys, *(_sum(every.c, name) for name in Sums._fields)).group_by(*keys)


def _gaps(spans: list[tuple[date, date]], scope: Scope) -> Iterator[Scope]:
    """Yield the scope by its ranges of days that are in none of these spans."""
    begin = scope.since
    for first, last in spans:
        if begin is None or begin < first:
            yield replace(scope, since=begin, until=first - ONE_DAY)
        begin = last + ONE_DAY
    if begin is None or scope.until is None or begin <= scope.until:
        yield replace(scope, since=begin)


@dataclass(frozen=True)
class Source:
    """A table of sums, and its columns by dimension."""

    table: Any
    columns: dict[Dimension, Any]


@dataclass(frozen=True)
class Summed(Source):
    """Daily totals that are summed up."""

    rollup: Rollup

    def is_of(self, daily: Source) -> bool:
        """Tell whether these are sums of the given daily totals."""
        return self.rollup.daily is daily.table

    def kept(self, scope: Scope) -> Select[date]:
        """Ask for the days, or firsts of thirds or months, that are summed up and begin in the scope."""
        query = select(UsageTotalsKept.day).where(UsageTotalsKept.kind == self.rollup.kind, UsageTotalsKept.complete)
        if scope.since is not None:
            query = query.where(UsageTotalsKept.day >= scope.since)
        return query if scope.until is None else query.where(UsageTotalsKept.day <= scope.until)

    def kept_days(self, connection: Connection, scope: Scope) -> list[date]:
        """Return those that are entirely within the scope, in order."""
        days = connection.execute(self.kept(scope).order_by(UsageTotalsKept.day)).scalars()
        return [day for day in days if scope.until is None or last_of(self.rollup.span, day) <= scope.until]


# of tokens the team is asked for where they stand
DAILY = (
    Source(UsageDaily, {"team": UsageDaily.team_id, "model": UsageDaily.model, "day": UsageDaily.day}),
    Source(
        GroupUsageDaily,
        {
            "team": GroupUsageDaily.team_id,
            "group": GroupUsageDaily.group_id,
            "model": GroupUsageDaily.model,
            "day": GroupUsageDaily.day,
        },
    ),
    Source(
        TokenUsageDaily,
        {
            "team": ApiToken.team_id,
            "model": TokenUsageDaily.model,
            "day": TokenUsageDaily.day,
            "token": TokenUsageDaily.token_id,
        },
    ),
)
OWNERS: dict[str, dict[Dimension, Any]] = {
    "group days": {"group": UsageTotals.owner_id},
    "team thirds": {"team": UsageTotals.owner_id},
    "team months": {"team": UsageTotals.owner_id},
    "group months": {"group": UsageTotals.owner_id, "team": UsageTotals.team_id},
    "token thirds": {"token": UsageTotals.owner_id, "team": ApiToken.team_id},
    "token months": {"token": UsageTotals.owner_id, "team": ApiToken.team_id},
}


def _summed(rollup: Rollup) -> Summed:
    columns: dict[Dimension, Any] = {"model": UsageTotals.model} if rollup.by_model else {}
    if rollup.span == "day":
        columns["day"] = UsageTotals.day
    return Summed(UsageTotals, columns | OWNERS.get(rollup.kind, {}), rollup)


SUMMED = [_summed(rollup) for rollup in ROLLUPS]


def _sums(source: Source, by: tuple[Dimension, ...], scope: Scope, only: Only) -> Select[Any]:
    """Ask for the sums of one source, in columns named as they are."""
    table, conditions = source.table, list(_conditions(source, by, scope, only))
    sums = [(_sum(table, name) if name in scope.sums else literal_column("0")).label(name) for name in Sums._fields]
    if by == ("token",) and table is TokenUsageDaily:
        # each with its days, in their order: sorting all days by token takes SQLite longer
        key = ApiToken.id
        query = select(key.label("token"), *sums).outerjoin(table, and_(TokenUsageDaily.token_id == key, *conditions))
        if "token" in only:
            query = query.where(key.in_([value for value in only["token"] if value is not None]))
        return query.group_by(key)
    keys = [_key(source, name) for name in by]
    query = select(*(key.label(name) for key, name in zip(keys, by, strict=True)), *sums).select_from(table)
    if source.columns.get("team") is ApiToken.team_id and ("team" in by or scope.team_id is not None):
        query = query.join(ApiToken, ApiToken.id == source.columns["token"])
    return query.where(*conditions).group_by(*keys)


def _sum(table: Any, name: str) -> Any:
    return cast(func.coalesce(func.sum(getattr(table, name)), 0), BigInteger)  # PostgreSQL returns a decimal


def _conditions(source: Source, by: tuple[Dimension, ...], scope: Scope, only: Only) -> Iterator[ColumnElement[bool]]:
    for name, values in only.items():
        if name in by:
            yield source.columns[name].in_([value for value in values if value is not None])
    if scope.team_id is not None:
        yield source.columns["team"] == clamp_id(scope.team_id)
    if scope.group_id is not None:
        yield source.columns["group"] == clamp_id(scope.group_id)
    if isinstance(source, Summed):
        yield UsageTotals.kind == source.rollup.kind
        yield UsageTotals.day.in_(source.kept(scope))  # by equality, which SQLite finds faster than by a join
        return
    if scope.since is not None:
        yield source.table.day >= scope.since
    if scope.until is not None:
        yield source.table.day <= scope.until


def _key(source: Source, name: Dimension) -> Any:
    """Return what to group by: of ids a sum, so that SQLite follows the days' index, not theirs, which has all days."""
    column = source.columns[name]
    return column if name in ("day", "model") else column + literal_column("0")

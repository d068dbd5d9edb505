"""Sums of the daily totals, by what they are kept by: team, group, token, model and day, one of these or two."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, and_, func, literal_column, select
from sqlalchemy.engine import Connection

from tokenrouter.database.sums import NOTHING, Sums
from tokenrouter.database.tables import ApiToken, GroupUsageDaily, TokenUsageDaily, UsageDaily, clamp_id
from tokenrouter.errors import InvalidRequest

Dimension = Literal["team", "group", "model", "day", "token"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
Key = tuple[Any, ...]
"""An id, a model or a day for each dimension; None is what belongs to no group, or is not known by token."""
Only = Mapping[Dimension, Collection[Any]]
"""The keys that are wanted of a dimension."""
Table = type[UsageDaily | GroupUsageDaily | TokenUsageDaily]
ALL: Only = MappingProxyType({})
NOT_KEPT = "Use of a group is not kept by token. Ask for one of them, and for team, model or day."


def total(sums: Iterable[Sums]) -> Sums:
    """Add them all up."""
    columns = list(zip(*sums, strict=True))
    return Sums(*map(sum, columns)) if columns else NOTHING


@dataclass(frozen=True)
class Scope:
    """Which sums are meant, of which days, both within, and of which team or group; None leaves it open."""

    since: date | None = None
    until: date | None = None
    team_id: int | None = None
    group_id: int | None = None
    told: tuple[str, ...] = Sums._fields
    """Which sums are wanted, `requests` among them; all others are 0."""


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
    """Return what all used beyond what groups, or tokens, did; its keys have None in their place."""
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
    """Read the table that is kept by these dimensions, and by one more."""
    table = _table((*by, *((kept_by,) if kept_by else ())), scope)
    conditions = _conditions(table, by, scope, only)
    sums = [func.coalesce(func.sum(getattr(table, name)), 0) for name in scope.told]
    if by == ("token",):  # each with its days, in their order: sorting all days by token takes SQLite longer
        key = ApiToken.id
        query = select(key, *sums).outerjoin(table, and_(TokenUsageDaily.token_id == key, *conditions)).group_by(key)
        if "token" in only:
            query = query.where(key.in_([value for value in only["token"] if value is not None]))
    else:
        keys = [_column(table, name) for name in by]
        query = select(*keys, *sums).select_from(table).where(*conditions).group_by(*keys)
    if table is TokenUsageDaily and by != ("token",) and ("team" in by or scope.team_id is not None):
        query = query.join(ApiToken, ApiToken.id == TokenUsageDaily.token_id)
    found = {
        tuple(row[: len(by)]): Sums(**dict(zip(scope.told, map(int, row[len(by) :]), strict=True)))
        for row in connection.execute(query)
    }
    return {key: sums for key, sums in found.items() if sums.requests}


def _table(by: tuple[Dimension, ...], scope: Scope) -> Table:
    if "token" in by:
        return TokenUsageDaily
    return GroupUsageDaily if "group" in by or scope.group_id is not None else UsageDaily


def _conditions(table: Table, by: tuple[Dimension, ...], scope: Scope, only: Only) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        _of(table, name).in_([value for value in values if value is not None])
        for name, values in only.items()
        if name in by
    ]
    if scope.team_id is not None:
        conditions.append(_of(table, "team") == clamp_id(scope.team_id))
    if scope.group_id is not None:
        conditions.append(GroupUsageDaily.group_id == clamp_id(scope.group_id))
    if scope.since is not None:
        conditions.append(table.day >= scope.since)
    if scope.until is not None:
        conditions.append(table.day <= scope.until)
    return conditions


def _of(table: Table, name: Dimension) -> Any:
    if name in ("day", "model"):
        return getattr(table, name)
    return ApiToken.team_id if name == "team" and table is TokenUsageDaily else getattr(table, f"{name}_id")


def _column(table: Table, name: Dimension) -> Any:
    """Return what to group by: of ids a sum, so that SQLite follows the days' index, not theirs, which has all days."""
    if name in ("day", "model"):
        return getattr(table, name)
    return (_of(table, name) + literal_column("0")).label(name)

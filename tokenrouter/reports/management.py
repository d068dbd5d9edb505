"""What the management API reads: teams and groups in pages, and use by day, team, group or model."""

from datetime import date
from typing import Any, Literal, TypeVar, get_args

from sqlalchemy import func, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from tokenrouter.database.tables import Group, GroupUsageDaily, Team, UsageDaily, clamp_id, clamp_text, db, normalized
from tokenrouter.money import decimal_string
from tokenrouter.reports.reading import reading
from tokenrouter.reports.views import known_cost

Grouping = Literal["day", "team", "group", "model"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
TOLD = ("requests", "prompt_tokens", "completion_tokens", "total_tokens")
SUMS = (*TOLD, "cost", "priced_tokens")


def teams_after(after_id: int, limit: int, name: str | None = None) -> tuple[list[Team], bool]:
    """Return the living teams next after an id, by id, detached, and whether there are more; `name` is all of it."""
    return _after(Team, after_id, limit, name)


def groups_after(after_id: int, limit: int, name: str | None = None) -> tuple[list[Group], bool]:
    """Return the living groups likewise."""
    return _after(Group, after_id, limit, name)


Kind = TypeVar("Kind", Team, Group)


def _after(kind: type[Kind], after_id: int, limit: int, name: str | None) -> tuple[list[Kind], bool]:
    query = select(kind).where(kind.id > clamp_id(after_id), kind.deleted_at.is_(None)).order_by(kind.id)
    if name is not None:
        query = query.where(kind.name == clamp_text(normalized(name)))
    with Session(db.engine) as session:
        rows = list(session.scalars(query.limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def usage(
    group_by: Grouping,
    team_id: int | None = None,
    group_id: int | None = None,
    since: date | None = None,
    until: date | None = None,
) -> list[dict[str, Any]]:
    """Return what was used by day, team, group or model, in that order; `until` itself is not within.

    Use is of the group in which it was booked, wherever the team is now; None is that of no group, the last row. Teams
    that have had the same name one after the other are one here, groups too. `total_tokens` is what was charged.
    """
    asked = team_id, group_id, since, until
    with reading() as connection:
        if group_by != "group":
            table = UsageDaily if group_id is None else GroupUsageDaily
            keys = {"day": table.day, "team": Team.name, "model": table.model}
            rows: list[tuple[Any, dict[str, int]]] = [
                (str(key), sums) for key, sums in _sums(connection, table, keys[group_by], *asked)
            ]
        else:
            rows = _sums(connection, GroupUsageDaily, Group.name, *asked)
            if group_id is None:
                left = _of_no_group(connection, [sums for _, sums in rows], *asked)
                rows += [(None, left)] if left["requests"] else []
    return [{group_by: key, **_told(sums)} for key, sums in rows]


def _told(sums: dict[str, int]) -> dict[str, Any]:
    cost = known_cost(sums["cost"], sums["total_tokens"], sums["priced_tokens"])
    return {**{name: sums[name] for name in TOLD}, "cost": decimal_string(cost)}


def _of_no_group(connection: Connection, grouped: list[dict[str, int]], *asked: Any) -> dict[str, int]:
    """Return what is left of all use once that of groups is taken from it."""
    everything = [sums for _, sums in _sums(connection, UsageDaily, UsageDaily.day, *asked)]
    return {name: sum(sums[name] for sums in everything) - sum(sums[name] for sums in grouped) for name in SUMS}


def _sums(
    connection: Connection,
    table: type[UsageDaily | GroupUsageDaily],
    key: Any,
    team_id: int | None,
    group_id: int | None,
    since: date | None,
    until: date | None,
) -> list[tuple[Any, dict[str, int]]]:
    sums = [func.sum(getattr(table, name)) for name in SUMS]
    query = select(key, *sums).select_from(table).join(Team, Team.id == table.team_id).group_by(key).order_by(key)
    if table is GroupUsageDaily:
        query = query.join(Group, Group.id == GroupUsageDaily.group_id)
        if group_id is not None:
            query = query.where(GroupUsageDaily.group_id == clamp_id(group_id))
    if team_id is not None:
        query = query.where(table.team_id == clamp_id(team_id))
    if since is not None:
        query = query.where(table.day >= since)
    if until is not None:
        query = query.where(table.day < until)
    return [(key, dict(zip(SUMS, map(int, values), strict=True))) for key, *values in connection.execute(query)]

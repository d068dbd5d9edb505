"""What the management API reads: teams and groups in pages, and use by day, team, group, model or token."""

from datetime import date, timedelta
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from tokenrouter.database.sums import NOTHING, Sums
from tokenrouter.database.tables import ApiToken, Group, Team, clamp_id, clamp_text, db, normalized
from tokenrouter.money import decimal_string
from tokenrouter.reports.daily_sums import DIMENSIONS, Dimension, Scope, read_sums
from tokenrouter.reports.reading import reading

Grouping = Dimension
GROUPINGS = DIMENSIONS
DESCRIBED = ("requests", "prompt_tokens", "completion_tokens", "total_tokens")


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
) -> tuple[list[dict[str, Any]], int]:
    """Return what was used by day, team, group, model or token, in that order, and how many tokens have no price.

    `until` itself is not within.

    Use is of the group in which it was booked, wherever the team is now; None is that of no group, or what was used
    before the use of tokens was kept, the last row. Teams that have had the same name one after the other are one here,
    groups too. `total_tokens` is what was charged.
    Raises InvalidRequest for a group by token, of which no totals are kept.
    """
    if until == date.min:
        return [], 0
    scope = Scope(since, until and until - timedelta(days=1), team_id, group_id)
    with reading() as connection:
        found = read_sums(connection, (group_by,), scope)
        names = _names(connection, group_by)
    named: dict[str | None, Sums] = {}
    for (key,), sums in found.items():
        name = None if key is None else str(names.get(key, key))
        named[name] = named.get(name, NOTHING).plus(sums)
    order = sorted(named, key=lambda name: (name is None, name or ""))
    unpriced_tokens = sum(sums.unpriced_tokens for sums in named.values())
    return [{group_by: name, **_described(named[name])} for name in order], unpriced_tokens


def _names(connection: Connection, group_by: Grouping) -> dict[int, str]:
    """Return what the ids of teams, groups or tokens stand for: tokens begin with that, as the log shows them."""
    columns = {"team": (Team.id, Team.name), "group": (Group.id, Group.name), "token": (ApiToken.id, ApiToken.prefix)}
    return dict(connection.execute(select(*columns[group_by])).all()) if group_by in columns else {}


def _described(sums: Sums) -> dict[str, Any]:
    return {**{name: getattr(sums, name) for name in DESCRIBED}, "cost": decimal_string(sums.known_cost)}

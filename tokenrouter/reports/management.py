"""What the management API reads: teams in pages, and use by day, team or model."""

from datetime import date
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tokenrouter.database.tables import Team, UsageDaily, clamp_id, clamp_text, db, normalized
from tokenrouter.reports.reading import reading

Grouping = Literal["day", "team", "model"]
GROUPS = {"day": UsageDaily.day, "team": Team.name, "model": UsageDaily.model}
SUMS = ("requests", "prompt_tokens", "completion_tokens", "total_tokens")


def teams_after(after_id: int, limit: int, name: str | None = None) -> tuple[list[Team], bool]:
    """Return the living teams next after an id, by id, detached, and whether there are more; `name` is all of it."""
    query = select(Team).where(Team.id > clamp_id(after_id), Team.deleted_at.is_(None)).order_by(Team.id)
    if name is not None:
        query = query.where(Team.name == clamp_text(normalized(name)))
    with Session(db.engine) as session:
        rows = list(session.scalars(query.limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def usage(
    group_by: Grouping, team_id: int | None = None, since: date | None = None, until: date | None = None
) -> list[dict[str, Any]]:
    """Return what was used by day in UTC, by team or by model, in that order; `until` itself is not within.

    Teams that have had the same name one after the other are one here. `total_tokens` is what was charged.
    """
    group = GROUPS[group_by]
    sums = [func.sum(getattr(UsageDaily, name)) for name in SUMS]
    query = select(group, *sums).join(Team, Team.id == UsageDaily.team_id).group_by(group).order_by(group)
    if team_id is not None:
        query = query.where(UsageDaily.team_id == clamp_id(team_id))
    if since is not None:
        query = query.where(UsageDaily.day >= since)
    if until is not None:
        query = query.where(UsageDaily.day < until)
    with reading() as connection:
        rows = connection.execute(query).all()
    return [{group_by: str(key), **dict(zip(SUMS, map(int, values), strict=True))} for key, *values in rows]

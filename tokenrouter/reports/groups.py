"""What the panel shows of groups, and of teams and groups together."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from tokenrouter.database.tables import Group, GroupUsageDaily, Team, clamp_id
from tokenrouter.natural_order import by_name
from tokenrouter.reports.days import day_of
from tokenrouter.reports.limits import Nearness, Use, nearness_of, share_of, use_of
from tokenrouter.reports.reading import reading
from tokenrouter.reports.teams import LATELY_DAYS, TeamUse, team_use


@dataclass(frozen=True)
class GroupUse(Use):
    """A living group, its counters, and how many teams it has."""

    teams: int
    kind: ClassVar[str] = "group"


@dataclass(frozen=True)
class GroupDetail:
    """A group, its teams by name, and what was booked in it in the last seven days, today included."""

    group: GroupUse
    created_at: datetime
    members: list[TeamUse]
    requests_7d: int
    tokens_7d: int


MEMBERS = (
    select(func.count())
    .select_from(Team)
    .where(Team.group_id == Group.id, Team.deleted_at.is_(None))
    .correlate(Group)
    .scalar_subquery()
)
LIVING = select(Group, MEMBERS.label("teams")).where(Group.deleted_at.is_(None))


def groups() -> list[GroupUse]:
    """Return all living groups by name."""
    with reading() as connection, Session(connection) as session:
        uses = [GroupUse(**use_of(group), teams=teams) for group, teams in session.execute(LIVING)]
    return sorted(uses, key=by_name)


def group_detail(group_id: int, now: datetime | None = None) -> GroupDetail | None:
    """Return all about a living group, or None where there is none."""
    since = day_of(now or datetime.now(UTC)) - timedelta(days=LATELY_DAYS - 1)
    sums = func.sum(GroupUsageDaily.requests), func.sum(GroupUsageDaily.total_tokens)
    lately = select(*sums).where(GroupUsageDaily.group_id == clamp_id(group_id), GroupUsageDaily.day >= since)
    members = select(Team).where(Team.group_id == clamp_id(group_id), Team.deleted_at.is_(None))
    with reading() as connection, Session(connection) as session:
        row = session.execute(LIVING.where(Group.id == clamp_id(group_id))).one_or_none()
        if row is None:
            return None
        requests, tokens = connection.execute(lately).one()
        return GroupDetail(
            GroupUse(**use_of(row.Group), teams=row.teams),
            row.Group.created_at,
            [TeamUse(**team_use(team)) for team in sorted(session.scalars(members), key=by_name)],
            int(requests or 0),
            int(tokens or 0),
        )


def group_names() -> dict[int, str]:
    """Return the names of the living groups, by id, in order."""
    query = select(Group.id, Group.name).where(Group.deleted_at.is_(None))
    with reading() as connection:
        return dict(sorted(connection.execute(query).all(), key=by_name))


def groups_near(nearness: Nearness) -> int:
    """Return how many living groups are so near their quotas."""
    near = select(func.count()).select_from(Group).where(Group.deleted_at.is_(None), nearness_of(Group)[nearness])
    with reading() as connection:
        return connection.execute(near).scalar_one()


def nearest_to_quota(limit: int) -> Sequence[TeamUse | GroupUse]:
    """Return the active teams, and the groups, nearest to their quotas first, then the unlimited teams by use."""
    share = share_of(Team).desc().nulls_last(), Team.used_tokens.desc(), Team.id
    teams = select(Team).where(Team.deleted_at.is_(None), Team.active).order_by(*share).limit(limit)
    limited = (
        LIVING.where(or_(Group.quota_tokens.is_not(None), Group.budget.is_not(None)))
        .order_by(share_of(Group).desc(), Group.id)
        .limit(limit)
    )
    with reading() as connection, Session(connection) as session:
        found: list[TeamUse | GroupUse] = [
            GroupUse(**use_of(group), teams=members) for group, members in session.execute(limited)
        ]
        found += [TeamUse(**team_use(team)) for team in session.scalars(teams)]
    return sorted(found, key=lambda use: -1.0 if use.share is None else use.share, reverse=True)[:limit]

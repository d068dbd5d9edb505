"""What the panel shows of groups, and of teams and groups together."""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import ClassVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tokenrouter.database.tables import Group, GroupUsageDaily, Team, clamp_id
from tokenrouter.natural_order import by_name
from tokenrouter.reports.days import day_of
from tokenrouter.reports.limits import Nearness, Use, nearness_of, use_of
from tokenrouter.reports.reading import reading
from tokenrouter.reports.running_out import End, ends_of, is_limited
from tokenrouter.reports.teams import LATELY_DAYS, TeamUse, team_use


@dataclass(frozen=True)
class GroupUse(Use):
    """A living group, its counters, and how many teams it has."""

    teams: int
    end: End | None = None
    """When quota or budget will be used up; None if they last."""
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
LIVING_TEAM = Team.deleted_at.is_(None)
LIVING = select(Group, MEMBERS.label("teams")).where(Group.deleted_at.is_(None))


def groups() -> list[GroupUse]:
    """Return all living groups by name."""
    with reading() as connection, Session(connection) as session:
        uses = [GroupUse(**use_of(group), teams=teams) for group, teams in session.execute(LIVING)]
    return sorted(uses, key=by_name)


def group_detail(group_id: int, now: datetime | None = None) -> GroupDetail | None:
    """Return a living group with its details, or None."""
    now = now or datetime.now(UTC)
    since = day_of(now) - timedelta(days=LATELY_DAYS - 1)
    sums = func.sum(GroupUsageDaily.requests), func.sum(GroupUsageDaily.total_tokens)
    lately = select(*sums).where(GroupUsageDaily.group_id == clamp_id(group_id), GroupUsageDaily.day >= since)
    members = select(Team).where(Team.group_id == clamp_id(group_id), Team.deleted_at.is_(None))
    with reading() as connection, Session(connection) as session:
        row = session.execute(LIVING.where(Group.id == clamp_id(group_id))).one_or_none()
        if row is None:
            return None
        requests, tokens = connection.execute(lately).one()
        group = GroupUse(**use_of(row.Group), teams=row.teams)
        return GroupDetail(
            replace(group, end=ends_of(connection, Group, [group], now).get(group.id)),
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


@dataclass(frozen=True)
class RunningOut:
    """Who will have used up quota or budget next, the soonest first, and how many have already."""

    next: list[tuple[TeamUse | GroupUse, End]]
    used_up_teams: int
    used_up_groups: int
    has_teams: bool
    """Whether there is any team at all."""


def running_out(limit: int, now: datetime | None = None) -> RunningOut:
    """Return the teams and groups that run out next, without those blocked by a limit of 0 or disabled."""
    now = now or datetime.now(UTC)
    with reading() as connection, Session(connection) as session:
        teams = [
            TeamUse(**team_use(team)) for team in session.scalars(select(Team).where(LIVING_TEAM, is_limited(Team)))
        ]
        groups = [
            GroupUse(**use_of(group), teams=members)
            for group, members in session.execute(LIVING.where(is_limited(Group)))
        ]
        team_ends = ends_of(connection, Team, teams, now, all_of_them=True)
        group_ends = ends_of(connection, Group, groups, now, all_of_them=True)
        has_teams = connection.execute(select(Team.id).where(LIVING_TEAM).limit(1)).first() is not None
    ending: list[tuple[TeamUse | GroupUse, End]] = [(use, group_ends[use.id]) for use in groups if use.id in group_ends]
    ending += [(use, team_ends[use.id]) for use in teams if use.id in team_ends]
    upcoming = sorted((each for each in ending if not each[1].is_used_up), key=_soonest)
    used_up = [use.kind for use, end in ending if end.is_used_up]
    return RunningOut(upcoming[:limit], used_up.count("team"), used_up.count("group"), has_teams)


def _soonest(ending: tuple[Use, End]) -> tuple[date, float]:
    """Sort by day, and within a day by the share used, the largest first."""
    use, end = ending
    return end.day, -(use.share or 0)

"""What the panel shows of teams: their quotas, how near they are to them, their tokens, and what they used lately."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, Literal

from sqlalchemy import ColumnElement, SQLColumnExpression, bindparam, false, func, or_, select, true
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, aliased

from tokenrouter.database.tables import (
    AnyRow,
    ApiToken,
    Team,
    UsageDaily,
    clamp_id,
    clamp_text,
    normalized,
)
from tokenrouter.reports.days import day_of
from tokenrouter.reports.limits import Nearness, Use, nearness_of, share_of, taken_of, use_of
from tokenrouter.reports.reading import reading

LATELY_DAYS = 7
MODELS_DAYS = 30
ENDED_TOKENS_DAYS = 30

State = Literal["active", "disabled"]
TokenState = Literal["active", "replaced", "expired", "revoked"]


@dataclass(frozen=True)
class TeamUse(Use):
    """A living team, its counters, and its group."""

    active: bool
    group_id: int | None
    group_name: str | None
    kind: ClassVar[str] = "team"


@dataclass(frozen=True)
class TeamRow(TeamUse):
    """A team with what it did in the last seven days, today included."""

    models: tuple[str, ...] | None
    created_at: datetime
    requests_7d: int
    tokens_7d: int
    last_used_at: datetime | None


@dataclass(frozen=True)
class TeamsPage:
    """Some of the teams that fit, and how many fit in all."""

    rows: list[TeamRow]
    total: int


@dataclass(frozen=True)
class TokenRow:
    """A token of a team: `replaced` still works until `expires_at`; `expired` and `revoked` are refused."""

    id: int
    label: str | None
    prefix: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: str | None
    """The first characters of the token that it was rotated into."""
    state: TokenState


@dataclass(frozen=True)
class ModelUse:
    """What a team used of a model; the name is empty for calls that were refused before a model was chosen."""

    model: str
    requests: int
    errors: int
    tokens: int


@dataclass(frozen=True)
class TeamDetail:
    """A team, its tokens with those that ended lately, and its use by model in the last 30 days, the most first."""

    team: TeamRow
    tokens: list[TokenRow]
    models: list[ModelUse]


def _lately(total: SQLColumnExpression[int]) -> ColumnElement[int]:
    days = UsageDaily.team_id == Team.id, UsageDaily.day >= bindparam("since")
    return select(func.coalesce(func.sum(total), 0)).where(*days).correlate(Team).scalar_subquery()


TAKEN, SHARE = taken_of(Team), share_of(Team)
REQUESTS_7D = _lately(UsageDaily.requests)
TOKENS_7D = _lately(UsageDaily.total_tokens)
LAST_USED_AT = (
    select(func.max(ApiToken.last_used_at)).where(ApiToken.team_id == Team.id).correlate(Team).scalar_subquery()
)
ROWS = select(
    Team,
    REQUESTS_7D.label("requests_7d"),
    TOKENS_7D.label("tokens_7d"),
    LAST_USED_AT.label("last_used_at"),
).where(Team.deleted_at.is_(None))
SORTS: dict[str, SQLColumnExpression[Any]] = {
    "name": func.lower(Team.name),
    "quota": Team.quota_tokens,
    "used": Team.used_tokens,
    "remaining": Team.allowance_tokens - TAKEN,
    "share": SHARE,
    "requests": REQUESTS_7D,
    "tokens": TOKENS_7D,
    "last_used": LAST_USED_AT,
    "created": Team.created_at,
}
NEARNESS = nearness_of(Team)


def teams_page(
    *,
    search: str | None = None,
    state: State | None = None,
    near_quota: Nearness | None = None,
    group_id: int | None = None,
    sort: str = "name",
    descending: bool = False,
    page: int = 1,
    per_page: int = 50,
    now: datetime | None = None,
) -> TeamsPage:
    """Return a page of the living teams, the first being 1, and how many fit in all.

    `search` is a part of the name, whatever its capitals; the group 0 is none; `sort` is a key of SORTS. What has no
    value there, an unlimited quota or the last use of a team that made no call, comes last either way.
    """
    fitting = _fitting((search or "").strip(), state, near_quota, group_id)
    key = SORTS[sort]
    order = (key.desc() if descending else key.asc()).nulls_last(), Team.id
    shown = select(Team.id).where(*fitting).order_by(*order).limit(per_page).offset(clamp_id((page - 1) * per_page))
    since = {"since": _first_day(now or datetime.now(UTC), LATELY_DAYS)}
    with reading() as connection, Session(connection) as session:
        total = connection.execute(select(func.count()).select_from(Team).where(*fitting)).scalar_one()
        ids = list(connection.execute(shown, since).scalars())
        rows = {row.Team.id: _team_row(row) for row in session.execute(ROWS.where(Team.id.in_(ids)), since)}
    return TeamsPage([rows[team_id] for team_id in ids], total)


def ids_of_teams(
    *,
    search: str | None = None,
    state: State | None = None,
    near_quota: Nearness | None = None,
    group_id: int | None = None,
) -> list[int]:
    """Return the ids of all teams that `teams_page` lists by these, on whatever page."""
    fitting = _fitting((search or "").strip(), state, near_quota, group_id)
    with reading() as connection:
        return list(connection.execute(select(Team.id).where(*fitting).order_by(Team.id)).scalars())


def _fitting(
    search: str, state: State | None, near_quota: Nearness | None, group_id: int | None
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Team.deleted_at.is_(None)]
    if search:
        conditions.append(Team.name.icontains(clamp_text(normalized(search)), autoescape=True))
    if state is not None:
        conditions.append(Team.active.is_(true() if state == "active" else false()))
    if near_quota is not None:
        conditions.append(NEARNESS[near_quota])
    if group_id is not None:
        conditions.append(Team.group_id == clamp_id(group_id) if group_id else Team.group_id.is_(None))
    return conditions


def _first_day(now: datetime, days: int) -> date:
    return day_of(now) - timedelta(days=days - 1)


def team_use(team: Team) -> dict[str, Any]:
    """Return the fields of a TeamUse."""
    return use_of(team) | {"active": team.active, "group_id": team.group_id, "group_name": team.group_name}


def _team_row(row: AnyRow) -> TeamRow:
    team = row.Team
    return TeamRow(
        **team_use(team),
        models=team.model_patterns,
        created_at=team.created_at,
        requests_7d=int(row.requests_7d),  # PostgreSQL sums up to decimals
        tokens_7d=int(row.tokens_7d),
        last_used_at=row.last_used_at,
    )


def team_detail(team_id: int, now: datetime | None = None) -> TeamDetail | None:
    """Return all about a living team, or None where there is none.

    Its tokens are oldest first; those that expired or were revoked more than 30 days ago are left out.
    """
    now = now or datetime.now(UTC)
    with reading() as connection:
        query = ROWS.where(Team.id == clamp_id(team_id))
        with Session(connection) as session:
            row = session.execute(query, {"since": _first_day(now, LATELY_DAYS)}).one_or_none()
            team = row and _team_row(row)
        if team is None:
            return None
        return TeamDetail(team, _tokens(connection, team_id, now), model_uses(connection, team_id, now))


def team_name(team_id: int) -> str | None:
    """Return the name of a team, deleted ones included, or None where there is none."""
    with reading() as connection:
        return connection.execute(select(Team.name).where(Team.id == clamp_id(team_id))).scalar()


def _tokens(connection: Connection, team_id: int, now: datetime) -> list[TokenRow]:
    successor = aliased(ApiToken)
    long_ago = now - timedelta(days=ENDED_TOKENS_DAYS)
    query = (
        select(
            ApiToken.id,
            ApiToken.label,
            ApiToken.prefix,
            ApiToken.created_at,
            ApiToken.last_used_at,
            ApiToken.expires_at,
            ApiToken.revoked_at,
            successor.prefix.label("replaced_by"),
        )
        .outerjoin(successor, successor.id == ApiToken.replaced_by_id)
        .where(
            ApiToken.team_id == team_id,
            *(or_(end.is_(None), end > long_ago) for end in (ApiToken.expires_at, ApiToken.revoked_at)),
        )
        .order_by(ApiToken.id)
    )
    return [TokenRow(**row._mapping, state=_state(row, now)) for row in connection.execute(query)]


def _state(token: AnyRow, now: datetime) -> TokenState:
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is not None and token.expires_at <= now:
        return "expired"
    return "replaced" if token.replaced_by is not None else "active"


def model_uses(connection: Connection, team_id: int, now: datetime) -> list[ModelUse]:
    """Return what a team used of each model in the last 30 days, the most first."""
    requests, errors, tokens = (
        func.sum(total) for total in (UsageDaily.requests, UsageDaily.errors, UsageDaily.total_tokens)
    )
    query = (
        select(UsageDaily.model, requests, errors, tokens)
        .where(UsageDaily.team_id == team_id, UsageDaily.day >= _first_day(now, MODELS_DAYS))
        .group_by(UsageDaily.model)
        .order_by(tokens.desc(), UsageDaily.model)
    )
    return [ModelUse(model, *map(int, sums)) for model, *sums in connection.execute(query)]

"""What the panel shows of teams: their quotas, how near they are to them, their tokens, and what they used lately."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, Literal

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, bindparam, false, func, or_, select, true
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, aliased

from tokenrouter.database.tables import (
    AnyRow,
    ApiToken,
    Team,
    TokenUsageDaily,
    UsageDaily,
    clamp_id,
    clamp_text,
    normalized,
)
from tokenrouter.natural_order import by_name
from tokenrouter.reports.days import day_of
from tokenrouter.reports.limits import Nearness, Use, nearness_of, share_of, taken_of, use_of
from tokenrouter.reports.reading import reading
from tokenrouter.reports.running_out import SOON_DAYS, End, ends_of, is_limited

LATELY_DAYS = 7
MODELS_DAYS = 30
ENDED_TOKENS_DAYS = 30

LASTS = "lasts"
Lasting = Literal["used-up", "soon"]
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
    """A team with its use in the last seven days, today included."""

    models: tuple[str, ...] | None
    mail: str | None
    created_at: datetime
    requests_7d: int
    tokens_7d: int
    last_used_at: datetime | None
    end: End | None = None
    """When quota or budget will be used up; None if they last."""


@dataclass(frozen=True)
class TeamsPage:
    """A page of the matching teams, and how many match in all."""

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
    tokens_7d: int
    """Today included."""
    tokens_30d: int


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
    "name": Team.name,
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
    lasts: Lasting | None = None,
    group_id: int | None = None,
    sort: str = "name",
    descending: bool = False,
    page: int = 1,
    per_page: int = 50,
    now: datetime | None = None,
) -> TeamsPage:
    """Return a page of the living teams, the first being 1, and how many fit in all.

    `search` is a part of the name, in any case; the group 0 is none; `sort` is a key of SORTS, or LASTS. What
    has no value there, an unlimited quota or the last use of a team that made no call, comes last either way. `lasts`
    are those whose quota or budget is used up, or will be within seven days.
    """
    now = now or datetime.now(UTC)
    fitting = _fitting((search or "").strip(), state, near_quota, group_id)
    if lasts is not None or sort == LASTS:
        return _page_by_end(fitting, lasts, sort, descending, page, per_page, now)
    skipped = clamp_id((page - 1) * per_page)
    with reading() as connection, Session(connection) as session:
        total = connection.execute(select(func.count()).select_from(Team).where(*fitting)).scalar_one()
        if sort == "name":
            ids = _ids_by_name(connection, fitting, descending)[skipped : skipped + per_page]
        else:
            shown = _ordered(fitting, sort, descending).limit(per_page).offset(skipped)
            ids = list(connection.execute(shown, {"since": _first_day(now, LATELY_DAYS)}).scalars())
        return TeamsPage(_rows(connection, session, ids, now), total)


def _page_by_end(
    fitting: list[ColumnElement[bool]],
    lasts: Lasting | None,
    sort: str,
    descending: bool,
    page: int,
    per_page: int,
    now: datetime,
) -> TeamsPage:
    """Return a page filtered or sorted by when teams run out, which SQL cannot compute."""
    with reading() as connection, Session(connection) as session:
        ends = _ending(connection, session, fitting, lasts, now)
        if sort in ("name", LASTS):
            ids = _ids_by_name(connection, fitting, descending and sort == "name")
        else:
            in_order = _ordered(fitting, sort, descending)
            ids = list(connection.execute(in_order, {"since": _first_day(now, LATELY_DAYS)}).scalars())
        if lasts is not None:
            ids = [id_ for id_ in ids if id_ in ends]
        if sort == LASTS:
            ending = sorted(
                (id_ for id_ in ids if id_ in ends), key=lambda id_: _urgency(ends[id_]), reverse=descending
            )
            ids = ending + [id_ for id_ in ids if id_ not in ends]
        shown = ids[(page - 1) * per_page : page * per_page]
        return TeamsPage(_rows(connection, session, shown, now), len(ids))


def _ending(
    connection: Connection, session: Session, fitting: list[ColumnElement[bool]], lasts: Lasting | None, now: datetime
) -> dict[int, End]:
    """Return when each matching team will run out, by id; `lasts` leaves out those that last longer."""
    limited = [TeamUse(**team_use(team)) for team in session.scalars(select(Team).where(*fitting, is_limited(Team)))]
    ends = ends_of(connection, Team, limited, now, all_of_them=True)
    return {id_: end for id_, end in ends.items() if lasts is None or _is_within(end, lasts, now)}


def _ordered(fitting: list[ColumnElement[bool]], sort: str, descending: bool = False) -> Select[int]:
    key = SORTS[sort]
    return select(Team.id).where(*fitting).order_by((key.desc() if descending else key.asc()).nulls_last(), Team.id)


def _is_within(end: End, lasts: Lasting, now: datetime) -> bool:
    return end.is_used_up if lasts == "used-up" else end.day <= day_of(now) + timedelta(days=SOON_DAYS)


def _urgency(end: End) -> tuple[bool, date]:
    return not end.is_used_up, end.day


def _rows(connection: Connection, session: Session, ids: Sequence[int], now: datetime) -> list[TeamRow]:
    """Return the rows of these teams, in this order."""
    query = ROWS.where(Team.id.in_(ids))
    rows = {row.Team.id: _team_row(row) for row in session.execute(query, {"since": _first_day(now, LATELY_DAYS)})}
    ends = ends_of(connection, Team, [row for row in rows.values() if row.active], now)
    return [replace(rows[team_id], end=ends.get(team_id)) for team_id in ids]


def _ids_by_name(connection: Connection, fitting: list[ColumnElement[bool]], descending: bool) -> list[int]:
    """Return all matching teams in natural order, which no database knows."""
    rows = connection.execute(select(Team.id, Team.name).where(*fitting)).all()
    return [team_id for team_id, _ in sorted(rows, key=by_name, reverse=descending)]


def ids_of_teams(
    *,
    search: str | None = None,
    state: State | None = None,
    near_quota: Nearness | None = None,
    lasts: Lasting | None = None,
    group_id: int | None = None,
    now: datetime | None = None,
) -> list[int]:
    """Return the ids of all teams that `teams_page` lists with these arguments, on all pages."""
    fitting = _fitting((search or "").strip(), state, near_quota, group_id)
    with reading() as connection, Session(connection) as session:
        if lasts is not None:
            return sorted(_ending(connection, session, fitting, lasts, now or datetime.now(UTC)))
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
        mail=team.mail,
        created_at=team.created_at,
        requests_7d=int(row.requests_7d),  # PostgreSQL sums up to decimals
        tokens_7d=int(row.tokens_7d),
        last_used_at=row.last_used_at,
    )


def team_detail(team_id: int, now: datetime | None = None) -> TeamDetail | None:
    """Return a living team with its details, or None.

    Its tokens are oldest first; those that expired or were revoked more than 30 days ago are left out.
    """
    now = now or datetime.now(UTC)
    with reading() as connection:
        is_meant = Team.id == clamp_id(team_id), Team.deleted_at.is_(None)
        if connection.execute(select(Team.id).where(*is_meant)).scalar() is None:
            return None
        with Session(connection) as session:
            (team,) = _rows(connection, session, [team_id], now)
        return TeamDetail(team, _tokens(connection, team_id, now), model_uses(connection, team_id, now))


def team_name(team_id: int) -> str | None:
    """Return the name of a team, deleted ones included, or None if there is none."""
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
            _used_by_token(_first_day(now, LATELY_DAYS)).label("tokens_7d"),
            _used_by_token(_first_day(now, MODELS_DAYS)).label("tokens_30d"),
        )
        .outerjoin(successor, successor.id == ApiToken.replaced_by_id)
        .where(
            ApiToken.team_id == team_id,
            *(or_(end.is_(None), end > long_ago) for end in (ApiToken.expires_at, ApiToken.revoked_at)),
        )
        .order_by(ApiToken.id)
    )
    return [_token_row(row, now) for row in connection.execute(query)]


def _token_row(row: AnyRow, now: datetime) -> TokenRow:
    summed = {"tokens_7d": int(row.tokens_7d), "tokens_30d": int(row.tokens_30d)}  # PostgreSQL sums up to decimals
    return TokenRow(**{**row._mapping, **summed}, state=_state(row, now))


def _used_by_token(since: date) -> ColumnElement[int]:
    days = TokenUsageDaily.token_id == ApiToken.id, TokenUsageDaily.day >= since
    used = select(func.coalesce(func.sum(TokenUsageDaily.total_tokens), 0)).where(*days)
    return used.correlate(ApiToken).scalar_subquery()


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

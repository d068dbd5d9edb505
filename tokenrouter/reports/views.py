"""Teams, groups, tokens and calls as documents of the commands and the API."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import current_app
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tokenrouter.database.columns import UnreadableNumber
from tokenrouter.database.tables import (
    PACES,
    AnyRow,
    ApiToken,
    Group,
    ManagementToken,
    RequestLog,
    Team,
    UsageDaily,
    db,
)
from tokenrouter.money import decimal_string
from tokenrouter.natural_order import by_name
from tokenrouter.periods import moment, rfc3339
from tokenrouter.reports.days import day_of

DAYS_SHOWN = 30


def timestamp(moment: datetime | None) -> str | None:
    """Write a moment as RFC 3339 in UTC, to the millisecond."""
    return None if moment is None else rfc3339(moment)


def team_view(team: Team) -> dict[str, Any]:
    """Describe a team; quota and remaining are None if it is unlimited, `renews_at` where that never is."""
    return {
        "id": team.id,
        "name": team.name,
        "group": team.group_name,
        **limits_view(team),
        "active": bool(team.active),
        "models": None if team.model_patterns is None else list(team.model_patterns),
    }


def group_views(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Describe groups likewise, with the names of their teams."""
    members = _names_of_members(group.id for group in groups)
    return [
        {"id": group.id, "name": group.name, **limits_view(group), "teams": members.get(group.id, [])}
        for group in groups
    ]


def _names_of_members(group_ids: Iterable[int]) -> dict[int, list[str]]:
    """Return the names of the living teams of each of these groups, in order."""
    is_member = Group.id.in_(list(group_ids)), Team.deleted_at.is_(None)
    query = select(Group.id, Team.name).join(Team, Team.group_id == Group.id).where(*is_member)
    members: dict[int, list[str]] = {}
    with Session(db.engine) as session:
        for group_id, name in sorted(session.execute(query), key=by_name):
            members.setdefault(group_id, []).append(name)
    return members


def limits_view(row: Team | Group) -> dict[str, Any]:
    """Describe the limits of a team or group, and what is used of them."""
    renewal = row.renewal
    return {
        "quota_tokens": shown_number(row.quota_tokens),
        "used_tokens": row.used_tokens,
        "held_tokens": row.held_tokens,
        "remaining_tokens": row.remaining_tokens,
        "budget": _shown_amount(row.budget),
        "cost": decimal_string(row.cost),
        "renews": renewal.every,
        "renews_on": renewal.day,
        "renews_at": timestamp(moment(row.next_renewal(current_app.config["TIMEZONE"]))),
        "extra_tokens": shown_number(row.current_extra_tokens),
        "extra_budget": _shown_amount(row.current_extra_budget),
        **{name: shown_number(getattr(row, name)) for name in PACES},
    }


def known_cost(cost: int, tokens: int, priced_tokens: int) -> int | None:
    """Return a sum of costs; None if no token has a price, since unknown is not zero."""
    return None if tokens and not priced_tokens and not cost else cost


def shown_number(number: int | None) -> int | str | None:
    """Return a number, or the text in its place if somebody edited it by hand."""
    return str(number) if isinstance(number, UnreadableNumber) else number


def _shown_amount(amount: int | None) -> str | None:
    return str(amount) if isinstance(amount, UnreadableNumber) else decimal_string(amount)


def token_view(token: ApiToken) -> dict[str, Any]:
    """Describe a token."""
    return {
        "id": token.id,
        "label": token.label,
        "prefix": token.prefix,
        "created_at": timestamp(token.created_at),
        "last_used_at": timestamp(token.last_used_at),
        "expires_at": timestamp(token.expires_at),
    }


def management_token_view(token: ManagementToken) -> dict[str, Any]:
    """Describe a management token."""
    return {
        "id": token.id,
        "label": token.label,
        "prefix": token.prefix,
        "created_at": timestamp(token.created_at),
        "last_used_at": timestamp(token.last_used_at),
    }


def log_view(row: RequestLog | AnyRow) -> dict[str, Any]:
    """Describe a call."""
    return {
        "request_id": row.request_id,
        "team": row.team_name,
        "group": row.group_name,
        "token": row.token_prefix,
        "model": row.model,
        "endpoint": row.endpoint,
        "status": row.status,
        "status_code": row.status_code,
        "repeats": row.repeats,
        "stream": row.stream,
        "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.total_tokens,
        "held_tokens": row.held_tokens,
        "charged_tokens": row.charged_tokens,
        "cost": decimal_string(row.cost),
        "cost_source": row.cost_source,
        "usage_source": row.usage_source,
        "reason": row.reason,
        "latency_ms": row.latency_ms,
        "first_byte_ms": row.first_byte_ms,
        "created_at": timestamp(row.created_at),
    }


def own_usage(team_id: int, models: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Describe a team to itself: its quota, the names and prefixes that it may call, and its last days.

    The second is how many of the tokens on these days, or of those used if they are more, have no price.
    """
    with Session(db.engine) as session:
        team = session.get_one(Team, team_id)
        days, unpriced_tokens = _last_days(session, team_id)
        limits = limits_view(team)
    shown = ("quota_tokens", "used_tokens", "held_tokens", "remaining_tokens", "budget", "cost", "renews_at")
    return {
        "team": team.name,
        "group": team.group_name,
        **{name: limits[name] for name in shown},
        "models": list(models),
        "by_day": days,
    }, max(unpriced_tokens, team.unpriced_tokens)


def _last_days(session: Session, team_id: int) -> tuple[list[dict[str, Any]], int]:
    """Return a row for each of the last 30 days, today the last, also if nothing was called; and tokens unpriced."""
    today = day_of(datetime.now(UTC))
    days = [today - timedelta(days=before) for before in reversed(range(DAYS_SHOWN))]
    sums = (UsageDaily.requests, UsageDaily.total_tokens, UsageDaily.cost, UsageDaily.priced_tokens)
    query = (
        select(UsageDaily.day, *map(func.sum, sums))
        .where(UsageDaily.team_id == team_id, UsageDaily.day >= days[0])
        .group_by(UsageDaily.day)
    )
    found = {day: list(map(int, values)) for day, *values in session.execute(query)}
    rows = []
    for day in days:
        requests, tokens, cost, priced = found.get(day, (0, 0, 0, 0))
        row = {"date": day.isoformat(), "requests": requests, "total_tokens": tokens}
        rows.append({**row, "cost": decimal_string(known_cost(cost, tokens, priced))})
    return rows, sum(tokens - priced for _, tokens, _, priced in found.values())


def newest_calls(team_ids: list[int] | None, limit: int) -> list[RequestLog]:
    """Return the newest rows of the log, of these teams or of all, newest first, detached."""
    query = select(RequestLog).order_by(RequestLog.id.desc()).limit(limit)
    if team_ids is not None:
        query = query.where(RequestLog.team_id.in_(team_ids))
    with Session(db.engine) as session:
        return list(session.scalars(query))

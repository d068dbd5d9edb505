"""What a team, a token or a call looks like from outside: the documents of the commands and the API."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tokenrouter.models import ApiToken, RequestLog, Team, db


def timestamp(moment: datetime | None) -> str | None:
    """Write a moment as RFC 3339 in UTC, to the millisecond."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def team_view(team: Team) -> dict[str, Any]:
    """Return what is told of a team; quota and remaining are None where it is unlimited."""
    return {
        "id": team.id,
        "name": team.name,
        "quota_tokens": team.quota_tokens,
        "used_tokens": team.used_tokens,
        "held_tokens": team.held_tokens,
        "remaining_tokens": team.remaining_tokens,
        "active": team.active,
        "models": None if team.model_patterns is None else list(team.model_patterns),
    }


def token_view(token: ApiToken) -> dict[str, Any]:
    """Return what is told of a token."""
    return {
        "id": token.id,
        "label": token.label,
        "prefix": token.prefix,
        "created_at": timestamp(token.created_at),
        "last_used_at": timestamp(token.last_used_at),
        "expires_at": timestamp(token.expires_at),
    }


def log_view(row: RequestLog) -> dict[str, Any]:
    """Return what is told of a call."""
    return {
        "request_id": row.request_id,
        "team": row.team_name,
        "token": row.token_prefix,
        "model": row.model,
        "endpoint": row.endpoint,
        "status": row.status,
        "status_code": row.status_code,
        "stream": row.stream,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.total_tokens,
        "charged_tokens": row.charged_tokens,
        "usage_source": row.usage_source,
        "latency_ms": row.latency_ms,
        "first_byte_ms": row.first_byte_ms,
        "created_at": timestamp(row.created_at),
    }


def newest_calls(team_ids: list[int] | None, limit: int) -> list[RequestLog]:
    """Return the newest rows of the log, of these teams or of all, newest first, detached."""
    query = select(RequestLog).order_by(RequestLog.id.desc()).limit(limit)
    if team_ids is not None:
        query = query.where(RequestLog.team_id.in_(team_ids))
    with Session(db.engine) as session:
        return list(session.scalars(query))

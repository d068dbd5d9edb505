"""What a team's own page shows besides quota and days: models, pace and last calls, without content."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from tokenrouter.database.log_status import describe
from tokenrouter.database.tables import Group, RequestLog, Team, UsageDaily
from tokenrouter.reports.days import beginning, day_of
from tokenrouter.reports.reading import reading
from tokenrouter.reports.teams import TAKEN, model_uses
from tokenrouter.reports.views import limits_view, timestamp

CALLS_SHOWN = 20
PACE_DAYS = 7
LONGEST = timedelta(days=3650)
DESCRIBED_COLUMNS = (
    RequestLog.model,
    RequestLog.endpoint,
    RequestLog.status,
    RequestLog.status_code,
    RequestLog.error_code,
    RequestLog.repeats,
    RequestLog.stream,
    RequestLog.prompt_tokens,
    RequestLog.completion_tokens,
    RequestLog.charged_tokens,
    RequestLog.usage_source,
    RequestLog.first_byte_ms,
    RequestLog.latency_ms,
)


def own_details(team_id: int, now: datetime | None = None) -> dict[str, Any]:
    """Return a team's extra, group, use by model in the last 30 days, pace, and last calls, newest first.

    `pace` is None if there is no quota, or no use in the last seven days.
    """
    now = now or datetime.now(UTC)
    with reading() as connection:
        extra = select(Team.allowance_tokens - Team.quota_tokens).where(Team.id == team_id)
        return {
            "extra_tokens": connection.execute(extra).scalar() or 0,
            "group": _group(connection, team_id),
            "by_model": [
                {"model": use.model, "requests": use.requests, "errors": use.errors, "total_tokens": use.tokens}
                for use in model_uses(connection, team_id, now)
            ],
            "pace": _pace(connection, team_id, now),
            "calls": _calls(connection, team_id),
        }


def _group(connection: Connection, team_id: int) -> dict[str, Any] | None:
    """Return what is left for all teams of the team's group; None if it is in none."""
    with Session(connection) as session:
        group = session.scalars(select(Group).join(Team, Team.group_id == Group.id).where(Team.id == team_id)).first()
        if group is None:
            return None
        limits = limits_view(group)
    shown = ("quota_tokens", "extra_tokens", "used_tokens", "held_tokens", "remaining_tokens", "renews_at")
    return {"name": group.name, **{name: limits[name] for name in shown}}


def _pace(connection: Connection, team_id: int, now: datetime) -> dict[str, Any] | None:
    """Return the average day, of the last seven or of those since the first use, and until when the rest lasts.

    `lasts_until` is None if nothing is left, and where the rest lasts for more than ten years.
    """
    left = connection.execute(select(Team.allowance_tokens - TAKEN).where(Team.id == team_id)).scalar()
    tokens, began = _lately(connection, team_id, now)
    if left is None or not tokens:
        return None
    tokens_per_day = tokens / max(1.0, (now - began) / timedelta(days=1))
    days_left = left / tokens_per_day
    ends = 0 < days_left <= LONGEST.days
    return {
        "tokens_per_day": round(tokens_per_day),
        "lasts_until": timestamp(now + timedelta(days=days_left)) if ends else None,
    }


def _lately(connection: Connection, team_id: int, now: datetime) -> tuple[int, datetime]:
    """Return what was used in the last seven days, today included, and when they, or the use, began."""
    first_day = day_of(now) - timedelta(days=PACE_DAYS - 1)
    of_team = UsageDaily.team_id == team_id, UsageDaily.total_tokens > 0
    first_use = connection.execute(select(func.min(UsageDaily.day)).where(*of_team)).scalar()
    lately = select(func.sum(UsageDaily.total_tokens)).where(*of_team, UsageDaily.day >= first_day)
    tokens = int(connection.execute(lately).scalar() or 0)
    return tokens, beginning(max(first_day, first_use or first_day))


def _calls(connection: Connection, team_id: int) -> list[dict[str, Any]]:
    query = (
        select(RequestLog.created_at, *DESCRIBED_COLUMNS)
        .where(RequestLog.team_id == team_id)
        .order_by(RequestLog.id.desc())
        .limit(CALLS_SHOWN)
    )
    rows = connection.execute(query).mappings()
    return [{**row, **_status(row["status"]), "created_at": timestamp(row["created_at"])} for row in rows]


def _status(log_status: str) -> dict[str, str]:
    description = describe(log_status)
    return {"status_words": description.words, "status_tone": description.tone}

"""Requests that were refused recently before they were calls: from where, and with whose token."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from tokenrouter.database.tables import AnyRow, ApiToken, DoorRefusal, Team
from tokenrouter.reports.reading import reading

MOST_SHOWN = 200


@dataclass(frozen=True)
class TurnedAway:
    """Requests that were turned away, in all, and those of each reason, address and token, the most first."""

    requests: int
    lines: list[AnyRow]
    """With `reason`, `address`, `requests`, `minute`, and of the token, where it was one: `token_id`, `prefix`,
    `label`, `team_id`, `team_name`, `deleted_at`."""
    has_more: bool


def turned_away(now: datetime, hours: int = 24) -> TurnedAway:
    """Return who was turned away within so many hours."""
    is_recent = DoorRefusal.minute >= _minute(now - timedelta(hours=hours))
    requests = func.sum(DoorRefusal.requests).label("requests")
    together = DoorRefusal.reason, DoorRefusal.address, DoorRefusal.token_id
    lines = (
        select(*together, requests, func.max(DoorRefusal.minute).label("minute"))
        .where(is_recent)
        .group_by(*together)
        .order_by(requests.desc(), DoorRefusal.reason, DoorRefusal.address, DoorRefusal.token_id)
        .limit(MOST_SHOWN + 1)
        .subquery()
    )
    of_token = ApiToken.prefix, ApiToken.label, Team.id.label("team_id"), Team.name.label("team_name"), Team.deleted_at
    query = (
        select(*lines.c, *of_token)
        .outerjoin(ApiToken, ApiToken.id == lines.c.token_id)
        .outerjoin(Team, Team.id == ApiToken.team_id)
        .order_by(lines.c.requests.desc(), lines.c.reason, lines.c.address, lines.c.token_id)
    )
    with reading() as connection:
        rows = list(connection.execute(query))
    return TurnedAway(count_turned_away(now, hours), rows[:MOST_SHOWN], len(rows) > MOST_SHOWN)


def count_turned_away(now: datetime, hours: int = 24) -> int:
    """Return how many requests were turned away within so many hours."""
    is_recent = DoorRefusal.minute >= _minute(now - timedelta(hours=hours))
    with reading() as connection:
        return int(connection.execute(select(func.sum(DoorRefusal.requests)).where(is_recent)).scalar() or 0)


def moment_of(minute: int) -> datetime:
    """Return when a minute of a line began."""
    return datetime.fromtimestamp(60 * minute, UTC)


def _minute(moment: datetime) -> int:
    return int(moment.timestamp()) // 60

"""Calls that failed recently, by team and by error."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import CompoundSelect, func, select, union_all
from sqlalchemy.engine import Connection

from tokenrouter.database.log_status import FAILURES
from tokenrouter.database.tables import RequestLog, Team
from tokenrouter.reports.calls import DISORDER, first_id_since, has_status
from tokenrouter.reports.reading import reading

MOST_ROWS = 5_000  # of a status; if nearly all fails, the newest say enough


@dataclass(frozen=True)
class FailureGroup:
    """Calls of one team that failed with the same error, and the last of them."""

    team_id: int
    team_name: str
    team_lives: bool
    group_id: int | None
    """The one that the last call was held in."""
    status: str
    status_code: int | None
    error_code: str | None
    model: str
    """Of the last call."""
    calls: int
    last_id: int
    last_at: datetime
    reason: str | None


@dataclass(frozen=True)
class RecentFailures:
    """Failures within some hours, latest first; `is_partial` if not all rows were read."""

    groups: list[FailureGroup]
    is_partial: bool


def recent_failures(now: datetime, hours: int = 24) -> RecentFailures:
    """Return what failed within so many hours."""
    since = now - timedelta(hours=hours)
    alike = RequestLog.team_id, RequestLog.status, RequestLog.status_code, RequestLog.error_code
    sums = func.sum(RequestLog.repeats), func.count(), func.max(RequestLog.id)
    with reading() as connection:
        is_recent = RequestLog.id.in_(_newest_ids(connection, since)), RequestLog.created_at >= since
        found = connection.execute(select(*sums, *alike).where(*is_recent).group_by(*alike)).all()
        groups = _with_last_call(connection, {last_id: int(calls) for calls, _, last_id, *_ in found})
    rows = {status: sum(row[1] for row in found if row.status == status) for status in FAILURES}
    return RecentFailures(groups, max(rows.values()) >= MOST_ROWS)


def _newest_ids(connection: Connection, since: datetime) -> CompoundSelect[tuple[int]]:
    end = (connection.execute(select(func.max(RequestLog.id))).scalar() or 0) + 1
    first = first_id_since(connection, since - DISORDER, end)
    of_status = (
        select(RequestLog.id).where(has_status(status), RequestLog.id >= first).order_by(RequestLog.id.desc())
        for status in FAILURES
    )
    return union_all(*(select(ids.limit(MOST_ROWS).subquery()) for ids in of_status))


def _with_last_call(connection: Connection, calls: dict[int, int]) -> list[FailureGroup]:
    query = (
        select(RequestLog.__table__, Team.deleted_at)
        .join(Team, Team.id == RequestLog.team_id)
        .where(RequestLog.id.in_(list(calls)))
        .order_by(RequestLog.id.desc())
    )
    return [
        FailureGroup(
            team_id=row.team_id,
            team_name=row.team_name,
            team_lives=row.deleted_at is None,
            group_id=row.group_id,
            status=row.status,
            status_code=row.status_code,
            error_code=row.error_code,
            model=row.model,
            calls=calls[row.id],
            last_id=row.id,
            last_at=row.created_at,
            reason=row.reason,
        )
        for row in connection.execute(query)
    ]

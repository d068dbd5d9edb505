"""Rows of the log as the ledger writes them: the statements of every call, and what they take."""

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import bindparam, exists, insert, literal_column, select, update

from tokenrouter.database.log_status import PENDING, REJECTED
from tokenrouter.database.statements import Statement
from tokenrouter.database.tables import NO_COST, NOT_COUNTED, REASON_LENGTH, AnyRow, ApiToken, RequestLog, Worker
from tokenrouter.ledger.costs import PRICES_VERSION
from tokenrouter.ledger.counters import IS_PENDING, NOW
from tokenrouter.ledger.rules import CallRequest, Reservation

NO_MODEL = ""
"""The model in the daily totals for names that no model has: callers must not make rows by inventing names."""


LOGGED_COLUMNS = [column.key for column in RequestLog.__table__.columns if column.key != "id"]
INSERT_CALL = Statement(
    insert(RequestLog).values({name: bindparam(name) for name in LOGGED_COLUMNS}).returning(RequestLog.id)
)
PENDING_CALL = Statement(
    select(
        RequestLog.id,
        RequestLog.token_id,
        RequestLog.model,
        RequestLog.held_tokens,
        RequestLog.held_cost,
        RequestLog.day,
    ).where(RequestLog.request_id == bindparam("request_id"), IS_PENDING)
)
STATUS_OF_CALL = Statement(select(RequestLog.status).where(RequestLog.id == bindparam("call_id")))
REQUESTED_COLUMNS = (
    "request_id",
    "team_id",
    "team_name",
    "token_id",
    "token_prefix",
    "model",
    "endpoint",
    "stream",
    "created_at",
    "group_id",
)
PENDING_CALLS = select(
    RequestLog.id,
    *(getattr(RequestLog, name) for name in REQUESTED_COLUMNS),
    RequestLog.held_tokens,
    RequestLog.held_cost,
    RequestLog.prompt_tokens,
    RequestLog.completion_tokens,
    RequestLog.day,
).where(IS_PENDING)
IS_ORPHAN = ~exists().where(Worker.id == RequestLog.worker_id)
FIND_LEASES = Statement(select(Worker.id, Worker.lease_expires_at, NOW))
FIND_ORPHAN = Statement(select(RequestLog.id).where(IS_PENDING, IS_ORPHAN).limit(1))
SETTLED_COLUMNS = (
    "status",
    "status_code",
    "error_code",
    "reason",
    "charged_tokens",
    "usage_source",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "cost",
    "cost_source",
    "latency_ms",
    "first_byte_ms",
    "provider_request_id",
)
SETTLE_CALL = Statement(
    update(RequestLog)
    .where(RequestLog.id == bindparam("call_id"), IS_PENDING)
    .values({column: bindparam(column) for column in SETTLED_COLUMNS})
    .returning(PRICES_VERSION)
)
SET_COST = Statement(
    update(RequestLog)
    .where(RequestLog.id == bindparam("call_id"))
    .values(cost=bindparam("cost"), cost_source=bindparam("cost_source"))
)
SAVE_PROGRESS = Statement(
    update(RequestLog)
    .where(RequestLog.id == bindparam("call_id"), IS_PENDING)
    .values(completion_tokens=bindparam("new_completion_tokens"))
)
SAVE_RUNNING = Statement(
    update(Worker)
    .where(Worker.id == bindparam("worker"))
    .values(running_calls=bindparam("running_calls"), running_upto=bindparam("running_upto"))
)
SAVE_LAST_USE = Statement(
    update(ApiToken).where(ApiToken.id == bindparam("token")).values(last_used_at=bindparam("used_at"))
)

NEWEST_ROWS = 200  # of a team; refusals that repeat are one row
_newest = (
    select(RequestLog.__table__)
    .where(RequestLog.team_id == bindparam("team"))
    .order_by(RequestLog.id.desc())
    .limit(literal_column(str(NEWEST_ROWS)))
    .subquery()
)
FIND_REFUSAL = Statement(
    select(_newest.c.request_id, _newest.c.created_at)
    .where(
        _newest.c.status == literal_column(f"'{REJECTED}'"),
        *(
            _newest.c[name] == bindparam(name)
            for name in ("token_id", "model", "endpoint", "status_code", "error_code")
        ),
        _newest.c.group_id.is_not_distinct_from(bindparam("group_id")),
        _newest.c.day == bindparam("day"),
        _newest.c.created_at > bindparam("since"),
    )
    .order_by(_newest.c.id.desc())
    .limit(literal_column("1"))
)
ADD_REPEATS = Statement(
    update(RequestLog)
    .where(RequestLog.request_id == bindparam("refusal"))
    .values(repeats=RequestLog.repeats + bindparam("times"))
)


def log_row(request: CallRequest, **values: Any) -> dict[str, Any]:
    """Return the values of a new row: those given, and for the rest what most rows begin with."""
    return {
        "request_id": request.request_id,
        "team_id": request.team_id,
        "team_name": request.team_name,
        "group_id": request.group_id,
        "token_id": request.token_id,
        "token_prefix": request.token_prefix,
        "model": request.model,
        "endpoint": request.endpoint,
        "stream": request.stream,
        "created_at": request.created_at,
        "worker_id": None,
        "status_code": None,
        "error_code": None,
        "repeats": 1,
        "held_tokens": 0,
        "held_cost": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "cached_tokens": 0,
        "cost": None if values["status"] == PENDING else 0,
        "cost_source": NO_COST,
        "charged_tokens": 0,
        "usage_source": NOT_COUNTED,
        "latency_ms": None,
        "first_byte_ms": None,
        "provider_request_id": None,
        "reason": None,
        **values,
    }


def kept_reason(reason: str | None) -> str | None:
    """Return what the log keeps of a reason: its first REASON_LENGTH characters, without invisible ones."""
    if reason is None:
        return None
    return "".join(each if each.isprintable() else " " for each in reason[:REASON_LENGTH])


def moment_of(stored: datetime | str) -> datetime:
    """Return the moment that a driver read: SQLite gives it as a text."""
    return stored if isinstance(stored, datetime) else datetime.fromisoformat(stored).replace(tzinfo=UTC)


def day_as_read(stored: date | str) -> date:
    """Return the day that a driver read, likewise."""
    return stored if isinstance(stored, date) else date.fromisoformat(stored)


def reservation_of(row: AnyRow) -> Reservation:
    """Return the reservation that a row of PENDING_CALLS describes."""
    day = row.day or row.created_at.date()  # of a call from before that was kept, the one in UTC
    held = row.held_tokens, row.group_id, row.held_cost
    request = CallRequest(**{name: getattr(row, name) for name in REQUESTED_COLUMNS})
    return Reservation(row.id, row.team_id, row.token_id, row.model, day, *held, request=request)

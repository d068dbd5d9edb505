"""The write operations of the ledger, of which the writer carries out many in one transaction."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, ClassVar

from sqlalchemy import bindparam, insert, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from tokenrouter.errors import QuotaExceeded, QuotaReserved
from tokenrouter.ledger.rules import Ask, Balance, Outcome, Reservation, decide
from tokenrouter.models import (
    INTERRUPTED,
    NOT_COUNTED,
    PENDING,
    PROVIDER_ERROR,
    REJECTED,
    ApiToken,
    RequestLog,
    Team,
    UsageDaily,
)


@dataclass
class Transaction:
    """What an operation may use while its group is being carried out."""

    connection: Connection
    balances: dict[int, Balance]
    worker_id: int
    output_reserve_tokens: int
    days: defaultdict[tuple[int, date, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def count(self, team_id: int, day: date, model: str, outcome: Outcome) -> None:
        """Add one call to the sums of its day."""
        self.days[team_id, day, model].update(
            requests=1,
            errors=int(outcome.status in ERRORS),
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            total_tokens=outcome.charged_tokens,
        )

    def close(self) -> None:
        """Write the changes of counters and sums that the operations left."""
        move_counters(self.connection, self.balances)
        if self.days:
            rows = [
                {"team_id": team, "day": day, "model": model, **sums} for (team, day, model), sums in self.days.items()
            ]
            self.connection.execute(ADD_TO_DAYS[self.connection.dialect.name], rows)


@dataclass(frozen=True)
class Reserve:
    """Hold tokens and write the pending row, or write the row of a refusal."""

    ask: Ask
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.ask.team_id

    def apply(self, tx: Transaction) -> Reservation | QuotaExceeded | QuotaReserved:
        """Return the reservation, or the refusal for the waiting thread to raise."""
        balance = tx.balances[self.team_id]
        try:
            grant = decide(balance, self.ask, tx.output_reserve_tokens)
        except (QuotaExceeded, QuotaReserved) as refusal:
            Reject(self.ask, refusal.status, refusal.code, self.ask.model).apply(tx)
            return refusal
        balance.hold(grant.held_tokens)
        row = _log_row(self.ask, status=PENDING, held_tokens=grant.held_tokens, worker_id=tx.worker_id)
        row["prompt_tokens"] = self.ask.prompt_tokens
        call_id = tx.connection.execute(INSERT_CALL, row).scalar_one()
        day = self.ask.created_at.date()
        return Reservation(call_id, self.team_id, self.ask.model, day, grant.held_tokens, grant.output_limit)

    def undo(self) -> "Abandon":
        """Give back what may have been committed without our knowing."""
        return Abandon(self.ask.request_id, self.team_id)


@dataclass(frozen=True)
class Reject:
    """Write the row of a call that was refused before anything was held."""

    ask: Ask
    status_code: int
    error_code: str | None
    counted_model: str = ""
    """The model in the sums of the day; what callers invent must not become a row of them."""
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.ask.team_id

    def apply(self, tx: Transaction) -> None:
        """Insert the row."""
        row = _log_row(self.ask, status=REJECTED, status_code=self.status_code, error_code=self.error_code)
        tx.connection.execute(INSERT_CALL, row)
        tx.count(self.team_id, self.ask.created_at.date(), self.counted_model, Outcome(status=REJECTED))

    def undo(self) -> None:
        """Leave the row, if it was written: it moved no counter."""


@dataclass
class Settle:
    """Complete a pending row, charge its team and give the hold back; return whether this call did it."""

    reservation: Reservation
    outcome: Outcome
    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = True
    tries: int = 0

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.reservation.team_id

    def apply(self, tx: Transaction) -> bool:
        """Do nothing when the row is settled already."""
        self.tries += 1
        call = self.reservation
        taken = tx.connection.execute(SETTLE_CALL, {"call_id": call.call_id, **_settled_values(self.outcome)})
        if taken.rowcount == 1:
            tx.balances[call.team_id].settle(call.held_tokens, self.outcome.charged_tokens)
            tx.count(call.team_id, call.day, call.model, self.outcome)
            return True
        # after a try whose commit was lost on the way back, the row may bear this very outcome
        return self.tries > 1 and self._stands_in_log(tx)

    def _stands_in_log(self, tx: Transaction) -> bool:
        query = select(RequestLog.status).where(RequestLog.id == self.reservation.call_id)
        return tx.connection.execute(query).scalar() == self.outcome.status

    def undo(self) -> None:
        """Need no undoing: it is tried until it is done."""


@dataclass(frozen=True)
class Abandon:
    """Give back a reservation whose caller was told that the database failed, if it was written after all."""

    request_id: str
    team_id: int
    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    def apply(self, tx: Transaction) -> None:
        """Settle the row, if it is there, at nothing: the provider was not called."""
        query = PENDING_CALLS.where(RequestLog.request_id == self.request_id)
        if (row := tx.connection.execute(query).one_or_none()) is not None:
            outcome = Outcome(status=PROVIDER_ERROR, status_code=503, error_code="storage_unavailable")
            Settle(reservation_of(row), outcome).apply(tx)

    def undo(self) -> None:
        """Need no undoing: it is tried until it is done."""


@dataclass(frozen=True)
class Heartbeat:
    """Save how far the running calls have come and when tokens were last used; its group renews the lease."""

    progress: list[dict[str, int]]
    tokens_used: list[dict[str, Any]]
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False
    team_id: ClassVar[None] = None

    def apply(self, tx: Transaction) -> None:
        """Write what is still pending."""
        if self.progress:
            tx.connection.execute(SAVE_PROGRESS, self.progress)
        if self.tokens_used:
            tx.connection.execute(SAVE_LAST_USE, self.tokens_used)

    def undo(self) -> None:
        """Leave what was written: it is true."""


def reservation_of(row: Row[Any]) -> Reservation:
    """Return the reservation that a row of PENDING_CALLS tells of."""
    return Reservation(row.id, row.team_id, row.model, row.created_at.date(), row.held_tokens)


LedgerOperation = Reserve | Reject | Settle | Abandon | Heartbeat

# spelled out, not bound: only so can the index of pending rows serve it
IS_PENDING = RequestLog.status == literal_column(f"'{PENDING}'")
INSERT_CALL = insert(RequestLog).returning(RequestLog.id)
PENDING_CALLS = select(
    RequestLog.id,
    RequestLog.request_id,
    RequestLog.team_id,
    RequestLog.team_name,
    RequestLog.model,
    RequestLog.held_tokens,
    RequestLog.prompt_tokens,
    RequestLog.completion_tokens,
    RequestLog.created_at,
).where(IS_PENDING)
SETTLED_COLUMNS = (
    "status",
    "status_code",
    "error_code",
    "charged_tokens",
    "usage_source",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "latency_ms",
    "first_byte_ms",
    "provider_request_id",
)
SETTLE_CALL = (
    update(RequestLog)
    .where(RequestLog.id == bindparam("call_id"), IS_PENDING)
    .values({column: bindparam(f"new_{column}") for column in SETTLED_COLUMNS})
)
MOVE_COUNTERS = (
    update(Team)
    .where(Team.id == bindparam("team"))
    .values(
        held_tokens=Team.held_tokens + bindparam("held_change"),
        settled_tokens=Team.settled_tokens + bindparam("settled_change"),
    )
)

SAVE_PROGRESS = (
    update(RequestLog)
    .where(RequestLog.id == bindparam("call_id"), IS_PENDING)
    .values(completion_tokens=bindparam("new_completion_tokens"))
)
SAVE_LAST_USE = update(ApiToken).where(ApiToken.id == bindparam("token")).values(last_used_at=bindparam("used_at"))

SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "total_tokens")
ERRORS = frozenset({PROVIDER_ERROR, REJECTED, INTERRUPTED})


def _add_to_days(insert_days: Any) -> Any:
    sums = {name: getattr(UsageDaily, name) + insert_days.excluded[name] for name in SUMS}
    return insert_days.on_conflict_do_update(index_elements=["team_id", "day", "model"], set_=sums)


ADD_TO_DAYS = {
    "sqlite": _add_to_days(sqlite.insert(UsageDaily)),
    "postgresql": _add_to_days(postgresql.insert(UsageDaily)),
}


def _log_row(ask: Ask, **values: Any) -> dict[str, Any]:
    return {
        "request_id": ask.request_id,
        "team_id": ask.team_id,
        "team_name": ask.team_name,
        "token_id": ask.token_id,
        "token_prefix": ask.token_prefix,
        "model": ask.model,
        "endpoint": ask.endpoint,
        "stream": ask.stream,
        "created_at": ask.created_at,
        "worker_id": None,
        "status_code": None,
        "error_code": None,
        "held_tokens": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "charged_tokens": 0,
        "usage_source": NOT_COUNTED,
        **values,
    }


def _settled_values(outcome: Outcome) -> dict[str, Any]:
    return {f"new_{column}": getattr(outcome, column) for column in SETTLED_COLUMNS}


def lock_balances(connection: Connection, team_ids: Iterable[int]) -> dict[int, Balance]:
    """Lock the teams' rows in the order of their ids, and read their counters and quotas."""
    query = (
        select(Team.id, Team.quota_tokens, Team.settled_tokens - Team.reset_mark_tokens, Team.held_tokens)
        .where(Team.id.in_(sorted(team_ids)))
        .order_by(Team.id)
        .with_for_update(key_share=True)
    )
    return {team_id: Balance(quota, used, held) for team_id, quota, used, held in connection.execute(query)}


def move_counters(connection: Connection, balances: dict[int, Balance]) -> None:
    """Write the changes that were gathered while the teams were locked."""
    changes = [
        {"team": team_id, "held_change": balance.held_change, "settled_change": balance.settled_change}
        for team_id, balance in balances.items()
        if balance.held_change or balance.settled_change
    ]
    if changes:
        connection.execute(MOVE_COUNTERS, changes)

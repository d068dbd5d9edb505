"""The write operations of the ledger, of which the writer carries out many in one transaction."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, ClassVar, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import (
    BigInteger,
    Double,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from tokenrouter.auth import CALLER_COLUMNS, IS_VALID, LIMIT_COLUMNS
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.log_status import FAILURES, PENDING, PROVIDER_ERROR, REJECTED
from tokenrouter.database.statements import DriverConnection, Inserter, Statement
from tokenrouter.database.tables import (
    NOT_COUNTED,
    AnyRow,
    ApiToken,
    QuotaRenewal,
    RequestLog,
    Team,
    UsageDaily,
    Worker,
    unreadable_limits,
)
from tokenrouter.errors import ModelNotFound, PaceExceeded, QuotaExceeded, QuotaReserved
from tokenrouter.ledger.leases import Lease
from tokenrouter.ledger.pace import MINUTE_NS, Bucket
from tokenrouter.ledger.refusals import REPEATS_WITHIN, LoggedRefusal, NewRefusals, Refusals, Repetition, key_of
from tokenrouter.ledger.responses import Given, remember
from tokenrouter.ledger.rules import (
    Balance,
    CallerChanged,
    CallRequest,
    Outcome,
    Reservation,
    check_pace,
    decide,
    pace_headers,
)
from tokenrouter.periods import read_renewal

NO_MODEL = ""
"""The model in the sums of a day where the caller named none that is known; what callers invent must not be a row."""
NO_MOVE = {"held_change": 0, "settled_change": 0, "calls_change": 0}
SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "total_tokens")
NO_USE = dict.fromkeys(SUMS, 0)


class LockedTeam(NamedTuple):
    """What is read of a locked team: its limits, as LIMITS has them, and its counters."""

    quota_tokens: int | None
    extra_tokens: int
    renews: str
    renews_on: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    calls_at_once: int | None
    renews_at: int | None
    renewal_basis: str | None
    used_tokens: int
    """As the row has them, whether the time has come to renew or not."""
    held_tokens: int
    requests_full_at: int
    tokens_full_at: int
    calls_in_flight: int
    now: float


@dataclass
class Transaction:
    """What an operation may use while its group is being carried out."""

    connection: DriverConnection
    worker_id: int
    output_reserve_tokens: int
    zone: ZoneInfo
    """In which the days of renewals begin."""
    refusals: NewRefusals = field(default_factory=lambda: NewRefusals(Refusals()))
    balances: dict[int, Balance] = field(default_factory=dict)
    """Of the teams that are locked."""
    callers: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """What the database says of tokens, by id, where it has to be known; none of one that is valid no more."""
    moves: defaultdict[int, dict[str, int]] = field(default_factory=lambda: defaultdict(NO_MOVE.copy))
    days: defaultdict[tuple[int, date, str], dict[str, int]] = field(default_factory=lambda: defaultdict(NO_USE.copy))

    def lock(self, operations: "Sequence[LedgerOperation]") -> None:
        """Lock the teams of operations in the order of their ids, and read what those have to know."""
        to_check: defaultdict[int, dict[int, datetime]] = defaultdict(dict)
        for each in operations:
            if isinstance(each, Reserve) and each.request.known_caller is not None:
                to_check[each.team_id][each.request.token_id] = each.request.created_at
        for team_id in sorted({each.team_id for each in operations if each.team_id is not None}):
            for token_id, now in to_check[team_id].items():
                row = LOCK_CALLER.execute(self.connection, {"token": token_id, "now": now}).fetchone()
                known = row and LockedTeam(*row[len(CALLER_COLUMNS) :])
                if known and not unreadable_limits(*known[: len(LIMIT_COLUMNS)]):
                    self.callers[token_id] = row[: len(CALLER_COLUMNS)]
                    if team_id not in self.balances:
                        self._take_balance(team_id, known)
            if team_id not in self.balances:
                self.lock_team(team_id)

    def lock_team(self, team_id: int) -> None:
        """Lock a team, and read its limits and counters."""
        self._take_balance(team_id, self._locked(team_id))

    def _locked(self, team_id: int) -> "LockedTeam":
        return LockedTeam(*LOCK_TEAM.execute(self.connection, {"team": team_id}).fetchone())

    def _take_balance(self, team_id: int, read: "LockedTeam") -> None:
        """Take what was read, renewed where its time has come, and add what is still to be written."""
        read = self._renewed(team_id, read)
        balance = self.balances[team_id] = Balance(
            read.quota_tokens,
            read.extra_tokens,
            read.used_tokens,
            read.held_tokens,
            read.renews_at,
            None if read.requests_per_minute is None else Bucket(read.requests_per_minute, read.requests_full_at),
            None if read.tokens_per_minute is None else Bucket(read.tokens_per_minute, read.tokens_full_at),
            read.calls_at_once,
            read.calls_in_flight,
            int(read.now * 10**9),
        )
        move = self.moves.get(team_id, NO_MOVE)
        balance.move(held=move["held_change"], settled=move["settled_change"], calls=move["calls_change"])

    def _renewed(self, team_id: int, read: "LockedTeam") -> "LockedTeam":
        """Begin the quota of a locked team anew where its time has come, and return what is then to be read.

        Where somebody changed by hand when that is, or the time zone was changed, the next time is computed anew.
        """
        renewal = read_renewal(read.renews, read.renews_on)
        basis, is_due = renewal.basis(self.zone), read.renews_at is not None and read.renews_at <= read.now
        if not is_due and read.renewal_basis == basis:
            return read
        renews_at = renewal.next_after(read.now, self.zone)
        following = {"team": team_id, "renews_at": renews_at, "renewal_basis": basis}
        if not is_due:
            SET_RENEWAL.execute(self.connection, following)
            return read._replace(renews_at=renews_at)
        ended = {"due_at": read.renews_at, "now": read.now, "used_tokens": read.used_tokens}
        RECORD_RENEWAL.execute(self.connection, {"team_id": team_id, "extra_tokens": read.extra_tokens, **ended})
        RENEW.execute(self.connection, following)
        return read._replace(renews_at=renews_at, used_tokens=0, extra_tokens=0)

    def move(self, team_id: int, *, held: int, settled: int = 0, calls: int) -> None:
        """Move a team's counters by so much."""
        move = self.moves[team_id]
        move["held_change"] += held
        move["settled_change"] += settled
        move["calls_change"] += calls
        if (balance := self.balances.get(team_id)) is not None:
            balance.move(held=held, settled=settled, calls=calls)

    def count(self, team_id: int, day: date, model: str, outcome: Outcome, times: int = 1) -> None:
        """Add a call to the sums of its day, or several that cost nothing."""
        sums = self.days[team_id, day, model]
        sums["requests"] += times
        sums["errors"] += times * (outcome.status in FAILURES)
        sums["prompt_tokens"] += outcome.prompt_tokens
        sums["completion_tokens"] += outcome.completion_tokens
        sums["total_tokens"] += outcome.charged_tokens

    def close(self) -> None:
        """Write the changes of counters and sums that the operations left, in an order that all workers keep to."""
        for team_id, changes in sorted(self.moves.items()):
            while self._move(team_id, changes).rowcount == 0:
                read = self._locked(team_id)  # the time to renew has come, also where the clock was set back just now
                self._renewed(team_id, read._replace(now=max(read.now, read.renews_at or 0)))
        for (team_id, day, model), sums in sorted(self.days.items()):
            ADD_TO_DAY.execute(self.connection, {"team_id": team_id, "day": day, "model": model, **sums})

    def _move(self, team_id: int, changes: Mapping[str, int]) -> Any:
        """Write a team's counters; of one that is locked it is known when its buckets will be full."""
        values = {"team": team_id, **changes}
        balance = self.balances.get(team_id)
        if balance is None or not balance.has_pace:
            return MOVE_COUNTERS.execute(self.connection, values)
        values["requests_full_at"] = balance.requests.full_at if balance.requests else 0
        values["tokens_full_at"] = balance.tokens.full_at if balance.tokens else 0
        return MOVE_WITH_PACE.execute(self.connection, values)


@dataclass(frozen=True)
class Reserve:
    """Hold tokens and write the pending row, or write the row of a refusal."""

    request: CallRequest
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.request.team_id

    def apply(self, tx: Transaction) -> Reservation | QuotaExceeded | QuotaReserved | PaceExceeded | CallerChanged:
        """Return the reservation, or the refusal for the waiting thread to raise."""
        if self.request.known_caller not in (None, tx.callers.get(self.request.token_id)):
            return CallerChanged()
        balance = tx.balances[self.team_id]
        try:
            grant = decide(balance.limits(), self.request, tx.output_reserve_tokens, tx.zone)
            if balance.calls_at_once is not None and balance.calls_in_flight >= balance.calls_at_once:
                self._recount_calls(tx)
            check_pace(balance, grant.held_tokens)
        except (QuotaExceeded, QuotaReserved, PaceExceeded) as refusal:
            refusal.request_id = Reject(self.request, refusal.status, refusal.code, self.request.model).apply(tx)
            return refusal
        tx.move(self.team_id, held=grant.held_tokens, calls=1)
        if balance.requests is not None:
            balance.requests.take(1, balance.now)
        row = _log_row(self.request, status=PENDING, held_tokens=grant.held_tokens, worker_id=tx.worker_id)
        row["prompt_tokens"] = self.request.prompt_tokens
        (call_id,) = INSERT_CALL.execute(tx.connection, row).fetchone()
        day = self.request.created_at.date()
        held, limit = grant.held_tokens, grant.output_limit
        return Reservation(call_id, self.team_id, self.request.model, day, held, limit, pace_headers(balance))

    def _recount_calls(self, tx: Transaction) -> None:
        """Let no call be refused for others that ended without having been counted down."""
        (pending,) = COUNT_PENDING.execute(tx.connection, {"team": self.team_id}).fetchone()
        tx.move(self.team_id, held=0, calls=pending - tx.balances[self.team_id].calls_in_flight)

    def undo(self) -> "Abandon":
        """Give back what may have been committed without our knowing."""
        return Abandon(self.request.request_id, self.team_id, self.request.created_at.date())


@dataclass(frozen=True)
class Reject:
    """Write the row of a call that was refused before anything was held, or count it to that of the same refusal.

    Return the id of the row.
    """

    request: CallRequest
    status_code: int
    error_code: str | None
    counted_model: str = NO_MODEL
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.request.team_id

    def apply(self, tx: Transaction) -> str:
        """Insert the row, unless this worker or another one wrote it within the last minute."""
        request, key = self.request, key_of(self.request, self.status_code, self.error_code)
        if (known_id := tx.refusals.repeat(key, request.created_at)) is not None:
            return known_id
        if (logged := self._logged(tx)) is not None:
            tx.refusals.learn(key, logged)
            if (known_id := tx.refusals.repeat(key, request.created_at)) is not None:
                return known_id
        row = _log_row(request, status=REJECTED, status_code=self.status_code, error_code=self.error_code)
        INSERT_CALL.execute(tx.connection, row).fetchone()
        tx.count(self.team_id, request.created_at.date(), self.counted_model, Outcome(status=REJECTED))
        new = LoggedRefusal(request.request_id, self.team_id, request.created_at, self.counted_model)
        tx.refusals.learn(key, new)
        return request.request_id

    def _logged(self, tx: Transaction) -> LoggedRefusal | None:
        """Look for the row among the team's newest, whoever wrote it."""
        values = {
            "team": self.team_id,
            "token_id": self.request.token_id,
            "model": self.request.model,
            "endpoint": self.request.endpoint,
            "status_code": self.status_code,
            "error_code": self.error_code,
            "since": self.request.created_at - REPEATS_WITHIN,
        }
        row = FIND_REFUSAL.execute(tx.connection, values).fetchone()
        return None if row is None else LoggedRefusal(row[0], self.team_id, _moment(row[1]), self.counted_model)

    def undo(self) -> None:
        """Return None: the row may stay where it was written, since it moved no counter."""


@dataclass
class Settle:
    """Complete a pending row, charge its team and give the hold back; return whether this call did it."""

    reservation: Reservation
    outcome: Outcome
    given: Given | None = None
    """What the team may name from now on."""
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
        taken = SETTLE_CALL.execute(tx.connection, {"call_id": call.call_id, **vars(self.outcome)})
        if taken.rowcount == 1:
            tx.move(call.team_id, held=-call.held_tokens, settled=self.outcome.charged_tokens, calls=-1)
            tx.count(call.team_id, call.day, self._counted_model(), self.outcome)
            if self.given is not None:
                remember(tx.connection, call.team_id, self.given, self.outcome.charged_tokens)
            return True
        # after a try whose commit was lost on the way back, the row may bear this very outcome
        return self.tries > 1 and self._stands_in_log(tx)

    def _counted_model(self) -> str:
        """Return the call's model, or none where the provider knows none of that name."""
        unknown = self.outcome.error_code == ModelNotFound.code and not self.outcome.charged_tokens
        return NO_MODEL if unknown else self.reservation.model

    def _stands_in_log(self, tx: Transaction) -> bool:
        row = STATUS_OF_CALL.execute(tx.connection, {"call_id": self.reservation.call_id}).fetchone()
        return row is not None and row[0] == self.outcome.status

    def undo(self) -> None:
        """Return None: it is retried until it is written, so there is never anything to take back."""


@dataclass(frozen=True)
class Abandon:
    """Give back a reservation whose caller got a 503, if it was written after all."""

    request_id: str
    team_id: int
    day: date
    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    def apply(self, tx: Transaction) -> None:
        """Settle the row, if it is there, at nothing: the provider was not called."""
        row = PENDING_CALL.execute(tx.connection, {"request_id": self.request_id}).fetchone()
        if row is not None:
            call_id, model, held_tokens = row
            outcome = Outcome(status=PROVIDER_ERROR, status_code=503, error_code="storage_unavailable")
            Settle(Reservation(call_id, self.team_id, model, self.day, held_tokens), outcome).apply(tx)

    def undo(self) -> None:
        """Return None: it is retried until it is written, so there is never anything to take back."""


@dataclass(frozen=True)
class CountRepeats:
    """Add to rows and sums what one team's refusals were repeated."""

    team_id: int
    repetitions: list[Repetition]
    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = False

    def apply(self, tx: Transaction) -> None:
        """Count each with the day of its row; of a row that is gone nothing can be told."""
        for each in self.repetitions:
            added = ADD_REPEATS.execute(tx.connection, {"refusal": each.request_id, "times": each.times})
            if added.rowcount == 1:
                day = each.created_at.date()
                tx.count(self.team_id, day, each.counted_model, Outcome(status=REJECTED), each.times)

    def undo(self) -> None:
        """Return None: it is retried until it is written, so there is never anything to take back."""


@dataclass(frozen=True)
class Heartbeat:
    """Save which calls run, how far they have come and when tokens were last used; its group renews the lease.

    Return what it sees of the workers.
    """

    running_calls: list[int]
    running_upto: int | None
    """The last call that was reserved when they were listed; what came later may run too."""
    progress: list[dict[str, int]]
    tokens_used: list[dict[str, Any]]
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False
    team_id: ClassVar[None] = None

    def apply(self, tx: Transaction) -> "Sight":
        """Write what is still pending."""
        running = {"running_calls": ",".join(map(str, self.running_calls)), "running_upto": self.running_upto}
        SAVE_RUNNING.execute(tx.connection, {"worker": tx.worker_id, **running})
        for values in self.progress:
            SAVE_PROGRESS.execute(tx.connection, values)
        for values in self.tokens_used:
            SAVE_LAST_USE.execute(tx.connection, values)
        leases = [Lease(*row) for row in FIND_LEASES.execute(tx.connection, {}).fetchall()]
        return Sight(leases, FIND_ORPHAN.execute(tx.connection, {}).fetchone() is not None)

    def undo(self) -> None:
        """Return None: what was written is true."""


@dataclass(frozen=True)
class Sight:
    """What a heartbeat sees: the leases of all workers, and whether a call is pending whose worker is struck off."""

    leases: list[Lease]
    has_orphans: bool


@dataclass(frozen=True)
class Probe:
    """Find out whether the database takes writes: its group renews the lease."""

    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False
    team_id: ClassVar[None] = None

    def apply(self, tx: Transaction) -> None:
        """Do nothing more."""

    def undo(self) -> None:
        """Return None: a lease may be renewed."""


def reservation_of(row: AnyRow) -> Reservation:
    """Return the reservation that a row of PENDING_CALLS describes."""
    return Reservation(row.id, row.team_id, row.model, row.created_at.date(), row.held_tokens)


LedgerOperation = Reserve | Reject | Settle | Abandon | CountRepeats | Heartbeat | Probe

# spelled out, not bound: only so can the index of pending rows serve it
IS_PENDING = RequestLog.status == literal_column(f"'{PENDING}'")
LOGGED_COLUMNS = [column.key for column in RequestLog.__table__.columns if column.key != "id"]
INSERT_CALL = Statement(
    insert(RequestLog).values({name: bindparam(name) for name in LOGGED_COLUMNS}).returning(RequestLog.id)
)
PENDING_CALL = Statement(
    select(RequestLog.id, RequestLog.model, RequestLog.held_tokens).where(
        RequestLog.request_id == bindparam("request_id"), IS_PENDING
    )
)
STATUS_OF_CALL = Statement(select(RequestLog.status).where(RequestLog.id == bindparam("call_id")))
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
NOW = epoch_now()
IS_ORPHAN = ~exists().where(Worker.id == RequestLog.worker_id)
FIND_LEASES = Statement(select(Worker.id, Worker.lease_expires_at, NOW))
FIND_ORPHAN = Statement(select(RequestLog.id).where(IS_PENDING, IS_ORPHAN).limit(1))
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
SETTLE_CALL = Statement(
    update(RequestLog)
    .where(RequestLog.id == bindparam("call_id"), IS_PENDING)
    .values({column: bindparam(column) for column in SETTLED_COLUMNS})
)
COUNTER_COLUMNS = (
    *LIMIT_COLUMNS,
    Team.renews_at,
    Team.renewal_basis,
    Team.settled_tokens - Team.reset_mark_tokens,
    Team.held_tokens,
    Team.requests_full_at,
    Team.tokens_full_at,
    Team.calls_in_flight,
    NOW,
)
LOCK_TEAM = Statement(select(*COUNTER_COLUMNS).where(Team.id == bindparam("team")).with_for_update(key_share=True))
LOCK_CALLER = Statement(
    select(*CALLER_COLUMNS, *COUNTER_COLUMNS)
    .where(ApiToken.id == bindparam("token"), IS_VALID)
    .with_for_update(key_share=True, of=Team)
)
NOW_NS = cast(NOW * 1e9, BigInteger)
_taken = bindparam("held_change", type_=BigInteger) + bindparam("settled_change", type_=BigInteger)
_taken_ns = cast(_taken, Double) * MINUTE_NS / func.nullif(Team.tokens_per_minute, 0)
_most_ns = 10**18  # what a limit that was lowered makes of a large hold must not burst the column
_flow_ns = cast(case((_taken_ns > _most_ns, _most_ns), (_taken_ns < -_most_ns, -_most_ns), else_=_taken_ns), BigInteger)
_begin = case((and_(_taken > 0, Team.tokens_full_at < NOW_NS), NOW_NS), else_=Team.tokens_full_at)
TOKENS_FULL_AT = case(
    (func.coalesce(Team.tokens_per_minute, 0) == 0, Team.tokens_full_at),
    (_begin + _flow_ns < 0, 0),
    else_=_begin + _flow_ns,
)
"""When the bucket is full once a group that was not locked has put back, or taken more; as `Bucket.correct` does."""
MOVES: dict[str, Any] = {
    "held_tokens": Team.held_tokens + bindparam("held_change"),
    "settled_tokens": Team.settled_tokens + bindparam("settled_change"),
    "calls_in_flight": Team.calls_in_flight + bindparam("calls_change"),
}
IS_RUNNING = Team.id == bindparam("team"), or_(Team.renews_at.is_(None), Team.renews_at > NOW)
MOVE_COUNTERS = Statement(update(Team).where(*IS_RUNNING).values(MOVES | {"tokens_full_at": TOKENS_FULL_AT}))
MOVE_WITH_PACE = Statement(
    update(Team)
    .where(*IS_RUNNING)
    .values(MOVES | {"requests_full_at": bindparam("requests_full_at"), "tokens_full_at": bindparam("tokens_full_at")})
)
COUNT_PENDING = Statement(
    select(func.count()).select_from(RequestLog).where(RequestLog.team_id == bindparam("team"), IS_PENDING)
)
RECORD_RENEWAL = Statement(
    insert(QuotaRenewal).values(
        team_id=bindparam("team_id"),
        due_at=bindparam("due_at"),
        renewed_at=bindparam("now"),
        used_tokens=bindparam("used_tokens"),
        extra_tokens=bindparam("extra_tokens"),
    )
)
NEXT_RENEWAL: dict[str, Any] = {"renews_at": bindparam("renews_at"), "renewal_basis": bindparam("renewal_basis")}
SET_RENEWAL = Statement(update(Team).where(Team.id == bindparam("team")).values(NEXT_RENEWAL))
RENEW = Statement(
    update(Team)
    .where(Team.id == bindparam("team"))
    .values(NEXT_RENEWAL | {"reset_mark_tokens": Team.settled_tokens, "extra_tokens": 0})
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

NEWEST_ROWS = 200  # of a team; a flood of refusals is a row of them
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


def _add_to_day(insert_or_update: Inserter) -> Any:
    adding = insert_or_update(UsageDaily)
    sums = {name: getattr(UsageDaily, name) + adding.excluded[name] for name in SUMS}
    values: dict[str, Any] = {name: bindparam(name) for name in ("team_id", "day", "model", *SUMS)}
    return adding.values(values).on_conflict_do_update(index_elements=["team_id", "day", "model"], set_=sums)


ADD_TO_DAY = Statement(_add_to_day)


def _log_row(request: CallRequest, **values: Any) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "team_id": request.team_id,
        "team_name": request.team_name,
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
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "charged_tokens": 0,
        "usage_source": NOT_COUNTED,
        "latency_ms": None,
        "first_byte_ms": None,
        "provider_request_id": None,
        **values,
    }


def _moment(stored: datetime | str) -> datetime:
    """Return a moment as the driver read it: SQLite has no type for it."""
    return stored if isinstance(stored, datetime) else datetime.fromisoformat(stored).replace(tzinfo=UTC)

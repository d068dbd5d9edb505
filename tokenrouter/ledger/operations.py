"""The write operations of the ledger; the writer runs many of them in one transaction."""

from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, ClassVar

from tokenrouter.database.log_status import PENDING, PROVIDER_ERROR, REJECTED
from tokenrouter.errors import (
    UNKNOWN_MODEL,
    ModelHasNoPrice,
    ModelNotFound,
    PaceExceeded,
    ProviderBusy,
    QuotaExceeded,
    QuotaReserved,
)
from tokenrouter.ledger.door import CountTurnedAway
from tokenrouter.ledger.endings import Ending
from tokenrouter.ledger.leases import Lease
from tokenrouter.ledger.log_rows import (
    ADD_REPEATS,
    FIND_LEASES,
    FIND_ORPHAN,
    FIND_REFUSAL,
    INSERT_CALL,
    NO_MODEL,
    PENDING_CALL,
    SAVE_LAST_USE,
    SAVE_PROGRESS,
    SAVE_RUNNING,
    SET_COST,
    SETTLE_CALL,
    STATUS_OF_CALL,
    day_as_read,
    kept_reason,
    log_row,
    moment_of,
)
from tokenrouter.ledger.provider_pace import PATIENCE_S, SECOND_NS, Places, PlacesSeen
from tokenrouter.ledger.refusals import REPEATS_WITHIN, LoggedRefusal, Repetition, key_of
from tokenrouter.ledger.responses import Given, remember
from tokenrouter.ledger.rules import (
    MS_NS,
    NO_HEADERS,
    CallerChanged,
    CallRequest,
    MustWait,
    Outcome,
    Reservation,
    check_pace,
    decide,
    pace_headers,
)
from tokenrouter.ledger.transaction import Transaction

Refused = QuotaExceeded | QuotaReserved | PaceExceeded | ModelHasNoPrice | ProviderBusy
REFUSALS = (QuotaExceeded, QuotaReserved, PaceExceeded, ModelHasNoPrice, ProviderBusy)


@dataclass(frozen=True)
class _OfTeam:
    """An operation for a call that locks the counters of its team alone."""

    request: CallRequest
    group_id: ClassVar[None] = None

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.request.team_id


@dataclass(frozen=True)
class _OfCall:
    """An operation for a call that moves the counters of its team and group."""

    request: CallRequest

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.request.team_id

    @property
    def group_id(self) -> int | None:
        """The group to lock."""
        return self.request.group_id


@dataclass(frozen=True)
class Reserve(_OfCall):
    """Hold tokens and write the pending row, or write the row of a refusal.

    If the whole service has a pace, a call that fits all limits takes a place at the provider with it. If no place is
    free, the call holds nothing and waits for one; then this is run again.
    """

    waiting_id: int | None = None
    """The id by which it waited for the place that it now has."""
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    def apply(self, tx: Transaction) -> Reservation | Refused | CallerChanged | MustWait:
        """Return the reservation, or the refusal for the waiting thread to raise."""
        result = self._reserve(tx)
        if self.waiting_id is not None and tx.places is not None:
            tx.places.leave(self.waiting_id, gives_back=not isinstance(result, Reservation))
        return result

    def _reserve(self, tx: Transaction) -> Reservation | Refused | CallerChanged | MustWait:
        request, team_id, group_id = self.request, self.request.team_id, self.request.group_id
        balances = tx.balances(team_id, group_id)
        if balances is None or request.caller_row not in (None, tx.callers.get(request.token_id)):
            return CallerChanged()
        if balances[0].prices_version != tx.prices.version:
            tx.prices.read(tx.connection)
        price = tx.prices.prices.find(request.model)
        try:
            limits = [limit for balance in balances for limit in balance.limits(price, tx.prices.currency)]
            grant = decide(limits, request, tx.output_reserve_tokens, tx.zone, price)
            paced = [balance for balance in balances if balance.is_paced]
            if paced:
                tx.recount_calls(team_id, group_id)
                check_pace(paced, grant.held_tokens)
            if self.waiting_id is None and tx.places is not None and not tx.places.take():
                return _let_wait(tx.places, team_id, grant.held_tokens)
        except REFUSALS as refusal:
            return _logged(refusal, request, tx)
        tx.move(team_id, group_id, held=grant.held_tokens, calls=1, held_cost=grant.held_cost)
        for balance in paced:
            if balance.requests is not None:
                balance.requests.take(1, balance.now)
        day, held = tx.day_of(request), grant.held_tokens
        row = log_row(request, status=PENDING, held_tokens=held, worker_id=tx.worker_id, day=day)
        row |= {"prompt_tokens": request.prompt_tokens, "held_cost": grant.held_cost}
        (call_id,) = INSERT_CALL.execute(tx.connection, row).fetchone()
        headers = pace_headers(paced) if paced else NO_HEADERS
        limited = grant.held_cost, grant.output_limit
        whose = call_id, team_id, request.token_id
        return Reservation(*whose, request.model, day, held, group_id, *limited, headers, request)

    def undo(self) -> "Abandon":
        """Return what gives back tokens that may have been committed although the COMMIT failed here."""
        return Abandon(self.request)


def _let_wait(places: Places, team_id: int, tokens: int) -> MustWait:
    """Enter the queue, unless no place will get free while the call would wait; then raise ProviderBusy."""
    wait_ns = places.wait_ns()
    if wait_ns > PATIENCE_S * SECOND_NS:
        raise _busy(places, wait_ns, places.waiting)
    return MustWait(places.enter(team_id, tokens))


def _busy(places: Places, wait_ns: int, waiting: int) -> ProviderBusy:
    return ProviderBusy(-(-wait_ns // MS_NS), waiting, places.requests_per_minute)


def _logged(refusal: Refused, request: CallRequest, tx: Transaction) -> Refused:
    """Write the row of a refusal, and give the refusal its id."""
    why = refusal.status, refusal.code, refusal.reason
    refusal.request_id = Reject(request, *why, request.model).apply(tx)
    refusal.is_logged = True
    return refusal


@dataclass(frozen=True)
class GiveUp(_OfTeam):
    """Stop waiting for a place, and write the row of the refusal, unless the place has come meanwhile."""

    waiting_id: int
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    def apply(self, tx: Transaction) -> Refused | None:
        """Return the refusal, which says when its turn would be; None if it has a place."""
        places = tx.places
        if places is None or places.is_granted(self.waiting_id):
            return None
        wait_ns = places.wait_ns(places.turn_of(self.waiting_id))
        places.leave(self.waiting_id, gives_back=True)
        return _logged(_busy(places, wait_ns, places.waiting), self.request, tx)

    def undo(self) -> None:
        """Return None: entries that nobody waits for are forgotten in any case."""


@dataclass(frozen=True)
class _OfPlaces:
    """An operation on the places at the provider alone."""

    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False
    team_id: ClassVar[None] = None
    group_id: ClassVar[None] = None

    def undo(self) -> None:
        """Return None: a place that is lost by this gets free again soon."""


@dataclass(frozen=True)
class GiveOut(_OfPlaces):
    """Give free places to the calls whose turn it is."""

    def apply(self, tx: Transaction) -> PlacesSeen:
        """Return what this process has to know about its own calls."""
        return PlacesSeen([], 0) if tx.places is None else tx.places.give_out()


@dataclass(frozen=True)
class Leave(_OfPlaces):
    """Remove a call whose caller left from the queue."""

    waiting_id: int

    def apply(self, tx: Transaction) -> None:
        """Give its place back, if it has one."""
        if tx.places is not None:
            tx.places.leave(self.waiting_id, gives_back=True)


@dataclass(frozen=True)
class CountRequest(_OfPlaces):
    """Count a request to the provider that is not itself a call."""

    def apply(self, tx: Transaction) -> None:
        """Take a place, whether one is free or not."""
        if tx.places is not None:
            tx.places.count_request()


@dataclass(frozen=True)
class Block(_OfPlaces):
    """Send no call to the provider for a while, as it demanded."""

    nanoseconds: int

    def apply(self, tx: Transaction) -> None:
        """Note until when."""
        if tx.places is not None:
            tx.places.block(self.nanoseconds)


@dataclass(frozen=True)
class Reject(_OfTeam):
    """Write the row of a call that was refused before anything was held, or count it to the row of the same refusal."""

    status_code: int
    error_code: str | None
    reason: str | None = None
    counted_model: str = NO_MODEL
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False

    def apply(self, tx: Transaction) -> str:
        """Return the id of the row; insert it unless some worker did within the last minute."""
        request, day = self.request, tx.day_of(self.request)
        key = key_of(request, self.status_code, self.error_code, day)
        if (known_id := tx.refusals.repeat(key, request.created_at)) is not None:
            return known_id
        if (logged := self._logged(tx, day)) is not None:
            tx.refusals.learn(key, logged)
            if (known_id := tx.refusals.repeat(key, request.created_at)) is not None:
                return known_id
        why = {"status_code": self.status_code, "error_code": self.error_code, "reason": kept_reason(self.reason)}
        INSERT_CALL.execute(tx.connection, log_row(request, status=REJECTED, day=day, **why)).fetchone()
        whose = self.team_id, request.group_id, request.token_id
        tx.count(*whose, day, self.counted_model, self._outcome)
        tx.endings.append(Ending(request, self._outcome, cost=0))
        tx.refusals.learn(key, self._refusal(request.request_id, request.created_at, day))
        return request.request_id

    @property
    def _outcome(self) -> Outcome:
        return Outcome(status=REJECTED, status_code=self.status_code, error_code=self.error_code)

    def _logged(self, tx: Transaction, day: date) -> LoggedRefusal | None:
        """Look for the row among the team's newest, whoever wrote it."""
        values = {
            "team": self.team_id,
            "token_id": self.request.token_id,
            "model": self.request.model,
            "endpoint": self.request.endpoint,
            "group_id": self.request.group_id,
            "status_code": self.status_code,
            "error_code": self.error_code,
            "day": day,
            "since": self.request.created_at - REPEATS_WITHIN,
        }
        row = FIND_REFUSAL.execute(tx.connection, values).fetchone()
        return None if row is None else self._refusal(row[0], moment_of(row[1]), day)

    def _refusal(self, request_id: str, created_at: datetime, day: date) -> LoggedRefusal:
        return LoggedRefusal(request_id, self.request, self._outcome, created_at, day, self.counted_model)

    def undo(self) -> None:
        """Return None: the row may stay where it was written, since it moved no counter."""


@dataclass
class Settle:
    """Complete a pending row, charge its team, and give the hold back."""

    reservation: Reservation
    outcome: Outcome
    given: Given | None = None
    """The response and items that later calls of the team may name."""
    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = True
    tries: int = 0

    @property
    def team_id(self) -> int:
        """The team to lock."""
        return self.reservation.team_id

    @property
    def group_id(self) -> int | None:
        """The group to lock."""
        return self.reservation.group_id

    def apply(self, tx: Transaction) -> bool:
        """Return whether this settled the row; False if it was settled before."""
        self.tries += 1
        call = self.reservation
        cost, source = tx.prices.cost(call.model, self.outcome)
        values = {"call_id": call.call_id, "cost": cost, "cost_source": source, **vars(self.outcome)}
        values["reason"] = kept_reason(self.outcome.reason)
        taken = SETTLE_CALL.execute(tx.connection, values).fetchone()
        if taken is not None:
            if taken[0] != tx.prices.version:
                cost = self._cost_anew(tx)
            charged = self.outcome.charged_tokens
            money = {"cost": cost or 0, "priced": 0 if cost is None else charged, "held_cost": -call.held_cost}
            tx.move(call.team_id, call.group_id, held=-call.held_tokens, settled=charged, calls=-1, **money)
            whose = call.team_id, call.group_id, call.token_id
            tx.count(*whose, call.day, self._counted_model(), self.outcome, cost=cost)
            if self.given is not None:
                remember(tx.connection, call.team_id, self.given, self.outcome.charged_tokens)
        # the answer to the COMMIT of an earlier try may have been lost: then the row has this very outcome
        elif self.tries == 1 or not self._stands_in_log(tx):
            return False
        if call.request is not None:
            tx.endings.append(Ending(call.request, self.outcome, cost, retries=self.tries - 1))
        return True

    def _cost_anew(self, tx: Transaction) -> int | None:
        """Compute the cost again by the prices that are valid now: those that this process knew were changed."""
        tx.prices.read(tx.connection)
        cost, source = tx.prices.cost(self.reservation.model, self.outcome)
        SET_COST.execute(tx.connection, {"call_id": self.reservation.call_id, "cost": cost, "cost_source": source})
        return cost

    def _counted_model(self) -> str:
        """Return the model to count, which is NO_MODEL if the provider has none of that name."""
        outcome = self.outcome
        says_so = (outcome.reason or "").startswith(UNKNOWN_MODEL) or outcome.error_code == ModelNotFound.code
        return NO_MODEL if says_so and not outcome.charged_tokens else self.reservation.model

    def _stands_in_log(self, tx: Transaction) -> bool:
        row = STATUS_OF_CALL.execute(tx.connection, {"call_id": self.reservation.call_id}).fetchone()
        return row is not None and row[0] == self.outcome.status

    def undo(self) -> None:
        """Return None: this is retried until it is written."""


@dataclass(frozen=True)
class Abandon(_OfCall):
    """Give back a reservation whose caller got a 503, if it was committed after all."""

    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = True

    def apply(self, tx: Transaction) -> None:
        """Settle the row, if there is one, at zero: the provider was not called."""
        row = PENDING_CALL.execute(tx.connection, {"request_id": self.request.request_id}).fetchone()
        if row is not None:
            call_id, token_id, model, held_tokens, held_cost, day = row
            held = held_tokens, self.group_id, held_cost
            call = Reservation(call_id, self.team_id, token_id, model, day_as_read(day), *held, request=self.request)
            outcome = Outcome(status=PROVIDER_ERROR, status_code=503, error_code="storage_unavailable")
            Settle(call, outcome).apply(tx)

    def undo(self) -> None:
        """Return None: this is retried until it is written."""


@dataclass(frozen=True)
class CountRepeats:
    """Add one team's repeated refusals to their rows and to the daily totals."""

    team_id: int
    repetitions: list[Repetition]
    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = False
    group_id: ClassVar[None] = None

    def apply(self, tx: Transaction) -> None:
        """Count each on the day of its row, if the row still exists."""
        for each in self.repetitions:
            added = ADD_REPEATS.execute(tx.connection, {"refusal": each.request_id, "times": each.times})
            if added.rowcount == 1:
                request, outcome = each.request, each.outcome
                whose = self.team_id, request.group_id, request.token_id
                tx.count(*whose, each.day, each.counted_model, outcome, times=each.times)
                tx.endings.append(Ending(replace(request, request_id=each.request_id), outcome, 0, each.times))

    def undo(self) -> None:
        """Return None: this is retried until it is written."""


@dataclass(frozen=True)
class Heartbeat:
    """Save which calls run, how far they are, and when tokens were last used; its group renews the lease."""

    running_calls: list[int]
    running_upto: int | None
    """The last call that was reserved when they were listed; later ones may run too."""
    progress: list[dict[str, int]]
    tokens_used: list[dict[str, Any]]
    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False
    team_id: ClassVar[None] = None
    group_id: ClassVar[None] = None

    def apply(self, tx: Transaction) -> "Sight":
        """Write it, and return what is seen of the workers."""
        running = {"running_calls": ",".join(map(str, self.running_calls)), "running_upto": self.running_upto}
        SAVE_RUNNING.execute(tx.connection, {"worker": tx.worker_id, **running})
        for values in self.progress:
            SAVE_PROGRESS.execute(tx.connection, values)
        for values in self.tokens_used:
            SAVE_LAST_USE.execute(tx.connection, values)
        leases = [Lease(*row) for row in FIND_LEASES.execute(tx.connection, {}).fetchall()]
        return Sight(leases, FIND_ORPHAN.execute(tx.connection, {}).fetchone() is not None)

    def undo(self) -> None:
        """Return None: what was written is true in any case."""


@dataclass(frozen=True)
class Sight:
    """The leases of all workers, and whether there is a pending call of a worker that is no longer in the table."""

    leases: list[Lease]
    has_orphans: bool


@dataclass(frozen=True)
class Probe:
    """Find out whether the database takes writes: its group renews the lease."""

    must_happen: ClassVar[bool] = False
    durable: ClassVar[bool] = False
    team_id: ClassVar[None] = None
    group_id: ClassVar[None] = None

    def apply(self, tx: Transaction) -> None:
        """Do nothing more."""

    def undo(self) -> None:
        """Return None: renewing the lease does no harm."""


LedgerOperation = (
    Reserve
    | GiveUp
    | GiveOut
    | Leave
    | Block
    | CountRequest
    | Reject
    | Settle
    | Abandon
    | CountRepeats
    | CountTurnedAway
    | Heartbeat
    | Probe
)

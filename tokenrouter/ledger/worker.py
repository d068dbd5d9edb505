"""The ledger of one worker: its writer, its lease among the workers, and its heartbeat."""

import atexit
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import bindparam, delete, insert, update
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from tokenrouter.database.columns import epoch_now
from tokenrouter.database.connections import WriteConnection
from tokenrouter.database.engine import writing
from tokenrouter.database.statements import DriverConnection, Statement
from tokenrouter.database.tables import Worker
from tokenrouter.errors import StorageUnavailable
from tokenrouter.ledger.books import recover
from tokenrouter.ledger.costs import DOLLARS, KnownPrices
from tokenrouter.ledger.door import Door
from tokenrouter.ledger.endings import Endings
from tokenrouter.ledger.leases import HEARTBEAT_S, LEASE_S, Watch
from tokenrouter.ledger.operations import (
    Block,
    CountRepeats,
    CountRequest,
    GiveOut,
    GiveUp,
    Heartbeat,
    Leave,
    LedgerOperation,
    Probe,
    Reject,
    Reserve,
    Settle,
    Sight,
)
from tokenrouter.ledger.provider_pace import PATIENCE_S, SECOND_NS, Places, PlacesSeen
from tokenrouter.ledger.refusals import NewRefusals, Refusals, key_of
from tokenrouter.ledger.responses import Given
from tokenrouter.ledger.rules import CallRequest, MustWait, Outcome, Reservation
from tokenrouter.ledger.transaction import Transaction
from tokenrouter.ledger.waiting import WaitingForPlaces
from tokenrouter.ledger.writer import Ticket, Writer
from tokenrouter.periods import UTC_ZONE

logger = logging.getLogger(__name__)

RECOVERY_GRACE_S = 2 * HEARTBEAT_S
SETTLE_WAIT_S = 5.0
LONGEST_BLOCK_S = 60.0
BLOCK_STEP_S = 0.1  # many calls are refused at once, all until about the same moment: one write is enough

Watcher = Callable[[Callable[[Exception], None]], AbstractContextManager[None]]
"""Watches a waiting call within a block, and may end the waiting with an exception."""

LIVE_UNTIL = epoch_now() + LEASE_S
RENEW_LEASE = Statement(update(Worker).where(Worker.id == bindparam("worker")).values(lease_expires_at=LIVE_UNTIL))
JOIN_WORKERS = Statement(
    insert(Worker).values(name=bindparam("worker_name"), lease_expires_at=LIVE_UNTIL).returning(Worker.id)
)


def nobody_watches(end: Callable[[Exception], None]) -> AbstractContextManager[None]:
    """Never end the waiting."""
    return nullcontext()


@dataclass(frozen=True)
class OwnLease:
    """The lease of this process among the workers; times are of the monotonic clock."""

    worker_id: int
    renewed_at: float
    unbroken_since: float

    def is_fresh(self) -> bool:
        """Tell whether the lease still runs for long enough that nobody takes this process for dead."""
        return time.monotonic() - self.renewed_at < LEASE_S / 2


class Ledger:
    """Reserve and settle for one process, keep its lease alive, and settle the calls of processes that died."""

    def __init__(
        self,
        engine: Engine,
        output_reserve_tokens: int,
        zone: ZoneInfo = UTC_ZONE,
        currency: str = DOLLARS,
        requests_per_minute: int | None = None,
    ) -> None:
        """`requests_per_minute` is the pace of the whole service at the provider; None is no limit."""
        self._engine = engine
        self._currency = currency
        self._prices = KnownPrices(currency)
        self._zone = zone
        self._output_reserve_tokens = output_reserve_tokens
        self._connection = WriteConnection(engine)
        # a file never keeps its writer waiting for longer than a settlement may take; a server can
        is_file = engine.dialect.name == "sqlite"
        self._writer = Writer(
            self._run_group, "ledger-writer", get_ready=self._connection.wait_for_turn, in_callers_thread=is_file
        )
        self._requests_per_minute = requests_per_minute
        self._name = ""
        """Names this process among those with waiting calls; made in `start`, so after a fork."""
        self._waiting = WaitingForPlaces(self.give_out_places)
        self._blocked_until = 0.0
        self._lease: OwnLease | None = None
        self._calls: dict[int, Reservation] = {}
        self._last_call: int | None = None
        self._watch = Watch()
        self._tokens_used: dict[int, datetime] = {}
        self._refusals = Refusals()
        self.door = Door()
        self.endings = Endings()
        self.end_service: Callable[[], None] = partial(os.kill, os.getpid(), signal.SIGTERM)
        """Called if the database file is lost; gunicorn's workers end their master."""
        self.at_heartbeat: Sequence[Callable[[], None]] = ()
        """What else this process writes with each heartbeat."""
        self._heart: threading.Thread | None = None  # started when first needed: none survives a fork
        self._stop = threading.Event()
        self._start_lock = threading.Lock()

    def start(self) -> None:
        """Join the workers, renew the lease and look for calls of dead workers; calling it again does nothing.

        gunicorn calls it in each new worker; elsewhere the first call does.
        """
        with self._start_lock:
            if self._heart is None:
                self._name = secrets.token_hex(16)
                atexit.register(self.close)  # which runs after the threads that answer calls have ended
                self._heart = threading.Thread(target=self._beat, name="ledger-heartbeat", daemon=True)
                self._heart.start()

    @property
    def worker_id(self) -> int | None:
        """The number of this process among the workers; None until its first heartbeat."""
        return None if self._lease is None else self._lease.worker_id

    @property
    def written_at(self) -> float | None:
        """When this process last renewed its lease, by the monotonic clock; None before the first time."""
        return None if self._lease is None else self._lease.renewed_at

    def close(self, timeout_s: float = SETTLE_WAIT_S) -> None:
        """Write what is still waiting, give the lease back, and end the threads."""
        atexit.unregister(self.close)
        self._stop.set()
        self._write_refusals()
        self._writer.close(0.0 if self._connection.lost_file() else timeout_s)
        if self._heart is not None:
            self._heart.join(timeout_s)
        self._connection.close()
        self._leave()
        self.endings.close(timeout_s)

    def _leave(self) -> None:
        if self._lease is None or self._calls or self._connection.lost_file():
            return  # calls are still under way: recovery finds them when the lease has expired
        try:
            with writing(self._engine, durable=False) as connection:
                connection.execute(delete(Worker).where(Worker.id == self._lease.worker_id))
        except SQLAlchemyError as error:
            logger.warning("The lease could not be given back (%s); it runs out by itself", type(error).__name__)

    def reserve(self, request: CallRequest, watch: Watcher = nobody_watches) -> Reservation:
        """Hold tokens for a call and write its pending row, in a transaction shared with other calls.

        While it has to wait for a place at the provider, `watch` may end the waiting by an exception.
        Raises the refusal, which is in the log then, CallerChanged and StorageUnavailable.
        """
        self.start()
        self._tokens_used[request.token_id] = request.created_at
        result: Reservation | MustWait | Exception = self._writer.run(Reserve(request), then=self._reserved)
        if isinstance(result, MustWait):
            result = self._reserve_with_place(request, result.waiting_id, watch)
        if isinstance(result, Exception):
            raise result
        return result

    def _reserve_with_place(self, request: CallRequest, waiting_id: int, watch: Watcher) -> Reservation | Exception:
        """Wait for a place at the provider, holding nothing, and then reserve."""
        began = time.monotonic()
        try:
            with self._waiting.enter(waiting_id) as call, watch(call.end):
                has_place = call.wait(PATIENCE_S)
        except BaseException:
            self._writer.submit(Leave(waiting_id))
            raise
        if not has_place:
            refusal: Exception | None = self._writer.run(GiveUp(request, waiting_id))
            if refusal is not None:
                return refusal
        waited_s = time.monotonic() - began
        result: Reservation | Exception = self._writer.run(Reserve(request, waiting_id), then=self._reserved)
        if isinstance(result, Reservation):
            result.waited_s = waited_s
        return result

    def give_out_places(self) -> PlacesSeen:
        """Give free places at the provider to the calls whose turn it is, in this process and in others.

        Raises StorageUnavailable.
        """
        self.start()
        seen: PlacesSeen = self._writer.run(GiveOut())
        return seen

    def block(self, seconds: float) -> None:
        """Send no call of the whole service to the provider for so long, if it has a pace; for a minute at most.

        A provider that is too busy for one model may demand much more, which must not stop the others.
        """
        until = time.monotonic() + min(seconds, LONGEST_BLOCK_S)
        if self._requests_per_minute is not None and until > self._blocked_until + BLOCK_STEP_S:
            self._blocked_until = until
            self._writer.submit(Block(round(min(seconds, LONGEST_BLOCK_S) * SECOND_NS)))

    def count_request(self) -> None:
        """Count a request to the provider that is not a call to the pace of the whole service."""
        if self._requests_per_minute is not None:
            self._writer.submit(CountRequest())

    def _reserved(self, ticket: Ticket) -> None:
        """Note that a call runs; the writer calls this before the next group, so in the order of the log."""
        if isinstance(ticket.result, Reservation):
            self._calls[ticket.result.call_id] = ticket.result
            self._last_call = ticket.result.call_id

    def check_writing(self) -> None:
        """Write something small, as a test.

        Raises StorageUnavailable if the database takes no writes.
        """
        self.start()
        self._writer.run(Probe())

    def reject(self, request: CallRequest, status_code: int, error_code: str | None, reason: str | None = None) -> str:
        """Log a call that was refused before it could reserve tokens, and return the id of its row.

        A refusal that repeats one of the last minute is counted to its row with the next heartbeat, without its own
        write. Raises StorageUnavailable.
        """
        self.start()
        key = key_of(request, status_code, error_code, request.created_at.astimezone(self._zone).date())
        known_id = self._refusals.repeat(key, request.created_at)
        if known_id is not None:
            return known_id
        new_id: str = self._writer.run(Reject(request, status_code, error_code, reason))
        return new_id

    def settle(self, reservation: Reservation, outcome: Outcome, given: Given | None = None) -> None:
        """Book the end of a call: charge it, give the hold back, and complete the row, safe against a power cut.

        The same transaction remembers what the team was given and may name.
        Return when that is committed, or after 5 s without a database; it is then tried again in the background.
        """
        deadline = time.monotonic() + SETTLE_WAIT_S
        ticket = self._writer.submit(
            Settle(reservation, outcome, given), then=partial(self._settled, reservation.call_id)
        )
        if not ticket.wait(max(0.0, deadline - time.monotonic())):
            logger.warning("Call %d is answered before its settlement could be written", reservation.call_id)

    def _settled(self, call_id: int, ticket: Ticket) -> None:
        self._calls.pop(call_id, None)
        if ticket.error is None and not ticket.result:
            logger.warning("Call %d was settled by recovery before its end; nothing changed", call_id)

    def _run_group(self, operations: Sequence[LedgerOperation]) -> list[Any]:
        """Run operations in one transaction, which is forced to disk if one of them must survive a power cut."""
        durable = any(operation.durable for operation in operations)
        lease = self._lease
        with self._connection.transaction(durable=durable) as connection:
            if lease is None or not lease.is_fresh() or _renews(operations):
                lease = self._renewed(connection)
            refusals = NewRefusals(self._refusals)
            pace = self._requests_per_minute
            places = None if pace is None else Places(connection, pace, self._name)
            tx = Transaction(
                connection, lease.worker_id, self._output_reserve_tokens, self._zone, refusals, self._prices, places
            )
            results = _carry_out(operations, tx)
        self._lease = lease
        refusals.commit()
        self.endings.add(tx.endings)
        return results

    def _renewed(self, connection: DriverConnection) -> OwnLease:
        """Renew the lease, or join again if this process was taken for dead; it is valid once that is committed."""
        now = time.monotonic()
        old = self._lease
        if old and RENEW_LEASE.execute(connection, {"worker": old.worker_id}).rowcount == 1:
            unbroken_since = old.unbroken_since if now - old.renewed_at < LEASE_S else now
            return OwnLease(old.worker_id, now, unbroken_since)
        name = f"{socket.gethostname()}:{os.getpid()}"
        (worker_id,) = JOIN_WORKERS.execute(connection, {"worker_name": name}).fetchone()
        return OwnLease(worker_id, now, unbroken_since=now)

    def _beat(self) -> None:
        """Renew the lease, save progress and repeats, and settle what dead workers left, until closed."""
        while True:
            if (path := self._connection.lost_file()) is not None:
                logger.critical("%s was replaced or deleted while in use: nothing more is written, and this ends", path)
                self.end_service()
                return
            try:
                self._write_refusals()
                sight: Sight = self._writer.run(self._heartbeat())
                dead = self._watch.look(sight.leases)
                if (dead or sight.has_orphans) and self._may_recover():
                    recover(self._engine, dead, self._zone, self._currency, self.endings)
                for write in self.at_heartbeat:
                    write()
            except (StorageUnavailable, SQLAlchemyError) as error:
                logger.warning("A heartbeat of the ledger failed: %s", type(error).__name__)
            except Exception:
                logger.exception("A heartbeat of the ledger failed")  # the thread must live: the next one may succeed
            if self._stop.wait(HEARTBEAT_S):
                return

    def _write_refusals(self) -> None:
        """Queue the counts of refusals since the last time: repeats, and those at the door."""
        self._write_repeats()
        if (counted := self.door.take()) is not None:
            self._writer.submit(counted, then=lambda ticket: self.door.note_written())

    def _write_repeats(self) -> None:
        """Queue the repeats of refusals, an operation for each team."""
        for team_id, repetitions in self._refusals.take().items():
            self._writer.submit(CountRepeats(team_id, repetitions))

    def _heartbeat(self) -> Heartbeat:
        last_call = self._last_call  # read before the calls: all that were reserved by then are among them
        running = list(self._calls)
        progress = [
            {"call_id": call.call_id, "new_completion_tokens": arrived}
            for call in list(self._calls.values())
            if (arrived := call.progress())
        ]
        used, self._tokens_used = self._tokens_used, {}
        # ordered by id, since all workers write these rows: else they could deadlock
        tokens_used = [{"token": token_id, "used_at": at} for token_id, at in sorted(used.items())]
        return Heartbeat(running, last_call, progress, tokens_used)

    def _may_recover(self) -> bool:
        """Let the others renew first after this process joined or was late: after an outage all are late."""
        return self._lease is not None and time.monotonic() - self._lease.unbroken_since >= RECOVERY_GRACE_S


def _carry_out(operations: Sequence[LedgerOperation], tx: Transaction) -> list[Any]:
    """Run operations, and return their results in the same order.

    Settlements run first: they need no balance, so groups and teams are locked only after these are written. Then all
    are locked, in one order, since the counters of all will move.
    """
    settled = [operation.apply(tx) if isinstance(operation, Settle) else None for operation in operations]
    if not all(isinstance(operation, Settle) for operation in operations):
        tx.lock(operations, [operation.request for operation in operations if isinstance(operation, Reserve)])
    results = [
        result if isinstance(operation, Settle) else operation.apply(tx)
        for operation, result in zip(operations, settled, strict=True)
    ]
    tx.close()
    return results


def _renews(operations: Sequence[LedgerOperation]) -> bool:
    """Tell whether this group renews the lease; an empty group, which tests the database, has to write something."""
    return not operations or any(isinstance(operation, Heartbeat | Probe) for operation in operations)

"""Run write operations of many threads as groups, one transaction each: one wait for the disk serves all of a group."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Protocol

from tokenrouter.database.connections import transient_errors
from tokenrouter.errors import StorageUnavailable

logger = logging.getLogger(__name__)

GROUP_SIZE = 256  # keeps a transaction short however many wait
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
RESULT_TIMEOUT_S = 10


class Operation(Protocol):
    """What the writer needs to know of an operation; the function that runs a group knows the rest."""

    must_happen: ClassVar[bool]
    """Try it again, in its place in the order, for as long as the database cannot be written."""

    def undo(self) -> "Operation | None":
        """Return what takes this operation back if it was committed without our knowing, or None."""


class Ticket:
    """An operation that waits, and its result. Bare locks: a Future takes ten times as long, twice a call."""

    __slots__ = ("_claimed", "_done", "error", "operation", "result", "then")

    def __init__(self, operation: Operation, then: Callable[["Ticket"], None] | None) -> None:
        """`then` is called by whoever carried the operation out, once it is done."""
        self.operation = operation
        self.then = then
        self.result: Any = None
        self.error: Exception | None = None
        self._claimed = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()

    def claim(self) -> bool:
        """Return True to whoever comes first: the writer that begins the operation, or the waiter that gives it up."""
        return self._claimed.acquire(blocking=False)

    def wait(self, timeout_s: float = -1) -> bool:
        """Wait for the end, for one thread; return whether it came in time."""
        return self._done.acquire(timeout=timeout_s)

    def finish(self, result: Any = None, error: Exception | None = None) -> None:
        """Set the result, or why there is none."""
        self.result, self.error = result, error
        self._done.release()
        if self.then is not None:
            self.then(self)


class Writer:
    """Take whatever operations wait and run them as one transaction, in the order they came.

    A thread does that. Who comes while it rests may do it himself, which saves 45 µs of waiting for each other.
    """

    def __init__(
        self, run: Callable[[Sequence[Any]], Sequence[Any]], name: str, *, in_callers_thread: bool = False
    ) -> None:
        """Carry out groups by `run`, which commits and returns a result an operation, or raises and changes nothing.

        `in_callers_thread` is for a `run` that never takes longer than its callers may wait.
        """
        self._run = run
        self._name = name
        self._in_callers_thread = in_callers_thread
        self._queue: SimpleQueue[Ticket] = SimpleQueue()
        self._turn = threading.Lock()  # held by whoever takes from the queue and carries out
        self._bell: SimpleQueue[None] = SimpleQueue()  # wakes the thread where it rests
        self._rests = False
        self._kept: deque[Ticket] = deque()  # claimed already, and to be run before all that waits
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._closing = False
        self._failures = 0
        self._one_by_one = 0

    def submit(self, operation: Operation, then: Callable[[Ticket], None] | None = None) -> Ticket:
        """Queue an operation; its ticket has the result once that is committed."""
        ticket = Ticket(operation, then)
        if self._thread is None:
            self._start()
        self._queue.put(ticket)
        if self._in_callers_thread and not self._failures and self._turn.acquire(blocking=False):
            self._work_once()
        if self._rests and not self._is_done():
            self._bell.put(None)
        return ticket

    def run(self, operation: Operation) -> Any:
        """Queue an operation and wait for its result.

        Raises StorageUnavailable when it could not be written; then it has not happened and will not.
        """
        ticket = self.submit(operation)
        if not ticket.wait(RESULT_TIMEOUT_S):
            if ticket.claim():
                raise StorageUnavailable
            ticket.wait()  # it has begun: the database's own timeouts end it
        if ticket.error is not None:
            raise ticket.error
        return ticket.result

    def close(self, timeout_s: float) -> None:
        """Finish what waits, for at most `timeout_s`, and end the thread."""
        self._closing = True
        self._bell.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        """Start the thread; not earlier than it is needed, since threads do not live on in a forked worker."""
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._thread = thread  # only now: whoever closes this waits for it

    def _work(self) -> None:
        while not (self._closing and self._is_done()):
            if self._failures:
                time.sleep(min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S))
            else:
                self._rest()
            self._turn.acquire()
            self._work_once()

    def _rest(self) -> None:
        """Wait for something to do. Who adds it looks at `_rests` only then, so that one of both sees it."""
        self._rests = True
        if self._is_done() and not self._closing:
            self._bell.get()
        self._rests = False

    def _is_done(self) -> bool:
        return self._queue.empty() and not self._kept

    def _work_once(self) -> None:
        """Carry out one group, and give the turn back."""
        try:
            if group := self._take():
                self._carry_out(group)
        finally:
            self._turn.release()

    def _take(self) -> list[Ticket]:
        """Take what waits, or one operation of it after a group was broken."""
        size = 1 if self._one_by_one else GROUP_SIZE
        self._one_by_one = max(0, self._one_by_one - 1)
        group = [self._kept.popleft() for _ in range(min(size, len(self._kept)))]
        while len(group) < size:
            try:
                ticket = self._queue.get_nowait()
            except Empty:
                break
            if ticket.claim():
                group.append(ticket)
        return group

    def _carry_out(self, group: list[Ticket]) -> None:
        try:
            results = self._run([ticket.operation for ticket in group])
        except transient_errors() as error:
            self._put_off(group, error)
        except Exception as error:
            self._isolate(group, error)
        else:
            self._failures = 0
            for ticket, result in zip(group, results, strict=True):
                ticket.finish(result)

    def _put_off(self, group: list[Ticket], error: Exception) -> None:
        """Keep what must happen at the head of the queue, and fail the rest.

        When a connection is lost during COMMIT nobody knows whether it was done; so what fails here is undone first.
        """
        self._failures += 1
        logger.warning("The database cannot be written (%s); trying again", " ".join(str(error).split()))
        kept = []
        for ticket in group:
            if ticket.operation.must_happen:
                kept.append(ticket)
                continue
            if (undo := ticket.operation.undo()) is not None:
                kept.append(Ticket(undo, then=None))
            ticket.finish(error=StorageUnavailable())
        self._kept.extendleft(reversed(kept))

    def _isolate(self, group: list[Ticket], error: Exception) -> None:
        """Find the operation that breaks its group: run each alone, and fail the one that fails alone."""
        if len(group) > 1:
            self._one_by_one += len(group)
            self._kept.extendleft(reversed(group))
            return
        logger.error("An operation of the ledger failed", exc_info=error)
        group[0].finish(error=error)

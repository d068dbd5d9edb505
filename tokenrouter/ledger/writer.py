"""Run write operations of many threads as groups, one transaction each: one wait for the disk serves all of a group."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Protocol

from tokenrouter import troubles
from tokenrouter.database.connections import database_errors, is_of_the_whole_database
from tokenrouter.errors import StorageUnavailable
from tokenrouter.troubles import one_line

GROUP_SIZE = 256  # keeps a transaction short however many wait
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
LONGEST_PAUSE_ASIDE_S = 60.0
PATIENCE = 3  # failures in a row before it is asked whether the database takes writes at all
RESULT_TIMEOUT_S = 8.0


class Operation(Protocol):
    """What the writer needs to know of an operation; the function that runs a group knows the rest."""

    must_happen: ClassVar[bool]
    """Try it again, in its place in the order, for as long as it cannot be written."""

    @property
    def team_id(self) -> int | None:
        """The team whose counters it moves; what must happen stands aside by it."""

    def undo(self) -> "Operation | None":
        """Return what takes this operation back if it was committed without our knowing, or None."""


class Ticket:
    """An operation that waits, and its result. Bare locks: a Future takes ten times as long, twice a call."""

    __slots__ = ("_answered", "_done", "error", "operation", "result", "then")

    def __init__(self, operation: Operation, then: Callable[["Ticket"], None] | None) -> None:
        """`then` is called by whoever carried the operation out, once it is done."""
        self.operation = operation
        self.then = then
        self.result: Any = None
        self.error: Exception | None = None
        self._answered = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self._answered.locked()

    def give_up(self) -> bool:
        """Wait no more; return False if the result is there already, or about to be."""
        return self._answered.acquire(blocking=False)

    def wait(self, timeout_s: float = -1) -> bool:
        """Wait for the end, for one thread; return whether it came in time."""
        return self._done.acquire(timeout=timeout_s)

    def finish(self, result: Any = None, error: Exception | None = None) -> bool:
        """Set the result, or why there is none; return False, and tell nobody, where it was given up."""
        if not self._answered.acquire(blocking=False):
            return False
        self.result, self.error = result, error
        self._done.release()
        if self.then is not None:
            self.then(self)
        return True


def _team_of(ticket: Ticket) -> int:
    return ticket.operation.team_id or 0


@dataclass
class Aside:
    """What must happen for a team and cannot be written, in its order, though the database takes all else."""

    waiting: deque[Ticket] = field(default_factory=deque)
    failures: int = 0
    due: float = 0.0
    """When to try the first of it again, by the monotonic clock."""

    def wait_longer(self) -> None:
        """Put the next try off, for longer each time."""
        self.due = time.monotonic() + min(FIRST_PAUSE_S * 2**self.failures, LONGEST_PAUSE_ASIDE_S)
        self.failures += 1


class Writer:
    """Take whatever operations wait and run them as one transaction, in the order they came.

    A thread does that. Who comes while it rests may do it himself, which saves 45 µs of waiting for each other.

    What must happen is never dropped, whatever the database answers. While it takes no writes, all of it waits at the
    head of the queue. An operation that fails though the database takes others steps aside, and with it what comes
    later for its team, so that it stops nobody else.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        name: str,
        *,
        get_ready: Callable[[], None] = lambda: None,
        in_callers_thread: bool = False,
    ) -> None:
        """Carry out groups by `run`, which commits and returns a result an operation, or raises and changes nothing.

        A `run` of nothing tells whether the database takes writes. `get_ready` comes before it, and may take a while in
        which the group grows. `in_callers_thread` is for a `run` that never takes longer than its callers may wait.
        """
        self._run = run
        self._get_ready = get_ready
        self._name = name
        self._in_callers_thread = in_callers_thread
        self._queue: SimpleQueue[Ticket] = SimpleQueue()
        self._turn = threading.Lock()  # held by whoever takes from the queue and carries out
        self._bell: SimpleQueue[None] = SimpleQueue()  # wakes the thread where it rests
        self._rests = False
        self._kept: deque[Ticket] = deque()  # to be run before all that waits
        self._aside: dict[int, Aside] = {}  # by team
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._closing = False
        self._failures = 0
        self._one_by_one = 0
        self._is_alone = False

    def submit(self, operation: Operation, then: Callable[[Ticket], None] | None = None) -> Ticket:
        """Queue an operation; its ticket has the result once that is committed."""
        ticket = Ticket(operation, then)
        if self._thread is None:
            self._start()
        self._queue.put(ticket)
        if self._in_callers_thread and not self._failures and self._turn.acquire(blocking=False):
            self._work_once()
        if self._rests and not self._is_idle():
            self._bell.put(None)
        return ticket

    def run(self, operation: Operation, then: Callable[[Ticket], None] | None = None) -> Any:
        """Queue an operation and wait for its result.

        Raises StorageUnavailable when it could not be written in time; then it has not happened, or is undone.
        """
        ticket = self.submit(operation, then)
        if not ticket.wait(RESULT_TIMEOUT_S):
            if ticket.give_up():
                raise StorageUnavailable from TimeoutError(f"nothing was written in {RESULT_TIMEOUT_S:g} s")
            ticket.wait()
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
        while not (self._closing and self._is_idle() and not self._aside):
            if self._failures:
                time.sleep(min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S))
            else:
                self._rest()
            self._turn.acquire()
            self._work_once()

    def _rest(self) -> None:
        """Wait for something to do. Who adds it looks at `_rests` only then, so that one of both sees it."""
        self._rests = True
        if self._is_idle() and (self._aside or not self._closing):
            with suppress(Empty):
                self._bell.get(timeout=self._next_due_s())
        self._rests = False

    def _is_idle(self) -> bool:
        return self._queue.empty() and not self._kept

    def _next_due_s(self) -> float | None:
        """Return in how many seconds something aside is to be tried again; None if nothing stands aside."""
        due = min((aside.due for aside in list(self._aside.values())), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _work_once(self) -> None:
        """Carry out one group, and give the turn back."""
        try:
            if (team_id := self._team_to_retry()) is not None:
                self._retry(team_id)
            elif not self._is_idle():
                self._get_ready()
                self._carry_out(self._take())
        finally:
            self._turn.release()

    def _take(self) -> list[Ticket]:
        """Take what waits, or one operation of it after a group was broken."""
        self._is_alone = self._one_by_one > 0
        size = 1 if self._is_alone else GROUP_SIZE
        self._one_by_one = max(0, self._one_by_one - 1)
        group: list[Ticket] = []
        while len(group) < size and (ticket := self._next()) is not None:
            if ticket.is_given_up:
                continue
            if self._aside and ticket.operation.must_happen and _team_of(ticket) in self._aside:
                self._aside[_team_of(ticket)].waiting.append(ticket)
            else:
                group.append(ticket)
        return group

    def _next(self) -> Ticket | None:
        if self._kept:
            return self._kept.popleft()
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def _carry_out(self, group: list[Ticket]) -> None:
        """Run a group, also one of nothing, whose callers have given up: what was got ready has to end."""
        try:
            results = self._run([ticket.operation for ticket in group])
        except Exception as error:
            self._fail(group, error)
        else:
            self._failures = 0
            for ticket, result in zip(group, results, strict=True):
                if not ticket.finish(result):
                    self._undo(ticket)

    def _fail(self, group: list[Ticket], error: Exception) -> None:
        """Find out whether the database is at fault or an operation is, and act on it."""
        if is_of_the_whole_database(error) and not self._takes_writes_again():
            self._failures += 1
            troubles.warn("storage", "The database cannot be written (%s); trying again", one_line(error))
            self._kept.extendleft(reversed([ticket for ticket in group if ticket.operation.must_happen]))
            for ticket in group:
                if not ticket.operation.must_happen:
                    self._refuse(ticket, error)
        elif len(group) > 1:
            self._one_by_one += len(group)
            self._kept.extendleft(reversed(group))
        elif group[0].operation.must_happen:
            self._step_aside(group[0], error)
        else:
            message = "An operation of the ledger failed (%s)"
            troubles.warn("operation", message, one_line(error), traceback_of=error)
            self._refuse(group[0], error)

    def _takes_writes_again(self) -> bool:
        """Tell, from time to time, whether only what is tried again and again cannot be written."""
        if not self._is_alone and (not self._failures or self._failures % PATIENCE):
            return False
        try:
            self._run([])
        except Exception:
            return False
        self._failures = 0
        return True

    def _refuse(self, ticket: Ticket, error: Exception) -> None:
        """Give an operation up that need not happen. Where its COMMIT was lost nobody knows whether it has."""
        if is_of_the_whole_database(error):
            self._undo(ticket)
        refusal = error
        if isinstance(error, database_errors()):
            refusal = StorageUnavailable()
            refusal.__cause__ = error
        ticket.finish(error=refusal)

    def _undo(self, ticket: Ticket) -> None:
        if (undo := ticket.operation.undo()) is not None:
            self._kept.append(Ticket(undo, then=None))

    def _step_aside(self, ticket: Ticket, error: Exception) -> None:
        team_id = _team_of(ticket)
        message = "What calls of team %d cost cannot be booked (%s); all else goes on, and this is tried again"
        troubles.warn("aside", message, team_id, one_line(error), traceback_of=error)
        aside = self._aside.setdefault(team_id, Aside())
        aside.waiting.append(ticket)
        aside.wait_longer()

    def _team_to_retry(self) -> int | None:
        now = time.monotonic()
        return next((team_id for team_id, aside in self._aside.items() if aside.due <= now), None)

    def _retry(self, team_id: int) -> None:
        """Try the first of what stands aside for a team."""
        aside = self._aside[team_id]
        ticket = aside.waiting[0]
        try:
            (result,) = self._run([ticket.operation])
        except Exception as error:
            aside.wait_longer()
            troubles.warn("aside", "What calls of team %d cost still cannot be booked (%s)", team_id, one_line(error))
            return
        aside.waiting.popleft()
        aside.failures = 0
        if not aside.waiting:
            del self._aside[team_id]
        ticket.finish(result)

"""Run write operations of many threads in groups, a transaction each: one wait for the disk serves a whole group."""

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
PATIENCE = 3  # failures in a row before testing whether the database takes any writes
RESULT_TIMEOUT_S = 8.0


class Operation(Protocol):
    """What the writer needs to know about an operation; the function that runs a group knows the rest."""

    must_happen: ClassVar[bool]
    """Whether to retry it, in its place in the order, for as long as it cannot be written."""

    @property
    def team_id(self) -> int | None:
        """The team whose counters it moves; operations that must happen step aside by team."""

    def undo(self) -> "Operation | None":
        """Return what undoes this operation, in case it was committed although the COMMIT failed here, or None."""


class Ticket:
    """A queued operation, and its result. It uses bare locks: a Future takes ten times as long, twice a call."""

    __slots__ = ("_answered", "_done", "error", "operation", "result", "then")

    def __init__(self, operation: Operation, then: Callable[["Ticket"], None] | None) -> None:
        """`then` is called by the thread that ran the operation, once it is done."""
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
        """Stop waiting; return False if the result is there already, or about to be."""
        return self._answered.acquire(blocking=False)

    def wait(self, timeout_s: float = -1) -> bool:
        """Wait for the result, in one thread alone; return whether it came in time."""
        return self._done.acquire(timeout=timeout_s)

    def finish(self, result: Any = None, error: Exception | None = None) -> bool:
        """Set the result, or the error; return False, and do nothing, if nobody waits any more."""
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
    """A team's operations that must happen and cannot be written, in order, though the database takes others."""

    waiting: deque[Ticket] = field(default_factory=deque)
    failures: int = 0
    due: float = 0.0
    """When to retry the first, by the monotonic clock."""

    def wait_longer(self) -> None:
        """Schedule the next try, later each time."""
        self.due = time.monotonic() + min(FIRST_PAUSE_S * 2**self.failures, LONGEST_PAUSE_ASIDE_S)
        self.failures += 1


class Writer:
    """Take the operations that wait and run them as one transaction, in the order in which they came.

    A thread does that. A caller that comes while the thread is idle may do it itself, which saves 45 µs of switching.

    Operations that must happen are never dropped, whatever the database answers. While it takes no writes, they wait at
    the head of the queue. One that fails although the database takes others steps aside, with all later ones of its
    team, so that it stops nobody else.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        name: str,
        *,
        get_ready: Callable[[], None] = lambda: None,
        in_callers_thread: bool = False,
    ) -> None:
        """`run` takes a group, commits, and returns a result for each operation, or raises and changes nothing.

        An empty group tests whether the database takes writes. `get_ready` is called before it, and may take a while,
        in which the group grows. `in_callers_thread` is for a `run` that never takes longer than its callers may wait.
        """
        self._run = run
        self._get_ready = get_ready
        self._name = name
        self._in_callers_thread = in_callers_thread
        self._queue: SimpleQueue[Ticket] = SimpleQueue()
        self._turn = threading.Lock()  # held by the thread that takes from the queue and runs
        self._bell: SimpleQueue[None] = SimpleQueue()  # wakes the thread if it is idle
        self._rests = False
        self._kept: deque[Ticket] = deque()  # to be run before the queue
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
                self._thread = thread  # only now, since `close` joins it

    def _work(self) -> None:
        while not (self._closing and self._is_idle() and not self._aside):
            if self._failures:
                time.sleep(min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S))
            else:
                self._rest()
            self._turn.acquire()
            self._work_once()

    def _rest(self) -> None:
        """Wait for work. `submit` looks at `_rests` after it has queued, so that one of both always sees the other."""
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
        """Take what waits, or a single operation after a group failed."""
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
        """Run a group, even an empty one, whose callers have given up: the turn that `get_ready` took has to end."""
        try:
            results = self._run([ticket.operation for ticket in group])
        except Exception as error:  # of whatever kind: somebody waits for each result
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
        """Test, now and then, whether the database takes writes again, so that only this group is at fault."""
        if not self._is_alone and (not self._failures or self._failures % PATIENCE):
            return False
        try:
            self._run([])
        except Exception:  # of whatever kind: the thread must live, and `_fail` reports what the next try raises
            return False
        self._failures = 0
        return True

    def _refuse(self, ticket: Ticket, error: Exception) -> None:
        """Give up an operation that need not happen. If the answer to its COMMIT was lost, it may have happened."""
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
        """Retry the first of a team's operations that stepped aside."""
        aside = self._aside[team_id]
        ticket = aside.waiting[0]
        try:
            (result,) = self._run([ticket.operation])
        except Exception as error:  # of whatever kind: it is retried until it succeeds
            aside.wait_longer()
            troubles.warn("aside", "What calls of team %d cost still cannot be booked (%s)", team_id, one_line(error))
            return
        aside.waiting.popleft()
        aside.failures = 0
        if not aside.waiting:
            del self._aside[team_id]
        ticket.finish(result)

"""Run write operations of many threads as groups, one transaction each: one wait for the disk serves all of a group."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tokenrouter.errors import StorageUnavailable

logger = logging.getLogger(__name__)

GROUP_SIZE = 256  # keeps a transaction short however many wait
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
RESULT_TIMEOUT_S = 10


class Operation(Protocol):
    """What the writer needs to know of an operation; the function that runs a group knows the rest."""

    must_happen: bool
    """Try it again, in its place in the order, for as long as the database cannot be written."""

    def undo(self) -> "Operation | None":
        """Return what takes this operation back if it was committed without our knowing, or None."""


Group = list[tuple[Operation, Future[Any]]]


class Writer:
    """A thread that takes whatever operations wait and runs them as one transaction, in the order they came."""

    def __init__(self, run: Callable[[Sequence[Operation]], Sequence[Any]], name: str) -> None:
        """Carry out groups by `run`, which commits and returns a result an operation, or raises and changes nothing."""
        self._run = run
        self._name = name
        self._waiting: deque[tuple[Operation, Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failures = 0
        self._one_by_one = 0

    def submit(self, operation: Operation) -> Future[Any]:
        """Queue an operation; the future gives its result once that is committed."""
        future: Future[Any] = Future()
        with self._wake:
            if self._thread is None:  # not earlier: a thread does not live on in a forked worker
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._waiting.append((operation, future))
            self._wake.notify()
        return future

    def run(self, operation: Operation) -> Any:
        """Queue an operation and wait for its result.

        Raises StorageUnavailable when it could not be written; then it has not happened and will not.
        """
        future = self.submit(operation)
        try:
            return future.result(RESULT_TIMEOUT_S)
        except TimeoutError:
            if future.cancel():
                raise StorageUnavailable from None
            return future.result()  # it has begun: the database's own timeouts end it

    def close(self, timeout_s: float) -> None:
        """Finish what waits, for at most `timeout_s`, and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            if self._failures:
                time.sleep(min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S))
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                group = self._take()
            # one that was tried before runs already; any other may have been given up by who waited for it
            group = [(op, future) for op, future in group if future.running() or future.set_running_or_notify_cancel()]
            if group:
                self._carry_out(group)

    def _take(self) -> Group:
        size = 1 if self._one_by_one else GROUP_SIZE
        self._one_by_one = max(0, self._one_by_one - 1)
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), size))]

    def _carry_out(self, group: Group) -> None:
        try:
            results = self._run([operation for operation, _ in group])
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            self._put_off(group, error)
        except Exception as error:
            self._isolate(group, error)
        else:
            self._failures = 0
            for (_, future), result in zip(group, results, strict=True):
                future.set_result(result)

    def _put_off(self, group: Group, error: SQLAlchemyError) -> None:
        """Keep what must happen at the head of the queue, and fail the rest.

        When a connection is lost during COMMIT nobody knows whether it was done; so what fails here is undone first.
        """
        self._failures += 1
        logger.warning("The database cannot be written (%s); trying again", _cause(error))
        kept: Group = []
        for operation, future in group:
            if operation.must_happen:
                kept.append((operation, future))
                continue
            if (undo := operation.undo()) is not None:
                kept.append((undo, Future()))
            future.set_exception(StorageUnavailable())
        self._put_back(kept)

    def _isolate(self, group: Group, error: Exception) -> None:
        """Find the operation that breaks its group: run each alone, and fail the one that fails alone."""
        if len(group) > 1:
            self._one_by_one += len(group)
            self._put_back(group)
            return
        logger.error("An operation of the ledger failed", exc_info=error)
        group[0][1].set_exception(error)

    def _put_back(self, group: Group) -> None:
        with self._wake:
            self._waiting.extendleft(reversed(group))


def _cause(error: SQLAlchemyError) -> str:
    """Name what the driver said, without the statement and its values."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(original).split())

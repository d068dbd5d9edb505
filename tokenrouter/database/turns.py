"""Turns of all threads and processes that write one SQLite file, so that none of them starves.

SQLite itself waits by polling ever more rarely, so a process that sleeps starves while others write. Here locks of the
file system decide who is next. They only keep the order; SQLite's own locks keep the transactions apart in any case.
"""

import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Engine

logger = logging.getLogger(__name__)

WAIT_S = 2.0
LOOK_S = 0.0005
STUCK_S = 60.0  # for which nobody waits for turns, after one did not end in time


class Turns:
    """The turns of one process, for any thread.

    There are two locks: the first is held by whoever is next, the second by the writer. So a writer that has just ended
    its turn cannot be next again at once.
    """

    def __init__(self, database: str | None) -> None:
        """`database` is the path of the file; None, or a database in memory, needs no turns."""
        self._database = None if database in ("", ":memory:") else database
        self._stuck_until = 0.0
        self._ended: deque[Turn] = deque()
        self._process = os.getpid()

    def take(self) -> "Turn | None":
        """Wait for a turn, which the caller ends; None after some seconds without one, or where there are none."""
        if self._database is None:
            return None
        now = time.monotonic()
        until = now if now < self._stuck_until else now + WAIT_S
        try:
            turn = self._unused() or Turn(self._database, self._ended)
            is_ours = turn.begin(until)
        except OSError as error:
            message = "%s is written without turns, and slower where many do: %s"
            logger.warning(message, self._database, error.strerror)
            self._database = None
            return None
        self._stuck_until = 0.0 if is_ours else time.monotonic() + STUCK_S
        return turn if is_ours else None

    def _unused(self) -> "Turn | None":
        """Return an object of a turn that ended; those from before a fork would share their locks with the parent."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._ended.clear()
        return self._ended.pop() if self._ended else None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run the block in a turn, or without one if none came in time."""
        turn = self.take()
        try:
            yield
        finally:
            if turn is not None:
                turn.end()


class Turn:
    """Both locks, for one thread at a time; reused, since opening the files costs more than locking them."""

    def __init__(self, database: str, ended: "deque[Turn]") -> None:
        """Raise OSError if the files cannot be opened; `ended` is where it waits to be taken again."""
        self._ended = ended
        self._place, self._turn = -1, -1
        self._place = _open(f"{database}-next")
        self._turn = _open(f"{database}-turn")

    def begin(self, until: float) -> bool:
        """Wait for both locks; return whether they came in time.

        Raises OSError if the file system has no such locks.
        """
        if not _lock(self._place, until):
            return False
        try:
            return _lock(self._turn, until)
        finally:
            fcntl.flock(self._place, fcntl.LOCK_UN)

    def end(self) -> None:
        """Let others write."""
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        self._ended.append(self)

    def __del__(self) -> None:
        for descriptor in (self._place, self._turn):
            if descriptor >= 0:
                os.close(descriptor)


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(LOOK_S)  # flock has no timeout
        else:
            return True


_turns: "WeakKeyDictionary[Engine, Turns]" = WeakKeyDictionary()


def turns_of(engine: Engine) -> Turns:
    """Return the turns of this process for the engine's database; on PostgreSQL nobody waits for them."""
    if engine not in _turns:
        _turns[engine] = Turns(engine.url.database if engine.dialect.name == "sqlite" else None)
    return _turns[engine]

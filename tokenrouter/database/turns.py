"""Turns of all that writes one SQLite file, threads and processes alike: whoever waits is next.

SQLite itself waits by looking again, ever more rarely, so that whoever sleeps starves while others write. Locks of the
file system decide here. They only see to the order: SQLite's own keep the transactions apart, with or without a turn.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Engine

logger = logging.getLogger(__name__)

WAIT_S = 2.0
LOOK_S = 0.0005
STUCK_S = 60.0  # for which a turn that did not end in time is no longer waited for


class Turns:
    """The turns of one process, for any thread.

    Of two locks the first is the place behind the one that writes: who ends his turn cannot be first again at once.
    """

    def __init__(self, database: str | None) -> None:
        """Take turns beside this file; without one there is nothing to wait for."""
        self._database = None if database in ("", ":memory:") else database
        self._stuck_until = 0.0

    def take(self) -> int | None:
        """Wait for a turn, and return what ends it; None after some seconds without one, or where there are none."""
        if self._database is None:
            return None
        now = time.monotonic()
        until = now if now < self._stuck_until else now + WAIT_S
        try:
            turn = self._take(until)
        except OSError as error:
            message = "%s is written without turns, and slower where many do: %s"
            logger.warning(message, self._database, error.strerror)
            self._database = None
            return None
        self._stuck_until = 0.0 if turn is not None else time.monotonic() + STUCK_S
        return turn

    def _take(self, until: float) -> int | None:
        place = _lock(f"{self._database}-next", until)
        if place is None:
            return None
        try:
            return _lock(f"{self._database}-turn", until)
        finally:
            os.close(place)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run the block in a turn, or without one."""
        turn = self.take()
        try:
            yield
        finally:
            end(turn)


def end(turn: int | None) -> None:
    """End a turn; None is none."""
    if turn is not None:
        os.close(turn)


def _lock(path: str, until: float) -> int | None:
    """Return a descriptor that has the file locked until it is closed; None where another had it all the time.

    It is opened anew each time, since those of a process and of its forks would share the lock.
    Raises OSError where the file system has no such locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    break
                time.sleep(LOOK_S)
            else:
                locked, descriptor = descriptor, -1
                return locked
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return None


_turns: "WeakKeyDictionary[Engine, Turns]" = WeakKeyDictionary()


def turns_of(engine: Engine) -> Turns:
    """Return the turns in which this process writes to the engine's database; PostgreSQL needs none."""
    if engine not in _turns:
        _turns[engine] = Turns(engine.url.database if engine.dialect.name == "sqlite" else None)
    return _turns[engine]

"""Slots: limits of the threads that may wait for a provider or a body, and of a team's calls in flight."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tokenrouter.errors import Overloaded

PROGRAMS = 0
"""Used in place of a team's id for all programs at the management API together."""


class Slots:
    """Counts the waiting threads and each team's calls in this worker. Thread-safe."""

    def __init__(self, limit: int, team_limit: int) -> None:
        """Let at most `limit` threads wait at once, and each team have `team_limit` calls."""
        self._limit = limit
        self._team_limit = team_limit
        self._taken = 0
        self._taken_by_team: Counter[int] = Counter()
        self._lock = threading.Lock()

    def enter(self, team_id: int) -> Callable[[], None]:
        """Take one of the team's slots for a call, before its body is read; return a function that releases it.

        Raises Overloaded.
        """
        with self._lock:
            if self._taken_by_team[team_id] >= self._team_limit:
                who = "Programs have" if team_id == PROGRAMS else "Your team has"
                raise Overloaded(f"{who} too many calls in flight here. Try again in a moment.")
            self._taken_by_team[team_id] += 1
        return lambda: self._leave(team_id)

    def take(self) -> Callable[[], None]:
        """Take a slot for a thread about to wait for a provider or a body; return a function that releases it.

        Raises Overloaded.
        """
        with self._lock:
            if self._taken >= self._limit:
                raise Overloaded("Too many calls are in flight here. Try again in a moment.")
            self._taken += 1
        return self._give_back

    @contextmanager
    def waiting(self, team_id: int) -> Iterator[None]:
        """Take both slots for a block in which a thread waits for a team. Raises Overloaded."""
        with ExitStack() as taken:
            taken.callback(self.enter(team_id))
            taken.callback(self.take())
            yield

    def _leave(self, team_id: int) -> None:
        with self._lock:
            self._taken_by_team[team_id] -= 1
            if not self._taken_by_team[team_id]:
                del self._taken_by_team[team_id]

    def _give_back(self) -> None:
        with self._lock:
            self._taken -= 1

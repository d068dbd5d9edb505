"""Slots: how many threads of a worker may wait for a provider or a body, and how many calls a team may have."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tokenrouter.errors import Overloaded

PROGRAMS = 0
"""Stands for all programs at the management API together, where a team's id would."""


class Slots:
    """How many threads of this worker may wait at once, and how many calls each team may have here."""

    def __init__(self, limit: int, team_limit: int) -> None:
        """Let at most `limit` threads wait at once, and each team have `team_limit` calls."""
        self._limit = limit
        self._team_limit = team_limit
        self._taken = 0
        self._taken_by_team: Counter[int] = Counter()
        self._lock = threading.Lock()

    def enter(self, team_id: int) -> Callable[[], None]:
        """Take one of the team's slots, for a call from the reading of its body on; return what gives it back.

        Raises Overloaded.
        """
        with self._lock:
            if self._taken_by_team[team_id] >= self._team_limit:
                who = "Programs have" if team_id == PROGRAMS else "Your team has"
                raise Overloaded(f"{who} too many calls in flight here. Try again in a moment.")
            self._taken_by_team[team_id] += 1
        return lambda: self._leave(team_id)

    def take(self) -> Callable[[], None]:
        """Take a slot for a thread that is about to wait, for a provider or a body; return what gives it back.

        Raises Overloaded.
        """
        with self._lock:
            if self._taken >= self._limit:
                raise Overloaded("Too many calls are in flight here. Try again in a moment.")
            self._taken += 1
        return self._give_back

    @contextmanager
    def waiting(self, team_id: int) -> Iterator[None]:
        """Take both for a block in which a thread of the team's waits. Raises Overloaded."""
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

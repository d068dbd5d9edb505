"""Slots for calls at the provider, of which a worker has only so many."""

import threading
from collections import Counter
from collections.abc import Callable

from tokenrouter.errors import Overloaded


class Slots:
    """How many calls this worker has at the provider at once, in all and for each team."""

    def __init__(self, limit: int, team_limit: int | None) -> None:
        """Let at most `limit` calls through at once, and `team_limit` of one team."""
        self._limit = limit
        self._team_limit = limit if team_limit is None else team_limit
        self._taken: Counter[int] = Counter()
        self._lock = threading.Lock()

    def take(self, team_id: int) -> Callable[[], None]:
        """Take a slot, and return what gives it back.

        Raises Overloaded.
        """
        with self._lock:
            if self._taken.total() >= self._limit:
                raise Overloaded("Too many calls are in flight here. Try again in a moment.")
            if self._taken[team_id] >= self._team_limit:
                raise Overloaded("Your team has too many calls in flight here. Try again in a moment.")
            self._taken[team_id] += 1
        return lambda: self._give_back(team_id)

    def _give_back(self, team_id: int) -> None:
        with self._lock:
            self._taken[team_id] -= 1
            if not self._taken[team_id]:
                del self._taken[team_id]

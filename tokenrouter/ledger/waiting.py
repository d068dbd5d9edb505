"""The calls of one process that wait for a place at the provider, and the one thread that polls for all of them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenrouter.errors import StorageUnavailable
from tokenrouter.ledger.provider_pace import SECOND_NS, PlacesSeen

logger = logging.getLogger(__name__)

LONGEST_LOOK_S = 1.0  # other processes may give places back, and have to see that these calls still wait
SHORTEST_LOOK_S = 0.005


class WaitingForPlace:
    """A call that waits for a place."""

    def __init__(self) -> None:
        self.ended_by: Exception | None = None
        self.has_place = False
        self._over = threading.Event()

    def grant(self) -> None:
        """Give it its place."""
        self.has_place = True
        self._over.set()

    def end(self, error: Exception) -> None:
        """End the waiting from outside."""
        self.ended_by = error
        self._over.set()

    def wait(self, seconds: float) -> bool:
        """Wait for a place; return whether it came in time, or raise what ended the waiting."""
        self._over.wait(seconds)
        if self.ended_by is not None:
            raise self.ended_by
        return self.has_place


class WaitingForPlaces:
    """The waiting calls of this process. While there are any, a thread asks when the next place gets free."""

    def __init__(self, give_out: Callable[[], PlacesSeen]) -> None:
        """`give_out` gives out the places that are free now, to calls of other processes as well."""
        self._give_out = give_out
        self._calls: dict[int, WaitingForPlace] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def enter(self, waiting_id: int) -> Iterator[WaitingForPlace]:
        """Look for a place for this call, within the block."""
        call = WaitingForPlace()
        with self._lock:
            self._calls[waiting_id] = call
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="provider-queue", daemon=True)
                self._thread.start()
        try:
            yield call
        finally:
            self._calls.pop(waiting_id, None)

    def _look(self) -> None:
        while True:
            pause_s = self._look_once()
            time.sleep(pause_s)
            with self._lock:
                if not self._calls:
                    self._thread = None
                    return

    def _look_once(self) -> float:
        """Grant the places that are there; return in how many seconds to look again."""
        try:
            sight = self._give_out()
        except StorageUnavailable:  # which is logged elsewhere, and which the waiting call will meet itself
            return LONGEST_LOOK_S
        except Exception:
            # the thread must live: the next time may succeed
            logger.exception("Looking for places at the provider failed")
            return LONGEST_LOOK_S
        for waiting_id in sight.granted:
            if (call := self._calls.get(waiting_id)) is not None:
                call.grant()
        return min(max(sight.next_place_ns / SECOND_NS, SHORTEST_LOOK_S), LONGEST_LOOK_S)

"""Work that no answer waits for: what calls hand over is gathered, and a thread of its own works on it in groups.

Each call would else do its part before its answer, and give way to other threads wherever that waits for the system.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tokenrouter import troubles

logger = logging.getLogger(__name__)

GATHER_S = 0.05
MOST_WAITING = 10_000
"""Beyond these nothing is taken until the work goes on: it may wait for whoever reads a pipe, which calls must not."""

T = TypeVar("T")


class Gatherer(Generic[T]):
    """What waits to be worked on in one process, in the order in which it came."""

    def __init__(self, work: Callable[[Sequence[T]], None], what: str) -> None:
        """Work on groups by `work`; `what` says in the plural what they are, for the log."""
        self._work = work
        self._what = what
        self._waiting: deque[T] = deque()
        self._left_out = 0
        self._turn = threading.Lock()  # held by whoever works
        self._bell = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # started when first needed: none survives a fork

    def take(self, items: Sequence[T]) -> None:
        """Take these over, for which nobody waits."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.extend(items)
        else:
            with self._lock:
                self._left_out += len(items)
        if not self._bell.is_set():
            self._wake()

    def work_off(self) -> None:
        """Work on all that waits, in this thread, once another that does so is done."""
        with self._turn:
            if group := [self._waiting.popleft() for _ in range(len(self._waiting))]:
                self._work(group)
            if left_out := self._take_left_out():
                troubles.warn(self._what, "%d %s were left out: they could not be taken in time", left_out, self._what)

    def close(self, timeout_s: float) -> None:
        """Work on what waits, for at most `timeout_s`, and end the thread; what is lost is said in the log."""
        self._closing.set()
        self._bell.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("%d %s and more are lost: that took too long", len(self._waiting), self._what)
                return
        self.work_off()

    def _wake(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._what, daemon=True)
                self._thread.start()
        self._bell.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._bell.wait()
            self._closing.wait(GATHER_S)
            self._bell.clear()  # first: what comes from now on rings again
            try:
                self.work_off()
            except Exception:
                logger.exception("Some %s are lost", self._what)  # the thread must live

    def _take_left_out(self) -> int:
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        return left_out

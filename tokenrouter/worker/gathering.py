"""Work that no answer waits for: items from calls are gathered, and one thread works on them in groups.

Otherwise each call would do its part before its answer, and switch threads whenever that waits for the system.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tokenrouter import troubles

logger = logging.getLogger(__name__)

GATHER_S = 0.25
"""The shorter this is, the more calls wake the thread, which costs more than the work on what they hand over."""
MOST_WAITING = 10_000
"""Beyond these, items are dropped: the work may be waiting for the reader of a pipe, and calls must not wait."""

T = TypeVar("T")


class Gatherer(Generic[T]):
    """The items of one process that wait to be worked on, in order."""

    def __init__(self, work: Callable[[Sequence[T]], None], what: str) -> None:
        """`work` gets groups of items; `what` names them in the log, in the plural."""
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
        """Take items, and return at once."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.extend(items)
        else:
            with self._lock:
                self._left_out += len(items)
        if not self._bell.is_set():
            self._wake()

    def work_off(self) -> None:
        """Work on all waiting items in this thread, after any other thread that does."""
        with self._turn:
            if group := [self._waiting.popleft() for _ in range(len(self._waiting))]:
                self._work(group)
            if left_out := self._take_left_out():
                troubles.warn(self._what, "%d %s were left out: they could not be taken in time", left_out, self._what)

    def close(self, timeout_s: float) -> None:
        """Work on what waits for at most `timeout_s`, and end the thread; losses are logged."""
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
            self._bell.clear()  # before the work: later items ring again
            try:
                self.work_off()
            except Exception:
                logger.exception("Some %s are lost", self._what)  # the thread must live

    def _take_left_out(self) -> int:
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        return left_out

"""A pool of threads for connections, cheaper to wake than an executor's."""

import threading
from collections import deque
from collections.abc import Callable

from gunicorn.workers.gthread import TConn


class Thread(threading.Thread):
    """A thread of the pool, which handles one connection after another."""

    def __init__(self, pool: "ThreadPool", job: TConn) -> None:
        super().__init__(name="call")
        self._pool = pool
        self._job: TConn | None = job
        self._woken = threading.Lock()
        self._woken.acquire()

    def hand(self, job: TConn | None) -> None:
        """Wake the thread, which must be idle, for a connection; None ends it."""
        self._job = job
        self._woken.release()

    def run(self) -> None:
        """Work until the pool ends it."""
        while (job := self._job) is not None:
            self._pool.work(job)
            if not self._pool.take_next(self):
                self._woken.acquire()

    def go_on_with(self, job: TConn | None) -> None:
        """Handle this connection next, without sleeping; None ends the thread."""
        self._job = job


class ThreadPool:
    """Threads that handle connections, started when first needed.

    The thread idle for the shortest time is woken first, since its data is still in the caches. Each has a lock to wake
    it; an executor's Future and semaphore take 30 µs a call.
    """

    def __init__(self, work: Callable[[TConn], None], size: int) -> None:
        """`work` must not raise, since that would end a thread."""
        self.work = work
        self._size = size
        self._started = 0
        self._idle: list[Thread] = []
        self._waiting: deque[TConn] = deque()
        self._is_closing = False
        self._lock = threading.Lock()

    def submit(self, job: TConn) -> None:
        """Have the connection handled as soon as a thread is free."""
        with self._lock:
            if self._idle:
                self._idle.pop().hand(job)
            elif self._started < self._size:
                self._started += 1
                Thread(self, job).start()
            else:
                self._waiting.append(job)

    def take_next(self, thread: Thread) -> bool:
        """Give a thread that has finished its next connection; return False if it has to wait for one."""
        with self._lock:
            if self._waiting or self._is_closing:
                thread.go_on_with(self._waiting.popleft() if self._waiting else None)
                return True
            self._idle.append(thread)
            return False

    def shutdown(self, wait: bool = False) -> None:
        """End the threads after their current work; the caller that ends the process waits for them."""
        with self._lock:
            self._is_closing = True
            while self._idle:
                self._idle.pop().hand(None)

"""End what waits for another machine, however that spins it out: timeouts of sockets are of single reads alone."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Deadline:
    """What ends a connection once its time is over, from its first moment on: TLS may be spun out too."""

    def __init__(self) -> None:
        self._held: socket.socket | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def hold(self, connection: socket.socket) -> socket.socket:
        """Take a connection that was just made, and return it. Raises TimeoutError if it is too late.

        What is kept is a duplicate, since TLS takes the descriptor away from the socket's object.
        """
        with self._lock:
            if self._is_over:
                connection.close()
                raise TimeoutError("timed out")
            self._held = connection.dup()
        return connection

    def cut(self) -> None:
        """End the connection, so that what waits for it fails."""
        with self._lock:
            self._is_over = True
            if self._held is not None:
                with suppress(OSError):  # it may have ended just now
                    self._held.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close the duplicate."""
        with self._lock:
            if self._held is not None:
                self._held.close()


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Cut the connection that a block has it hold, after so many seconds."""
    own = Deadline()
    timer = threading.Timer(seconds, own.cut)
    timer.daemon = True
    timer.start()
    try:
        yield own
    finally:
        timer.cancel()
        own.release()

"""Put a deadline on a whole exchange with another machine: a socket's timeout only covers a single read."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Deadline:
    """Ends a connection when its time is over; it counts from the start, since a peer can drag out TLS too."""

    def __init__(self) -> None:
        self._held: socket.socket | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def hold(self, connection: socket.socket) -> socket.socket:
        """Take a connection just made, and return it. Raises TimeoutError if it is too late.

        What is kept is a duplicate, since TLS takes the descriptor away from the socket's object.
        """
        with self._lock:
            if self._is_over:
                connection.close()
                raise TimeoutError("timed out")
            self._held = connection.dup()
        return connection

    def cut(self) -> None:
        """Shut the connection down, so that whatever waits on it fails."""
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
    """Cut the connection that the block passes to `hold` after so many seconds."""
    own = Deadline()
    timer = threading.Timer(seconds, own.cut)
    timer.daemon = True
    timer.start()
    try:
        yield own
    finally:
        timer.cancel()
        own.release()

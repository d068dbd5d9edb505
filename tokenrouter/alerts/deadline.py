"""End what waits for another machine, however that spins it out: timeouts of sockets are of single reads alone."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def deadline(seconds: float, find_socket: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Cut the connection that is there after so many seconds, within a block: what it waits for fails then."""

    def cut() -> None:
        connection = find_socket()
        with suppress(OSError):  # it may have ended just now
            if connection is not None:
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

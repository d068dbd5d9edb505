"""A client's socket, which takes an answer from a thread and frees the thread before the client has read it."""

import errno
import fcntl
import os
import select
import socket
import sys
import termios
from collections import deque
from dataclasses import dataclass
from typing import IO, Any

SEND_S = 20.0  # how long a client may read nothing, of anything but a call
SENT_TOGETHER = 64 * 1024
MOST_PIECES = 1024  # the most that the system takes at once
MOST_HELD = 4 * 1024 * 1024  # beyond it the thread waits; only answers made while they are sent get there


@dataclass
class FilePart:
    """The rest of a file that is still to be sent."""

    descriptor: int
    offset: int
    count: int

    def send(self, sock: socket.socket) -> None:
        """Send what the socket takes; it must be non-blocking."""
        sent = os.sendfile(sock.fileno(), self.descriptor, self.offset, self.count)
        if not sent:
            raise OSError(errno.EIO, "The file has become shorter than it was")
        self.offset += sent
        self.count -= sent
        if not self.count:
            self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


class ClientSocket(socket.socket):
    """The socket as gunicorn and the application write to it.

    An answer is held here; once it is complete, it is sent as far as the client takes it, and the worker sends the rest
    later. Only a stream is sent piece by piece, and its thread waits for the client.
    """

    head = b""
    """The head of the last request, as it came."""
    is_stream = True
    """Whether writes are sent at once: those of streams are, and of connections that gunicorn handles alone."""
    silence_s = SEND_S
    """How long the client may read nothing of a held answer."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a socket, which must not be used afterwards."""
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._held: deque[memoryview | FilePart] = deque()
        self._held_bytes = 0
        self._queued = 0

    @property
    def holds_rest(self) -> bool:
        """Whether something of an answer is still to be sent."""
        return bool(self._held)

    def begin_answer(self) -> None:
        """Reset to the defaults for the next answer."""
        self.is_stream = False
        self.silence_s = SEND_S

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send a piece of a stream; hold any other.

        Raises BlockingIOError if the client takes nothing.
        """
        if self.is_stream:
            super().sendall(data, flags)
            return
        self._held.append(memoryview(data))
        self._held_bytes += len(data)
        if self._held_bytes > SENT_TOGETHER:
            self.flush()
        while self._held_bytes > MOST_HELD:
            self._wait()
            self.flush()

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:  # type: ignore[override]
        """Hold a part of a file, which may be closed meanwhile."""
        length = os.fstat(file.fileno()).st_size - offset if count is None else count
        if length:
            self._held.append(FilePart(os.dup(file.fileno()), offset, length))
        return length

    def flush(self) -> None:
        """Send as much of what is held as the client takes at once.

        Raises OSError if the connection is broken.
        """
        try:
            while self._held:
                self._send_some()
        except BlockingIOError:
            self._queued = self._count_queued()

    def has_taken_some(self) -> bool:
        """Tell whether the client has read anything since the last flush or the last call of this.

        The poller would report it only after a third of the system's buffer was read, which may be megabytes.
        """
        before, self._queued = self._queued, self._count_queued()
        return self._queued < before

    def _count_queued(self) -> int:
        return int.from_bytes(fcntl.ioctl(self, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def close(self) -> None:
        """Close the connection, and forget what is held."""
        while self._held:
            if isinstance(piece := self._held.popleft(), FilePart):
                piece.close()
        super().close()

    def _send_some(self) -> None:
        first = self._held[0]
        if isinstance(first, FilePart):
            self.setblocking(False)
            first.send(self)
            if not first.count:
                self._held.popleft()
            return
        pieces: list[memoryview] = []
        for piece in self._held:
            if isinstance(piece, FilePart) or len(pieces) == MOST_PIECES:
                break
            pieces.append(piece)
        sent = self.sendmsg(pieces, (), socket.MSG_DONTWAIT)
        self._held_bytes -= sent
        for text in pieces:
            self._held.popleft()
            if sent < len(text):
                self._held.appendleft(text[sent:])
                return
            sent -= len(text)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self, select.POLLOUT)
        if not poll.poll(self.silence_s * 1000) and not self.has_taken_some():
            raise BlockingIOError(errno.EAGAIN, "The client does not read")

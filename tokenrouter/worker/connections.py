"""Clients' connections, and how requests are read from them: no thread waits for a head, or for a page's form."""

import os
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders, NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from tokenrouter.errors import is_api_path
from tokenrouter.provider.transport import timeval
from tokenrouter.request_body import MOST_PAGE_BYTES
from tokenrouter.worker.client_socket import ClientSocket

BODY_S, SLOWEST_BODY = 20.0, 50_000  # seconds for any body, and one more for each so many announced bytes
PAGE_BODY_S = 10.0  # for the body of a page's form
MOST_HEAD = 64 * 1024
MOST_LEFT = 64 * 1024  # of a body that the application did not read; beyond it the connection is closed
READ_SIZE = 64 * 1024

BARE_LF = re.compile(rb"(?<!\r)\n")  # a head with one is invalid, so there is no point in waiting for its end


class RequestReader(SocketUnreader):
    """Reads a connection for gunicorn's parser; never waits for the rest of a head, and not long for a body."""

    sock: ClientSocket

    def __init__(self, sock: ClientSocket, take_slot: Callable[[], Callable[[], None]]) -> None:
        """`take_slot` is called before a thread waits for a body; its result is called afterwards."""
        super().__init__(sock)
        self.lacks_bytes = False
        """Whether a request has begun whose rest has not come yet."""
        self._take_slot = take_slot
        self._head: bytearray | None = None
        self._is_whole = False
        self._is_given_out = False
        self._seen = 0
        self._wanted = 0
        self._deadline = 0.0

    @property
    def buffered(self) -> int:
        """How many bytes were read but not consumed yet."""
        return self.buf.seek(0, os.SEEK_END)

    def read_head(self) -> None:
        """Read a request's head to its end.

        Raises NoMoreData if its rest is not there, and LimitRequestHeaders.
        """
        self.lacks_bytes = self._is_given_out = False
        if self._head is None:
            self._head = bytearray(self.take_buffered())
            self._is_whole, self._seen = False, 0
        while not self._look_for_end(self._head):
            try:
                data = self.sock.recv(self.mxchunk, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self.lacks_bytes = True
                raise NoMoreData from None
            if not data:
                break
            self._head += data
        self.sock.head = bytes(self._head)
        if self._is_too_long(self._head):
            raise LimitRequestHeaders(f"The head is longer than {MOST_HEAD:,} bytes")

    def receive(self) -> bool:
        """Take what has arrived of a head, or of an expected body; return whether that is complete now.

        Raises OSError if the client has left.
        """
        try:
            data = self.sock.recv(READ_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionResetError
        if self._head is not None:
            self._head += data
            return self._look_for_end(self._head)
        self.buf.seek(0, os.SEEK_END)
        self.buf.write(data)
        return self.buf.tell() >= self._wanted

    def has(self, body_length: int) -> bool:
        """Tell whether a body of this length has arrived completely; otherwise `receive` collects it."""
        self._head = None
        self._wanted = body_length
        self.lacks_bytes = self.buffered < body_length
        return not self.lacks_bytes

    def allow(self, seconds: float) -> None:
        """Limit how long the rest of the body is waited for."""
        self._head = None
        self.lacks_bytes = False
        self._deadline = time.monotonic() + seconds

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next bytes, for gunicorn's parser.

        Raises NoMoreData if they did not come in time, and Overloaded where no more threads may wait.
        """
        return self._more_of_body(size_hint) if self._head is None else self._whole_head(self._head)

    def _whole_head(self, head: bytearray) -> bytes:
        if not self._is_given_out:
            self._is_given_out = True
            return self.sock.head
        try:  # the parser wants more than a head: after a line of the PROXY protocol
            data = self.sock.recv(self.mxchunk, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.lacks_bytes = True
            raise NoMoreData from None
        head += data
        return data

    def _look_for_end(self, head: bytearray) -> bool:
        """Tell whether the head is complete, or never will be valid; only new bytes are searched."""
        if not self._is_whole:
            start, self._seen = max(self._seen - 3, 0), len(head)
            end = head.find(b"\r\n\r\n", start)
            self._is_whole = end >= 0 or len(head) > MOST_HEAD or BARE_LF.search(head, start) is not None
        return self._is_whole

    @staticmethod
    def _is_too_long(head: bytearray) -> bool:
        return len(head) > MOST_HEAD and head.find(b"\r\n\r\n", 0, MOST_HEAD) < 0

    def _more_of_body(self, size_hint: int | None) -> bytes:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise NoMoreData
        size = min(max(size_hint or 0, self.mxchunk), self.max_body_chunk)
        try:
            return self.sock.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            give_back = self._take_slot()
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(left_s))
            return self.sock.recv(size)
        except BlockingIOError:
            raise NoMoreData from None
        finally:
            give_back()


class Parser(RequestParser):
    """gunicorn's parser, which returns a request once more after its body had to be waited for."""

    waiting: Request | None = None

    def __next__(self) -> Request:
        """Return the next request.

        Raises what gunicorn's raises.
        """
        request, self.waiting = self.waiting, None
        return request or super().__next__()


class Connection(TConn):
    """A client's connection."""

    parser: Parser
    reader: RequestReader
    deadline = 0.0
    """Until when it may wait in the poller, by the monotonic clock."""
    late: Callable[["Connection"], None]
    """Called once that has passed."""
    head_began: float | None = None
    """When the first part of a head came, by the same clock."""
    silent_since = 0.0
    """When the client last read something of its answer, by the same clock."""
    is_late = False
    """Whether the body of its request did not come in time."""
    is_plain = False
    """Whether it is HTTP/1 without TLS; others, which options of gunicorn enable, are handled by gunicorn alone."""

    def __init__(self, cfg: Any, sock: ClientSocket, address: Any, server: Any, take_slot: Callable[[], Any]) -> None:
        """`take_slot` is as for RequestReader."""
        super().__init__(cfg, sock, address, server)
        self._take_slot = take_slot
        self.data_ready = True  # it will be, when a thread gets the connection

    def init(self) -> None:
        """Prepare for the next request, whose head must have arrived; gunicorn calls this before each.

        Raises NoMoreData if it has not, and LimitRequestHeaders.
        """
        if not self.initialized:
            super().init()
            self.is_plain = not (self.is_http2 or self.cfg.is_ssl)
            if self.is_plain:
                self._take_over()
        if self.is_plain and self.parser.waiting is None:
            self.sock.begin_answer()
            self.reader.read_head()

    def _take_over(self) -> None:
        buffered = self.parser.unreader.take_buffered()
        self.parser = Parser(self.cfg, self.sock, self.client)
        self.reader = self.parser.unreader = RequestReader(self.sock, self._take_slot)
        self.reader.unread(buffered)

    @property
    def holds_rest(self) -> bool:
        """Whether the client has not yet read all of the last answer."""
        return self.is_plain and self.sock.holds_rest

    @property
    def lacks_bytes(self) -> bool:
        """Whether it has sent only part of a request."""
        return self.is_plain and self.reader.lacks_bytes

    def may_answer(self, request: Request) -> bool:
        """Tell whether the request can be answered now, or has to wait for its body first.

        A call's thread waits for the body itself, since it checks the token first; all other bodies are small.
        """
        self.head_began = None
        length = _length(request)
        if is_api_path(request.path):
            self.reader.allow(BODY_S + length / SLOWEST_BODY)
            return True
        if 0 < length <= MOST_PAGE_BYTES and not (self.is_late or self.reader.has(length)):
            self.parser.waiting = request
            self._invite_body(request)
            return False
        self.reader.allow(0 if self.is_late else PAGE_BODY_S)
        self.is_late = False
        return True

    def _invite_body(self, request: Request) -> None:
        if request._expected_100_continue:
            request._expected_100_continue = False
            self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def left_of_body(self) -> int:
        """Return how many bytes of the body the application did not read; 0 for a body without a length."""
        return _length(self.parser.mesg)


def _length(request: Request) -> int:
    length: int = getattr(request.body.reader, "length", 0)  # a chunked body announces none
    return length

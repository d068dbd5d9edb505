"""Clients' connections, and how requests are read from them: a thread never waits for a head or for a page's form."""

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

BODY_S, SLOWEST_BODY = 20.0, 50_000  # seconds for any body, and one more for so many bytes that it announces
PAGE_BODY_S = 10.0  # for the body of what is no call
MOST_HEAD = 64 * 1024
MOST_LEFT = 64 * 1024  # of a body that the application left unread; beyond it the connection ends
READ_SIZE = 64 * 1024

BARE_LF = re.compile(rb"(?<!\r)\n")  # no head with one is valid, and none may wait for its end


class RequestReader(SocketUnreader):
    """What gunicorn's parser reads a connection by: it never waits for the rest of a head, and not long for a body."""

    sock: ClientSocket

    def __init__(self, sock: ClientSocket, take_slot: Callable[[], Callable[[], None]]) -> None:
        """`take_slot` is called before a thread waits for a body, and returns what is called afterwards."""
        super().__init__(sock)
        self.lacks_bytes = False
        """Whether a request has begun whose rest is not there."""
        self._take_slot = take_slot
        self._head: bytearray | None = None
        self._is_whole = False
        self._is_given_out = False
        self._seen = 0
        self._wanted = 0
        self._deadline = 0.0

    @property
    def buffered(self) -> int:
        """How many bytes were read that nobody has taken yet."""
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
        """Take what came of a head, or of a body that is waited for; return whether that is whole now.

        Raises OSError if the client left before.
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
        """Tell whether a body of this length is all there; else `receive` waits for it."""
        self._head = None
        self._wanted = body_length
        self.lacks_bytes = self.buffered < body_length
        return not self.lacks_bytes

    def allow(self, seconds: float) -> None:
        """Wait no longer than this for what is still to come of the body."""
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
        try:  # a head that the parser does not find whole: behind a line of the PROXY protocol
            data = self.sock.recv(self.mxchunk, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.lacks_bytes = True
            raise NoMoreData from None
        head += data
        return data

    def _look_for_end(self, head: bytearray) -> bool:
        """Tell whether the head has an end, or cannot get one; only what is new is looked through."""
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
    """gunicorn's parser, which gives out once more the request whose body had to be waited for."""

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
    """For what it waits for in the poller, by the monotonic clock."""
    late: Callable[["Connection"], None]
    """What to do with it once that has passed."""
    head_began: float | None = None
    """When half a head was seen, by the same."""
    silent_since = 0.0
    """When the client took something of its answer last, by the same."""
    is_late = False
    """Whether the body that its request needs did not come in time."""
    is_plain = False
    """Whether it is HTTP/1 without TLS; the rest is gunicorn's, as an option of its command line asks for it."""

    def __init__(self, cfg: Any, sock: ClientSocket, address: Any, server: Any, take_slot: Callable[[], Any]) -> None:
        """`take_slot` is as for RequestReader."""
        super().__init__(cfg, sock, address, server)
        self._take_slot = take_slot
        self.data_ready = True  # by the time that a thread sees it

    def init(self) -> None:
        """Get ready to read a request, of which the head must be there; gunicorn calls it before each.

        Raises NoMoreData if it is not, and LimitRequestHeaders.
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
        """Whether the client has not taken the whole of the last answer yet."""
        return self.is_plain and self.sock.holds_rest

    @property
    def lacks_bytes(self) -> bool:
        """Whether it has sent half a request."""
        return self.is_plain and self.reader.lacks_bytes

    def may_answer(self, request: Request) -> bool:
        """Tell whether the request can be answered now, or has to wait for its body first.

        A call's body is waited for by its thread, since the token is looked at before; all else has a small one.
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
        """Return how many bytes the application left unread of a body; 0 where it announced none."""
        return _length(self.parser.mesg)


def _length(request: Request) -> int:
    length: int = getattr(request.body.reader, "length", 0)  # a chunked body announces none
    return length

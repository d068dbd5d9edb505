"""HTTP as it is spoken with the provider: a request in one write, a head by its lines, a body by whole reads.

Source: RFC 9112, 4 to 7. It stands on http.client's public extension points, where urllib3 and requests use them.
"""

import http.client
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

READ_SIZE, LONG_READ = 4 * 1024, 64 * 1024
LONGEST_LINE = 64 * 1024
MOST_HEADERS = 200
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)\r?\n")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:\r|;[^\n]*)?)?")
TRAILERS = re.compile(rb"(?:[^\r\n][^\n]*\n)*\r?\n")


class Unframer:
    """Take the content out of a chunked body, however its bytes are split over reads."""

    def __init__(self) -> None:
        """Start before the first chunk."""
        self.ended = False  # the last chunk and the trailers were seen
        self.broken = False  # what came is no chunk
        self._rest = b""  # what can be understood only with what comes next
        self._missing = 0  # content of the chunk that was begun
        self._is_inside = False  # a chunk was begun, and its line end not seen
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """Return the content of `data`: of all chunks that it has, the last one's beginning included."""
        if not self._rest and not self._is_inside:
            size, _, content = data.partition(b"\r\n")
            if len(content) > 2 and size.lower() == b"%x" % (len(content) - 2) and content.endswith(b"\r\n"):
                return content[:-2]  # one whole chunk, as most reads are
        return self._feed_slowly(self._rest + data)

    def _feed_slowly(self, data: bytes) -> bytes:
        parts, at = [], 0
        while not self._in_trailers:
            if self._is_inside:
                parts.append(data[at : at + self._missing])
                at += len(parts[-1])
                self._missing -= len(parts[-1])
                if self._missing or not data.startswith(b"\r\n", at):
                    break
                at += 2
                self._is_inside = False
            if (size := CHUNK_SIZE.match(data, at)) is None:
                break
            at = size.end()
            self._missing = int(size[1], 16)
            self._is_inside = self._missing > 0
            self._in_trailers = not self._is_inside
        self._rest = data[at:]
        self._look_at_rest()
        return b"".join(parts)

    def _look_at_rest(self) -> None:
        rest = self._rest
        if self._in_trailers:
            self.ended = TRAILERS.match(rest) is not None
        elif self._is_inside:
            self.broken = rest not in (b"", b"\r")
        else:
            self.broken = SIZE_BEGUN.fullmatch(rest) is None
        self.broken = self.broken or len(rest) > LONGEST_LINE


class Answer(http.client.HTTPResponse):
    """An answer: its head costs 40 µs less than by http.client's parser of e-mail, a chunk of its body 20 µs less."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        """Stand before the first byte of an answer on this socket."""
        super().__init__(sock, *args, **kwargs)
        self._sock = sock
        self.began = False  # a first byte has come, so the request has been taken

    def begin(self) -> None:
        """Read the status line and the headers; the connection calls it.

        Raises http.client.HTTPException where they are not HTTP.
        """
        if self.headers is not None:
            return
        self.status = 100
        while 100 <= self.status < 200:  # those announce an answer and are none
            self._read_status_line()
            headers = self._read_headers()
        self.code = self.status
        self.headers = self.msg = headers
        self.chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        self.length = None if self.chunked else self._content_length()
        options = headers.get("connection", "").lower()
        stays_open = "close" not in options and (self.version == 11 or "keep-alive" in options)
        self.will_close = not (stays_open and (self.chunked or self.length is not None))

    def _await_first_byte(self) -> None:
        try:
            self.began = bool(self.fp.peek(1))
        except ConnectionError as error:
            raise http.client.RemoteDisconnected("The connection was reset without an answer") from error

    def _read_status_line(self) -> None:
        if not self.began:
            self._await_first_byte()
        line = self.fp.readline(LONGEST_LINE)
        if not line:
            raise http.client.RemoteDisconnected("The connection was closed without an answer")
        version, _, rest = line.rstrip(b"\r\n").partition(b" ")
        status, _, reason = rest.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(status) != 3 or not status.isdigit():
            raise http.client.BadStatusLine(repr(line[:100]))
        self.version = 11 if version == b"HTTP/1.1" else 10
        self.status = int(status)
        self.reason = reason.decode("latin-1").strip()

    def _read_headers(self) -> http.client.HTTPMessage:
        headers = http.client.HTTPMessage()
        for _ in range(MOST_HEADERS + 1):
            line = self.fp.readline(LONGEST_LINE)
            if line in (b"\r\n", b"\n"):
                return headers
            header = HEADER.fullmatch(line)
            if header is None:
                raise http.client.HTTPException("a line of the head is no header")
            headers[header[1].decode()] = header[2].decode("latin-1").strip()
        raise http.client.HTTPException(f"the head has more than {MOST_HEADERS} headers")

    def _content_length(self) -> int | None:
        if self.status in (204, 304):
            return 0
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()):
            raise http.client.HTTPException("the length of the body is no number")
        return int(text)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives, at once and whatever its framing; once it is over the connection is free.

        Raises http.client.HTTPException where it breaks off, and an OSError: TimeoutError or, for the same,
        BlockingIOError.
        """
        return self._unframed_pieces() if self.chunked else self._plain_pieces()

    def _unframed_pieces(self) -> Iterator[bytes]:
        unframer = Unframer()
        receive: Callable[[int], bytes] | None = None
        data = self.fp.read1(LONG_READ)  # empties the buffer that the head was read through
        while data:
            content = unframer.feed(data)
            if unframer.ended:
                self.close()
            if content:
                yield content
            if unframer.ended:
                return
            if unframer.broken:
                raise http.client.HTTPException("what follows a chunk is none")
            receive = receive or self._receiver()
            data = receive(LONG_READ if len(data) >= READ_SIZE else READ_SIZE)  # a buffer is made for all that may come
        raise http.client.IncompleteRead(b"")

    def _receiver(self) -> Callable[[int], bytes]:
        """Return what receives the rest of a long body from the socket.

        Python waits for a socket with a timeout by a system call of its own before each read, and gives its lock away
        for both; where the kernel keeps the time it is one. That is a sixth of a chunk's CPU. TLS needs Python's way.
        """
        self.fp = self.fp.detach()  # its buffer would stay for as long as the answer
        timeout_s = self._sock.gettimeout()
        if timeout_s and not isinstance(self._sock, ssl.SSLSocket):
            whole_s, part = divmod(timeout_s, 1)
            self._sock.settimeout(None)  # urllib3 sets it anew for the next call
            timeval = struct.pack("@ll", int(whole_s), int(part * 1e6))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        return self._sock.recv

    def _plain_pieces(self) -> Iterator[bytes]:
        while self.length:
            data = self.fp.read1(min(self.length, LONG_READ))
            if not data:
                raise http.client.IncompleteRead(b"", self.length)
            self.length -= len(data)
            if not self.length:
                self.close()
            yield data
        if self.length is None:  # the end of the connection is the end of the body
            yield from iter(partial(self.fp.read1, READ_SIZE), b"")
        self.close()


class Line:
    """What one call has of the connections to the provider; another thread may cut it at any time."""

    def __init__(self) -> None:
        """Have none yet."""
        self.reason: Exception | None = None  # why it was cut
        self.must_be_new = False  # a connection that has been used before will not do
        self._connection: ProviderConnection | None = None
        self._was_used_before = False
        self._was_connected = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def take(self, connection: "ProviderConnection") -> None:
        """Use this connection, whose socket may still be to be made.

        Raises the reason if the line was cut.
        """
        self._connection = connection
        self._was_used_before = connection.sock is not None
        self.connect(connection.sock)

    def connect(self, sock: socket.socket | None) -> None:
        """Use this socket of the connection's, likewise."""
        with self._lock:
            if self.reason is not None:
                raise self.reason
            self._socket = sock
            self._was_connected = self._was_connected or sock is not None

    def release(self) -> None:
        """Have nothing to do with the connection any more, which other calls may use."""
        with self._lock:
            self._socket = None

    def cut(self, reason: Exception) -> bool:
        """End what waits for the provider; return False where it was never connected and so wakes only later."""
        with self._lock:
            self.reason = self.reason or reason
            if self._socket is not None:
                with suppress(OSError):  # the other side was faster
                    # not TLS's own method, which would have the rest of what was received taken for plain text
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return self._was_connected

    def was_stale(self) -> bool:
        """Tell whether the provider had closed the connection, used before, when the call was sent: without a byte."""
        answer = self._connection.answer if self._connection is not None else None
        return self._was_used_before and self.reason is None and not (answer is not None and answer.began)


at_work = threading.local()
"""Has the `line` of the call that a thread sends, since urllib3 hands none through."""


class ProviderConnection:
    """What a connection of urllib3's, to which this is mixed in, does otherwise with the provider."""

    answer: Answer | None = None
    _gathered: list[bytes] | None = None

    def connect(self) -> None:
        """Connect, and let the call's line know the socket."""
        super().connect()
        at_work.line.connect(self.sock)

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request, head and body in one write where http.client makes two: 30 µs a call. Files go in pieces."""
        self.answer = None
        if at_work.line.must_be_new:
            self.close()
        at_work.line.take(self)
        if hasattr(kwargs.get("body"), "read"):
            super().request(*args, **kwargs)
            return
        self._gathered = []
        try:
            super().request(*args, **kwargs)
        finally:
            gathered, self._gathered = self._gathered, None
        super().send(b"".join(gathered))

    def send(self, data: bytes) -> None:
        """Send bytes, or keep them until the request is whole."""
        if self._gathered is None:
            super().send(data)
        else:
            self._gathered.append(data)

    def response_class(self, *args: Any, **kwargs: Any) -> Answer:
        """Make the answer, as http.client does by a class of this name, and remember it for who will read its body."""
        self.answer = Answer(*args, **kwargs)
        return self.answer

"""HTTP as it is spoken with the provider: a request in one write, a head by one expression, a body by whole reads.

Source: RFC 9112, 2 to 7. It stands on what urllib3 lets a connection and a response of its own do.
"""

import http.client
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

from urllib3 import HTTPHeaderDict, HTTPResponse

READ_SIZE, LONG_READ = 4 * 1024, 64 * 1024
EVENT_READ = 479  # the most for which Python does not ask the C library: a waiting stream took 30 KB more
LONGEST_HEAD = LONGEST_LINE = 64 * 1024
MOST_HEADERS = 200
PROTOCOL = b"HTTP/1."
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})(?: ([^\r\n]*))?\r?")
FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r?\n)*\r?\n")
FIELD = re.compile(rb"([^:\n]+):([^\n]*)\n")
HEAD_END = re.compile(rb"\n\r?\n")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:\r|;[^\n]*)?)?")
TRAILERS = re.compile(rb"(?:[^\r\n][^\n]*\n)*\r?\n")

Receive = Callable[[int], bytes]


class Unframer:
    """Take the content out of a chunked body, however its bytes are split over reads."""

    def __init__(self) -> None:
        """Start before the first chunk."""
        self.ended = False  # the last chunk and the trailers were seen
        self.broken = False  # what came is no chunk
        self.has_excess = False  # more came behind the end
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
            trailers = TRAILERS.match(rest)
            self.ended = trailers is not None
            self.has_excess = self.ended and trailers.end() < len(rest)
        elif self._is_inside:
            self.broken = rest not in (b"", b"\r")
        else:
            self.broken = SIZE_BEGUN.fullmatch(rest) is None
        self.broken = self.broken or len(rest) > LONGEST_LINE


class Content:
    """The body of an answer, taken from its connection by whole reads, whatever its framing."""

    def __init__(self, receive: Receive, begun: bytes, length: int | None, *, is_chunked: bool) -> None:
        """Read nothing yet; some of it may have come behind the head. Without a length the connection ends it."""
        self.closed = False  # it was read to its end
        self.has_excess = False  # more came than its framing said, which no next answer may be taken from
        self._receive = receive
        self._begun = begun
        self._length = length
        self._is_chunked = is_chunked
        self._decoders_pieces: Iterator[bytes] | None = None

    def pieces(self) -> Iterator[bytes]:
        """Yield it as it arrives, at once.

        Raises http.client.HTTPException where it breaks off, and an OSError: TimeoutError or, for the same,
        BlockingIOError.
        """
        if self._is_chunked:
            return self._chunks()
        return self._rest_of_connection() if self._length is None else self._so_many_bytes(self._length)

    def read1(self, most_bytes: int) -> bytes:
        """Return the next piece, of whatever size, to urllib3 that decodes it."""
        self._decoders_pieces = self._decoders_pieces or self.pieces()
        return next(self._decoders_pieces, b"")

    read = read1  # by which urllib3 knows a body that can be read

    def close(self) -> None:
        """Leave the connection to who owns it, for urllib3."""

    def _chunks(self) -> Iterator[bytes]:
        unframer = Unframer()
        for data in self._reads():
            content = unframer.feed(data)
            if unframer.ended:
                self.has_excess = unframer.has_excess
                self.closed = True
            if content:
                yield content
            if unframer.ended:
                return
            if unframer.broken:
                raise http.client.HTTPException("what follows a chunk is none")
        raise http.client.IncompleteRead(b"")

    def _reads(self) -> Iterator[bytes]:
        """Yield what arrives until the connection ends.

        A thread waits with a buffer for all that it asks for, so it asks for an event as most are, for more where the
        first one is larger, and for much while much is there.
        """
        if self._begun:
            yield self._begun
        size = usual = EVENT_READ
        while data := self._receive(size):
            if len(data) < size:
                size = usual
            else:
                size, usual = LONG_READ, READ_SIZE
            yield data

    def _so_many_bytes(self, left: int) -> Iterator[bytes]:
        data = self._begun
        while left:
            data = data or self._receive(min(left, LONG_READ))
            if not data:
                raise http.client.IncompleteRead(b"", left)
            piece, data = data[:left], data[left:]
            left -= len(piece)
            self.closed = not left
            yield piece
        self.has_excess = bool(data)
        self.closed = True

    def _rest_of_connection(self) -> Iterator[bytes]:
        yield from self._reads()
        self.closed = True


class Answer(HTTPResponse):
    """An answer as urllib3 hands it on, but read by us: its head costs 110 µs less than by http.client and urllib3."""

    def __init__(self, receive: Receive, begun: bytes = b"") -> None:
        """Read the head of an answer, of which something may have come.

        Raises http.client.HTTPException where it is none.
        """
        status = 100
        while 100 <= status < 200:  # those announce an answer and are none
            head, begun = _read_head(receive, begun)
            line, _, lines = head.partition(b"\n")
            version, status, reason = _read_status_line(line)
        headers = HTTPHeaderDict(_read_fields(lines))
        is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = None if is_chunked else _content_length(headers, status)
        self.content = Content(receive, begun, length, is_chunked=is_chunked)
        super().__init__(
            self.content, headers, status, version, reason=reason, preload_content=False, enforce_content_length=False
        )
        options = headers.get("connection", "").lower()
        stays_open = "close" not in options and (version == 11 or "keep-alive" in options)
        self.will_close = not (stays_open and (is_chunked or length is not None))

    @property
    def is_encoded(self) -> bool:
        """Whether the body is to be decoded, as only urllib3 can."""
        return self.headers.get("content-encoding", "identity") != "identity"

    def release_conn(self) -> None:
        """Give the connection back for the next call, if it can serve one."""
        if (self.will_close or self.content.has_excess) and self.connection is not None:
            self.connection.close()
        super().release_conn()


def _read_head(receive: Receive, begun: bytes) -> tuple[bytes, bytes]:
    """Return a head with its empty line, and what came behind it."""
    seen = 0
    while (end := HEAD_END.search(begun, max(0, seen - 2))) is None:
        if not begun.startswith(PROTOCOL[: len(begun)]):
            raise http.client.BadStatusLine(repr(begun[:100]))
        if len(begun) > LONGEST_HEAD:
            raise http.client.HTTPException(f"the head is longer than {LONGEST_HEAD:,} bytes")
        seen = len(begun)
        more = receive(READ_SIZE)
        if not more:
            raise http.client.IncompleteRead(begun)
        begun += more
    return begun[: end.end()], begun[end.end() :]


def _read_status_line(line: bytes) -> tuple[int, int, str]:
    found = STATUS_LINE.fullmatch(line)
    if found is None:
        raise http.client.BadStatusLine(repr(line[:100]))
    return 10 + int(found[1]), int(found[2]), found[3].decode("latin-1").strip()


def _read_fields(lines: bytes) -> list[tuple[str, str]]:
    if FIELDS.fullmatch(lines) is None:
        raise http.client.HTTPException("a line of the head is no header")
    fields = FIELD.findall(lines)
    if len(fields) > MOST_HEADERS:
        raise http.client.HTTPException(f"the head has more than {MOST_HEADERS} headers")
    return [(name.decode(), value.decode("latin-1").strip()) for name, value in fields]


def _content_length(headers: HTTPHeaderDict, status: int) -> int | None:
    if status in (204, 304):
        return 0
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise http.client.HTTPException("the length of the body is no number")
    return int(text)


class ProviderLink:
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

        Raises the reason if the link was cut.
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
        return self._was_used_before and self.reason is None and not self._connection.has_answered


at_work = threading.local()
"""Has the `link` of the call that a thread sends, since urllib3 hands none through."""


class ProviderConnection:
    """What a connection of urllib3's, to which this is mixed in, does otherwise with the provider.

    urllib3 connects it, to a proxy and by TLS if need be, pools it, and looks before each call whether it still stands.
    """

    has_answered = False
    """Whether a byte of an answer has come since the last request was begun, so that the provider has taken it."""
    _waits_s: float | None = None

    def connect(self) -> None:
        """Connect, and let the call's link know the socket.

        Python waits for a socket with a timeout by a system call of its own before each read, and gives its lock away
        for both; where the kernel keeps the time it is one. That is a sixth of a chunk's CPU. TLS needs Python's way.
        """
        super().connect()
        if not isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(None)
            if self.timeout:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self.timeout))
        self._waits_s = None
        at_work.link.connect(self.sock)

    def request(
        self, method: str, url: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str], **_: Any
    ) -> None:
        """Send a request, whose headers are all given, in one write, where http.client makes two: 30 µs less a call.

        Raises ValueError where a header would break the head, and OSError.
        """
        self.has_answered = False
        if at_work.link.must_be_new:
            self.close()
        at_work.link.take(self)
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(self.timeout)  # of another it is the kernel's to keep
        lines = [f"{method} {url} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
            raise ValueError("a header has more than one line")
        data = head.encode("latin-1")
        if isinstance(body, bytes):
            self.send(data + body)
            return
        self.send(data)
        if body is not None:
            self.send(body)

    def getresponse(self) -> Answer:
        """Wait for the answer, and read its head."""
        self.wait_at_most(self.timeout)
        try:
            begun = self.sock.recv(READ_SIZE)
        except ConnectionError as error:
            raise http.client.RemoteDisconnected("The connection was reset without an answer") from error
        if not begun:
            raise http.client.RemoteDisconnected("The connection was closed without an answer")
        self.has_answered = True
        return Answer(self.sock.recv, begun)

    def wait_at_most(self, seconds: float | None) -> None:
        """Wait no longer than this for each read from now on."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(seconds)
        elif seconds != self._waits_s:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))
            self._waits_s = seconds


def timeval(seconds: float | None) -> bytes:
    """Return a time as the kernel takes it for a socket; None is no limit."""
    whole_s, part = divmod(0 if seconds is None else max(seconds, 0.001), 1)
    return struct.pack("@ll", int(whole_s), int(part * 1e6))

"""HTTP as it is spoken with the provider: a request in one write, and an answer parsed by llhttp as its bytes arrive.

Source: RFC 9112, 2 to 7. It stands on what urllib3 lets a connection and a response of its own do.
"""

import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from urllib3 import HTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.util.ssltransport import SSLTransport

READ_SIZE, LONG_READ = 4 * 1024, 64 * 1024
EVENT_READ = 479  # the most for which Python does not ask the C library: a waiting stream took 30 KB more
LONGEST_HEAD = LONGEST_FRAMING = 64 * 1024
MOST_HEADERS = 200
MOST_ANNOUNCEMENTS = 10
STALE_S = (
    1.0  # in which a connection that the provider had closed shows it; later, the provider may have worked on the call
)
VERSIONS = ("1.0", "1.1")

Receive = Callable[[int], bytes]


class ParsedAnswer:
    """What was found of an answer so far, as its parser reports it; of an announcement (1xx) nothing is kept."""

    def __init__(self) -> None:
        self.status = 0
        self.version = ""
        self.stays_open = False  # the connection, once the answer ended
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []  # of the body, those not handed on yet
        self.has_head = self.has_end = False
        self._announcements = 0
        self.on_body = self.pieces.append
        self.parser = HttpResponseParser(self)
        self.parser.set_dangerous_leniencies(
            # gateways send a length beside chunks, which win: RFC 9112, 6.3
            lenient_chunked_length=True,
            # small servers end the lines of a head by LF alone, as one may take them: RFC 9112, 2.2
            lenient_optional_cr_before_lf=True,
            # old ones pad the sizes of chunks, which one must take: RFC 9112, 7.1.1 and RFC 9110, 5.6.3
            lenient_spaces_after_chunk_size=True,
        )

    def on_message_begin(self) -> None:
        """Let nothing behind the answer be parsed."""
        if self.has_end:
            raise HttpParserError("more came than the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. A trailer is none."""
        if not self.has_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Keep what only the parser knows, and part from it: each would keep the other alive."""
        self.status = self.parser.get_status_code()
        if 100 <= self.status < 200:
            self._announcements += 1
            if self._announcements > MOST_ANNOUNCEMENTS:
                raise HttpParserError(f"more than {MOST_ANNOUNCEMENTS} announcements came before the answer")
            self.headers.clear()
            return
        self.version = self.parser.get_http_version()
        if self.version not in VERSIONS or len(self.headers) > MOST_HEADERS:
            raise HttpParserError(f"the head is of HTTP {self.version} or has more than {MOST_HEADERS} headers")
        self.stays_open = self.parser.should_keep_alive()
        self.has_head = True
        del self.parser

    def on_message_complete(self) -> None:
        """Tell the end of the answer from that of an announcement."""
        self.has_end = self.has_head


class Content:
    """The body of an answer, taken from its connection by whole reads, whatever its framing."""

    def __init__(self, receive: Receive, received: bytes) -> None:
        """Read the head, of which something may have been received; the first of the body may come with it.

        Raises http.client.HTTPException where it is none.
        """
        self.found = ParsedAnswer()
        self.ends_with_connection = False
        self.has_surplus = False  # more came than the answer, which no next one may be taken from
        self._receive = receive
        self._parser = self.found.parser
        self._error: str | None = None
        self._decoders_pieces: Iterator[bytes] | None = None
        self._read_head(received)

    def _read_head(self, received: bytes) -> None:
        size = 0
        while True:
            self._parse(received)
            if self.found.has_head:
                return
            size += len(received)
            if size > LONGEST_HEAD:
                self._error = f"the head is longer than {LONGEST_HEAD:,} bytes"
            if self._error is not None:
                raise http.client.HTTPException(self._error)
            received = self._receive(READ_SIZE)
            if not received:
                raise http.client.IncompleteRead(b"")

    def _parse(self, received: bytes) -> None:
        """Find what these bytes bring; an error in them is kept until all before it was handed on."""
        try:
            self._parser.feed_data(received)
        except (HttpParserError, HttpParserUpgrade) as error:
            if self.found.has_end:
                self.has_surplus = True
            else:
                self._error = str(error)

    def __iter__(self) -> Iterator[bytes]:
        """Yield it as it arrives, at once.

        A thread waits with a buffer for all that it asks for, so it asks for an event as most are, for more where the
        first one is larger, and for much while much is there.
        Raises http.client.HTTPException where it breaks off, and an OSError: TimeoutError or, for the same,
        BlockingIOError.
        """
        found, pieces = self.found, self.found.pieces
        size = usual = EVENT_READ
        framing = 0  # bytes since the last content
        while True:
            if pieces:
                piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces.clear()
                framing = 0
                yield piece
            if found.has_end:
                return
            if framing > LONGEST_FRAMING:
                self._error = f"{LONGEST_FRAMING:,} bytes came without content"
            if self._error is not None:
                raise http.client.HTTPException(self._error)
            received = self._receive(size)
            if not received:
                break
            if len(received) < size:
                size = usual
            else:
                size, usual = LONG_READ, READ_SIZE
            framing += len(received)
            self._parse(received)
        if not self.ends_with_connection:
            raise http.client.IncompleteRead(b"")
        found.has_end = True

    @property
    def closed(self) -> bool:
        """Whether it was handed on to its end."""
        return self.found.has_end and not self.found.pieces

    def read1(self, most_bytes: int) -> bytes:
        """Return the next piece, of whatever size, to urllib3 that decodes it."""
        self._decoders_pieces = self._decoders_pieces or iter(self)
        return next(self._decoders_pieces, b"")

    read = read1  # by which urllib3 knows a body that can be read

    def close(self) -> None:
        """Leave the connection to who owns it, for urllib3."""


class Answer(HTTPResponse):
    """An answer as urllib3 hands it on, but read by us: its head costs 110 µs less than by http.client and urllib3.

    `fields` are its headers, by their names in small letters. urllib3 knows but what it needs to decode the body.
    """

    def __init__(self, receive: Receive, received: bytes = b"") -> None:
        """Read the head of an answer, of which something may have been received.

        Raises http.client.HTTPException where it is none, or its body is encoded for the way in another form than
        chunks: one may do so only for who asks for it by TE, which we never do (RFC 9112, 7.4).
        """
        self.content = Content(receive, received)
        found = self.content.found
        self.fields = _joined(found.headers)
        found.headers.clear()
        self.will_close = not found.stays_open
        codings = self.fields.get("transfer-encoding")
        if codings is not None:
            if any(coding.strip().lower() != "chunked" for coding in codings.split(",")):
                raise http.client.HTTPException("the body is encoded in a way that was not asked for")
            # who sends a length as well, or chunks in a version without them, may see another end of the answer
            if self.fields.pop("content-length", None) is not None or found.version == "1.0":
                self.will_close = True
        elif not (found.has_end or "content-length" in self.fields):
            self.content.ends_with_connection = True
        to_decode = {"content-encoding": self.fields["content-encoding"]} if "content-encoding" in self.fields else None
        super().__init__(self.content, to_decode, found.status, preload_content=False, enforce_content_length=False)

    @property
    def is_encoded(self) -> bool:
        """Whether the body is to be decoded, as only urllib3 can."""
        return self.fields.get("content-encoding", "identity") != "identity"

    def release_conn(self) -> None:
        """Give the connection back for the next call; if it cannot serve one, closed, which stops the cost."""
        connection = self.connection
        is_unfit = not self.closed or self.will_close or self.content.has_surplus
        if connection is not None and is_unfit:  # what comes after this is seen before the next call
            connection.close()
        super().release_conn()


def _joined(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by their names in small letters; the values of one name are a list. Source: RFC 9110, 5.3."""
    fields: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("ascii").lower(), value.rstrip(b" \t").decode("latin-1")
        fields[key] = f"{fields[key]}, {text}" if key in fields else text
    return fields


class ProviderLink:
    """What one call has of the connections to the provider; another thread may cut it at any time."""

    def __init__(self) -> None:
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

    def connect(self, sock: socket.socket | SSLTransport | None) -> None:
        """Use this socket of the connection's, likewise; of TLS within TLS the outer one, which can be shut down."""
        with self._lock:
            if self.reason is not None:
                raise self.reason
            self._socket = sock.socket if isinstance(sock, SSLTransport) else sock
            self._was_connected = self._was_connected or sock is not None

    def release(self) -> None:
        """Let other calls have the connection, which is cut with this one no longer."""
        with self._lock:
            self._socket = None

    def cut(self, reason: Exception) -> bool:
        """End what waits for the provider; return False if it was never connected and so wakes only later."""
        with self._lock:
            self.reason = self.reason or reason
            if self._socket is not None:
                with suppress(OSError):  # the other side was faster
                    # not TLS's own method, which would have the rest of what was received taken for plain text
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return self._was_connected

    def was_stale(self) -> bool:
        """Tell whether the provider had closed the connection, used before, when the call was sent.

        It shows that at once, without a byte: what closes later may have been worked on, and billed.
        """
        if self._connection is None or self.reason is not None:
            return False
        at_once = time.monotonic() - self._connection.sent_at < STALE_S
        return self._was_used_before and not self._connection.has_answered and at_once


class AtWork(threading.local):
    """Has the link of the call that a thread sends, since urllib3 hands none through."""

    link: ProviderLink


at_work = AtWork()


class ProviderConnection(HTTPConnection):
    """What a connection of urllib3's, to whose class this is mixed in, does otherwise with the provider.

    urllib3 connects it, to a proxy and by TLS if need be, pools it, and looks before each call whether it still stands.
    """

    has_answered = False
    """Whether a byte of an answer has come since the last request was sent, so that the provider has taken it."""
    sent_at = 0.0
    """When the last request was begun, by the monotonic clock."""
    _is_plain = False  # the socket, without TLS
    _waits_s: float | None = None
    _reached: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        """Reach the other side, and let the call's link know: a proxy and TLS may be spun out as long as one likes.

        It gets a duplicate, since TLS takes the descriptor away from the socket's object.
        """
        reached = super()._new_conn()
        self._reached = reached.dup()
        try:
            at_work.link.connect(self._reached)
        except Exception:  # it was cut meanwhile
            reached.close()
            raise
        return reached

    def connect(self) -> None:
        """Connect, and let the call's link know the socket.

        Python waits for a socket with a timeout by a system call of its own before each read, and gives its lock away
        for both; where the kernel keeps the time it is one. That is a sixth of a chunk's CPU. TLS needs Python's way.
        """
        try:
            super().connect()
            self._is_plain = type(self.sock) is socket.socket
            if self._is_plain:
                self.sock.settimeout(None)
                if self.timeout:
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self.timeout))
            self._waits_s = None
            at_work.link.connect(self.sock)
        finally:
            if self._reached is not None:
                self._reached.close()

    @property
    def is_connected(self) -> bool:
        """Whether it can serve a call: it stands, and nothing came that the call would take for its answer.

        What came by TLS may have been decrypted already, or be TLS's own, such as a ticket: to read without waiting
        takes that in.
        """
        is_silent = super().is_connected
        if self.sock is None or self._is_plain:
            return is_silent
        if is_silent and isinstance(self.sock, ssl.SSLSocket):
            return self.sock.pending() == 0
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False

    def request(
        self, method: str, url: str, body: Any = None, headers: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Send a request, whose headers are all given, in one write, where http.client makes two: 30 µs less a call.

        A body is bytes or a file. Raises ValueError if a header would break the head, and OSError.
        """
        self.has_answered = False
        self.sent_at = time.monotonic()
        if at_work.link.must_be_new:
            self.close()
        at_work.link.take(self)
        if self.sock is not None and not self._is_plain:
            self.sock.settimeout(self.timeout)  # of another it is the kernel's to keep
        fields = (f"{name}: {value}" for name, value in (headers or {}).items())
        lines = [f"{method} {url} HTTP/1.1", *fields, "", ""]
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

    def getresponse(self) -> Answer:  # type: ignore[override]  # nor is urllib3's one of http.client's
        """Wait for the answer, and read its head."""
        self.wait_at_most(self.timeout)
        try:
            received = self.sock.recv(READ_SIZE)
        except ConnectionError as error:
            raise http.client.RemoteDisconnected("The connection was reset without an answer") from error
        if not received:
            raise http.client.RemoteDisconnected("The connection was closed without an answer")
        self.has_answered = True
        return Answer(self.sock.recv, received)

    def wait_at_most(self, seconds: float | None) -> None:
        """Wait no longer than this for each read from now on."""
        if not self._is_plain:
            self.sock.settimeout(seconds)
        elif seconds != self._waits_s:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))
            self._waits_s = seconds


def timeval(seconds: float | None) -> bytes:
    """Return a time as the kernel takes it for a socket; None is no limit."""
    whole_s, part = divmod(0 if seconds is None else max(seconds, 0.001), 1)
    return struct.pack("@ll", int(whole_s), int(part * 1e6))

"""Talk HTTP down to the bytes, as no HTTP library would: as a client of the service, and as its provider."""

import json
import socket
import ssl
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from urllib.parse import urlsplit

from serving import Server

from tokenrouter.standin import StandInProvider

# Clients


def connect(to: Server | StandInProvider, timeout_s: float = 30, *, receive_buffer: int | None = None) -> socket.socket:
    """Open a connection; a small buffer makes a client that reads little at a time."""
    address = urlsplit(to.url if isinstance(to, Server) else to.base_url)
    with ExitStack() as unless_connected:
        connection = unless_connected.enter_context(socket.socket())
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(timeout_s)
        connection.connect((address.hostname, address.port))
        unless_connected.pop_all()
    return connection


def chat_request(bearer_token: str, body: dict[str, object], *headers: str) -> bytes:
    """Return a chat request as it goes over the wire."""
    sent = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {bearer_token}", f"Content-Length: {len(sent)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + sent


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes, or for as long as the connection's timeout."""
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionResetError:
        pass  # the end all the same
    return got


def read_until(connection: socket.socket, mark: bytes, *, times: int = 1, got: bytes = b"") -> bytes:
    """Read on after what was got, until a mark has come so many times; fail where the other side closes before."""
    while got.count(mark) < times:
        data = connection.recv(65536)
        assert data, got
        got += data
    return got


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read an answer that announces its length; return its head and its body."""
    head, _, body = read_until(connection, b"\r\n\r\n").partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def reset(connection: socket.socket) -> None:
    """Close the connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class RawClient:
    """A client that has sent a chat request, and may leave whenever it likes."""

    def __init__(self, server: Server, bearer_token: str, body: dict[str, object]) -> None:
        self.got = b""
        self._connection = connect(server)
        self._connection.sendall(chat_request(bearer_token, body))

    def read_until(self, mark: bytes, times: int = 1) -> None:
        """Read on until a mark has come so many times."""
        self.got = read_until(self._connection, mark, times=times, got=self.got)

    def leave(self, *, abruptly: bool) -> None:
        """Close the connection, with a reset if it is to be abrupt."""
        if abruptly:
            reset(self._connection)
        else:
            self._connection.close()


# Providers


class RawProvider(ABC):
    """Listen on a port of this machine for as long as the block, by TLS where there is a context for it."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def url(self) -> str:
        """The address that the service is told."""
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a write has arrived once it is made
            self.connections += 1
            self._threads.append(threading.Thread(target=self._answer, args=(connection, self.connections)))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket, number: int) -> None:
        with connection:
            try:
                stream = self.context.wrap_socket(connection, server_side=True) if self.context else connection
            except OSError:
                return  # the other side does not trust the certificate
            with stream:
                self.answer(stream, number)

    @abstractmethod
    def answer(self, connection: socket.socket, number: int) -> None:
        """Do what is to be done with one connection, which is closed afterwards; they are counted from 1."""


class ScriptedProvider(RawProvider):
    """Answer the requests of each connection by the bytes of a list; None closes it in place of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[list[bytes | None]] = []  # a list for each connection, in the order in which they come
        self.requests: list[bytes] = []
        self.how_to_close: Callable[[socket.socket], Any] = socket.socket.close

    def answer(self, connection: socket.socket, number: int) -> None:
        """Play the script."""
        for answer in self.scripts[number - 1] if number <= len(self.scripts) else []:
            request = self._read(connection)
            if not request:
                return
            self.requests.append(request)
            if answer is None:
                self.how_to_close(connection)
                return
            connection.sendall(answer)
        connection.recv(1)  # until the other side closes

    def _read(self, connection: socket.socket) -> bytes:
        got = b""
        while b"\r\n\r\n" not in got or not got.endswith((b"}", b"--\r\n")):
            data = connection.recv(65536)
            if not data:
                return b""
            got += data
        return got


@contextmanager
def deaf_port() -> Iterator[int]:
    """Yield a port on which connecting takes for ever, since nobody takes what waits there."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        yield address[1]
        for each in waiting:
            each.close()

"""The provider's bytes as they come from a socket: heads, framings, and bodies that break off."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tokenrouter import config
from tokenrouter.provider.client import Provider
from tokenrouter.provider.transport import LONG_READ, Answer, Unframer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def framed(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.fixture
def answer_to() -> Callable[..., Answer]:
    """Send the bytes of an answer into a socket, close its other end, and return the answer with its head read."""
    pairs = []

    def answer(sent: bytes, *, closes: bool = True, timeout_s: float | None = 2.0) -> Answer:
        ours, theirs = socket.socketpair()
        pairs.append((ours, theirs))
        ours.settimeout(timeout_s)
        theirs.sendall(sent)
        if closes:
            theirs.shutdown(socket.SHUT_WR)
        return Answer(ours.recv)

    yield answer
    for pair in pairs:
        for each in pair:
            each.close()


# Heads


def test_headers_are_read_as_they_were_sent(answer_to: Callable[..., Answer]):
    found = answer_to(HEAD + b"X-Odd:caf\xe9 : b \t\r\nX-Empty:\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n")
    assert (found.status, found.reason, found.version) == (200, "OK", 11)
    given = [("X-Odd", "caf\xe9 : b"), ("X-Empty", ""), ("X-Twice", "1"), ("X-Twice", "2")]
    assert list(found.headers.iteritems())[1:] == given


@pytest.mark.parametrize(
    "announcement", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
)
def test_what_announces_an_answer_is_passed_over(answer_to: Callable[..., Answer], announcement: bytes):
    assert answer_to(announcement * 2 + HEAD + b"Content-Length: 0\r\n\r\n").status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"<!DOCTYPE html>\r\n\r\n",
        HEAD + b"No header\r\n\r\n",
        HEAD + b"Bad name: x\r\n\r\n",
        HEAD + b" folded: x\r\n\r\n",
        HEAD + b"X: a\x00b\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1_0\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n",
        HEAD + b"X: y\r\n" * 201 + b"\r\n",
        HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        HEAD,
        b"",
    ],
)
def test_what_is_no_head_is_refused(answer_to: Callable[..., Answer], head: bytes):
    with pytest.raises(http.client.HTTPException):
        answer_to(head)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"2", b"HTTP/2 200 OK\r\n"])
def test_what_does_not_begin_like_a_head_is_refused_without_a_wait(answer_to: Callable[..., Answer], greeting: bytes):
    with pytest.raises(http.client.BadStatusLine):
        answer_to(greeting, closes=False)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_head_is_read_however_its_bytes_are_split(size: int):
    sent = b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 5\r\n\r\nhello"
    pieces = iter([sent[at : at + size] for at in range(0, len(sent), size)])
    found = Answer(lambda _: next(pieces))
    assert (found.status, found.headers["Content-Type"]) == (200, "text/plain")
    assert b"".join(found.content.pieces()) == b"hello"


@pytest.mark.parametrize(
    ("head", "will_close"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False),
    ],
)
def test_connection_serves_again_unless_the_answer_says_otherwise(
    answer_to: Callable[..., Answer], head: bytes, will_close: bool
):
    assert answer_to(head).will_close is will_close


# Bodies


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (HEAD + b"Content-Length: 5\r\n\r\nhello, and more", b"hello"),
        (HEAD + b"Content-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (HEAD + b"\r\nhello to the end", b"hello to the end"),
        (CHUNKED + framed(b"hel", b"lo"), b"hello"),
        (CHUNKED + framed(b"x" * 2 * LONG_READ), b"x" * 2 * LONG_READ),
        (CHUNKED + b"5;name=value\r\nhello\r\n00\r\nTrailer: x\r\n\r\n", b"hello"),
    ],
)
def test_body_is_read_to_its_end_and_closes_the_answer(answer_to: Callable[..., Answer], sent: bytes, body: bytes):
    found = answer_to(sent)
    assert b"".join(found.content.pieces()) == body
    assert found.closed


@pytest.mark.parametrize(
    "sent", [HEAD + b"Content-Length: 5\r\n\r\nhello, and more", CHUNKED + framed(b"hello") + b"HTTP/1.1 200 OK\r\n"]
)
def test_bytes_behind_the_end_are_noticed(answer_to: Callable[..., Answer], sent: bytes):
    content = answer_to(sent).content
    assert b"".join(content.pieces()) == b"hello"
    assert content.has_excess


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 6\r\n\r\nhello",
        CHUNKED + b"6\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhello\r\nfive\r\n",
        CHUNKED + b"5\r\nhello, world\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\n-1\r\n",
    ],
)
def test_body_that_breaks_off_yields_what_came_and_then_raises(answer_to: Callable[..., Answer], sent: bytes):
    pieces = answer_to(sent).content.pieces()
    assert next(pieces) == b"hello"
    with pytest.raises(http.client.HTTPException):
        next(pieces)


@pytest.mark.parametrize("timeout_s", [0.05, 0.2])
def test_silence_in_a_body_ends_after_the_timeout(answer_to: Callable[..., Answer], timeout_s: float):
    pieces = answer_to(CHUNKED + b"5\r\nhello\r\n", closes=False, timeout_s=timeout_s).content.pieces()
    assert next(pieces) == b"hello"
    with pytest.raises((TimeoutError, BlockingIOError)):
        next(pieces)


def test_answer_without_a_timeout_is_read_without_one(answer_to: Callable[..., Answer]):
    assert b"".join(answer_to(CHUNKED + framed(b"hello"), timeout_s=None).content.pieces()) == b"hello"


# Chunks


@given(
    st.lists(
        st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n"]), max_size=8
    ),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_content_is_the_same_however_the_bytes_are_split(chunks: list[bytes], sizes: list[int]):
    sent, unframer, got, at = framed(*chunks), Unframer(), b"", 0
    while at < len(sent):
        size = sizes[at % len(sizes)]
        got += unframer.feed(sent[at : at + size])
        at += size
        assert not unframer.broken
        assert unframer.ended is (at >= len(sent))
    assert got == b"".join(chunks)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_never_raises_and_never_grows(garbage: bytes, at: int):
    unframer = Unframer()
    content = unframer.feed(garbage[:at]) + unframer.feed(garbage[at:])
    assert len(content) <= len(garbage)


def test_size_line_without_end_is_broken():
    unframer = Unframer()
    for _ in range(3):
        unframer.feed(b"5;" + b"x" * 30_000)
    assert unframer.broken


# Connections


@pytest.fixture
def connections() -> Iterator[tuple[Provider, list[bytes]]]:
    """A provider whose answers have more behind their end, and what it was sent by each of its connections."""
    listener, received = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            received.append(b"")
            with connection:
                while data := connection.recv(65536):
                    received[-1] += data
                    connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    own = Provider(config.load({"PROVIDER_API_KEY": "k", "PROVIDER_BASE_URL": url}))
    yield own, received
    own.close()
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    listener.close()


def test_connection_with_bytes_behind_an_answer_serves_no_other_call(connections: tuple[Provider, list[bytes]]):
    own, received = connections
    for _ in range(2):
        reply = own.post("/chat/completions", b"{}", {})
        assert reply.read() == b"{}"
        reply.close()
    assert len(received) == 2


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nX-Other: b", "a\rX-Other: b"])
def test_header_of_several_lines_is_never_sent(connections: tuple[Provider, list[bytes]], value: str):
    own, received = connections
    with pytest.raises(ValueError, match="more than one line"):
        own.post("/chat/completions", b"{}", {"User-Agent": value})
    assert b"".join(received) == b""


# TLS


@pytest.fixture
def tls_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Provider]:
    """A provider behind TLS whose certificate is trusted, and which streams in two halves to every call."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            while secured.recv(65536):
                secured.sendall(CHUNKED + b"5\r\nhello\r\n")
                time.sleep(0.05)
                secured.sendall(b"7\r\n, world\r\n0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
    own = Provider(config.load({"PROVIDER_API_KEY": "k", "PROVIDER_BASE_URL": url}))
    yield own
    own.close()
    thread.join(5)
    listener.close()


def test_answers_arrive_through_tls_and_free_the_connection_for_the_next(tls_provider: Provider):
    for _ in range(2):
        reply = tls_provider.post("/chat/completions", b"{}", {})
        assert reply.read() == b"hello, world"
        reply.close()

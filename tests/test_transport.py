"""The provider's bytes as they come from a socket: heads, framings, and bodies that break off."""

import gc
import http.client
import socket
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenrouter.provider.transport import LONG_READ, LONGEST_FRAMING, MOST_ANNOUNCEMENTS, Answer

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
    assert found.status == 200
    given = {"x-odd": "caf\xe9 : b", "x-empty": "", "x-twice": "1, 2"}
    assert found.fields == {"content-type": "text/plain", **given}


@pytest.mark.parametrize(
    "announcement", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
)
def test_what_announces_an_answer_is_passed_over(answer_to: Callable[..., Answer], announcement: bytes):
    found = answer_to(announcement * MOST_ANNOUNCEMENTS + HEAD + b"Content-Length: 5\r\n\r\nhello")
    assert (found.status, found.fields.get("link"), b"".join(found.content)) == (200, None, b"hello")


@pytest.mark.parametrize("line", [b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 200 caf\xe9"])
def test_reason_of_a_status_may_be_missing_or_anything(answer_to: Callable[..., Answer], line: bytes):
    found = answer_to(line + b"\r\nContent-Length: 5\r\n\r\nhello")
    assert (found.status, b"".join(found.content)) == (200, b"hello")


def test_lines_of_a_head_may_end_by_lf_alone(answer_to: Callable[..., Answer]):
    found = answer_to(HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 5\n\nhello")
    assert (found.fields["content-type"], b"".join(found.content)) == ("text/plain", b"hello")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
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
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
        HEAD + b"X: y\r\n" * 201 + b"\r\n",
        HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"\r\n" * 40_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MOST_ANNOUNCEMENTS + 1) + HEAD + b"Content-Length: 0\r\n\r\n",
        HEAD,
        b"",
    ],
)
def test_what_is_no_head_is_refused(answer_to: Callable[..., Answer], head: bytes):
    with pytest.raises(http.client.HTTPException):
        answer_to(head)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"2", b"HTTP/2 200 OK\r\n"])
def test_what_does_not_begin_like_a_head_is_refused_without_a_wait(answer_to: Callable[..., Answer], greeting: bytes):
    with pytest.raises(http.client.HTTPException):
        answer_to(greeting, closes=False)


@pytest.mark.parametrize(
    ("head", "will_close"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n", True),
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
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        (HEAD + b"\r\nhello to the end", b"hello to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello to the end", b"hello to the end"),
        (CHUNKED + framed(b"hel", b"lo"), b"hello"),
        (CHUNKED + framed(b"x" * 2 * LONG_READ), b"x" * 2 * LONG_READ),
        (CHUNKED + b"5;name=value\r\nhello\r\n00\r\nTrailer: x\r\n\r\n", b"hello"),
        (CHUNKED + b"5  \r\nhello\r\n0  \r\n\r\n", b"hello"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: Chunked\r\n\r\n" + framed(b"hello"), b"hello"),
        (HEAD + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + framed(b"hello"), b"hello"),
    ],
)
def test_body_is_read_to_its_end_and_closes_the_answer(answer_to: Callable[..., Answer], sent: bytes, body: bytes):
    found = answer_to(sent)
    assert b"".join(found.content) == body
    assert found.closed


@pytest.mark.parametrize(
    "sent", [HEAD + b"Content-Length: 5\r\n\r\nhello, and more", CHUNKED + framed(b"hello") + b"HTTP/1.1 200 OK\r\n"]
)
def test_bytes_behind_the_end_are_noticed(answer_to: Callable[..., Answer], sent: bytes):
    content = answer_to(sent).content
    assert b"".join(content) == b"hello"
    assert content.has_surplus


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
    pieces = iter(answer_to(sent).content)
    assert next(pieces) == b"hello"
    with pytest.raises(http.client.HTTPException):
        next(pieces)


@pytest.mark.parametrize("timeout_s", [0.05, 0.2])
def test_silence_in_a_body_ends_after_the_timeout(answer_to: Callable[..., Answer], timeout_s: float):
    pieces = iter(answer_to(CHUNKED + b"5\r\nhello\r\n", closes=False, timeout_s=timeout_s).content)
    assert next(pieces) == b"hello"
    with pytest.raises((TimeoutError, BlockingIOError)):
        next(pieces)


def test_answer_without_a_timeout_is_read_without_one(answer_to: Callable[..., Answer]):
    assert b"".join(answer_to(CHUNKED + framed(b"hello"), timeout_s=None).content) == b"hello"


@pytest.mark.parametrize("endless", [b"5;name=", b"0\r\nTrailer: ", b"0\r\n" + b"Trailer: x\r\n" * 500])
def test_framing_that_brings_no_content_has_an_end(endless: bytes):
    reads = iter([CHUNKED + endless])
    with pytest.raises(http.client.HTTPException, match=f"{LONGEST_FRAMING:,} bytes"):
        list(Answer(lambda most_bytes: next(reads, b"x" * most_bytes)).content)


def test_trailers_are_no_headers(answer_to: Callable[..., Answer]):
    found = answer_to(CHUNKED + b"0\r\nContent-Encoding: gzip\r\n\r\n")
    assert list(found.content) == []
    assert not found.is_encoded


def test_answer_that_was_read_leaves_nothing_to_the_garbage_collector(answer_to: Callable[..., Answer]):
    found = answer_to(CHUNKED + framed(b"hello"))
    assert b"".join(found.content) == b"hello"
    parsed = weakref.ref(found.content.found)
    gc.disable()
    try:
        del found
        assert parsed() is None
    finally:
        gc.enable()


# Cuts


def outcome(pieces: list[bytes]) -> tuple[object, ...]:
    """Read an answer from these reads: its head, its content, and whether it came to its end."""
    reads, content = iter(pieces), b""
    try:
        found = Answer(lambda _: next(reads, b""))
    except http.client.HTTPException:
        return ("no head",)
    try:
        for piece in found.content:
            content += piece
    except http.client.HTTPException:
        assert not found.closed
    return found.status, found.fields, content, found.closed


ANNOUNCED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103\r\nLink: x\r\n\r\n"
WHOLE = {
    "length": ANNOUNCED + HEAD + b"Content-Length: 5\r\n\r\nhello",
    "chunks": ANNOUNCED + CHUNKED + b"3;name=value\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n",
    "end of the connection": HEAD + b"\r\nhello",
    "lines that end by LF": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 5\n\nhello",
}


@pytest.mark.parametrize("framing", WHOLE)
def test_answer_is_the_same_wherever_it_is_cut(framing: str):
    sent = WHOLE[framing]
    _, _, content, is_whole = outcome([sent])
    assert (content, is_whole) == (b"hello", True)
    assert {repr(outcome([sent[:at], sent[at:]])) for at in range(1, len(sent))} == {repr(outcome([sent]))}
    assert outcome([sent[at : at + 1] for at in range(len(sent))]) == outcome([sent])


@given(
    st.lists(
        st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n"]), max_size=8
    ),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_content_is_the_same_however_its_chunks_are_cut(chunks: list[bytes], sizes: list[int]):
    sent, reads, at = framed(*chunks), [CHUNKED], 0
    while at < len(sent):
        reads.append(sent[at : at + sizes[at % len(sizes)]])
        at += len(reads[-1])
    found = Answer(lambda _: reads.pop(0))
    assert b"".join(found.content) == b"".join(chunks)
    assert (found.closed, reads) == (True, [])

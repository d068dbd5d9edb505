"""Connections to the provider: used again after clean answers, and by no call where something is left of another's."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import trustme
from pairs import by_pairs
from rawhttp import RawProvider
from tlsproxy import TlsProxy
from unreachable import greeting
from urllib3.util import Timeout

from tokenrouter import config
from tokenrouter.errors import ProviderTimeout
from tokenrouter.provider import documents
from tokenrouter.provider.client import Provider
from tokenrouter.provider.transport import READ_SIZE, ProviderLink

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda body: HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
    "chunked": lambda body: HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    "no content": lambda body: b"HTTP/1.1 204 No Content\r\nX-Request-Id: %b\r\n\r\n" % body,
    "events": lambda body: (
        EVENTS + b"Transfer-Encoding: chunked\r\n\r\n%x\r\ndata: %b\n\n\r\n0\r\n\r\n" % (len(body) + 8, body)
    ),
}
Write = Callable[[Any], object]


class Listener(RawProvider):
    """A provider that makes the writes of a list for every request, plain or by TLS."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(context)
        self.writes: Callable[[int], list[bytes] | list[bytes | Write]]  # for the nth request of all
        self.received: list[bytes] = []
        self.has_written = threading.Event()

    def answer(self, connection: socket.socket, number: int) -> None:
        try:
            while data := connection.recv(65536):
                self.received.append(data)
                for write in self.writes(len(self.received)):
                    connection.sendall(write) if isinstance(write, bytes) else write(connection)
                self.has_written.set()
        except OSError:
            return  # the other side closed, since it wants no more


TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
WITHIN_TLS = "TLS within that of a proxy"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(params=[None, TLS_1_3, WITHIN_TLS], ids=["plain", "TLS 1.3", "TLS within TLS"])
def listener(
    request: pytest.FixtureRequest, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Listener]:
    if request.param is None:
        with Listener(None) as listener:
            yield listener
        return
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    context = certified(authority)
    with ExitStack() as running:
        if request.param == WITHIN_TLS:
            proxy = running.enter_context(TlsProxy(certified(authority)))
            monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{proxy.port}")
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
        else:
            context.maximum_version = request.param
        listener = running.enter_context(Listener(context))
        yield listener
        if request.param == WITHIN_TLS:
            assert len(proxy.named) == listener.connections  # nothing went past it


@pytest.fixture
def own(listener: Listener) -> Iterator[Provider]:
    own = Provider(config.load({"PROVIDER_API_KEY": "k", "PROVIDER_BASE_URL": listener.url}))
    yield own
    own.close()


def call(own: Provider, listener: Listener) -> str | None:
    """Make a call, wait until the provider has written all that it writes for it, and return what it was answered."""
    listener.has_written.clear()
    reply = own.post("/chat/completions", b"{}", {})
    body = reply.read()
    reply.close()
    assert listener.has_written.wait(5)
    return body.decode().removeprefix("data: ").strip() or reply.request_id


@pytest.mark.parametrize(
    "listener",
    [None, TLS_1_2, TLS_1_3, WITHIN_TLS],
    indirect=True,
    ids=["plain", "TLS 1.2", "TLS 1.3", "TLS within TLS"],
)
@pytest.mark.parametrize("framing", ANSWERS)
def test_clean_answers_leave_one_connection_for_all_calls(own: Provider, listener: Listener, framing: str):
    listener.writes = lambda nth: [ANSWERS[framing](b"answer %d" % nth)]
    assert [call(own, listener) for _ in range(4)] == [f"answer {nth}" for nth in range(1, 5)]
    assert listener.connections == 1


SURPLUS = {
    "another answer": ANSWERS["length"](b"surplus"),
    "one byte": b"H",
    "more than a read": b"x" * 20_000,
    "a line end": b"\r\n",
}
WAYS: dict[str, Callable[[bytes, bytes], list[bytes]]] = {
    "at once": lambda answer, surplus: [answer + surplus],
    "with its rest": lambda answer, surplus: [answer[:-3], answer[-3:] + surplus],
    "later": lambda answer, surplus: [answer, surplus],
}


@by_pairs(
    ("framing", list(ANSWERS)),
    ("way", list(WAYS)),
    ("surplus", list(SURPLUS)),
    ("listener", [None, TLS_1_3, WITHIN_TLS]),
    indirect=["listener"],
)
def test_what_comes_behind_an_answer_reaches_no_other_call(
    own: Provider, listener: Listener, framing: str, way: str, surplus: str
):
    listener.writes = lambda nth: WAYS[way](ANSWERS[framing](b"answer %d" % nth), SURPLUS[surplus])
    assert [call(own, listener) for _ in range(3)] == ["answer 1", "answer 2", "answer 3"]
    assert listener.connections == 3 or surplus == "a line end"  # which a parser may pass over


@pytest.mark.parametrize("surplus", SURPLUS)
def test_what_comes_behind_a_read_that_ends_with_an_answer_reaches_no_other_call(
    own: Provider, listener: Listener, surplus: str
):
    def fill_a_read(body: bytes) -> bytes:
        rest = READ_SIZE - len(ANSWERS["chunked"](b" " * 1000 + body))
        return ANSWERS["chunked"](b" " * (1000 + rest) + body)

    listener.writes = lambda nth: [fill_a_read(b"answer %d" % nth) + SURPLUS[surplus]]
    assert [call(own, listener) for _ in range(3)] == ["answer 1", "answer 2", "answer 3"]
    assert listener.connections == 3


@pytest.mark.parametrize("listener", [TLS_1_3], indirect=True, ids=[""])
def test_what_tls_says_for_itself_behind_an_answer_does_not_cost_the_connection(
    own: Provider, listener: Listener, authority: trustme.CA
):
    def ask_for_certificate(stream: ssl.SSLSocket) -> None:
        stream.verify_client_post_handshake()
        stream.do_handshake()

    authority.configure_trust(listener.context)
    listener.context.verify_mode, listener.context.post_handshake_auth = ssl.CERT_OPTIONAL, True
    listener.writes = lambda nth: [ANSWERS["length"](b"answer %d" % nth), ask_for_certificate]
    assert [call(own, listener) for _ in range(3)] == ["answer 1", "answer 2", "answer 3"]
    assert listener.connections == 1


def test_connection_that_the_provider_closed_meanwhile_is_replaced(own: Provider, listener: Listener):
    listener.writes = lambda nth: [ANSWERS["length"](b"answer %d" % nth), lambda stream: stream.close()]
    assert [call(own, listener) for _ in range(2)] == ["answer 1", "answer 2"]
    assert listener.connections == 2


def test_stream_arrives_through_tls_as_it_is_sent(own: Provider, listener: Listener):
    go_on = threading.Event()
    events = ANSWERS["events"](b"1")
    listener.writes = lambda nth: [events[:-5], lambda stream: go_on.wait(5), events[-5:]]
    chunks = own.post("/chat/completions", b"{}", {}).chunks()
    assert next(chunks) == b"data: 1\n\n"
    go_on.set()
    assert list(chunks) == []


def test_cut_link_ends_the_wait_for_an_answer_that_began(own: Provider, listener: Listener):
    link, is_over = ProviderLink(), threading.Event()
    listener.writes = lambda nth: [ANSWERS["events"](b"1")[:-5], lambda stream: is_over.wait(5)]
    with closing(own.post("/chat/completions", b"{}", {}, link)) as reply:
        chunks = reply.chunks()
        assert next(chunks) == b"data: 1\n\n"
        threading.Timer(0.05, link.cut, [ProviderTimeout("Cut.")]).start()
        with pytest.raises(ProviderTimeout, match="Cut"):
            next(chunks)
    is_over.set()


@pytest.mark.parametrize("sent", [b"", EVENTS[:-10], ANSWERS["events"](b"1")[:-5]], ids=["none", "head", "event"])
@pytest.mark.parametrize("listener", [TLS_1_3, WITHIN_TLS], indirect=True, ids=["TLS 1.3", "TLS within TLS"])
def test_silence_by_tls_ends_after_its_time_and_by_a_cut(own: Provider, listener: Listener, sent: bytes):
    def read(link: ProviderLink) -> None:
        with closing(own.post("/chat/completions", b"{}", {}, link)) as reply:
            reply.read()

    is_over = threading.Event()
    listener.writes = lambda nth: [sent, lambda stream: is_over.wait(30)]
    own._timeout = Timeout(connect=5, read=0.2)
    with pytest.raises(ProviderTimeout, match="silent for too long"):
        read(ProviderLink())
    own._timeout = Timeout(connect=5, read=20)
    cut = ProviderLink()
    threading.Timer(0.2, cut.cut, [ProviderTimeout("Cut.")]).start()
    began = time.monotonic()
    with pytest.raises(ProviderTimeout, match="Cut"):
        read(cut)
    assert time.monotonic() - began < 10
    is_over.set()


@pytest.mark.parametrize("is_proxy", [False, True])
def test_cut_ends_a_handshake_that_trickles(is_proxy: bool, monkeypatch: pytest.MonkeyPatch):
    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of TLS as long as it may be
        for _ in range(250):
            time.sleep(0.02)
            connection.sendall(b"a")

    with greeting(trickle) as port:
        if is_proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{port}")
            port = 9
        own = Provider(config.load({"PROVIDER_API_KEY": "k", "PROVIDER_BASE_URL": f"https://127.0.0.1:{port}/v1"}))
        monkeypatch.setattr(documents, "FETCH_S", 0.3)
        began = time.monotonic()
        with pytest.raises(ProviderTimeout, match="too long to tell"):
            documents.read_document(own, "/models", "its models")
        assert time.monotonic() - began < 4
        own.close()


@pytest.mark.parametrize("listener", [None], indirect=True, ids=[""])
@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nX-Other: b", "a\rX-Other: b"])
def test_header_of_several_lines_is_never_sent(own: Provider, listener: Listener, value: str):
    with pytest.raises(ValueError, match="more than one line"):
        own.post("/chat/completions", b"{}", {"User-Agent": value})
    assert listener.received == []

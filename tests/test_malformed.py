"""Requests that are no HTTP, or that others might read otherwise: refused, nothing charged, and the next one works."""

import socket
from collections.abc import Iterator

import pytest
from conftest import Server, eventually, hello
from rawhttp import chat_request, connect, read_all
from serving import Service, running_service
from serving import post as chat
from sqlalchemy import create_engine, text

from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.slow

BODY = b'{"model":"GPT-5-nano","messages":[{"role":"user","content":"Hi"}]}'
FRAMED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer TOKEN\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def get(target: bytes, *headers: bytes) -> bytes:
    lines = [b"GET " + target + b" HTTP/1.1", b"Host: x", b"Connection: close", b"Authorization: Bearer TOKEN"]
    return b"\r\n".join([*lines, *headers, b"", b""])


def post(target: bytes) -> bytes:
    return HEAD.replace(b"/v1/chat/completions", target) + LENGTH + b"\r\n" + BODY


MALFORMED = {
    "two lengths": HEAD + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
    "the same length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\n" + BODY,
    "negative length": HEAD + b"Content-Length: -5\r\n\r\n" + BODY,
    "signed length": HEAD + b"Content-Length: +5\r\n\r\n" + BODY,
    "length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\n" + BODY,
    "length that is no number": HEAD + b"Content-Length: ten\r\n\r\n" + BODY,
    "length of a million digits": HEAD + b"Content-Length: " + b"9" * 7000 + b"\r\n\r\n" + BODY,
    "length and chunks": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + FRAMED,
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + FRAMED,
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + FRAMED,
    "chunked, not at the end": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + FRAMED,
    "chunked with a space": HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + FRAMED,
    "chunked with a tab": HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + FRAMED,
    "chunks of HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + FRAMED,
    "unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + FRAMED,
    "chunks of garbage": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk with a sign": HEAD + b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "chunk with 0x": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "chunk without its line end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
    "chunks cut short": HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello",
    "endless size of a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 20_000,
    "trailer that is none": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nno trailer\r\n\r\n",
    "body cut short": HEAD + b"Content-Length: 500\r\n\r\n" + BODY,
    "header without a colon": HEAD + b"Nothing\r\n\r\n",
    "header without a name": HEAD + b": x\r\n\r\n",
    "space before the colon": HEAD + b"X-A : b\r\n\r\n",
    "space in a name": HEAD + b"X A: b\r\n\r\n",
    "folded header": HEAD + b"X-A: b\r\n c\r\n\r\n",
    "NUL in a header": HEAD + b"X-A: a\x00b\r\n\r\n",
    "CR in a header": HEAD + b"X-A: a\rX-B: b\r\n\r\n",
    "LF for CRLF": HEAD.replace(b"\r\n", b"\n") + b"\n",
    "64 KB header": HEAD + b"X-A: " + b"a" * 65_536 + b"\r\n\r\n",
    "64 KB of headers": HEAD + b"X-A: aaaaaaaaaa\r\n" * 4096 + b"\r\n",
    "two hosts": HEAD + b"Host: y\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "64 KB target": get(b"/v1/" + b"a" * 65_536),
    "no target": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /v1/models\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /v1/models HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/3": b"GET /v1/models HTTP/3.0\r\nHost: x\r\n\r\n",
    "odd method": b"GE\x00T /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    "PROXY protocol": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get(b"/v1/models"),
    "binary": bytes(range(256)) * 8 + b"\r\n\r\n",
    "blank lines": b"\r\n" * 5000,
    "asterisk": get(b"*"),
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "absolute form of elsewhere": get(b"http://elsewhere.example/v1/../x"),
    "authority in the path": post(b"//v1/chat/completions"),
    "slash in escapes": post(b"/v1/..%2fchat/completions"),
    "double slash": post(b"/v1//chat/completions"),
    "dots": post(b"/v1/../v1/chat/completions"),
    "dots in escapes": post(b"/v1/%2e%2e/v1/chat/completions"),
    "backslash": post(b"/v1\\chat\\completions"),
    "NUL in the target": post(b"/v1/chat/completions%00"),
    "raw NUL in the target": post(b"/v1/chat/completions\x00"),
    "wrong UTF-8 in the target": post(b"/v1/chat/completions%ff%fe"),
    "raw bytes in the target": post(b"/v1/chat/compl\xc3\xa9tions"),
    "line end in the target": post(b"/v1/chat/completions%0d%0aX-A:%20b"),
    "semicolon": post(b"/v1/chat/completions;a=b"),
    "capitals": post(b"/V1/Chat/Completions"),
    "slash at the end": post(b"/v1/chat/completions/"),
    "admin by dots": get(b"/v1/../admin/"),
    "wrong UTF-8 in the token": HEAD.replace(b"TOKEN", b"\xff\xfe") + LENGTH + b"\r\n" + BODY,
    "wrong UTF-8 in the body": HEAD + b"Content-Length: 12\r\n\r\n" + b'{"model":"\xff"',
    "empty body": HEAD + b"Content-Length: 0\r\n\r\n",
    "no body": HEAD + b"\r\n",
    "unknown expectation": HEAD + b"Expect: a miracle\r\n" + LENGTH + b"\r\n" + BODY,
    "underscore for a dash": HEAD.replace(b"Authorization", b"Authori_zation") + LENGTH + b"\r\n" + BODY,
}
# What is refused by TokenRouter itself is refused in OpenAI's shape; gunicorn refuses what is not HTTP.
STATUSES = {b"400", b"401", b"404", b"405", b"411", b"413", b"414", b"417", b"431", b"501", b"505"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("malformed"), WEB_CONCURRENCY="1") as service:
        yield service


@pytest.fixture(scope="module")
def provider(service: Service) -> StandInProvider:
    return service.provider


@pytest.fixture(scope="module")
def server(service: Service) -> Server:
    return service.server


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    return server.create_team()


def used_and_held(server: Server) -> tuple[int, int]:
    engine = create_engine(server.environment["DATABASE_URL"])
    with engine.connect() as connection:
        found = tuple(connection.execute(text("SELECT sum(settled_tokens), sum(held_tokens) FROM teams")).one())
    engine.dispose()
    return found


def works(server: Server, token: str) -> bool:
    return chat(server, token, hello()).status_code == 200


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_is_refused_and_costs_nothing(
    server: Server, token: str, provider: StandInProvider, name: str
):
    before, calls = used_and_held(server), len(provider.calls)
    with connect(server, 5) as connection:
        connection.sendall(MALFORMED[name].replace(b"TOKEN", token.encode()))
        connection.shutdown(socket.SHUT_WR)
        got = read_all(connection)
    assert got == b"" or got.split(b" ")[1] in STATUSES, got
    assert got.count(b"HTTP/1.1 ") <= 1
    assert len(provider.calls) == calls
    assert used_and_held(server) == before
    assert works(server, token)
    assert eventually(lambda: used_and_held(server)[1] == 0)


def test_no_malformed_request_leaves_a_trace_of_an_error(server: Server):
    log = server.log.read_text()
    assert "Traceback" not in log, log


def test_smuggled_request_is_not_answered(server: Server, token: str, provider: StandInProvider):
    """What follows a request whose end is unclear must not become a request of its own."""
    hidden = chat_request(token, hello("words=7"))
    calls = len(provider.calls)
    for framing in (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"Content-Length: 0\r\n" * 2):
        with connect(server, 5) as connection:
            connection.sendall(HEAD.replace(b"Connection: close\r\n", b"") + framing + b"\r\n" + hidden)
            assert read_all(connection).count(b"HTTP/1.1 ") <= 1
    assert len(provider.calls) == calls


def test_absolute_form_of_our_own_address_is_answered(server: Server):
    """A server must take it. Source: RFC 9112, 3.2.2."""
    with connect(server, 5) as connection:
        connection.sendall(b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(connection).split(b" ")[1] == b"200"


@pytest.mark.parametrize("value", ["a\r\nX-Injected: 1", "a\nb"])
def test_nothing_of_a_request_gets_into_the_headers_of_its_answer(server: Server, token: str, value: str):
    request = chat_request(token, {**hello(), "model": value}, "Connection: close")
    with connect(server, 5) as connection:
        connection.sendall(request)
        head = read_all(connection).split(b"\r\n\r\n")[0]
    assert b"X-Injected" not in head
    assert head.split(b" ")[1] in (b"400", b"404")

"""What is tried a second time: a kept connection that closed without a byte, a failed connect, and nothing else."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest
import trustme
from conftest import HELLO, PROVIDER_KEY, Member, stored
from flask.testing import FlaskClient
from rawhttp import RawProvider, ScriptedProvider, reset
from test_provider import CHAT, assert_nothing_charged, last_call

from tokenrouter import config
from tokenrouter.errors import ProviderUnreachable
from tokenrouter.provider.client import Provider

USAGE = b'{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}'
GOOD_BODY = b'{"choices":[{"message":{"content":"Hi"}}],"usage":' + USAGE + b"}"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(GOOD_BODY), GOOD_BODY)


@pytest.fixture
def raw() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as raw:
        yield raw


@pytest.fixture
def settings(settings: dict[str, str], raw: ScriptedProvider, request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, "PROVIDER_BASE_URL": raw.url, **getattr(request, "param", {})}


def call(client: FlaskClient, team: Member) -> tuple[int, str | None]:
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    return reply.status_code, (reply.json.get("error") or {}).get("code")


@pytest.mark.parametrize("close", [socket.socket.close, reset], ids=["closed", "reset"])
def test_kept_connection_that_closes_without_a_byte_is_replaced_once(
    client: FlaskClient, team: Member, raw: ScriptedProvider, close: Callable[[socket.socket], None]
):
    raw.how_to_close = close
    raw.scripts = [[GOOD, None], [GOOD]]
    assert [call(client, team)[0] for _ in range(2)] == [200, 200]
    assert (raw.connections, len(raw.requests)) == (2, 3)
    assert raw.requests[1] == raw.requests[2]
    assert stored(team).settled_tokens == 8


@pytest.mark.parametrize("close", [socket.socket.close, reset], ids=["closed", "reset"])
def test_kept_connection_that_closes_after_a_while_may_have_been_worked_on_and_is_not_replaced(
    client: FlaskClient, team: Member, raw: ScriptedProvider, close: Callable[[socket.socket], None]
):
    raw.how_to_close = lambda connection: (time.sleep(1.2), close(connection))
    raw.scripts = [[GOOD, None], [GOOD]]
    assert call(client, team)[0] == 200
    assert call(client, team) == (502, "provider_unreachable")
    assert (raw.connections, len(raw.requests)) == (1, 2)


def test_replacement_that_closes_too_is_not_replaced(client: FlaskClient, team: Member, raw: ScriptedProvider):
    raw.scripts = [[GOOD, None], [None], [GOOD]]
    assert call(client, team)[0] == 200
    assert call(client, team) == (502, "provider_unreachable")
    assert (raw.connections, len(raw.requests)) == (2, 3)
    assert (last_call()["status"], stored(team).held_tokens) == ("provider_error", 0)


def test_new_connection_that_closes_without_a_byte_is_not_tried_again(
    client: FlaskClient, team: Member, raw: ScriptedProvider
):
    raw.scripts = [[None], [GOOD]]
    assert call(client, team) == (502, "provider_unreachable")
    assert len(raw.requests) == 1
    assert_nothing_charged(team)


@pytest.mark.parametrize("began", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_kept_connection_that_closes_after_a_byte_is_not_tried_again(
    client: FlaskClient, team: Member, raw: ScriptedProvider, began: bytes
):
    def begin_and_close(connection: socket.socket) -> None:
        connection.sendall(began)
        connection.close()

    raw.how_to_close = begin_and_close
    raw.scripts = [[GOOD, None], [GOOD]]
    assert call(client, team)[0] == 200
    assert call(client, team)[0] == 502
    assert len(raw.requests) == 2
    assert (last_call()["status"], stored(team).held_tokens, stored(team).settled_tokens) == ("provider_error", 0, 4)


@pytest.mark.parametrize("settings", [{"PROVIDER_READ_TIMEOUT": "0.4"}], indirect=True)
def test_silence_on_a_kept_connection_is_not_tried_again(team: Member, client: FlaskClient, raw: ScriptedProvider):
    raw.scripts = [[GOOD, b""], [GOOD]]
    assert call(client, team)[0] == 200
    assert call(client, team) == (504, "provider_timeout")
    assert len(raw.requests) == 2


ANSWERS = {
    429: b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    500: b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    503: b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("status", ANSWERS)
def test_refusal_is_not_tried_again(client: FlaskClient, team: Member, raw: ScriptedProvider, status: int):
    raw.scripts = [[ANSWERS[status], GOOD]]
    assert call(client, team)[0] == status
    assert len(raw.requests) == 1
    assert_nothing_charged(team)


def test_redirect_is_not_followed_and_the_key_goes_nowhere(client: FlaskClient, team: Member, raw: ScriptedProvider):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.3)
        target = b"http://127.0.0.1:%d/v1/chat/completions" % elsewhere.getsockname()[1]
        raw.scripts = [[b"HTTP/1.1 307 Go\r\nLocation: " + target + b"\r\nContent-Length: 0\r\n\r\n"]]
        assert call(client, team) == (502, "provider_bad_response")
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert_nothing_charged(team)


def test_answer_behind_announcements_is_the_answer(client: FlaskClient, team: Member, raw: ScriptedProvider):
    raw.scripts = [[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + GOOD]]
    assert call(client, team)[0] == 200
    assert stored(team).settled_tokens == 4


def test_failed_connect_is_tried_once_more(monkeypatch: pytest.MonkeyPatch):
    tries = []

    def refuse(*args: object, **options: object) -> None:
        tries.append(args)
        raise ConnectionRefusedError

    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
    own = Provider(config.load({"PROVIDER_API_KEY": PROVIDER_KEY, "PROVIDER_BASE_URL": "http://127.0.0.1:9/v1"}))
    with pytest.raises(ProviderUnreachable):
        own.post("/chat/completions", b"{}", {})
    assert len(tries) == 2
    own.close()


class Distrusted(RawProvider):
    """Note what comes over TLS, and answer what comes without."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(context)
        self.received: list[bytes] = []

    def answer(self, connection: socket.socket, number: int) -> None:
        try:
            data = connection.recv(1000)
            if self.context:
                self.received.append(data)
            else:
                connection.sendall(GOOD)
        except OSError:
            return  # the other side refused, as it should


@pytest.fixture(params=["a certificate that nobody trusts", "no TLS"])
def distrusted(request: pytest.FixtureRequest) -> Iterator[Distrusted]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if request.param != "no TLS" else None
    if context:
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with Distrusted(context) as provider:
        yield provider


class TestTls:
    """A provider whose TLS fails."""

    @pytest.fixture
    def settings(self, settings: dict[str, str], distrusted: Distrusted) -> dict[str, str]:
        return {**settings, "PROVIDER_BASE_URL": f"https://127.0.0.1:{distrusted.port}/v1"}

    def test_is_unreachable_and_sees_nothing_of_the_request(
        self, client: FlaskClient, team: Member, distrusted: Distrusted
    ):
        assert call(client, team) == (502, "provider_unreachable")
        assert_nothing_charged(team)
        assert distrusted.received == []

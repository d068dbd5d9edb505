"""What still answers while all is busy, half-sent or idle."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests
from conftest import Server, eventually, hello, running_server
from rawhttp import chat_request, connect, read_all
from serving import post, running_service

pytestmark = pytest.mark.slow

SOON_S = 4.0  # of the fifty for which all places are taken, and ten to twenty for what is half-sent


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker with 8 places and 24 threads."""
    folder = tmp_path_factory.mktemp("small")
    with running_service(folder, WEB_CONCURRENCY="1", THREADS="8", TEAM_CALLS="6") as service:
        yield service.server


@pytest.fixture(scope="module")
def tokens(small: Server) -> tuple[str, str]:
    return small.create_team("one"), small.create_team("two")


def within(seconds: float, call: Callable[[], requests.Response]) -> requests.Response:
    began = time.monotonic()
    reply = call()
    assert time.monotonic() - began < seconds
    return reply


@pytest.fixture
def busy(small: Server, tokens: tuple[str, str]) -> Iterator[None]:
    """All places taken by streams, six of one team and two of another."""
    with ExitStack() as streams:
        begin(small, streams, [tokens[0]] * 6 + [tokens[1]] * 2)
        yield


def begin(server: Server, streams: ExitStack, bearer_tokens: list[str]) -> None:
    """Begin a stream for each token, once there is a place for it; when they have been left, wait for the places."""
    body = hello("words=1000 gap=0.05", stream=True)
    streams.callback(wait_for_places, server, set(bearer_tokens))

    def has_begun(bearer_token: str) -> bool:
        stream = post(server, bearer_token, body, stream=True)
        streams.callback(stream.close)
        return stream.status_code == 200

    for bearer_token in bearer_tokens:
        assert eventually(lambda token=bearer_token: has_begun(token))


def wait_for_places(server: Server, bearer_tokens: set[str]) -> None:
    """Wait until each team has a place: an answer is read on for a moment after its client left."""
    for bearer_token in bearer_tokens:
        assert eventually(lambda token=bearer_token: post(server, token, hello()).status_code == 200)


def answers(server: Server, bearer_token: str) -> None:
    """Everything that needs no place answers soon, and a call gets its quick refusal."""
    for path in ("/healthz", "/readyz", "/admin/login"):
        assert within(SOON_S, lambda path=path: requests.get(server.url + path, timeout=30)).status_code == 200
    reply = within(SOON_S, lambda: post(server, bearer_token, hello()))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
    assert reply.headers["Retry-After"] == "1"


@pytest.mark.usefixtures("busy")
def test_health_panel_and_refusals_answer_while_all_places_are_taken(small: Server, tokens: tuple[str, str]):
    answers(small, tokens[1])


@pytest.mark.usefixtures("busy")
def test_crowd_of_further_calls_is_refused_soon(small: Server, tokens: tuple[str, str]):
    with ThreadPoolExecutor(40) as pool:
        began = time.monotonic()
        codes = list(pool.map(lambda _: post(small, tokens[1], hello()).status_code, range(200)))
        assert set(codes) == {503}
        assert time.monotonic() - began < 20
        answers(small, tokens[1])


def test_one_team_cannot_take_all_places(small: Server, tokens: tuple[str, str]):
    with ExitStack() as streams:
        begin(small, streams, [tokens[0]] * 6)
        reply = post(small, tokens[0], hello())
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
        assert "Your team" in reply.json()["error"]["message"]
        assert post(small, tokens[1], hello()).status_code == 200


def half_a_head(token: str) -> bytes:
    return chat_request(token, hello())[:40]


HALVES: dict[str, Callable[[str], bytes]] = {
    "nothing": lambda token: b"",
    "one byte": lambda token: b"P",
    "half a head": half_a_head,
    "a head whose body does not come, of nobody": lambda token: chat_request("tr-nobody", hello()).split(b"{")[0],
    "garbage, and no end": lambda token: b"\x16\x03\x01" * 100 + b"\r\n\r\n",
}


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("name", HALVES)
def test_200_half_sent_requests_stop_nothing_though_all_places_are_taken(
    small: Server, tokens: tuple[str, str], name: str
):
    sent = HALVES[name](tokens[0])
    with ExitStack() as crowd:
        for _ in range(200):
            crowd.enter_context(connect(small)).sendall(sent)
        time.sleep(0.1)
        answers(small, tokens[1])


def test_head_in_many_pieces_is_answered(small: Server, tokens: tuple[str, str]):
    request = chat_request(tokens[0], hello(), "Connection: close")
    with connect(small) as connection:
        for at in range(0, len(request), 23):
            connection.sendall(request[at : at + 23])
            time.sleep(0.005)
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_half_a_request_behind_a_whole_one_waits_for_its_rest(small: Server, tokens: tuple[str, str]):
    request = chat_request(tokens[0], hello())
    with connect(small) as connection:
        connection.sendall(request + request[:60])
        got = connection.recv(65536)
        time.sleep(0.1)
        connection.sendall(request[60:] + chat_request(tokens[0], hello(), "Connection: close"))
        got += read_all(connection)
    assert got.count(b"HTTP/1.1 200") == 3


def test_answer_reaches_a_client_that_sends_on_and_on(small: Server, tokens: tuple[str, str]):
    with connect(small) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        got = b""
        for _ in range(40):
            try:
                connection.sendall(b"x" * 65536)
            except (BrokenPipeError, ConnectionResetError):
                break
        got += read_all(connection)
    assert b"413" in got.split(b"\r\n")[0]


def test_worker_with_idle_and_half_sent_connections_ends_soon(small: Server, tmp_path, tokens: tuple[str, str]):
    with running_server({**small.environment}, tmp_path) as server, ExitStack() as crowd:
        for sent in (b"", b"GET", half_a_head(tokens[0])):
            for _ in range(10):
                crowd.enter_context(connect(server)).sendall(sent)
        assert requests.get(f"{server.url}/healthz", timeout=5).status_code == 200
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 8


def ends_within(seconds: float, connection: socket.socket) -> bytes:
    began = time.monotonic()
    got = read_all(connection)
    assert time.monotonic() - began < seconds
    return got


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch, small: Server, tmp_path) -> Iterator[Server]:
    """A service that waits a second where the real one waits twenty."""
    settings = tmp_path / "short.py"
    settings.write_text(
        "exec(open('gunicorn.conf.py').read())\n"
        "from tokenrouter.worker import connections, gunicorn_worker\n"
        "gunicorn_worker.HEAD_S = connections.BODY_S = 1.0\n"
    )
    environment = {**small.environment, "GUNICORN_CMD_ARGS": f"--config {settings}"}
    with running_server(environment, tmp_path) as server:
        yield server


def test_half_a_head_is_let_go_after_its_time(short_times: Server, tokens: tuple[str, str]):
    request = half_a_head(tokens[0])
    with connect(short_times) as connection:
        for at in range(4):
            connection.sendall(request[at : at + 1])
            time.sleep(0.2)
        assert ends_within(10, connection) == b""


def test_half_a_body_is_refused_after_its_time(short_times: Server, tokens: tuple[str, str]):
    request = chat_request(tokens[0], hello())
    with connect(short_times) as connection:
        connection.sendall(request[:-5])
        got = ends_within(10, connection)
        assert got.startswith(b"HTTP/1.1 400")
    chunked = b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a'
    head = request.split(b"Content-Length")[0]
    with connect(short_times) as connection:
        connection.sendall(head + chunked)
        got = ends_within(10, connection)
        assert got.startswith(b"HTTP/1.1 400")
        assert b"invalid_request_error" in got
    assert "Traceback" not in short_times.log.read_text()

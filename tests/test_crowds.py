"""Crowds that send half of what they announce, or read nothing: calls and health go on as if nobody were there."""

import json
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests
from conftest import Server, eventually, hello, running_server
from rawhttp import chat_request, connect, read_all
from serving import Service, post, running_service

pytestmark = pytest.mark.slow


SOON_S = 1.0
CROWD = 1400
LOGIN = b"POST /admin/login HTTP/1.1\r\nHost: x\r\n"
MULTIPART = LOGIN + b"Content-Type: multipart/form-data; boundary=x\r\n"
FORM = LOGIN + b"Content-Type: application/x-www-form-urlencoded\r\n"
STATIC = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_STATIC = STATIC.replace(b"Host", b"Connection: close\r\nHost")


@pytest.fixture(scope="module", autouse=True)
def many_sockets() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * CROWD)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("crowds"), WEB_CONCURRENCY="1") as service:
        yield service


@pytest.fixture(scope="module")
def server(service: Service) -> Server:
    """One worker, as it is by default."""
    return service.server


@pytest.fixture(scope="module")
def small(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker with 8 places, 6 of them for one team."""
    settings = {**service.settings, "THREADS": "8", "TEAM_CALLS": "6"}
    with running_server(settings, tmp_path_factory.mktemp("small")) as server:
        yield server


@pytest.fixture(scope="module")
def tokens(server: Server) -> list[str]:
    return [server.create_team(name) for name in ("one", "two", "three")]


@pytest.fixture
def crowd() -> Iterator[ExitStack]:
    with ExitStack() as crowd:
        yield crowd


def call(server: Server, token: str) -> requests.Response:
    return post(server, token, hello())


def goes_on(server: Server, token: str) -> None:
    """A call and health are answered soon. The best of three counts: what would hang hangs for seconds each time."""

    def is_soon() -> bool:
        began = time.monotonic()
        assert call(server, token).status_code == 200
        assert requests.get(f"{server.url}/healthz", timeout=30).status_code == 200
        return time.monotonic() - began < SOON_S

    assert any(is_soon() for _ in range(3))


def come(crowd: ExitStack, server: Server, count: int, sent: bytes) -> list[socket.socket]:
    connections = [crowd.enter_context(connect(server)) for _ in range(count)]
    for connection in connections:
        connection.sendall(sent)
    return connections


FORMS = {
    "a form of 32 MiB": MULTIPART + b"Content-Length: 33554432\r\n\r\nabc",
    "a small form": FORM + b"Content-Length: 500\r\n\r\nabc",
    "a form in chunks": FORM + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
}


@pytest.mark.parametrize("name", FORMS)
def test_strangers_with_half_a_form_stop_nothing(server: Server, tokens: list[str], crowd: ExitStack, name: str):
    come(crowd, server, CROWD, FORMS[name])
    goes_on(server, tokens[0])


def test_one_teams_half_bodies_stop_no_other_team(server: Server, tokens: list[str], crowd: ExitStack):
    head, _, body = chat_request(tokens[1], hello()).partition(b"\r\n\r\n")
    come(crowd, server, CROWD, head + b"\r\n\r\n" + body[:5])
    goes_on(server, tokens[0])
    reply = call(server, tokens[1])
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
    assert "Your team" in reply.json()["error"]["message"]


def test_half_bodies_of_programs_stop_no_team(small: Server, tokens: list[str], crowd: ExitStack):
    program = small.flask("management-tokens", "create").stdout.split()[-1]
    head = f"POST /api/teams HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {program}\r\nContent-Length: 10000000\r\n\r\n"
    connections = come(crowd, small, 10, head.encode() + b"{")
    assert eventually(lambda: sum(map(is_answered, connections)) == 4)
    goes_on(small, tokens[0])


def test_more_connections_than_a_worker_keeps_push_each_other_out(server: Server, tokens: list[str], crowd: ExitStack):
    come(crowd, server, 1700, b"")
    goes_on(server, tokens[0])


def test_threads_that_read_bodies_take_no_spare_ones(small: Server, tokens: list[str], crowd: ExitStack):
    """Two teams have six places each, and there are eight in all."""
    connections = []
    for token in tokens[1:]:
        connections += come(crowd, small, 6, chat_request(token, hello())[:-5])
    refused = [connection for connection in connections if is_answered(connection)]
    assert len(refused) == 4
    for connection in refused:
        got = connection.recv(65536)
        assert got.startswith(b"HTTP/1.1 503") and b"overloaded" in got and b"Retry-After: 1" in got
    for path in ("/healthz", "/admin/login"):
        assert requests.get(small.url + path, timeout=5).status_code == 200


def is_answered(connection: socket.socket) -> bool:
    connection.settimeout(1)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        connection.settimeout(30)


def test_files_that_nobody_reads_hold_no_thread(small: Server, tokens: list[str], crowd: ExitStack):
    come(crowd, small, 60, STATIC * 6)
    time.sleep(1)
    goes_on(small, tokens[0])


def test_answers_that_a_team_does_not_read_hold_no_thread(small: Server, tokens: list[str], crowd: ExitStack):
    request = chat_request(tokens[1], hello("words=100000"))
    for connection in come(crowd, small, 30, b""):
        connection.sendall(request)
        assert eventually(lambda connection=connection: is_answered(connection))
        connection.sendall(request * 8)
    goes_on(small, tokens[0])


def test_files_come_whole_to_a_client_that_reads_them_late(small: Server):
    with connect(small) as connection:
        connection.sendall(STATIC * 5 + LAST_STATIC)
        time.sleep(1)
        got = read_all(connection)
    whole = requests.get(f"{small.url}/docs/swagger-ui-bundle.js", timeout=30).content
    assert got.count(whole) == 6


@pytest.fixture(scope="module")
def hasty(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that waits two seconds where the real one waits ten or twenty."""
    folder = tmp_path_factory.mktemp("hasty")
    settings = folder / "hasty.py"
    settings.write_text(
        "exec(open('gunicorn.conf.py').read())\n"
        "from tokenrouter.worker import client_socket, connections\n"
        "connections.PAGE_BODY_S = client_socket.ClientSocket.silence_s = client_socket.SEND_S = 2.0\n"
        "import tokenrouter.worker.gunicorn_worker as worker\nworker.PAGE_BODY_S = worker.HEAD_S = 2.0\n"
    )
    with running_server(service.settings | {"GUNICORN_CMD_ARGS": f"--config {settings}"}, folder) as server:
        yield server


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (MULTIPART + b"Content-Length: 33554432\r\n\r\n", b"413 "),
        (FORM + b"Content-Length: 16385\r\n\r\n" + b"a" * 16385, b"413 "),
        (FORM + b"Content-Length: 16384\r\n\r\n" + b"a" * 16384, b"400 "),  # it lacks the token against forged forms
        (FORM + b"Content-Length: 30\r\n\r\npassword=", b"408 "),
        (FORM + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", b"411 "),
    ],
)
def test_form_that_is_too_large_or_too_slow_gets_the_panels_page(hasty: Server, sent: bytes, status: bytes):
    with connect(hasty, 8) as connection:
        connection.sendall(sent)
        got = connection.recv(65536)
    assert got.startswith(b"HTTP/1.1 " + status)
    assert b"panel.css" in got


def test_form_that_comes_byte_by_byte_is_answered_once_it_is_whole(hasty: Server):
    with connect(hasty, 8) as connection:
        connection.sendall(FORM + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        for at in range(9):
            connection.sendall(b"password="[at : at + 1])
            time.sleep(0.02)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_client_that_reads_nothing_of_a_file_is_let_go(hasty: Server):
    with connect(hasty, 10) as connection:
        connection.sendall(STATIC * 6)
        time.sleep(6)
        assert read_all(connection).count(b"HTTP/1.1 200 OK") < 6


def test_client_that_reads_a_file_slowly_gets_the_whole_of_it(hasty: Server):
    """So slowly that for seconds the system takes nothing more."""
    with connect(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        connection.sendall(STATIC * 2 + LAST_STATIC)
        began, got = time.monotonic(), bytearray()
        while data := connection.recv(16384):
            got += data
            time.sleep(max(0, len(got) / 500_000 - (time.monotonic() - began)))
    assert got.count(b"SwaggerUI})()") >= 3
    assert len(got) > 3 * 1_600_000


def test_body_that_was_not_read_ends_no_connection(hasty: Server):
    body = b"a" * 5000
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n"
    with connect(hasty) as connection:
        for _ in range(3):
            connection.sendall(head)
            assert connection.recv(65536).startswith(b"HTTP/1.1 401")
            connection.sendall(body)


HEADS = {
    "a header of 700 kB": b"X-A: " + b"a" * 700_000,
    "700 kB of headers": b"X-A: aaaaaaaaaa\r\n" * 41_000,
    "64 KiB of headers and their end": b"X-A: aaaaaaaaaa\r\n" * 4096 + b"\r\n",
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/teams", "/healthz"])
def test_head_ends_at_64_kib(hasty: Server, name: str, path: str):
    with connect(hasty, 5) as connection:
        with suppress(OSError):  # it was refused before its end
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + HEADS[name])
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431")
    if path != "/healthz":
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert b"x-request-id: req_" in head


def test_request_that_is_no_http_gets_openais_shape_where_programs_call(hasty: Server):
    with connect(hasty, 5) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX A: b\r\n\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def cpu_s(server: Server) -> float:
    fields = Path(f"/proc/{server.worker_pids()[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_heads_that_trickle_cost_next_to_nothing(server: Server, crowd: ExitStack):
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-A: aaaaaaaaaa\r\n" * 3000
    connections = come(crowd, server, 20, head)
    time.sleep(0.5)
    before = cpu_s(server)
    for _ in range(200):
        for connection in connections:
            connection.sendall(b"a")
        time.sleep(0.01)
    assert cpu_s(server) - before < 0.6  # 1.05 where each byte has the head parsed anew, else 0.23


def test_crowd_of_calls_at_once_is_answered_all_the_same(server: Server, tokens: list[str]):
    with ThreadPoolExecutor(32) as pool:
        statuses = Counter(pool.map(lambda _: call(server, tokens[0]).status_code, range(200)))
    assert statuses == {200: 200}
    assert "Traceback" not in server.log.read_text()

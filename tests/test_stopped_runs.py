"""A run of these tests that is stopped, however, leaves no gunicorn, no PostgreSQL and no worker of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, eventually

pytestmark = pytest.mark.slow

TEST = """
import time
from pathlib import Path

def test_that_goes_on(server, postgresql):
    Path({told!r}).write_text(f"{{postgresql.get_pid()}} {{postgresql.pgdata}}\\n")
    time.sleep(60)
"""
WAYS: dict[str, Callable[[int], None]] = {
    "SIGKILL": lambda pid: os.kill(pid, signal.SIGKILL),
    "SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),
}


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("way", WAYS)
def test_stopped_run_leaves_nothing_behind(tmp_path: Path, way: str):
    told, test = tmp_path / "told", tmp_path / "test_run.py"
    test.write_text(TEST.format(told=str(told)))
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "conftest", "-n", "1", test]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    with subprocess.Popen(
        command,
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:
        assert eventually(lambda: told.exists() and told.read_text().endswith("\n"), 60)
        pid, folder = told.read_text().split()
        postgresql = psutil.Process(int(pid))
        started = [*psutil.Process(run.pid).children(recursive=True), postgresql, *postgresql.children()]
        commands = " ".join(word for process in started for word in process.cmdline())
        assert "forkserver" in commands and "postgres" in commands and "sweeper" in commands
        WAYS[way](run.pid)
        run.wait(90)
        assert eventually(lambda: not any(map(lives, started)))
        assert eventually(lambda: not Path(folder).parent.exists())

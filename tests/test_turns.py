"""Turns in writing one SQLite file, among real processes: who waits is next, and nobody holds the others for long."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, Member, eventually, stored
from flask import Flask
from sqlalchemy import update

from tokenrouter.database import turns
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Team, db
from tokenrouter.database.turns import Turns

WRITER = """
import sys, time
from tokenrouter.database.turns import Turns

turns, pause_s = Turns(sys.argv[1]), float(sys.argv[2])
while True:
    with turns.turn():
        print("turn", flush=True)
        time.sleep(pause_s)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "any.db")


@contextmanager
def writer(file: str, pause_s: float = 0.01) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that takes turn after turn, and says so."""
    command = [sys.executable, "-c", WRITER, file, str(pause_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"turn\n"
            yield process
        finally:
            process.kill()
            process.wait()


def turns_taken(process: subprocess.Popen[bytes]) -> int:
    """Return how many turns it has told of since the last look."""
    os.set_blocking(process.stdout.fileno(), False)
    return (process.stdout.read() or b"").count(b"turn")


@pytest.mark.slow
def test_who_waits_is_next_though_another_writes_without_a_pause(file: str):
    own = Turns(file)
    with writer(file, pause_s=0.05) as other:
        for _ in range(10):
            turns_taken(other)
            with own.turn():
                assert turns_taken(other) <= 2  # the one that was under way, and one that began as we came
            time.sleep(0.06)


@pytest.mark.slow
def test_processes_that_all_wait_have_their_turns_alike(file: str):
    with writer(file) as one, writer(file) as two, writer(file) as three:
        for process in (one, two, three):
            turns_taken(process)
        counts = [0, 0, 0]
        while sum(counts) < 90:
            time.sleep(0.05)
            counts = [sofar + turns_taken(process) for sofar, process in zip(counts, (one, two, three), strict=True)]
    assert min(counts) > max(counts) / 3


@pytest.mark.slow
def test_killed_process_ends_its_turn(file: str):
    own = Turns(file)
    with writer(file, pause_s=60) as other:
        threading.Timer(0.3, other.kill).start()
        began = time.monotonic()
        turn = own.take()
        assert turn is not None
        assert time.monotonic() - began < turns.WAIT_S
        turn.end()


@pytest.mark.slow
def test_stopped_process_holds_the_others_once_and_not_for_long(file: str):
    own = Turns(file)
    with writer(file, pause_s=60) as other:
        other.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert own.take() is None
        assert turns.WAIT_S <= time.monotonic() - began < 3 * turns.WAIT_S
        began = time.monotonic()
        assert [own.take() for _ in range(20)] == [None] * 20
        assert time.monotonic() - began < 3 * turns.WAIT_S  # of forty seconds
        other.kill()
        assert eventually(lambda: (turn := own.take()) is not None and (turn.end() or True))


def test_threads_of_one_process_take_turns_too(file: str):
    own, inside, most = Turns(file), [], []

    def write() -> None:
        for _ in range(20):
            with own.turn():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_fork_shares_no_turn_with_the_process_before(file: str):
    own = Turns(file)
    with own.turn():
        pass
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        turn = own.take()
        os.write(tell, b"turn" if turn else b"none")
        signal.pause()
    try:
        assert os.read(told, 4) == b"turn"
        assert own.take() is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_written_without_turns_and_said_once(
    app: Flask, team: Member, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: int
):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    turns_of_app = turns.turns_of(db.engine)
    monkeypatch.setattr(turns_of_app, "_database", turns_of_app._database)
    with caplog.at_level(logging.WARNING):
        for quota in (1, 2):
            with writing(db.engine) as connection:
                connection.execute(update(Team).values(quota_tokens=quota))
    assert stored(team).quota_tokens == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{db.engine.url.database} is written without turns, and slower where many do: {os.strerror(reason)}"
    ]


def test_folder_that_takes_no_file_is_no_reason_to_stop(file: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert Turns(f"{file}/nowhere").take() is None
    assert "is written without turns" in caplog.text


@pytest.mark.parametrize("file", [None, "", ":memory:"])
def test_database_without_a_file_has_no_turns(file: str | None):
    assert Turns(file).take() is None

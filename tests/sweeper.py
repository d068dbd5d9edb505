"""End and remove what a run of the tests leaves behind, however it ended.

The run holds the other end of this process's standard input: when that closes, the run is over, by SIGKILL too. What it
started is known by the run's folder, which every process takes over in its environment.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

import psutil

FOLDER = "TESTS_RUN_FOLDER"
GRACE_S = 3.0
MEMORY = "/dev/shm"
ROOM_BYTES = 4 * 2**30


def place() -> str:
    """Return where to write: into memory where that has room for all of a run, since disks are waited for."""
    has_room = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    return MEMORY if has_room else tempfile.gettempdir()


def watch() -> subprocess.Popen[bytes]:
    """Make the run's folder, and start what sweeps up once this process is gone."""
    folder = tempfile.mkdtemp(prefix="tokenrouter-tests-", dir=place())
    sweeper = subprocess.Popen(
        [sys.executable, __file__, folder],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the run
        env={name: text for name, text in os.environ.items() if name != FOLDER},
    )
    os.environ[FOLDER] = folder
    return sweeper


def run_folder() -> str | None:
    """Return the folder that is removed after the run; outside one there is none."""
    return os.environ.get(FOLDER)


def sweep(folder: str) -> None:
    """Interrupt what is left, which ends PostgreSQL and gunicorn in good order, and kill what stays."""
    for process in left_by(folder):
        send(process, signal.SIGINT)
    deadline = time.monotonic() + GRACE_S
    while left_by(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    deadline += GRACE_S
    while (rest := left_by(folder)) and time.monotonic() < deadline:  # again: one may have started another meanwhile
        for process in rest:
            send(process, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def left_by(folder: str) -> list[psutil.Process]:
    """Return the processes that a run left; those of PostgreSQL below the first end with it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(FOLDER) == folder:
                found.append(process)
    return found


def send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    sweep(sys.argv[1])

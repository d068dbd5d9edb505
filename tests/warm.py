"""Start gunicorn and `flask` commands from a process that has loaded their code, in a tenth of the usual CPU time.

A run of the tests starts them hundreds of times. Each of its processes has one such fork server, made by the first
start. What they load is what a start on a command line loads, and is tested by those tests that use one.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

MAINS: dict[str, str] = {"gunicorn": "gunicorn.app.wsgiapp:run", "flask": "flask.cli:main"}

starting = threading.Lock()


@dataclass
class Started:
    """A program that runs, used like subprocess.Popen."""

    child: BaseProcess
    arguments: list[str]

    @property
    def pid(self) -> int:
        """Its process's id, which is its process group's too."""
        return self.child.pid

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal's number; None while it runs."""
        return self.child.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status; raises subprocess.TimeoutExpired."""
        self.child.join(timeout)
        if self.child.exitcode is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return self.child.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def start(arguments: list[str], folder: Path, environment: Mapping[str, str], output: Path, errors: Path) -> Started:
    """Start a program with its arguments in a folder and a session of its own; what it writes is added to the files."""
    for path in (output, errors):
        path.touch()
    child = server().Process(target=become, args=(arguments, folder, dict(environment), output, errors))
    child.start()
    return Started(child, arguments)


def server() -> multiprocessing.context.ForkServerContext:
    """Return the fork server, which runs from then on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warmed"])
    with starting, patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # where it looks for what to load
        forkserver.ensure_running()
    return context


def at_once(work: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[Any]:
    """Do the work in a process for each of these arguments; return what each gave, or raise what one raised.

    `work` gets before its arguments what it calls to wait for the others.
    """
    context = server()
    together = context.Barrier(len(arguments))
    with ProcessPoolExecutor(len(arguments), mp_context=context, initializer=meet, initargs=(together,)) as pool:
        return [done.result(60) for done in [pool.submit(do, work, *some) for some in arguments]]


_barriers: list[Any] = []


def meet(together: Any) -> None:
    """Remember where the processes meet: a barrier is handed over at their start alone."""
    _barriers.append(together)


def do(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do the work in a process that met the others."""
    return work(partial(_barriers[-1].wait, 60), *arguments)


def become(arguments: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path) -> None:
    """Be the program, and end as the interpreter would after it."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((Path(os.devnull), output, errors)):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.argv = arguments
    warnings.resetwarnings()
    for action in filter(None, environment.get("PYTHONWARNINGS", "").split(",")):
        warnings.simplefilter(action)
    module, _, name = MAINS[arguments[0]].partition(":")
    status = status_of(getattr(importlib.import_module(module), name))
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def status_of(main: Callable[[], object]) -> int:
    """Run it, and return its exit status."""
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

"""Start gunicorn and `flask` commands from a process that has loaded their code, in a tenth of the usual CPU time.

A run of the tests starts them hundreds of times. Each of its processes has one such fork server, made by the first
start. What they load is what a start on a command line loads, and is tested by those tests that use one.
"""

import atexit
import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
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

ROOT = Path(__file__).parent.parent
MAINS: dict[str, str] = {"gunicorn": "gunicorn.app.wsgiapp:run", "flask": "flask.cli:main"}

PR_CAPBSET_DROP, CAPABILITY_VERSION_3 = 24, 0x20080522
OVERRIDES = 1, 2, 3  # what lets root read, write and own all files
starting = threading.Lock()


@dataclass(frozen=True)
class Way:
    """How a program is to be started."""

    arguments: list[str]
    folder: Path
    environment: dict[str, str]
    output: Path
    errors: Path
    code: Path
    prepare: Callable[[], None] | None


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


def run(
    arguments: list[str], folder: Path, environment: Mapping[str, str], timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `start` starts it; one that comes to none is told to stop."""
    with tempfile.TemporaryDirectory() as written:
        output, errors = Path(written, "output"), Path(written, "errors")
        program = start(arguments, folder, environment, output, errors, **options)
        try:
            status = program.wait(timeout)
        except subprocess.TimeoutExpired:
            program.terminate()  # so that gunicorn ends its workers too
            status = program.wait(20)
        return subprocess.CompletedProcess(arguments, status, output.read_text(), errors.read_text())


def start(
    arguments: list[str],
    folder: Path,
    environment: Mapping[str, str],
    output: Path,
    errors: Path,
    *,
    code: Path = ROOT,
    prepare: Callable[[], None] | None = None,
) -> Started:
    """Start a program with its arguments in a folder and a session of its own; what it writes is added to the files.

    `code` is the folder of the service that it is to find; `prepare` is called in it first of all.
    """
    for path in (output, errors):
        path.touch()
    way = Way(arguments, folder, dict(environment), output, errors, code, prepare)
    child = server().Process(target=become, args=(way,))
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


def become(way: Way) -> None:
    """Be the program, and end as the interpreter would after it."""
    os.setsid()
    os.chdir(way.folder)
    os.environ.clear()
    os.environ.update(way.environment)
    for number, path in enumerate((Path(os.devnull), way.output, way.errors)):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.argv = way.arguments
    find_code(way.code)
    warnings.resetwarnings()
    for action in filter(None, way.environment.get("PYTHONWARNINGS", "").split(",")):
        warnings.simplefilter(action)
    if way.prepare is not None:
        way.prepare()
    module, _, name = MAINS[way.arguments[0]].partition(":")
    status = status_of(getattr(importlib.import_module(module), name))
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def find_code(code: Path) -> None:
    """Leave it to the program to find the service where it looks for it; what is loaded stands for that of ROOT."""
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(ROOT)]
    if code != ROOT:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tokenrouter"]:
            del sys.modules[name]


def obey_file_modes() -> None:
    """Have this process, and what it becomes, meet closed files as other users do, should the tests run as root.

    Source: capabilities(7) and capset(2) of Linux, with version 3 of its header.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in OVERRIDES:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    for place in (0, 1):  # what is in force, and what may be
        sets[place] &= ~sum(1 << capability for capability in OVERRIDES)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


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

"""How gunicorn serves TokenRouter. Whatever is given on gunicorn's command line wins over this file."""

import atexit
import importlib
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn.arbiter import Arbiter

if (here := str(Path(__file__).parent)) not in sys.path:
    sys.path.insert(0, here)  # gunicorn looks where it was started alone, and --config may name a file elsewhere

from tokenrouter.first_start import warnings
from tokenrouter.runtime import close
from tokenrouter.worker.gunicorn_worker import keep_signals_over_forks
from tokenrouter.worker.preload import preload

SPARE_THREADS = 16  # for health, panel and refusals while all places for calls are taken

settings = preload()  # makes the app, which the workers share; on HUP this file is read again, and the app made anew

bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
worker_class = "tokenrouter.worker.gunicorn_worker.Worker"  # gthread, with lighter threads
logger_class = "tokenrouter.worker.gunicorn_log.Logger"
workers = settings.web_concurrency
threads = settings.threads + SPARE_THREADS
worker_connections = threads * 2 + 1000  # connections kept open between calls count too
keepalive = 75  # longer than the idle connections of the usual clients and reverse proxies
graceful_timeout = 60
timeout = 120  # a worker whose main thread is late under a burst of calls is not dead
forwarded_allow_ips = ""  # the application itself believes the proxies that TRUSTED_PROXIES counts
forwarder_headers = ""  # or a caller could say which path was asked for
control_socket_disable = True
umask = 0o077
accesslog = None  # the log of calls is in the database
proc_name = "tokenrouter"


def on_starting(server: Arbiter) -> None:
    """Get ready to start workers, and warn of what is better changed soon."""
    keep_signals_over_forks()
    for line in warnings(settings):
        server.log.warning(line)


def post_fork(server: Arbiter, worker: Any) -> None:
    """Hand the worker what its copy of the master's handlers receives until it has handlers of its own."""
    worker.early_signals = server.SIG_QUEUE


def post_worker_init(worker: Any) -> None:
    """Begin to look for calls of workers that died, before the first call comes."""
    runtime = worker.wsgi.extensions["tokenrouter"]
    runtime.ledger.end_service = partial(os.kill, worker.ppid, signal.SIGTERM)
    runtime.ledger.start()
    runtime.jobs.start()
    runtime.sender.start()
    worker.serve(runtime.clients, runtime.slots, settings.provider_read_timeout)
    atexit.register(leave, worker)  # once the threads that answer calls have ended


def leave(worker: Any) -> None:
    """Book what is left to book for as long as the master lets this worker live, and close everything."""
    importlib.import_module(close.__module__).close(worker.wsgi, worker.seconds_left())  # by name, as in on_exit


def on_exit(server: Arbiter) -> None:
    """Close the database in the master too, the last of all."""
    importlib.import_module(preload.__module__).finish()  # by name: a HUP brings another one


# A stream holds two sockets, the caller's and the provider's.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = 2 * worker_connections + 1024
if _soft < _wanted:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (_wanted if _hard == resource.RLIM_INFINITY else min(_wanted, _hard), _hard)
    )

"""How gunicorn serves TokenRouter. Whatever is given on gunicorn's command line wins over this file."""

import atexit
import gc
import os
import resource
import signal
import sys
from functools import partial
from typing import Any

# Loaded here, in the master: the workers share its memory, all run the same code, and what fails here ends the start,
# while a worker that exits is started again for ever. On HUP gunicorn reads this file again, so what is loaded is
# forgotten first. A reload that would fail changes nothing.
gc.unfreeze()
running = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "tokenrouter"}
for name in running:
    del sys.modules[name]
try:
    from tokenrouter import finish, prepare
    from tokenrouter.runtime import close
    from tokenrouter.worker.gunicorn_worker import Worker

    settings = prepare()
except Exception as error:
    if running:
        print(f"Error: {error}. What runs goes on as it is.", file=sys.stderr, flush=True)
        sys.modules.update(running)
        settings = running["tokenrouter.first_start"].load_for_serving()
        Worker = running["tokenrouter.worker.gunicorn_worker"].Worker
        finish, close = running["tokenrouter"].finish, running["tokenrouter.runtime"].close
    elif isinstance(error, ValueError):
        sys.exit(f"Error: {error}")
    else:
        raise

SPARE_THREADS = 16  # for health, panel and refusals while all places for calls are taken

bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
worker_class = Worker  # gthread, with lighter threads
workers = settings.web_concurrency
threads = settings.threads + SPARE_THREADS
worker_connections = threads * 2 + 1000  # connections kept open between calls count too
keepalive = 75  # longer than the idle connections of the usual clients and reverse proxies
graceful_timeout = 60
timeout = 120  # a worker whose main thread is late under a burst of calls is not dead
forwarded_allow_ips = "*" if settings.trusted_proxies else ""
control_socket_disable = True
umask = 0o077
accesslog = None  # the log of calls is in the database
proc_name = "tokenrouter"


def post_worker_init(worker: Worker) -> None:
    """Begin to look for calls of workers that died, before the first call comes."""
    runtime = worker.wsgi.extensions["tokenrouter"]
    runtime.ledger.end_service = partial(os.kill, worker.ppid, signal.SIGTERM)
    runtime.ledger.start()
    worker.serve(runtime.clients, settings.provider_read_timeout)
    atexit.register(leave, worker)  # once the threads that answer calls have ended


def leave(worker: Worker) -> None:
    """Book what is left to book for as long as the master lets this worker live, and close everything."""
    close(worker.wsgi, worker.seconds_left())


def on_exit(server: Any) -> None:
    """Close the database in the master too, the last of all."""
    finish()


# A stream holds two sockets, the caller's and the provider's.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = 2 * worker_connections + 1024
if _soft < _wanted:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (_wanted if _hard == resource.RLIM_INFINITY else min(_wanted, _hard), _hard)
    )

# What is loaded stays, and the workers share it until they write to it: the collector, which marks what it looks at, is
# kept off. That is 14 MB a worker.
gc.collect()
gc.freeze()

"""How gunicorn serves TokenRouter. Whatever is given on gunicorn's command line wins over this file."""

import resource
import sys

from tokenrouter.config import ConfigError, load_for_serving

# Here, in the master, and not in a worker: what fails here ends the start, a worker that exits is only started again.
try:
    settings = load_for_serving()
except ConfigError as error:
    sys.exit(f"Error: {error}")

SPARE_THREADS = 16  # for health, panel and refusals while all places for calls are taken

bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
worker_class = "gthread"
workers = settings.web_concurrency
threads = settings.threads + SPARE_THREADS
worker_connections = threads * 2 + 1000  # connections kept open between calls count too
keepalive = 75  # longer than the idle connections of the usual clients and reverse proxies
graceful_timeout = 60
forwarded_allow_ips = "*" if settings.trusted_proxies else ""
control_socket_disable = True
umask = 0o077
accesslog = None  # the log of calls is in the database
proc_name = "tokenrouter"

# A stream holds two sockets, the caller's and the provider's.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = 2 * worker_connections + 1024
if _soft < _wanted:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (_wanted if _hard == resource.RLIM_INFINITY else min(_wanted, _hard), _hard)
    )

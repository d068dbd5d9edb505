"""Count what one JSON call is made of: Python's function calls, and SQLite's statements. These are free of noise."""

import cProfile
import io
import json
import pstats
import sqlite3
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event

from tokenrouter import create_app, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.config import default_settings
from tokenrouter.database.tables import db
from tokenrouter.standin import StandInProvider

WARM_UP = 20


@dataclass
class Counts:
    """Of one call, in one thread: `app(environ, start_response)` and what it returns."""

    function_calls: int
    statements: list[str]
    stats: pstats.Stats = field(repr=False)


def count() -> Counts:
    """Call an app with an SQLite database and a team without quota, some times to warm up, and then once."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        provider = stack.enter_context(StandInProvider(record_calls=False))
        app = create_app(
            default_settings()
            | {
                "PROVIDER_API_KEY": provider.api_key,
                "PROVIDER_BASE_URL": provider.base_url,
                "DATABASE_URL": f"sqlite:///{folder}/counts.db",
                "ADMIN_PASSWORD": "benchmark-password",
                "SECRET_KEY": "benchmark",
            }
        )
        stack.callback(runtime.close, app)
        statements: list[str] = []
        with app.app_context():
            event.listen(db.engine, "connect", lambda connection, record: _trace(connection, statements))
            _, bearer_token = teams.create("benchmark", by=Actor("cli", "benchmark"))
        for _ in range(WARM_UP):
            _call(app, bearer_token)
        statements.clear()
        profile = cProfile.Profile()
        profile.runcall(_call, app, bearer_token)
        made = list(statements)
        stats = pstats.Stats(profile, stream=io.StringIO())
    return Counts(stats.total_calls, made, stats)


def _trace(connection: sqlite3.Connection, statements: list[str]) -> None:
    connection.set_trace_callback(statements.append)


def _call(app: Any, bearer_token: str) -> None:
    body = json.dumps(
        {
            "model": "GPT-5-nano",
            "messages": [{"role": "user", "content": "Hello there, how are you today? [[words=20]]"}],
            "max_tokens": 4000,
        }
    ).encode()
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/v1/chat/completions",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": "127.0.0.1:8000",
        "HTTP_AUTHORIZATION": f"Bearer {bearer_token}",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    statuses: list[str] = []
    answer = app(environ, lambda status, headers, exc_info=None: statuses.append(status))
    b"".join(answer)
    answer.close()
    if statuses != ["200 OK"]:
        raise SystemExit(f"The call was answered by {statuses}")

"""TokenRouter: share one paid LLM account among teams, each with its own tokens and quota."""

import logging
import random
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click
from flask import Flask, Response, g, request
from flask.cli import run_command
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import NotFound
from werkzeug.middleware.proxy_fix import ProxyFix

from tokenrouter import admin, api, cli, config, demo, docs, errors, first_start, health, runtime, site, troubles, v1
from tokenrouter.admin import sessions
from tokenrouter.config import ConfigError, Settings
from tokenrouter.database import connections, schema, statements, tables

logger = logging.getLogger(__name__)

_prepared: list[Flask] = []
_files: list[connections.DatabaseFile] = []

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
}


def create_app(overrides: Mapping[str, object] | None = None) -> Flask:
    """Make the WSGI application from the environment, `.env`, and `overrides`, which win.

    Overrides that are no settings of ours go into Flask's own configuration.

    It makes the database and the key that signs sessions if they are missing; a `flask` command other than `run`
    leaves the first to those commands that need it.
    Raises ConfigError; under a `flask` command it ends the program with that one line instead.
    """
    troubles.init()
    context = click.get_current_context(silent=True)
    serving = context is None or context.command is run_command
    try:
        app = _make_app(overrides, serving=serving)
    except ConfigError as error:
        if context is not None:
            sys.exit(f"Error: {error}")  # an exception would be shown with its traceback
        raise
    return app


def _make_app(overrides: Mapping[str, object] | None, *, serving: bool) -> Flask:
    if serving and overrides is None and _prepared:
        return _prepared.pop()
    settings = first_start.load_for_serving() if serving and overrides is None else config.load(overrides)
    others = {name: value for name, value in (overrides or {}).items() if name not in config.SETTINGS}
    app = _assemble(settings, others)
    if serving:
        _find_secret_key(app)
        schema.ensure(app)
    return app


def _find_secret_key(app: Flask) -> None:
    app.config["SECRET_KEY"] = app.secret_key or first_start.generated_secret_key(Path(app.instance_path))


def _assemble(settings: Settings, flask_config: Mapping[str, object]) -> Flask:
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=tables.engine_options(settings.database_url),
        MAX_CONTENT_LENGTH=settings.max_request_bytes,
        SECRET_KEY=settings.secret_key or None,
    )
    app.config.update(flask_config)
    app.url_map.merge_slashes = False  # `//v1` is not `/v1`: no redirect, with a body, to elsewhere
    app.before_request(_begin)
    app.after_request(_label)
    for part in (errors, tables, schema, sessions, cli):
        part.init_app(app)
    runtime.init_app(app, settings)
    app.cli.add_command(demo.command(create_app))
    app.register_blueprint(v1.blueprint)
    app.register_blueprint(api.blueprint)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(site.blueprint)
    app.register_blueprint(docs.blueprint)
    admin.init_app(app)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    return app


def prepare() -> Settings:
    """Read the settings, make the app and bring the database up to date, in the process that serving starts from.

    Its workers, copies of this process, share the app's memory until they write to it: each takes it as its own by
    `create_app`. Nothing of it runs or stays open, since they must not share a connection.
    Raises ConfigError.
    """
    troubles.init()
    settings = first_start.load_for_serving()
    app = _assemble(settings, {})
    _find_secret_key(app)
    schema.ensure_apart(app)
    admin.prepare(app)
    with app.app_context():
        statements.compile_all(tables.db.engine)
        tables.db.engine.dispose()
        file = connections.DatabaseFile(tables.db.engine)
    _prepared[:] = [app]
    _files[:] = [file]
    return settings


def finish() -> None:
    """Leave nothing beside the file of an SQLite database, in the process that serving started from, after its workers.

    Where the last two of them close at once, neither of them sees to it.
    """
    for app, file in zip(_prepared, _files, strict=True):
        if file.path is not None and not file.is_lost():
            with app.app_context():
                with suppress(SQLAlchemyError), tables.db.engine.connect() as connection:
                    connection.execute(text("SELECT count(*) FROM alembic_version"))
                tables.db.engine.dispose()


def _begin() -> None:
    """Give the request its id.

    Raises NotFound for a path like `//v1`, which is not `/v1`, though routing takes it for that.
    """
    g.started = time.perf_counter()
    g.request_id = f"req_{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"  # it need not be a secret
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound


def _label(response: Response) -> Response:
    response.headers["x-request-id"] = g.request_id
    return response if errors.is_api_path(request.path) else _harden(response)


def _harden(response: Response) -> Response:
    """Tell browsers to run and load nothing but what comes from here, and to show it in no one's frame."""
    for name, value in PAGE_HEADERS.items():
        response.headers.setdefault(name, value)
    return response

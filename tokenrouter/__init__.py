"""TokenRouter: share one paid LLM account among teams, each with its own tokens and quota."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from flask import Flask, Response, g, request
from flask.cli import run_command
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import NotFound
from werkzeug.middleware.proxy_fix import ProxyFix

from tokenrouter import (
    admin,
    api,
    backups,
    cli,
    config,
    cors,
    demo,
    docs,
    door,
    errors,
    first_start,
    health,
    logs,
    metrics,
    request_body,
    runtime,
    site,
    unknown_paths,
    v1,
)
from tokenrouter.admin import sessions
from tokenrouter.config import ConfigError, Settings
from tokenrouter.database import connections, engine, schema, statements, tables
from tokenrouter.metering import counting
from tokenrouter.request_body import limit_page
from tokenrouter.worker import preload

logger = logging.getLogger(__name__)

NOT_CONFIGURED = (
    "gunicorn.conf.py was not read, without which gunicorn would cut long answers: start gunicorn in {folder}, or give "
    "it --config {folder}/gunicorn.conf.py"
)
APP_LOAD_ERROR = 4  # the exit status with which a worker tells gunicorn not to start others
DATABASE_FILE = "tokenrouter.file"

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Referrer-Policy": "same-origin",  # forms tell which page sent them: origins.py
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
}


class SyncFlask(Flask):
    """Flask without the check, for each function that a request passes, whether it is asynchronous."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function: none of ours is asynchronous."""
        return func


def create_app(overrides: Mapping[str, object] | None = None) -> Flask:
    """Make the WSGI application from the environment, `.env`, and `overrides`, which win.

    Overrides that are not settings of ours go into Flask's own configuration.

    It creates the key that signs sessions, and the database, if they are missing; of the `flask` commands only `run`
    does so, others create the database themselves if they need it. Raises ConfigError; under a `flask` command it
    prints the line and ends the program instead.
    """
    if overrides is None and preload.prepared_app() is None and "gunicorn.arbiter" in sys.modules:
        print(f"Error: {NOT_CONFIGURED.format(folder=Path(__file__).parent.parent)}", file=sys.stderr, flush=True)
        sys.exit(APP_LOAD_ERROR)
    context = click.get_current_context(silent=True)
    serving = context is None or context.command is run_command
    try:
        app = _make_app(overrides, serving=serving)
    except ConfigError as error:
        if context is not None:
            sys.exit(f"Error: {error}")  # an exception would be shown with its traceback
        raise
    if serving and context is not None:
        for line in first_start.warnings(runtime.of(app).settings):
            click.echo(f"Warning: {line}", err=True)
    return app


def _make_app(overrides: Mapping[str, object] | None, *, serving: bool) -> Flask:
    if serving and overrides is None and (prepared := preload.prepared_app()) is not None:
        return prepared
    settings = first_start.load_for_serving() if serving and overrides is None else config.load(overrides)
    others = {name: value for name, value in (overrides or {}).items() if name not in config.SETTINGS}
    app = _assemble(settings, others)
    if serving:
        _prepare_files(app, settings)
        schema.ensure(app)
    return app


def _prepare_files(app: Flask, settings: Settings) -> None:
    """Find or make the key that signs sessions, and the folder of nightly backups. Raises ConfigError."""
    if settings.backup_folder:
        backups.prepare_folder(backups.folder_of(app, settings.backup_folder))
    app.config["SECRET_KEY"] = app.secret_key or first_start.generated_secret_key(Path(app.instance_path))


def _assemble(settings: Settings, flask_config: Mapping[str, object]) -> Flask:
    logs.init(settings.log_format, settings.secrets())
    app = SyncFlask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine.options_for(settings.database_url),
        MAX_CONTENT_LENGTH=settings.max_request_bytes,
        ALLOWED_MODELS=settings.allowed_models,
        TIMEZONE=settings.timezone,
        CURRENCY=settings.currency,
        LOG_RETENTION_DAYS=settings.log_retention_days,
        SECRET_KEY=settings.secret_key or None,
    )
    app.config.update(flask_config)
    app.url_map.merge_slashes = False  # `//v1` is not `/v1`: a redirect would lose the body
    app.before_request(_begin)
    app.after_request(_label)
    for part in (errors, door, unknown_paths, engine, schema, sessions, cli):
        part.init_app(app)
    request_body.init_app(app, settings.max_request_bytes)
    cors.init_app(app, settings)
    runtime.init_app(app, settings)
    app.cli.add_command(demo.command(create_app))
    app.register_blueprint(v1.blueprint)
    app.register_blueprint(api.blueprint)
    app.register_blueprint(health.blueprint)
    if settings.metrics_token:
        app.register_blueprint(metrics.blueprint)
    app.register_blueprint(site.blueprint)
    app.register_blueprint(docs.blueprint)
    admin.init_app(app)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]  # as Flask says
    return app


def prepare(*, may_ask: bool) -> Flask:
    """Make the app and bring the database up to date, in a process that will be forked to serve.

    It compiles and loads what the forks would otherwise each load, so that they share it. No thread is started and no
    connection stays open, since forks must not share them. `may_ask` allows the questions of a first start.
    Raises ConfigError.
    """
    settings = first_start.load_for_serving(may_ask=may_ask)
    app = _assemble(settings, {})
    _prepare_files(app, settings)
    for name in app.jinja_loader.list_templates():  # type: ignore[union-attr]  # Flask sets it
        app.jinja_env.get_template(name)  # Jinja caches up to 400, and does not check their files again
    with app.app_context():
        statements.compile_all(tables.db.engine)
    schema.ensure_apart(app)
    with app.app_context():
        tables.db.engine.dispose()
        app.extensions[DATABASE_FILE] = connections.DatabaseFile(tables.db.engine)
    counting.load_tables()
    return app


def finish(app: Flask) -> None:
    """Clean up the files beside an SQLite database, in gunicorn's master, after its workers have ended.

    The last connection that closes does that, unless two close at the same time.
    """
    file: connections.DatabaseFile = app.extensions[DATABASE_FILE]
    if file.path is not None and not file.is_lost():
        with app.app_context():
            # a database that cannot be read keeps them, which does no harm
            with suppress(SQLAlchemyError), tables.db.engine.connect() as connection:
                connection.execute(text("SELECT count(*) FROM alembic_version"))
            tables.db.engine.dispose()


def _begin() -> None:
    """Give the request its id.

    Raises NotFound for a path like `//v1`, which routing would take for `/v1`.
    """
    g.started = time.perf_counter()
    g.request_id = errors.new_request_id()
    if not errors.is_api_path(request.path):
        limit_page()
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound


def _label(response: Response) -> Response:
    response.headers["x-request-id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"  # so that no answer of a provider becomes a page of ours
    return response if errors.is_api_path(request.path) else _harden(response)


def _harden(response: Response) -> Response:
    """Tell browsers to load and run only what comes from here, and to show it in no frame."""
    for name, value in PAGE_HEADERS.items():
        response.headers.setdefault(name, value)
    return response

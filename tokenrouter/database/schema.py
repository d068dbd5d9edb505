"""Bring the database to the schema of this version, whichever process starts first."""

import errno
import importlib
import logging
import os
import secrets
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click
from flask import Flask
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from tokenrouter.config import ConfigError
from tokenrouter.database import engine, snapshots
from tokenrouter.database.snapshots import BackupError
from tokenrouter.database.tables import db

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent.parent / "migrations"
HEAD = "0023"
MAKING = "The service makes it when it starts, and so does `flask teams create`."


def init_app(app: Flask) -> None:
    """Give the `flask` command its group `db`."""
    if click.get_current_context(silent=True) is not None:
        _flask_migrate(app)


def _flask_migrate(app: Flask) -> Any:
    """Return Flask-Migrate, set up for the app; it is loaded when needed, since Alembic takes 11 MB."""
    flask_migrate = importlib.import_module("flask_migrate")
    if "migrate" not in app.extensions:
        flask_migrate.Migrate(app, db, directory=MIGRATIONS)
    return flask_migrate


def ensure_apart(app: Flask) -> None:
    """Do the same as `ensure`, but migrate in a child process: what Alembic loads would stay in this one for months.

    For a process with one thread. Raises ConfigError.
    """
    child = os.fork()
    if not child:
        try:
            ensure(app)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ensure(app)  # finds nothing to do, or raises what ended the child


def ensure(app: Flask, *, may_make: bool = True, saves: bool = True) -> None:
    """Create or migrate the tables, and the folder of an SQLite file; do nothing if they are up to date.

    `may_make` allows a new database; `saves` copies an SQLite file before it is migrated.

    Several processes and machines may call it at once: the migration takes a lock (see migrations/env.py).
    Raises ConfigError, naming DATABASE_URL, where the database cannot be used.
    """
    _close_folder(Path(app.instance_path))
    with app.app_context():
        try:
            if not may_make:
                _expect_sqlite_file()
            _make_sqlite_file()
            if (revision := _revision()) == HEAD:
                return
            if revision is None and not may_make:
                raise ConfigError(f"DATABASE_URL: there is no database of TokenRouter's yet at {shown_url()}. {MAKING}")
            if revision is not None and not is_known(revision):
                raise ConfigError(f"DATABASE_URL: the database is of a later version (revision {revision})")
            _migrate(app, revision, saves=saves)
        except OperationalError as error:
            raise ConfigError(f"DATABASE_URL: the database cannot be reached: {cause_of(error)}") from error
        except (OSError, DBAPIError) as error:
            raise ConfigError(f"DATABASE_URL: the database cannot be used: {cause_of(error)}") from error


def shown_url() -> str:
    """Return where the database is, without its password."""
    return db.engine.url.render_as_string(hide_password=True)


def cause_of(error: BaseException) -> str:
    """Say in one line what went wrong, without the statement and its values."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def app_on(url: str) -> Flask:
    """Return a bare app on another database."""
    app = Flask("tokenrouter")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS=engine.options_for(url))
    engine.init_app(app)
    return app


def _migrate(app: Flask, revision: str | None, *, saves: bool) -> None:
    """Bring the tables up to date in one transaction, after saving a copy of an SQLite file.

    Raises ConfigError; then they are as they were.
    """
    flask_migrate = _flask_migrate(app)
    saved = _save(revision) if revision is not None and saves and db.engine.dialect.name == "sqlite" else None
    try:
        flask_migrate.upgrade(directory=MIGRATIONS)
    except (Exception, SystemExit) as error:  # whatever it is, and Flask-Migrate exits for some
        copy = f" A copy of it is {saved}." if saved else ""
        raise ConfigError(
            f"DATABASE_URL: the database cannot be brought from revision {revision} to {HEAD}: {cause_of(error)}. "
            f"It was left as it is, and the version before goes on with it.{copy}"
        ) from error


def _save(revision: str) -> Path:
    """Copy the SQLite file beside itself, under a name with the new revision; return the path of the copy."""
    path = Path(db.engine.url.database or "")
    saved = path.with_name(f"{path.name}.before-{HEAD}")
    draft = path.with_name(f"{saved.name}.{secrets.token_hex(4)}.part")
    try:
        snapshots.sqlite_copy(db.engine, draft)
        with closing(sqlite3.connect(draft)) as connection:
            (copied,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if copied == revision:  # otherwise another process has just migrated it
            snapshots.sync(draft)
            draft.replace(saved)
            logger.warning("Saved the database as %s, before it is brought up to date", saved)
    except (OSError, sqlite3.Error, BackupError) as error:
        raise ConfigError(
            f"DATABASE_URL: the database has to be brought up to date, and cannot be saved as {saved} before: "
            f"{cause_of(error)}"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return saved


def _close_folder(folder: Path) -> None:
    """Make the folder of database and secret accessible to its owner alone; git makes it open to all."""
    with suppress(OSError):  # it is missing, or belongs to another user, whose task this is
        folder.chmod(0o700)


def _expect_sqlite_file() -> None:
    if db.engine.dialect.name == "sqlite" and not Path(db.engine.url.database or "").exists():
        raise ConfigError(f"DATABASE_URL: there is no database at {shown_url()}. {MAKING}")


def _make_sqlite_file() -> None:
    """Make the file before SQLite does, readable by its owner alone; the files beside it inherit its mode."""
    if db.engine.dialect.name != "sqlite" or db.engine.url.database is None:
        return
    path = Path(db.engine.url.database)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
        snapshots.let_shrink(path)
    for needed in (path.parent, path):  # SQLite makes further files in the folder
        if not os.access(needed, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(needed))


def _revision() -> str | None:
    with db.engine.connect() as connection:
        return stored_revision(connection)


def stored_revision(connection: Connection) -> str | None:
    """Return the revision of a database's tables; None if it has none of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def is_known(revision: str) -> bool:
    """Tell whether this version, or an earlier one, has this revision."""
    return any(MIGRATIONS.glob(f"versions/{revision}_*.py"))

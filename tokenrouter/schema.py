"""Bring the database to the schema of this version, whoever starts first."""

from pathlib import Path

import flask_migrate
from flask import Flask
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from tokenrouter.models import db

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0001"


class SchemaTooNew(Exception):
    """The database was made by a later version."""


def init_app(app: Flask) -> None:
    """Give the app the `flask db` commands."""
    flask_migrate.Migrate(app, db, directory=MIGRATIONS)


def ensure(app: Flask) -> None:
    """Create or migrate the tables, and the folder of an SQLite file; nothing where they are as they should be.

    Several processes and machines may come at once: the migration itself takes a lock (see migrations/env.py).
    Raises SchemaTooNew, and what the driver raises where the database cannot be reached.
    """
    with app.app_context():
        _make_sqlite_file()
        if _revision() == HEAD:
            return
        flask_migrate.upgrade(directory=MIGRATIONS)
        if (revision := _revision()) != HEAD:
            raise SchemaTooNew(f"the database is at revision {revision}, this version needs {HEAD}")


def _make_sqlite_file() -> None:
    """Make the file before SQLite does, readable to its owner alone; its companions take over its mode."""
    if db.engine.dialect.name != "sqlite":
        return
    path = Path(db.engine.url.database)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)


def _revision() -> str | None:
    with db.engine.connect() as connection:
        return _stored_revision(connection)


def _stored_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

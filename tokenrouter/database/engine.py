"""The engine: how the app connects to its database, and short transactions that write."""

import importlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask
from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Dialect, Engine

from tokenrouter.config import ConfigError
from tokenrouter.database.tables import Base, db
from tokenrouter.database.turns import turns_of

BUSY_TIMEOUT_S = 5
CHECKPOINT_PAGES, MOST_WAL_BYTES = 1000, 16 * 2**20  # of SQLite's write-ahead log


def init_app(app: Flask) -> None:
    """Bind the tables to the app's database.

    Raises ConfigError if the folder cannot be made from which the path of an SQLite file is taken.
    """
    try:
        db.init_app(app)
    except OSError as error:
        raise ConfigError(f"{app.instance_path} cannot be made: {error.strerror}") from error
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            event.listen(db.engine, "do_connect", _expect_file)
            event.listen(db.engine, "connect", _prepare_sqlite)
            event.listen(db.engine, "begin", _begin_sqlite)
        else:
            event.listen(db.engine, "do_connect", _connect_impatiently)


def _expect_file(dialect: Dialect, record: Any, arguments: Any, options: Any) -> None:
    """Keep SQLite from creating an empty file where the database was: only `schema.ensure` creates one."""
    path = arguments[0]
    if path not in ("", ":memory:") and not os.path.exists(path):
        raise sqlite3.OperationalError(f"unable to open database file: there is no {path}")


def _connect_impatiently(dialect: Dialect, record: Any, arguments: Any, options: Any) -> Any:
    postgresql = importlib.import_module("tokenrouter.database.postgresql")  # and psycopg with it, 9 MB
    return postgresql.ImpatientConnection.connect(*arguments, **options)


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions late; _begin_sqlite does it
    connection.create_function("lower", 1, _lower, deterministic=True)  # SQLite's own lowers ASCII letters only
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_S * 1000}",
        "journal_mode = WAL",
        "foreign_keys = ON",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        f"journal_size_limit = {MOST_WAL_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction that will write as a writer.

    A reader that becomes a writer later fails at once if somebody has written in between, whatever the timeout.
    """
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(engine: Engine, *, durable: bool = True) -> Iterator[Connection]:
    """Open a short write transaction and commit it; `durable` commits survive a power cut.

    Raises what the driver raises; then nothing is written.
    """
    with engine.connect().execution_options(writes=True) as connection, turns_of(engine).turn():
        driver_connection = connection.connection.driver_connection
        on_sqlite = isinstance(driver_connection, sqlite3.Connection)
        if isinstance(driver_connection, sqlite3.Connection):  # before the transaction: inside it would have no effect
            driver_connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        with connection.begin():
            if not (on_sqlite or durable):
                connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads, and sees the database as it was at one moment."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's transactions are snapshots by themselves
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection


def lock_table(connection: Connection, table: type[Base], mode: str = "SHARE ROW EXCLUSIVE") -> None:
    """Keep a table until this transaction ends from all who lock it in a mode that conflicts; readers never wait.

    By default one transaction at a time has it, and no other one writes to it. On SQLite only one writes anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"LOCK TABLE {table.__tablename__} IN {mode} MODE"))


def options_for(url: str) -> dict[str, Any]:
    """Return what the pool and the driver need for this database."""
    # the pool serves all but calls, such as the panel, which take a connection for milliseconds
    options: dict[str, Any] = {"pool_size": 4, "max_overflow": 4, "pool_timeout": BUSY_TIMEOUT_S}
    if url.startswith("postgresql"):
        # with a worker's readers and its writer these are six; a server has a hundred for all
        options |= {"pool_size": 2, "max_overflow": 0, "pool_pre_ping": True}  # the server may have closed one
        options["connect_args"] = {
            "connect_timeout": BUSY_TIMEOUT_S,
            "keepalives_idle": 10,
            "tcp_user_timeout": 2 * BUSY_TIMEOUT_S * 1000,  # a server that is silent is ImpatientConnection's task
            "options": f"-c lock_timeout={BUSY_TIMEOUT_S}s -c statement_timeout=60s -c timezone=UTC",
        }
    return options

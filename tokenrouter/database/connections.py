"""The connections of a worker that belong to the driver: one that writes, and a few that read."""

import sqlite3
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, cast

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tokenrouter.database.statements import DriverConnection, Statement
from tokenrouter.errors import StorageUnavailable

READERS = 8
READER_WAIT_S = 5.0


def transient_errors() -> tuple[type[Exception], ...]:
    """Return what may pass by itself: a lock held too long, a full disk, a server that is away.

    SQLAlchemy loads psycopg where the database is PostgreSQL; elsewhere its 9 MB are not needed.
    """
    loaded = sys.modules.get("psycopg")
    of_server = (loaded.OperationalError, loaded.InterfaceError) if loaded else ()
    return (sqlite3.OperationalError, SQLAlchemyError, *of_server)  # SQLAlchemy's is raised by opening a connection


class WriteConnection:
    """The one connection by which a worker writes, opened when first needed and again after it broke.

    For one thread at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: DriverConnection | None = None
        self._is_durable: bool | None = None

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[DriverConnection]:
        """Run a transaction that writes, and commit it; forced to disk if `durable`.

        Raises what the driver raises; then nothing is written, unless the connection was lost during the commit.
        """
        connection = self._connection or self._open()
        try:
            self._begin(connection, durable)
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> DriverConnection:
        self._connection = open_connection(self._engine)
        self._is_durable = None
        return self._connection

    def _begin(self, connection: DriverConnection, durable: bool) -> None:
        if not isinstance(connection, sqlite3.Connection):
            connection.execute("BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit = off")
            return
        if durable != self._is_durable:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable
        connection.execute("BEGIN IMMEDIATE")

    def _roll_back(self, connection: DriverConnection) -> None:
        try:
            connection.execute("ROLLBACK")
        except Exception as error:
            if not isinstance(error, (sqlite3.Error, *transient_errors())):
                raise
            self.close()  # nothing was begun, or the connection is lost: a new one will be opened


class Readers:
    """A few connections for single reads, shared by all threads of a worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._idle: SimpleQueue[DriverConnection | None] = SimpleQueue()
        self._lock = threading.Lock()
        for _ in range(READERS):
            self._idle.put(None)

    def one(self, statement: Statement, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Return the first row, or None.

        A connection that the server closed meanwhile is replaced once.
        Raises StorageUnavailable, also when all connections stay in use.
        """
        try:
            connection = self._idle.get(timeout=READER_WAIT_S)
        except Empty as error:
            raise StorageUnavailable from error
        try:
            if connection is not None:
                try:
                    return _first_row(connection, statement, values)
                except transient_errors():
                    connection.close()
                    connection = None
            connection = open_connection(self._engine)
            return _first_row(connection, statement, values)
        except transient_errors() as error:
            _close(connection)
            connection = None
            raise StorageUnavailable from error
        except BaseException:
            _close(connection)
            connection = None
            raise
        finally:
            self._idle.put(connection)

    def close(self) -> None:
        """Close what is open and not in use."""
        for _ in range(READERS):
            try:
                _close(self._idle.get_nowait())
            except Empty:
                return


def _first_row(connection: DriverConnection, statement: Statement, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = statement.execute(connection, values).fetchone()
    return row


def _close(connection: DriverConnection | None) -> None:
    if connection is not None:
        connection.close()


def open_connection(engine: Engine) -> DriverConnection:
    """Open a connection of the engine's kind that belongs to the caller and begins no transaction by itself."""
    pooled = engine.raw_connection()
    connection: Any = pooled.driver_connection
    pooled.detach()
    if not isinstance(connection, sqlite3.Connection):
        connection.autocommit = True
    return cast(DriverConnection, connection)


def driver_connection(connection: Connection) -> DriverConnection:
    """Return the driver's own connection beneath SQLAlchemy's."""
    return cast(DriverConnection, connection.connection.driver_connection)

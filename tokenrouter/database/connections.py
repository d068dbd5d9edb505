"""A worker's own connections beside SQLAlchemy's pool: one that writes, and a few that read."""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, cast

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tokenrouter.database.statements import DriverConnection, Statement
from tokenrouter.database.turns import Turn, turns_of
from tokenrouter.errors import StorageUnavailable

READERS = 3  # a read takes a fraction of a millisecond, so few serve many threads
READER_WAIT_S = 3.0
READ_S, WRITE_S = 4.0, 6.0  # for the server to answer; the second is longer than its lock_timeout
force_to_disk = getattr(os, "fdatasync", os.fsync)  # macOS has only the second
ONE_STATEMENTS_ERRORS = ("IntegrityError", "DataError", "ProgrammingError", "NotSupportedError")


def database_errors() -> tuple[type[Exception], ...]:
    """Return all kinds of errors that a database raises; after any of them nothing was written.

    SQLAlchemy loads psycopg where the database is PostgreSQL; elsewhere its 9 MB are not needed.
    """
    return (SQLAlchemyError, *(driver.Error for driver in _drivers()))  # the first when a connection is opened


def is_of_the_whole_database(error: Exception) -> bool:
    """Tell whether other statements would most likely fail too: no server, a full disk, a lock, a read-only server.

    The rest are errors of one statement: values that do not fit, broken constraints, missing rights, and bugs.
    """
    of_one = [getattr(driver, name) for driver in _drivers() for name in ONE_STATEMENTS_ERRORS]
    return isinstance(error, database_errors()) and not isinstance(error, tuple(of_one))


def _drivers() -> list[Any]:
    return [sqlite3, *filter(None, [sys.modules.get("psycopg")])]


class DatabaseLost(sqlite3.OperationalError):
    """The database file was replaced or deleted: whatever is written would be lost."""


class DatabaseFile:
    """The file of an SQLite database, and whether its path still leads to it."""

    def __init__(self, engine: Engine) -> None:
        self.path = engine.url.database if engine.dialect.name == "sqlite" else None
        self._first = self._identity()

    def remember(self) -> None:
        """Remember the file that the path leads to, unless one is known already."""
        self._first = self._first or self._identity()

    def is_lost(self) -> bool:
        """Tell whether the path now leads to another file, or to none."""
        return self._first is not None and self._identity() != self._first

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path) if self.path else None
        except OSError:
            return None
        return found and (found.st_dev, found.st_ino)


class WriteConnection:
    """The connection by which a worker writes, opened when first needed and again after it broke.

    For one thread at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._file = DatabaseFile(engine)
        self._is_lost = False
        self._connection: DriverConnection | None = None
        self._turns = turns_of(engine)
        self._turn: Turn | None = None
        self._log: int | None = None

    def wait_for_turn(self) -> None:
        """Wait until this process may write; the next transaction ends the turn, or `end_turn` does."""
        if self._turn is None:
            self._turn = self._turns.take()

    def end_turn(self) -> None:
        """Let others write; without a turn do nothing."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.end()

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[DriverConnection]:
        """Run a transaction that writes, and commit it; force it to disk if `durable`.

        Raises what the driver raises; then nothing is written, unless the connection was lost during the commit, or
        the disk failed after it.
        """
        try:
            if self._is_lost:
                raise DatabaseLost("the file of the database was replaced or deleted")
            connection = self._connection or self._open()
            self.wait_for_turn()
            try:
                self._begin(connection, durable)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._roll_back(connection)
                raise
        finally:
            self.end_turn()
        if durable and self._log is not None:
            self._force_to_disk(self._log)

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        log, self._log = self._log, None
        if log is not None:
            os.close(log)

    def lost_file(self) -> str | None:
        """Return the path of the database where it leads to another file now, or to none; from then on refuse to write.

        For any thread.
        """
        self._is_lost = self._is_lost or self._file.is_lost()
        return self._file.path if self._is_lost else None

    def _open(self) -> DriverConnection:
        if self.lost_file():
            raise DatabaseLost("the file of the database was replaced or deleted")
        self._connection = open_connection(self._engine, WRITE_S)
        self._file.remember()
        if isinstance(self._connection, sqlite3.Connection):
            self._log = self._open_log(self._connection)
        return self._connection

    def _open_log(self, connection: sqlite3.Connection) -> int | None:
        """Open SQLite's write-ahead log, to force it to disk after a commit, when others may write already.

        Return None without such a log; then SQLite forces commits to disk itself.
        """
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            return None
        connection.execute("PRAGMA synchronous = NORMAL").close()
        connection.execute("SELECT count(*) FROM sqlite_schema").close()  # which creates the log
        return os.open(f"{self._file.path}-wal", os.O_RDONLY | os.O_CLOEXEC)

    @staticmethod
    def _force_to_disk(log: int) -> None:
        """Force the log to disk; raise what SQLite would raise if the disk fails."""
        try:
            force_to_disk(log)
        except OSError as error:
            raise sqlite3.OperationalError("disk I/O error") from error

    def _begin(self, connection: DriverConnection, durable: bool) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("BEGIN IMMEDIATE")
        else:
            connection.execute("BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit = off")

    def _roll_back(self, connection: DriverConnection) -> None:
        try:
            connection.execute("ROLLBACK")
        except database_errors():
            self.close()  # nothing was begun, or the connection is lost: a new one will be opened


class Readers:
    """A few connections for single reads, shared by the threads of a worker."""

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
        began = time.monotonic()
        try:
            connection = self._idle.get(timeout=READER_WAIT_S)
        except Empty as error:
            raise StorageUnavailable from error
        try:
            if connection is not None:
                try:
                    return _first_row(connection, statement, values)
                except database_errors():
                    connection.close()
                    connection = None
                    if time.monotonic() - began > READER_WAIT_S:
                        raise  # the server did not answer: it would not answer another connection either
            connection = open_connection(self._engine, READ_S)
            return _first_row(connection, statement, values)
        except database_errors() as error:
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


def open_connection(engine: Engine, answers_within_s: float) -> DriverConnection:
    """Open a driver's connection that belongs to the caller, outside the pool, and begins no transaction by itself.

    On PostgreSQL a statement that gets no answer in time closes it, and raises.
    """
    pooled = engine.raw_connection()
    connection: Any = pooled.driver_connection
    pooled.detach()
    if not isinstance(connection, sqlite3.Connection):
        connection.autocommit = True
        connection.answers_within_s = answers_within_s
    return cast(DriverConnection, connection)


def driver_connection(connection: Connection) -> DriverConnection:
    """Return the driver's own connection beneath SQLAlchemy's."""
    return cast(DriverConnection, connection.connection.driver_connection)


def without_time_limit(connection: Connection) -> None:
    """Lift the time limit for the statements of this transaction; its connection does not return to the pool."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        driver: Any = driver_connection(connection)
        driver.answers_within_s = None
        connection.detach()  # without its limit it must not be used for anything else

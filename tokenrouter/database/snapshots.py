"""Copies of a whole database at one moment, while others write to it: by SQLite itself, or by pg_dump."""

import os
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL, Connection, func, inspect, select, text
from sqlalchemy.engine import Engine

from tokenrouter.config import ConfigError
from tokenrouter.database.connections import open_connection, without_time_limit
from tokenrouter.database.tables import db

COMPANIONS = ("", "-wal", "-shm")
"""The suffixes of the files that make an SQLite database."""
SHRINKS = "PRAGMA auto_vacuum = INCREMENTAL"
STAMP = "%Y%m%d-%H%M%S"
COMMON_OPTIONS = ("--no-owner", "--no-privileges")


class BackupError(ConfigError):
    """Say in one line why a backup, a restore or a copy cannot be made."""


def stamp() -> str:
    """Return the present time in UTC as names of files have it."""
    return datetime.now(UTC).strftime(STAMP)


def make_private(path: Path) -> Path:
    """Make an empty file that only its owner can read; raises FileExistsError."""
    path.touch(mode=0o600, exist_ok=False)
    return path


def sync(path: Path) -> None:
    """Have a file survive a power cut; raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sqlite_copy(engine: Engine, path: Path) -> None:
    """Write the database as it is now into a new, compact file that can be shrunk in steps; `sync` makes it last.

    Raises BackupError.
    """
    make_private(path)
    try:
        with closing(open_connection(engine, 0)) as connection:
            connection.execute(SHRINKS)
            # calls could not be booked while the disk is busy with all of the copy at once
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("VACUUM INTO ?", (str(path),))
            connection.execute("PRAGMA synchronous = FULL")
            # nothing could be checkpointed during the copy: do it now, so that no call has to do it for all of it
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as error:
        raise BackupError(f"the database cannot be copied: {error}") from error


def let_shrink(path: Path) -> None:
    """Set an empty SQLite file up so that it can be shrunk in steps.

    Connections do not set this: SQLite would write to the file each time.
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(SHRINKS)
        connection.execute("VACUUM")  # which stores the setting


def counts(connection: Connection) -> dict[str, int]:
    """Return how many rows each of our tables has, of those that exist."""
    there = set(inspect(connection).get_table_names())
    tables = [table for table in db.metadata.sorted_tables if table.name in there]
    return {table.name: connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables}


# PostgreSQL's


def dump(engine: Engine, path: Path) -> dict[str, int]:
    """Write our tables as they are now into a new file by pg_dump; return how many rows each has.

    Raises BackupError, with the command to run by hand, if it cannot be done here.
    """
    line = ["pg_dump", "--format=custom", *COMMON_OPTIONS]
    by_hand = [*line, f"--file={path.with_suffix('.dump').name}", f"--dbname={_url(engine)}"]
    make_private(path)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        without_time_limit(connection)
        snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        counted = counts(connection)
        of_ours = [f"--table={_schema(connection)}.{name}" for name in (*counted, "alembic_version")]
        options = [f"--snapshot={snapshot}", f"--file={path}", f"--dbname={_url(engine)}"]
        _run(engine, [*line, *of_ours, *options], by_hand)
    return counted


def load(engine: Engine, path: Path) -> None:
    """Create the tables of a file by pg_dump, all or none. Raises BackupError."""
    line = ["pg_restore", *COMMON_OPTIONS, "--exit-on-error", "--single-transaction", f"--dbname={_url(engine)}"]
    _run(engine, [*line, str(path)], [*line, path.name])


def _url(engine: Engine) -> str:
    """Return the database's URL as PostgreSQL's own programs take it, without the password."""
    url: URL = engine.url.set(drivername="postgresql")
    return URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query).render_as_string()


def _run(engine: Engine, line: Sequence[str], by_hand: Sequence[str]) -> None:
    if shutil.which(line[0]) is None:
        message = f"{line[0]} is not installed here: install PostgreSQL's client, or run where it is: {{}}"
        raise BackupError(message.format(shlex.join(by_hand)))
    password = {"PGPASSWORD": engine.url.password} if engine.url.password else {}
    environment = os.environ | password
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise BackupError(f"{line[0]} failed: {said} By hand it is: {shlex.join(by_hand)}")


def _schema(connection: Connection) -> str:
    name: str = connection.execute(text("SELECT current_schema()")).scalar_one()
    return name


# what was there


@contextmanager
def moved_aside(engine: Engine, name: str) -> Iterator[str | None]:
    """Move what a database has out of the way, for a block that puts another in its place.

    It comes back where the block fails. Yield where it is meanwhile, or None if there was nothing.
    """
    move = _tables_moved_aside if engine.dialect.name == "postgresql" else _file_moved_aside
    with move(engine, name) as where:
        yield where


@contextmanager
def _file_moved_aside(engine: Engine, name: str) -> Iterator[str | None]:
    path = engine.url.database or ""
    aside = f"{path}.{name}"
    engine.dispose()
    there = [end for end in COMPANIONS if os.path.exists(path + end)]
    for end in there:
        os.replace(path + end, aside + end)
    try:
        yield aside if there else None
    except BaseException:
        engine.dispose()
        for end in COMPANIONS:
            Path(path + end).unlink(missing_ok=True)
        for end in there:
            os.replace(aside + end, path + end)
        raise


@contextmanager
def _tables_moved_aside(engine: Engine, name: str) -> Iterator[str | None]:
    aside = name.replace("-", "_")
    with engine.begin() as connection:
        home, ours = _schema(connection), _our_tables(connection)
        if ours:
            connection.execute(text(f'CREATE SCHEMA "{aside}"'))
        _move(connection, ours, home, aside)
    try:
        yield f"the schema {aside} of the same database" if ours else None
    except BaseException:
        with engine.begin() as connection:
            for table in _our_tables(connection):
                connection.execute(text(f'DROP TABLE "{home}"."{table}" CASCADE'))
            _move(connection, ours, aside, home)
            if ours:
                connection.execute(text(f'DROP SCHEMA "{aside}"'))
        raise


def _our_tables(connection: Connection) -> list[str]:
    there = inspect(connection).get_table_names()
    return [name for name in (*db.metadata.tables, "alembic_version") if name in there]


def _move(connection: Connection, tables: Sequence[str], source: str, target: str) -> None:
    """Move tables, and with them their indexes and sequences, from one schema to another."""
    for table in tables:
        connection.execute(text(f'ALTER TABLE "{source}"."{table}" SET SCHEMA "{target}"'))

"""How reports read: several statements that see the same."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import Connection

from tokenrouter.database.tables import db


@contextmanager
def reading() -> Iterator[Connection]:
    """Open a transaction that only reads, on one snapshot."""
    with db.engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's transactions are snapshots by themselves
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection

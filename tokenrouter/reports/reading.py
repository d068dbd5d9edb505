"""How reports read: several statements on one snapshot."""

from contextlib import AbstractContextManager

from sqlalchemy.engine import Connection

from tokenrouter.database.engine import snapshot
from tokenrouter.database.tables import db


def reading() -> AbstractContextManager[Connection]:
    """Open a transaction that only reads, on one snapshot of the app's database."""
    return snapshot(db.engine)

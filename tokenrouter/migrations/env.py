"""Run the migrations in one transaction that only one process at a time can have."""

from alembic import context
from flask import current_app
from sqlalchemy import text

LOCK_KEY = 0x746F6B656E  # any number, as long as all versions use the same
LOCK_TIMEOUT_S = 600

extension = current_app.extensions["migrate"]
engine = extension.db.engine

with engine.connect().execution_options(writes=True) as connection:
    if engine.dialect.name == "sqlite":
        connection.connection.driver_connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_S * 1000}")
    with connection.begin():  # on SQLite BEGIN IMMEDIATE, which waits for whoever migrates already
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        context.configure(connection=connection, target_metadata=extension.db.metadata, **extension.configure_args)
        context.run_migrations()
    connection.invalidate()  # not back to the pool with this timeout

"""Run the migrations in one transaction that only one process at a time can have."""

import logging
import threading
from contextlib import ExitStack

from alembic import context
from flask import current_app
from sqlalchemy import text

LOCK_KEY = 0x746F6B656E  # any number, as long as all versions use the same
LOCK_TIMEOUT_S = 600
SAY_AFTER_S = 3.0

logger = logging.getLogger("tokenrouter.migrations")

extension = current_app.extensions["migrate"]
engine = extension.db.engine


def say_that_it_takes_long():
    logger.warning("Another process brings the database up to date, or a migration takes long; this waits for it")


waiting = threading.Timer(SAY_AFTER_S, say_that_it_takes_long)
waiting.daemon = True
waiting.start()
with ExitStack() as end, engine.connect().execution_options(writes=True) as connection:
    end.callback(waiting.cancel)
    driver_connection = connection.connection.driver_connection
    if engine.dialect.name == "sqlite":
        driver_connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_S * 1000}")
    else:
        driver_connection.answers_within_s = None
    with connection.begin():  # on SQLite BEGIN IMMEDIATE, which waits for whoever migrates already
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        context.configure(connection=connection, target_metadata=extension.db.metadata, **extension.configure_args)
        context.run_migrations()
    connection.invalidate()  # not back to the pool with this timeout

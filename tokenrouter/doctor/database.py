"""Check the database, and with it the clock, the workers, the jobs and the counters."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.engine import Connection

from tokenrouter import ledger
from tokenrouter.database import schema
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.tables import Job, Worker
from tokenrouter.doctor.findings import Finding, Installation, Mark, in_bytes

MOST_OF_LOG_BYTES = 256 * 2**20
MOST_CONNECTIONS = 0.8  # of those that the server takes
CLOCKS_DIFFER_S = 5.0
LATE_S = 600.0


def database(place: Installation) -> Iterator[Finding]:
    """Check that the database can be reached, has this version's schema, and is intact."""
    is_sqlite = place.engine.dialect.name == "sqlite"
    if is_sqlite and not Path(place.engine.url.database or "").exists():
        yield Finding("database", Mark.WRONG, f"There is none yet at {schema.shown_url()}.", schema.MAKING)
        return
    with place.engine.connect() as connection:
        stored = schema.stored_revision(connection)
        if stored != schema.HEAD:
            words = f"It has the tables of revision {stored or 'none'}; this version needs {schema.HEAD}."
            advice = "start the service, which brings it up to date"
            if stored is not None and not schema.is_known(stored):
                advice = "a later version made it: install that one"
            yield Finding("database", Mark.WRONG, words, advice)
        yield from (_sqlite if is_sqlite else _postgresql)(connection)


def _sqlite(connection: Connection) -> Iterator[Finding]:
    version = connection.execute(text("SELECT sqlite_version()")).scalar()
    mode = connection.execute(text("PRAGMA journal_mode")).scalar()
    path = Path(connection.engine.url.database or "")
    log = path.with_name(f"{path.name}-wal")
    log_bytes = log.stat().st_size if log.exists() else 0
    words = f"SQLite {version}, {in_bytes(path.stat().st_size)}, and {in_bytes(log_bytes)} in its write-ahead log."
    if mode != "wal":
        advice = "put it on a local disk: calls and pages wait for each other as it is"
        yield Finding("database", Mark.WARNING, f"SQLite keeps no write-ahead log here (mode {mode}).", advice)
    if log_bytes > MOST_OF_LOG_BYTES:
        advice = "close whatever reads the file for long, such as a database browser"
        yield Finding("database", Mark.WARNING, words, advice)
    else:
        yield Finding("database", Mark.OK, words)


def _postgresql(connection: Connection) -> Iterator[Finding]:
    query = """
        SELECT current_setting('server_version') AS version, pg_database_size(current_database()) AS size,
            current_setting('max_connections')::int AS most, (SELECT count(*) FROM pg_stat_activity) AS connections,
            current_setting('transaction_read_only') AS read_only
    """
    server = connection.execute(text(query)).one()
    if server.read_only == "on":
        advice = "point DATABASE_URL at the server that takes writes"
        yield Finding("database", Mark.WRONG, "PostgreSQL is read-only here.", advice)
    in_use = f"{server.connections} of {server.most} connections in use"
    words = f"PostgreSQL {server.version}, {in_bytes(server.size)}, {in_use}."
    if server.connections > MOST_CONNECTIONS * server.most:
        advice = "raise max_connections: each worker opens up to six"
        yield Finding("database", Mark.WARNING, words, advice)
    else:
        yield Finding("database", Mark.OK, words)


def clock(place: Installation) -> Iterator[Finding]:
    """Compare this machine's clock with the database's, by which leases and renewals go."""
    with place.engine.connect() as connection:
        before = time.time()
        database_time = connection.execute(select(epoch_now())).scalar_one()
        apart_s = database_time - (before + time.time()) / 2
    if abs(apart_s) <= CLOCKS_DIFFER_S:
        yield Finding("clock", Mark.OK, "This machine's clock and the database's agree.")
        return
    which = "behind" if apart_s > 0 else "ahead of"
    words = f"This machine's clock is {abs(apart_s):,.0f} s {which} the database's."
    yield Finding("clock", Mark.WARNING, words, "set both by NTP: rows of the log have the machine's time")


def workers(place: Installation) -> Iterator[Finding]:
    """Check which workers serve, and which died."""
    is_live = (Worker.lease_expires_at > epoch_now()).label("is_live")
    with place.engine.connect() as connection:
        rows = connection.execute(select(Worker.name, is_live).order_by(Worker.id)).all()
    live = [row.name for row in rows if row.is_live]
    dead = [row.name for row in rows if not row.is_live]
    if dead:
        words = f"{', '.join(dead)} died without leaving."
        advice = "nothing, another worker settles its calls within a minute" if live else "start the service"
        yield Finding("workers", Mark.WARNING, words, advice)
    if not live:
        yield Finding("workers", Mark.WARNING, "No worker runs.", "start the service: gunicorn wsgi:app")
    else:
        yield Finding("workers", Mark.OK, f"{len(live)} live: {', '.join(live)}.")


def jobs(place: Installation) -> Iterator[Finding]:
    """Check when scheduled jobs last ran, and with what result."""
    with place.engine.connect() as connection:
        now = connection.execute(select(epoch_now())).scalar_one()
        rows = {row.name: row for row in connection.execute(select(Job.__table__))}
        serves = connection.execute(select(Worker.id).where(Worker.lease_expires_at > now).limit(1)).first() is not None
    for name in place.jobs:
        if (row := rows.get(name)) is None:
            yield Finding("jobs", Mark.OK, f"{name}: not run yet; the service does, a minute after its start.")
            continue
        last = "never" if row.began_at is None else _moment(row.began_at)
        words = f"{name}: last {last}, next {_moment(row.due_at)}."
        if row.error is not None:
            yield Finding("jobs", Mark.WARNING, f"{words} It failed: {row.error}", "see the service's log")
        elif serves and row.due_at < now - LATE_S and row.worker_id is None:
            yield Finding("jobs", Mark.WARNING, f"{words} It is late.", "see the service's log, and restart it")
        else:
            yield Finding("jobs", Mark.OK, words)


def books(place: Installation) -> Iterator[Finding]:
    """Prove that counters and daily totals equal the log."""
    found = ledger.verify(place.engine)
    for problem in found.problems:
        yield Finding("books", Mark.WRONG, problem)
    if not found.problems:
        words = f"Counters and daily totals equal the log: {found.rows:,} calls, read in {found.seconds:.1f} s."
        yield Finding("books", Mark.OK, words)


def _moment(instant: float) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d %H:%M} UTC"

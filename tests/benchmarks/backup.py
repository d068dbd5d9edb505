"""Back a large database up, as each night, while calls go on; exit 1 if their 99th percentile rises by 20 %.

Two workers on SQLite and a stand-in provider, called at a steady pace: before, beside and after the backup, which one
of the two workers writes.
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from load import quantile, request_bytes
from logrows import fill
from prune import KEY, MOST_RISE, call_while, describe, for_seconds
from serving import running_server

from tokenrouter.config import default_settings
from tokenrouter.standin import StandInProvider
from tokenrouter.worker.jobs import LOOK_S


def ask(database: Path, statement: str) -> object:
    """Run a statement on the table of jobs, and return the first that it yields."""
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        row = connection.execute(statement).fetchone()
    return row and row[0]


def is_running(database: Path) -> bool:
    return ask(database, "SELECT worker_id FROM jobs WHERE name = 'backup'") is not None


def begin(database: Path) -> None:
    """Let the backup be due, and wait for a worker to begin: a service knows its jobs from its first look on."""
    deadline = time.monotonic() + 3 * LOOK_S
    while not is_running(database):
        if time.monotonic() > deadline:
            raise SystemExit("no worker has begun with the backup")
        ask(database, "UPDATE jobs SET due_at = 0 WHERE name = 'backup' AND due_at > 0 AND worker_id IS NULL")
        time.sleep(0.05)


def main() -> int:
    """Print how long calls took, and the backup."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_500_000, help="of the log: some 700 MB")
    parser.add_argument("--pace", type=float, default=60, help="calls a second")
    parser.add_argument("--seconds", type=float, default=30, help="of calls before, and after")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = folder / "log.db"
        fill(f"sqlite:///{database}", rows=options.rows, teams=200)
        provider = stack.enter_context(StandInProvider(api_key=KEY, record_calls=False))
        own = {"PROVIDER_API_KEY": KEY, "PROVIDER_BASE_URL": provider.base_url, "ADMIN_PASSWORD": "benchmark"}
        own |= {"DATABASE_URL": f"sqlite:///{database}", "SECRET_KEY": "benchmark"}
        own |= {"BACKUP_FOLDER": str(folder / "backups")}
        server = stack.enter_context(running_server(default_settings() | own, folder))
        request = request_bytes(server.url, server.create_team("load"), "Hello!", stream=False)
        call_while(server.url, request, options.pace, for_seconds(3))
        alone = call_while(server.url, request, options.pace, for_seconds(options.seconds))
        describe("before", alone)
        begin(database)
        began = time.monotonic()
        beside = describe("beside", call_while(server.url, request, options.pace, lambda: is_running(database)))
        took_s = time.monotonic() - began
        after = call_while(server.url, request, options.pace, for_seconds(options.seconds))
        describe("after", after)
        without = quantile(alone + after, 0.99)
        (backup,) = (folder / "backups").glob("*.zip")
        sizes = database.stat().st_size / 1e6, backup.stat().st_size / 1e6
        print(f"{sizes[0]:.0f} MB backed up into {sizes[1]:.0f} MB in {took_s:.0f} s")
        print(f"p99 {without * 1e3:.1f} → {beside * 1e3:.1f} ms: {beside / without:.2f} times")
        error = ask(database, "SELECT error FROM jobs WHERE name = 'backup'")
    return 0 if beside < without * MOST_RISE and error is None else 1


if __name__ == "__main__":
    sys.exit(main())

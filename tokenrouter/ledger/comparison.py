"""The log and the daily totals, read side by side in one order, each once and never as a whole."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import String, and_, case, cast, delete, func, insert, literal_column, or_, select
from sqlalchemy.engine import Connection

from tokenrouter import changes
from tokenrouter.database.log_status import FAILURES, PENDING, PROVIDER_ERROR, REJECTED
from tokenrouter.database.sums import NOTHING, Sums
from tokenrouter.database.tables import (
    AnyRow,
    Change,
    CostCorrection,
    Group,
    GroupRenewal,
    GroupUsageDaily,
    PrunedUsage,
    QuotaRenewal,
    RequestLog,
    Team,
    TokenUsageDaily,
    UsageDaily,
)
from tokenrouter.errors import UNKNOWN_MODEL, ModelNotFound, TeamDisabled
from tokenrouter.ledger.log_rows import NO_MODEL

Key = tuple[Any, ...]
"""Whose it is, by id, a group's with the team's after it; then day and model."""


@dataclass
class Comparison:
    """The log and the daily totals of teams, of groups or of tokens, side by side."""

    rows: int = 0
    settled: defaultdict[int, Sums] = field(default_factory=lambda: defaultdict(Sums))
    """By id, what the log says, and the daily totals of calls that are no longer in it."""
    unproven_days: set[str] = field(default_factory=set)
    differences: list[tuple[Key, Sums, Sums]] = field(default_factory=list)
    """Where both speak and do not agree: log, and daily totals."""


# of a call from before that was kept, the day in UTC
DAY = func.coalesce(cast(RequestLog.day, String), func.substr(cast(RequestLog.created_at, String), 1, 10)).label("day")


@dataclass(frozen=True, kw_only=True)
class DailyBooks:
    """Where one kind has its calls, their corrections and its daily totals."""

    daily: type[UsageDaily | GroupUsageDaily | TokenUsageDaily]
    of_calls: tuple[Any, ...]
    """The columns of the log that make a key, the first of them telling whose a call is."""
    of_corrections: tuple[Any, ...]
    """Those of the corrections and of the calls that these correct, likewise."""
    of_pruned: tuple[Any, ...]
    """Those of what is kept of pruned calls, likewise; 0 is none."""
    of_days: tuple[Any, ...]
    """Those of the daily totals, likewise."""


@dataclass(frozen=True, kw_only=True)
class Books(DailyBooks):
    """Where one kind has its counters and its renewals too."""

    kind: type[Team | Group]
    renewals: type[QuotaRenewal | GroupRenewal]
    of_renewals: Any
    of_changes: Any
    creation: str
    """The change by which one was made."""
    word: str = ""
    """What stands before a name in what was found."""


# grouped by a sum, so that SQLite reads the log from end to end; led by an index it would jump through it
TEAM = (RequestLog.team_id + literal_column("0")).label("team")
GROUP = (RequestLog.group_id + literal_column("0")).label("group")
TOKEN = (RequestLog.token_id + literal_column("0")).label("token")
OF_TEAMS = Books(
    kind=Team,
    daily=UsageDaily,
    renewals=QuotaRenewal,
    of_renewals=QuotaRenewal.team_id,
    of_changes=Change.team_id,
    of_calls=(TEAM,),
    of_corrections=(CostCorrection.team_id,),
    of_pruned=(PrunedUsage.team_id,),
    of_days=(UsageDaily.team_id,),
    creation=changes.TEAM_CREATE,
)
OF_GROUPS = Books(
    kind=Group,
    daily=GroupUsageDaily,
    renewals=GroupRenewal,
    of_renewals=GroupRenewal.group_id,
    of_changes=Change.group_id,
    of_calls=(GROUP, TEAM),
    of_corrections=(CostCorrection.group_id, CostCorrection.team_id),
    of_pruned=(PrunedUsage.group_id, PrunedUsage.team_id),
    of_days=(GroupUsageDaily.group_id, GroupUsageDaily.team_id),
    creation=changes.GROUP_CREATE,
    word="group ",
)
OF_TOKENS = DailyBooks(
    daily=TokenUsageDaily,
    of_calls=(TOKEN,),
    of_corrections=(func.coalesce(CostCorrection.token_id, RequestLog.token_id),),
    of_pruned=(PrunedUsage.token_id,),
    of_days=(TokenUsageDaily.token_id,),
)


def _words(*words: str) -> list[Any]:
    """Spell them out in the statement, for those that are compiled once."""
    return [literal_column(f"'{word}'") for word in words]


COUNTED_MODEL = case(
    (
        or_(
            and_(
                RequestLog.status == REJECTED, RequestLog.error_code.in_(_words(ModelNotFound.code, TeamDisabled.code))
            ),
            and_(
                RequestLog.status == PROVIDER_ERROR,
                or_(RequestLog.error_code == ModelNotFound.code, RequestLog.reason.startswith(UNKNOWN_MODEL)),
                RequestLog.charged_tokens == 0,
            ),
        ),
        literal_column(f"'{NO_MODEL}'"),
    ),
    else_=RequestLog.model,
).label("counted_model")
"""As the ledger counts: what callers invent is no model of the sums."""
_IS_SETTLED = RequestLog.status != PENDING
SUMS_OF_CALLS = (
    func.sum(case((_IS_SETTLED, RequestLog.repeats), else_=0)),
    func.sum(case((RequestLog.status.in_(_words(*FAILURES)), RequestLog.repeats), else_=0)),
    func.sum(case((_IS_SETTLED, RequestLog.prompt_tokens), else_=0)),
    func.sum(case((_IS_SETTLED, RequestLog.completion_tokens), else_=0)),
    func.sum(RequestLog.charged_tokens),
    func.sum(func.coalesce(RequestLog.cost, 0)),
    func.sum(case((RequestLog.cost.is_not(None), RequestLog.charged_tokens), else_=0)),
)
"""What calls come to, in the order of `Sums`."""


def compare(connection: Connection, books: DailyBooks) -> Comparison:
    """Read log and daily totals side by side."""
    compared = Comparison()
    first_day = _first_day(connection)
    is_older = cast(UsageDaily.day, String) < first_day
    has_older = first_day != "" and connection.execute(select(UsageDaily.team_id).where(is_older).limit(1)).first()
    logged = merge(_logged(connection, books, compared), _pruned(connection, books), _corrected(connection, books))
    for key, log, day in _side_by_side(logged, _daily(connection, books)):
        owner_id, at = key[0], key[-2]
        compared.settled[owner_id] = compared.settled[owner_id].plus(log)
        left = day.plus(log, -1)
        if at < first_day or (at == first_day and has_older and min(left) >= 0 and left != NOTHING):
            compared.unproven_days.add(at)  # of the log's first day some may be gone too
            compared.settled[owner_id] = compared.settled[owner_id].plus(left)
        elif log != day:
            compared.differences.append((key, log, day))
    return compared


def _first_day(connection: Connection) -> str:
    """Return the day of the oldest call that the log has, or had until it was pruned.

    It is empty if there is none, which proves every day wrong.
    """
    days = [connection.execute(select(func.min(day))).scalar() for day in (DAY, cast(PrunedUsage.day, String))]
    return min(filter(None, days), default="")


def _logged(connection: Connection, books: DailyBooks, compared: Comparison) -> Iterator[tuple[Key, Sums]]:
    model = _in_byte_order(connection, COUNTED_MODEL)
    key = (*books.of_calls, DAY, model)
    query = (
        select(*key, func.count(), *SUMS_OF_CALLS).where(books.of_calls[0].is_not(None)).group_by(*key).order_by(*key)
    )
    for row in streamed(connection, query):
        rows, *values = row[len(key) :]
        compared.rows += rows
        if any(values):
            yield tuple(row[: len(key)]), Sums(*map(int, values))


def _pruned(connection: Connection, books: DailyBooks) -> Iterator[tuple[Key, Sums]]:
    """Yield what calls came to that were pruned from the log, in the same order."""
    key = (*books.of_pruned, cast(PrunedUsage.day, String), _in_byte_order(connection, PrunedUsage.model))
    sums = [func.sum(getattr(PrunedUsage, name)) for name in Sums._fields]
    query = select(*key, *sums).where(books.of_pruned[0] != 0).group_by(*key).order_by(*key)
    for row in streamed(connection, query):
        yield tuple(row[: len(key)]), Sums(*map(int, row[len(key) :]))


def _corrected(connection: Connection, books: DailyBooks) -> Iterator[tuple[Key, Sums]]:
    """Yield by how much more calls cost than the log says, in the same order."""
    owners = books.of_corrections
    model = _in_byte_order(connection, CostCorrection.model)
    key = (*owners, cast(CostCorrection.day, String), model)
    sums = func.sum(CostCorrection.cost), func.sum(CostCorrection.priced_tokens)
    query = select(*key, *sums).select_from(CostCorrection).outerjoin(RequestLog, CostCorrection.is_of(RequestLog.id))
    for row in streamed(connection, query.where(owners[0].is_not(None)).group_by(*key).order_by(*key)):
        cost, priced_tokens = row[len(key) :]
        yield tuple(row[: len(key)]), Sums(cost=int(cost), priced_tokens=int(priced_tokens))


def _daily(connection: Connection, books: DailyBooks) -> Iterator[tuple[Key, Sums]]:
    daily = books.daily
    columns = [getattr(daily, name) for name in Sums._fields]
    key = (*books.of_days, cast(daily.day, String), _in_byte_order(connection, daily.model))
    for row in streamed(connection, select(*key, *columns).order_by(*key)):
        yield tuple(row[: len(key)]), Sums(*map(int, row[len(key) :]))


def _in_byte_order(connection: Connection, column: Any) -> Any:
    """Sort as SQLite does and Python, whatever language the server sorts by."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column


def streamed(connection: Connection, query: Any) -> Iterable[AnyRow]:
    """Return the rows of a query as they are read, a thousand at a time."""
    return connection.execute(query, execution_options={"stream_results": True, "yield_per": 1000})


def _side_by_side(
    logged: Iterator[tuple[Key, Sums]], daily: Iterator[tuple[Key, Sums]]
) -> Iterator[tuple[Key, Sums, Sums]]:
    """Yield each key that either has, in order, with what the log says of it and what the daily totals say."""
    tagged = merge(((key, 0, sums) for key, sums in logged), ((key, 1, sums) for key, sums in daily))
    for key, entries in groupby(tagged, key=itemgetter(0)):
        both = [NOTHING, NOTHING]
        for _, which, sums in entries:
            both[which] = both[which].plus(sums)
        yield key, both[0], both[1]


def rewrite_days(connection: Connection, books: DailyBooks, compared: Comparison) -> Counter[int]:
    """Write the sums of the log where the daily totals differ; return how many by id."""
    rewritten: Counter[int] = Counter()
    for (*ids, day, model), log, _ in compared.differences:
        whose = {column.key: id_ for column, id_ in zip(books.of_days, ids, strict=True)}
        is_meant = *(column == id_ for column, id_ in zip(books.of_days, ids, strict=True)), books.daily.model == model
        connection.execute(delete(books.daily).where(*is_meant, cast(books.daily.day, String) == day))
        if log != NOTHING:
            values = {**whose, "day": date.fromisoformat(day), "model": model, **log._asdict()}
            connection.execute(insert(books.daily).values(values))
        rewritten[ids[0]] += 1
    return rewritten

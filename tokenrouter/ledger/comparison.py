"""Compare the log with the daily totals: both are streamed in the same order, so neither is held in memory."""

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
"""The owner's id (of a group, then the team's), the day, and the model."""


@dataclass
class Comparison:
    """The log and the daily totals of teams, of groups or of tokens, side by side."""

    rows: int = 0
    settled: defaultdict[int, Sums] = field(default_factory=lambda: defaultdict(Sums))
    """By owner id: what the log says, plus the daily totals of days that the log no longer has."""
    unproven_days: set[str] = field(default_factory=set)
    differences: list[tuple[Key, Sums, Sums]] = field(default_factory=list)
    """Where both have the key and do not agree: the log's sums, and the daily totals."""


# of calls from before the column was added, the day in UTC
DAY = func.coalesce(cast(RequestLog.day, String), func.substr(cast(RequestLog.created_at, String), 1, 10)).label("day")


@dataclass(frozen=True, kw_only=True)
class DailyBooks:
    """The columns by which the calls, corrections and daily totals of one kind of owner are found."""

    daily: type[UsageDaily | GroupUsageDaily | TokenUsageDaily]
    of_calls: tuple[Any, ...]
    """The columns of the log that make a key; the first is the owner of a call."""
    of_corrections: tuple[Any, ...]
    """The same of the corrections, and of the calls that they correct."""
    of_pruned: tuple[Any, ...]
    """The same of the sums that are kept of pruned calls; 0 stands for none."""
    of_days: tuple[Any, ...]
    """The same of the daily totals."""


@dataclass(frozen=True, kw_only=True)
class Books(DailyBooks):
    """The same, with the counters and renewals of teams or groups."""

    kind: type[Team | Group]
    renewals: type[QuotaRenewal | GroupRenewal]
    of_renewals: Any
    of_changes: Any
    creation: str
    """The action of the change that created one."""
    word: str = ""
    """Written before a name in a finding."""


# `+ 0` keeps SQLite from grouping by an index, which would read the log's rows in random order
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
    """Return words as literals of the statement, for statements that are compiled once."""
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
"""The model as the daily totals count it: one that does not exist, which callers may invent, counts as NO_MODEL."""
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
            compared.unproven_days.add(at)  # some calls of the log's first day may be gone too
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
    """Yield the sums of the calls that were pruned from the log, in the same order."""
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
    """Sort by bytes, as SQLite and Python do, whatever the collation of the server."""
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

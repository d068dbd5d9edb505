"""Read the log of calls, page by page, as a whole, or one call, even with millions of rows.

No query counts rows or uses OFFSET. Ids rise with time, so a page begins at an id, and the ids of a range of dates are
found by bisection. If no index narrows a search, it goes through the log window by window, and a page that is not full
in time says how far the search got.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, Select, case, false, func, literal_column, select, union_all
from sqlalchemy.engine import Connection

from tokenrouter.database.log_status import ANY_FAILURE, FAILURES, PENDING, RARE_STATUSES
from tokenrouter.database.tables import (
    AnyRow,
    ApiToken,
    CostCorrection,
    RequestLog,
    Team,
    clamp_id,
    clamp_text,
    normalized,
)
from tokenrouter.reports.daily_sums import Scope, read_sums
from tokenrouter.reports.days import day_of
from tokenrouter.reports.reading import reading

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
DISORDER = timedelta(hours=25)  # a row may be that much older than the one before it: clocks differ and are adjusted
WINDOW_ROWS = 10_000
SCATTERED_ROWS = 2_000  # that an index gives: each may lie on a page of its own
CHUNK_ROWS = 1_000
SEARCH_S = 0.15
RECENT_ROWS = 20_000
RECENT_DAYS = 30
MOST_OPTIONS = 200
MOST_ALTERNATIVES = 20  # that are looked up in an index each; where more fit, the log is looked through instead

COLUMNS = RequestLog.__table__, RequestLog.group_name.label("group_name")
IS_UNPRICED = RequestLog.cost.is_(None) & (RequestLog.charged_tokens > 0)
SUMS = (
    func.sum(RequestLog.repeats),
    func.sum(RequestLog.charged_tokens),
    func.sum(RequestLog.cost),
    func.sum(case((IS_UNPRICED, 1), else_=0)),
)
NO_LONGER_UNPRICED = -func.count(case((IS_UNPRICED, CostCorrection.call_id)).distinct())
CORRECTIONS: tuple[Any, ...] = (
    literal_column("0"),
    literal_column("0"),
    func.sum(CostCorrection.cost),
    NO_LONGER_UNPRICED,
)
COMPARED = (
    "request_id",
    "team_id",
    "group_id",
    "token_id",
    "token_prefix",
    "status",
    "error_code",
    "model",
    "endpoint",
)

CallRow = AnyRow  # with the columns of the log, and the group's name, as attributes
AnySelect = Select[*tuple[Any, ...]]
Step = Callable[[Connection, int, int], tuple[list[CallRow], int | None]]


@dataclass(frozen=True, kw_only=True)
class CallFilter:
    """Which calls to show; None means any. `until` is exclusive."""

    team_id: int | None = None
    team_ids: tuple[int, ...] | None = None
    """Any of these teams."""
    group_id: int | None = None
    token_id: int | None = None
    token_prefix: str | None = None
    model: str | None = None
    status: str | None = None
    """A status, or ANY_FAILURE."""
    error_code: str | None = None
    slower_than_ms: int | None = None
    endpoint: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class CallsPage:
    """A page of calls, newest first, and where the next ones begin."""

    rows: list[CallRow]
    before_id: int | None
    """The `before_id` of the next page; None if no older call fits."""
    after_id: int | None
    """The `after_id` of the page before; None on the newest page."""
    searched_back_to: datetime | None = None
    """The time of the last call read, if the search ran out of time; `before_id` resumes it."""


@dataclass(frozen=True)
class CallSums:
    """Sums of the matching calls; `cost` is in billionths, of those whose cost is known."""

    calls: int
    tokens: int
    cost: int
    unpriced_calls: int
    searched_back_to: datetime | None
    """The time of the last call read, if time ran out before the end."""


@dataclass(frozen=True)
class CallDetail:
    """A call, the label of its token, and whether its team still lives."""

    row: CallRow
    token_label: str | None
    team_lives: bool
    correction: int | None
    """The correction of its cost, in billionths; None if it was not corrected."""


def calls_page(
    filter: CallFilter,
    before_id: int | None = None,
    after_id: int | None = None,
    limit: int = 50,
    *,
    search_s: float = SEARCH_S,
) -> CallsPage:
    """Return the calls next older than `before_id`, or next newer than `after_id`, or the newest of all.

    A search that does not fill the page within `search_s` stops; where it began is always looked at.
    """
    with reading() as connection:
        search = _Search(connection, filter)
        if after_id is not None:
            page = search.page_up(connection, after_id, limit, search_s)
            if page is not None:
                return page
            before_id = None
        return search.page_down(connection, before_id, limit, search_s)


def iterate_calls(filter: CallFilter) -> Iterator[CallRow]:
    """Yield all calls that fit, newest first, without those that begin meanwhile.

    They are read in chunks, each in a transaction of its own, so that neither memory nor a lock grows with them.
    """
    with reading() as connection:
        search = _Search(connection, filter)
    rest: int | None = search.end
    while rest is not None:
        with reading() as connection:
            rows, rest = search.older(connection, rest, CHUNK_ROWS)
        yield from rows


def call_sums(filter: CallFilter, *, search_s: float = SEARCH_S) -> CallSums:
    """Add up the calls that fit, the newest first, for as long as `search_s`; the newest of all are always counted."""
    deadline = time.monotonic() + search_s
    totals = [0, 0, 0, 0]
    with reading() as connection:
        search = _Search(connection, filter, in_windows=True)
        has_corrections = connection.execute(select(CostCorrection.id).limit(1)).first() is not None
        rest: int | None = search.end
        while rest is not None:
            sums, rest = search.sums(connection, rest, has_corrections=has_corrections)
            totals = [total + more for total, more in zip(totals, sums, strict=True)]
            if time.monotonic() > deadline:
                break
        calls, tokens, cost, unpriced = totals
        return CallSums(calls, tokens, cost, unpriced, None if rest is None else _time_of(connection, rest))


def call(call_id: int) -> CallDetail | None:
    """Return a call, or None if there is none.

    Of one that is pending, `prompt_tokens` is the estimate and `completion_tokens` what has come so far.
    """
    query = (
        select(
            RequestLog.__table__,
            RequestLog.group_name.label("group_name"),
            ApiToken.label.label("token_label"),
            Team.deleted_at,
        )
        .join(Team, Team.id == RequestLog.team_id)
        .outerjoin(ApiToken, ApiToken.id == RequestLog.token_id)
        .where(RequestLog.id == clamp_id(call_id))
    )
    corrections = select(func.sum(CostCorrection.cost)).where(CostCorrection.is_of(clamp_id(call_id)))
    with reading() as connection:
        row = connection.execute(query).one_or_none()
        correction = connection.execute(corrections).scalar()
    if row is None:
        return None
    return CallDetail(row, row.token_label, row.deleted_at is None, None if correction is None else int(correction))


def model_names() -> list[str]:
    """Return the models of the last 30 days, most used first, up to a number that people can choose from."""
    scope = Scope(since=day_of(datetime.now(UTC)) - timedelta(days=RECENT_DAYS), sums=("requests",))
    with reading() as connection:
        used = {model: sums.requests for (model,), sums in read_sums(connection, ("model",), scope).items() if model}
    return sorted(used, key=lambda model: (-used[model], model))[:MOST_OPTIONS]


def team_names() -> list[str]:
    """Return the names of living teams, latest callers first, up to a number that people can read."""
    last_use = select(ApiToken.team_id, func.max(ApiToken.last_used_at).label("at")).group_by(ApiToken.team_id)
    used = last_use.subquery()
    query = (
        select(Team.name)
        .outerjoin(used, used.c.team_id == Team.id)
        .where(Team.deleted_at.is_(None))
        .order_by(used.c.at.is_(None), used.c.at.desc(), Team.name)
    )
    with reading() as connection:
        return list(connection.execute(query.limit(MOST_OPTIONS)).scalars())


def teams_named(part: str) -> list[AnyRow]:
    """Return id and name of all teams, also deleted ones, that have this in their name, in any case."""
    is_named = Team.name.icontains(clamp_text(normalized(part)), autoescape=True)
    with reading() as connection:
        return list(connection.execute(select(Team.id, Team.name).where(is_named).order_by(Team.name, Team.id)))


def token_prefix(token_id: int) -> str | None:
    """Return the first characters of a token; None if there never was one of this id."""
    with reading() as connection:
        return connection.execute(select(ApiToken.prefix).where(ApiToken.id == clamp_id(token_id))).scalar()


def endpoint_names() -> list[str]:
    """Return the endpoints of the newest calls, the most used first, likewise."""
    newest = select(RequestLog.endpoint).order_by(RequestLog.id.desc()).limit(RECENT_ROWS).subquery()
    query = select(newest.c.endpoint).group_by(newest.c.endpoint).order_by(func.count().desc(), newest.c.endpoint)
    with reading() as connection:
        return list(connection.execute(query.limit(MOST_OPTIONS)).scalars())


class _Search:
    """A search through the calls that fit a filter; `older` and `newer` are its steps.

    A step looks at one window of the rows that an index gives, returns at most `limit` of them that fit, and the id
    from where to go on, None at the end.
    """

    def __init__(self, connection: Connection, filter: CallFilter, *, in_windows: bool = False) -> None:
        """With `in_windows`, go by windows even if an index yields only matching calls."""
        self.alternatives, others = _conditions(connection, filter)
        self.is_merged = len(self.alternatives) > 1
        self.indexed = [] if self.is_merged else self.alternatives
        self.window_rows = None
        if others or in_windows or self.is_merged:
            self.window_rows = SCATTERED_ROWS if self.alternatives else WINDOW_ROWS
        self.first = 0
        self.end = (connection.execute(select(func.max(RequestLog.id))).scalar() or 0) + 1
        if filter.since is not None:
            since = min(max(filter.since, EARLIEST), LATEST)
            others.append(RequestLog.created_at >= since)
            self.first = first_id_since(connection, since - DISORDER, self.end)
        if filter.until is not None:
            until = min(max(filter.until, EARLIEST), LATEST)
            others.append(RequestLog.created_at < until)
            self.end = first_id_since(connection, until + DISORDER, self.end)
        self.conditions = [*self.indexed, *others]

    def page_down(self, connection: Connection, before_id: int | None, limit: int, search_s: float) -> CallsPage:
        """Return the page below an id, or the newest."""
        start = self.end if before_id is None else min(clamp_id(before_id), self.end)
        rows, rest = _collect(self.older, connection, start, limit + 1, search_s)
        shown = rows[:limit]
        newer = start - 1 if before_id is not None else None
        if len(rows) > limit:
            return CallsPage(shown, before_id=shown[-1].id, after_id=newer)
        searched_back_to = None if rest is None else _time_of(connection, rest)
        return CallsPage(shown, before_id=rest, after_id=newer, searched_back_to=searched_back_to)

    def page_up(self, connection: Connection, after_id: int, limit: int, search_s: float) -> CallsPage | None:
        """Return the page above an id, or None if what is there does not fill one: the newest page has it."""
        after_id = min(clamp_id(after_id), self.end)
        rows, rest = _collect(self.newer, connection, after_id, limit + 1, search_s)
        if rest is None:
            return None
        shown = rows[:limit][::-1]
        newer = shown[0].id if len(rows) > limit else rest
        return CallsPage(shown, before_id=shown[-1].id if shown else after_id + 1, after_id=newer)

    def older(self, connection: Connection, before_id: int, limit: int) -> tuple[list[CallRow], int | None]:
        """Take a step down."""
        order = RequestLog.id.desc()
        within, rest = self._window_below(connection, before_id)
        rows = list(connection.execute(self._of(select(*COLUMNS), within, order).order_by(order).limit(limit)))
        return (rows, rows[-1].id) if len(rows) == limit else (rows, rest)

    def sums(self, connection: Connection, before_id: int, *, has_corrections: bool) -> tuple[list[int], int | None]:
        """Take a step down that sums up matching calls: their number, tokens, cost, and those without a price."""
        order = RequestLog.id.desc()
        within, rest = self._window_below(connection, before_id)
        sums = list(connection.execute(self._of(select(*SUMS), within, order)).one())
        if has_corrections:
            corrected = select(*CORRECTIONS).join(RequestLog, CostCorrection.is_of(RequestLog.id))
            more = connection.execute(self._of(corrected, within, order)).one()
            sums = [(total or 0) + (each or 0) for total, each in zip(sums, more, strict=True)]
        return [int(total or 0) for total in sums], rest

    def _window_below(
        self, connection: Connection, before_id: int
    ) -> tuple[tuple[ColumnElement[bool], ...], int | None]:
        """Return the matching calls of the next window, and the id from which to go on; None after the last."""
        edge = self._edge(connection, RequestLog.id < before_id, RequestLog.id.desc())
        within = RequestLog.id < before_id, RequestLog.id >= max(self.first, edge or 0)
        return within, edge if edge is not None and edge > self.first else None

    def _of(self, query: AnySelect, within: tuple[ColumnElement[bool], ...], order: ColumnElement[int]) -> AnySelect:
        """Let a query have what fits in a window, whose ids several look-ups give where one cannot."""
        if self.is_merged:
            within = (RequestLog.id.in_(self._merged(within, order)),)
        return query.where(*self.conditions, *within)

    def _merged(self, within: tuple[ColumnElement[bool], ...], order: ColumnElement[int]) -> CompoundSelect[tuple[int]]:
        ids = select(RequestLog.id).order_by(order).limit(self.window_rows)
        return union_all(*(select(ids.where(each, *within).subquery()) for each in self.alternatives))

    def newer(self, connection: Connection, after_id: int, limit: int) -> tuple[list[CallRow], int | None]:
        """Take a step up."""
        order = RequestLog.id.asc()
        edge = self._edge(connection, RequestLog.id > after_id, order)
        last = self.end - 1 if edge is None else min(edge, self.end - 1)
        within = RequestLog.id > max(after_id, self.first - 1), RequestLog.id <= last
        rows = list(connection.execute(self._of(select(*COLUMNS), within, order).order_by(order).limit(limit)))
        if len(rows) == limit:
            return rows, rows[-1].id
        return rows, last if last < self.end - 1 else None

    def _edge(self, connection: Connection, beyond: ColumnElement[bool], order: ColumnElement[int]) -> int | None:
        """Return the last id of the next window, or None if it has no end."""
        if self.window_rows is None:
            return None
        query = select(RequestLog.id).where(*self.indexed, beyond)
        if self.is_merged:
            query = select(RequestLog.id).where(RequestLog.id.in_(self._merged((beyond,), order)))
        return connection.execute(query.order_by(order).limit(1).offset(self.window_rows - 1)).scalar()


def _collect(
    step: Step, connection: Connection, start: int, limit: int, search_s: float
) -> tuple[list[CallRow], int | None]:
    """Take steps until enough is found, nothing is left, or time runs out."""
    deadline = time.monotonic() + search_s
    rows, rest = step(connection, start, limit)
    while rest is not None and len(rows) < limit and time.monotonic() < deadline:
        found, rest = step(connection, rest, limit - len(rows))
        rows += found
    return rows, rest


def _conditions(
    connection: Connection, filter: CallFilter
) -> tuple[list[ColumnElement[bool]], list[ColumnElement[bool]]]:
    """Return the condition that an index serves best, if one does, and the others but for the dates.

    Instead of one there are several where an index gives what fits any of them.
    """
    given = {name: getattr(filter, name) for name in COMPARED if getattr(filter, name) is not None}
    conditions = {
        name: getattr(RequestLog, name) == (clamp_id(value) if isinstance(value, int) else clamp_text(value))
        for name, value in given.items()
    }
    if filter.slower_than_ms is not None:
        conditions["slower_than_ms"] = RequestLog.latency_ms > filter.slower_than_ms
    if filter.team_ids is not None:
        conditions["team_ids"] = RequestLog.team_id.in_(filter.team_ids)
    if filter.status == ANY_FAILURE:
        conditions["status"] = RequestLog.status.in_(FAILURES)
    by_index = ["request_id", "team_id", "group_id"]
    if filter.status == PENDING:
        by_index.insert(1, "status")
        conditions["status"] = RequestLog.id.in_(PENDING_IDS)  # else SQLite would go through the log from its end
    elif filter.status in RARE_STATUSES:
        by_index.append("status")
        conditions["status"] = has_status(filter.status)
    if "team_id" not in conditions and (owners := _teams_of_token(connection, filter)) is not None:
        if not owners:
            return [false()], []
        if len(owners) == 1:
            conditions["team_id"] = RequestLog.team_id == owners[0]
    best = next((name for name in by_index if name in conditions), None)
    if best is not None:
        return [conditions.pop(best)], list(conditions.values())
    replaced, alternatives = _alternatives(filter)
    conditions.pop(replaced, None)
    return alternatives, list(conditions.values())


def _alternatives(filter: CallFilter) -> tuple[str, list[ColumnElement[bool]]]:
    """Return conditions that an index serves each, of which one has to be met, and which one they stand for."""
    if filter.status == ANY_FAILURE:
        return "status", [has_status(status) for status in FAILURES]
    if filter.team_ids is not None and len(filter.team_ids) <= MOST_ALTERNATIVES:
        return "team_ids", [RequestLog.team_id == team_id for team_id in filter.team_ids] or [false()]
    if filter.error_code is not None:  # only failed calls have one
        return "", [has_status(status) for status in RARE_STATUSES]
    return "", []


def has_status(status: str) -> ColumnElement[bool]:
    """Write the status as a literal: a partial index is not used for a bound parameter."""
    return RequestLog.status == literal_column(f"'{status}'")


PENDING_IDS = select(RequestLog.id).where(has_status(PENDING)).correlate(None)


def _teams_of_token(connection: Connection, filter: CallFilter) -> list[int] | None:
    """Return the teams that have the token, and with it an index to search by; None if no token is asked for."""
    if filter.token_id is not None:
        is_meant = ApiToken.id == clamp_id(filter.token_id)
    elif filter.token_prefix is not None:
        is_meant = ApiToken.prefix == clamp_text(filter.token_prefix)
    else:
        return None
    return list(connection.execute(select(ApiToken.team_id).where(is_meant).distinct()).scalars())


def first_id_since(connection: Connection, moment: datetime, end: int) -> int:
    """Return an id before which no call is from `moment` or later, by bisection; `end` where all are earlier.

    Where times are out of order by less than the caller allowed for, no call is lost.
    """
    low, high = 0, end
    probe = select(RequestLog.id, RequestLog.created_at).order_by(RequestLog.id).limit(1)
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(probe.where(RequestLog.id >= middle)).first()
        if row is None or row.id >= high or row.created_at >= moment:
            high = middle
        else:
            low = row.id + 1
    return low


def _time_of(connection: Connection, call_id: int) -> datetime | None:
    return connection.execute(select(RequestLog.created_at).where(RequestLog.id == call_id)).scalar()

"""Compare our ledger with the provider's own record, by day and model, and explain the gap."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.engine import Connection, Engine

from tokenrouter import provider_days, provider_record, reports, spreadsheet
from tokenrouter.database.log_status import CLIENT_CLOSED, INTERRUPTED, OK, PENDING, PROVIDER_ERROR, REJECTED
from tokenrouter.database.tables import (
    ESTIMATED,
    NOT_COUNTED,
    AnyRow,
    CostCorrection,
    ProviderEntry,
    RequestLog,
    clamp_text,
)
from tokenrouter.errors import ProviderTimeout
from tokenrouter.ledger import last_day_pruned
from tokenrouter.ledger.costs import DOLLARS
from tokenrouter.matching import LATER, OurCall, Pair, Reason, match, tokens_of
from tokenrouter.money import BILLION, decimal_string
from tokenrouter.periods import midnight
from tokenrouter.provider.history import Entry
from tokenrouter.provider_record import Kept
from tokenrouter.reports import CallFilter
from tokenrouter.reports.calls import DISORDER, first_id_since

DAY = timedelta(days=1)
MARGIN = timedelta(hours=1)  # beyond the days, so that what lies at their edges finds its pair
MOST_CALLS = 50_000  # that a page compares, which takes it a second or two
SUMMED_S = 5.0
CENT = BILLION // 100
CAVEATS = {
    CLIENT_CLOSED: Reason.LEFT,
    PROVIDER_ERROR: Reason.BROKE_OFF,
    INTERRUPTED: Reason.INTERRUPTED,
}
CSV_COLUMNS = (
    "day",
    "model",
    "calls",
    "provider_calls",
    "tokens",
    "provider_tokens",
    "gap_tokens",
    "cost",
    "provider_cost_usd",
    "provider_points",
)


@dataclass
class Sums:
    """Calls, their tokens, their cost in billionths, and the provider's points, each as far as known."""

    calls: int = 0
    tokens: int = 0
    cost: int = 0
    points: int = 0

    def add(self, tokens: int | None, cost: int | None, points: int | None = None) -> None:
        """Add a call."""
        self.calls += 1
        self.tokens += tokens or 0
        self.cost += cost or 0
        self.points += points or 0

    def add_all(self, others: Iterable["Sums"]) -> "Sums":
        """Add other sums, and return self."""
        for other in others:
            for name, value in vars(other).items():
                setattr(self, name, getattr(self, name) + value)
        return self


@dataclass
class Line:
    """Both sides of a model on a day, and their gap: calls and tokens by reason."""

    day: date
    model: str
    ours: Sums = field(default_factory=Sums)
    theirs: Sums = field(default_factory=Sums)
    gaps: defaultdict[Reason, Sums] = field(default_factory=lambda: defaultdict(Sums))
    untold: int = 0
    """How many of the provider's entries tell no tokens."""
    unpriced: int = 0
    """Of how many of our calls the cost is not known."""

    @property
    def gap_tokens(self) -> int:
        """How many more tokens the provider counts, for entries that have tokens."""
        return sum(sums.tokens for sums in self.gaps.values())

    @property
    def agrees(self) -> bool:
        """Whether both sides have the same calls with the same tokens, as far as known."""
        return self.gaps.keys() <= {Reason.PRICED}


@dataclass(frozen=True)
class Reconciliation:
    """Both sides of some days, as far as the provider's record is kept."""

    since: date
    until: date
    kept: Kept
    lines: list[Line]
    """By day and model."""
    pairs: list[Pair]
    """Those that differ, the newest first."""
    is_in_dollars: bool
    """Whether our costs can be compared with the provider's dollars."""
    log_since: date | None = None
    """The first day that the log still has, if older calls were pruned."""

    @property
    def days(self) -> list[date]:
        """The days on which either side has a call."""
        return sorted({line.day for line in self.lines})

    @property
    def agreeing_days(self) -> int:
        """On how many of these days both sides agree to the token."""
        return len(self.days) - len({line.day for line in self.lines if not line.agrees})

    @property
    def ours(self) -> Sums:
        """The sums of our log."""
        return Sums().add_all(line.ours for line in self.lines)

    @property
    def theirs(self) -> Sums:
        """The sums of the provider's record."""
        return Sums().add_all(line.theirs for line in self.lines)

    @property
    def gap_tokens(self) -> int:
        """How many more tokens the provider counts."""
        return sum(line.gap_tokens for line in self.lines)

    @property
    def gaps(self) -> list[tuple[Reason, Sums]]:
        """The parts of the gap, largest first."""
        return list(gaps_of(self.lines))

    @property
    def untold(self) -> int:
        """How many of the provider's entries tell no tokens."""
        return sum(line.untold for line in self.lines)

    @property
    def unpriced(self) -> int:
        """Of how many of our calls the cost is not known."""
        return sum(line.unpriced for line in self.lines)

    def share(self, sums: Sums) -> float | None:
        """Return the share of one reason in all differing tokens, whichever side has more; 1.0 is all."""
        whole = sum(abs(each.tokens) for _, each in self.gaps)
        return abs(sums.tokens) / whole if whole else None


def reconcile(
    engine: Engine, since: date, until: date, zone: ZoneInfo, key_name: str | None = None, *, currency: str = DOLLARS
) -> Reconciliation:
    """Compare the days from one to another, both inclusive, as far as the provider's record and the log are kept.

    `key_name` leaves out what other keys of the account did, where the provider tells it.
    """
    kept = provider_record.kept(engine)
    begin, end = _bounds(since, until, zone)
    with engine.connect() as connection:
        if (log_since := _log_since(connection)) is not None:
            begin = max(begin, _bounds(log_since, until, zone)[0])
        ours = list(_calls(connection, begin - MARGIN, end + MARGIN))
        theirs = [Entry(**row._mapping) for row in connection.execute(_entries(begin - MARGIN, end + MARGIN, key_name))]
    pairs = [pair for pair in match(ours, theirs) if begin <= pair.began < end and _is_comparable(pair, kept)]
    is_in_dollars = currency == DOLLARS
    lines: dict[tuple[date, str], Line] = {}
    for pair in pairs:
        day, model = pair.began.astimezone(zone).date(), pair.model
        _count(lines.setdefault((day, model.casefold()), Line(day, model)), pair, is_in_dollars)
    differing = [pair for pair in pairs if pair.gap_tokens or pair.ours is None or pair.theirs is None]
    differing.sort(key=lambda pair: pair.began, reverse=True)
    return Reconciliation(
        since, until, kept, [lines[key] for key in sorted(lines)], differing, is_in_dollars, log_since
    )


def _log_since(connection: Connection) -> date | None:
    last = last_day_pruned(connection)
    return None if last is None else last + DAY


def _bounds(since: date, until: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    begin, end = midnight(since, zone), midnight(until + DAY, zone)
    return datetime.fromtimestamp(begin, UTC), datetime.fromtimestamp(end, UTC)


def _is_comparable(pair: Pair, kept: Kept) -> bool:
    """Tell whether both sides could have it: it is within the time that the fetched record covers."""
    if kept.since is None or kept.until is None:
        return False
    if pair.ours is None or pair.theirs is not None:
        return not kept.is_unfinished or pair.began >= kept.since
    return pair.ours.ended >= kept.since and pair.ours.ended + LATER <= kept.until


def _count(line: Line, pair: Pair, is_in_dollars: bool) -> None:
    if pair.ours is not None:
        line.ours.add(pair.ours.tokens, pair.ours.cost)
        line.unpriced += pair.ours.is_booked and pair.ours.cost is None
    if pair.theirs is not None:
        tokens = tokens_of(pair.theirs)
        line.theirs.add(tokens, pair.theirs.cost, pair.theirs.points)
        line.untold += tokens is None
    cost = pair.gap_cost if is_in_dollars else None
    if pair.gap_tokens or pair.ours is None or pair.theirs is None or cost:
        line.gaps[pair.reason].add(pair.gap_tokens, cost, pair.theirs.points if pair.theirs else None)


def _calls(connection: Connection, since: datetime, until: datetime) -> Iterator[OurCall]:
    """Yield the calls of our log that reached the provider, including those for which nothing was booked."""
    end = (connection.execute(select(func.max(RequestLog.id))).scalar() or 0) + 1
    ids = RequestLog.id.between(
        first_id_since(connection, since - DISORDER, end), first_id_since(connection, until + DISORDER, end)
    )
    within = ids, RequestLog.created_at >= since, RequestLog.created_at < until, RequestLog.status != REJECTED
    corrections = select(CostCorrection.call_id, func.sum(CostCorrection.cost)).join(
        RequestLog, CostCorrection.is_of(RequestLog.id)
    )
    corrected = {
        id_: int(cost) for id_, cost in connection.execute(corrections.where(*within).group_by(CostCorrection.call_id))
    }
    for row in connection.execute(select(*CALL_COLUMNS).where(*within)):
        yield _our_call(row, corrected.get(row.id))


CALL_COLUMNS = (
    RequestLog.id,
    RequestLog.created_at,
    RequestLog.latency_ms,
    RequestLog.model,
    RequestLog.charged_tokens,
    RequestLog.cost,
    RequestLog.provider_request_id,
    RequestLog.status,
    RequestLog.error_code,
    RequestLog.usage_source,
    RequestLog.request_id,
    RequestLog.team_name,
)


def _our_call(row: AnyRow, correction: int | None) -> OurCall:
    cost = row.cost if correction is None else (row.cost or 0) + int(correction)
    ended = row.created_at + timedelta(milliseconds=row.latency_ms or 0)
    if row.status == PENDING:
        ended = datetime.now(UTC)
    labels = row.provider_request_id, _caveat(row), row.request_id, row.team_name
    return OurCall(row.id, row.created_at, ended, row.model, row.charged_tokens, cost, *labels)


def _caveat(row: AnyRow) -> Reason | None:
    """Return why the booked tokens may differ from the provider's; None if the provider reported them."""
    if row.status == PENDING:
        return Reason.IN_FLIGHT
    if row.charged_tokens > 0:
        return Reason.ESTIMATED if row.status == OK and row.usage_source == ESTIMATED else CAVEATS.get(row.status)
    if row.status == PROVIDER_ERROR:
        return Reason.TIMED_OUT if row.error_code == ProviderTimeout.code else Reason.FAILED
    return Reason.UNCOUNTED if row.usage_source == NOT_COUNTED else CAVEATS.get(row.status)


def _entries(since: datetime, until: datetime, key_name: str | None) -> Any:
    query = select(ProviderEntry.__table__).where(ProviderEntry.at >= since, ProviderEntry.at < until)
    return query if key_name is None else query.where(ProviderEntry.key_name == clamp_text(key_name))


def gaps_of(lines: Iterable[Line]) -> Iterator[tuple[Reason, Sums]]:
    """Yield the parts of the gaps of all lines, largest first."""
    totals: defaultdict[Reason, Sums] = defaultdict(Sums)
    for line in lines:
        for reason, sums in line.gaps.items():
            totals[reason].add_all([sums])
    yield from sorted(totals.items(), key=lambda each: (-abs(each[1].tokens), -abs(each[1].cost), -each[1].calls))


def first_day(engine: Engine, since: date, until: date, zone: ZoneInfo, most: int = MOST_CALLS) -> date:
    """Return the first day from which calls and entries until a day are at most `most`; at the latest that day."""
    with engine.connect() as connection:
        end = (connection.execute(select(func.max(RequestLog.id))).scalar() or 0) + 1
        last = first_id_since(connection, _bounds(until, until, zone)[1], end)
        day, fits = since, until
        while day < fits:  # bisection: the fewer days, the fewer calls
            middle = day + (fits - day) // 2
            begin, beyond = _bounds(middle, until, zone)
            entries = select(func.count()).where(ProviderEntry.at >= begin, ProviderEntry.at < beyond)
            calls = last - first_id_since(connection, begin, last)
            if max(calls, connection.execute(entries).scalar_one()) > most:
                day = middle + DAY
            else:
                fits = middle
        return fits


def csv_lines(found: Reconciliation, *, delimiter: str = ",", begin: str = "") -> Iterator[str]:
    """Yield the lines as CSV."""
    rows = ([spreadsheet.cell(value) for value in view(line).values()] for line in found.lines)
    return spreadsheet.lines(CSV_COLUMNS, rows, delimiter=delimiter, begin=begin)


def view(line: Line) -> dict[str, object]:
    """Describe a line, by the names of CSV_COLUMNS."""
    values = (
        line.day.isoformat(),
        line.model,
        line.ours.calls,
        line.theirs.calls,
        line.ours.tokens,
        line.theirs.tokens,
        line.gap_tokens,
        decimal_string(line.ours.cost),
        decimal_string(line.theirs.cost),
        line.theirs.points,
    )
    return dict(zip(CSV_COLUMNS, values, strict=True))


DAYS_CSV_COLUMNS = ("day", "cost", "unpriced_calls", "provider_cost_usd", "read_at", "is_whole")


@dataclass(frozen=True)
class ReconciledDay:
    """What the provider's key spent on a day in UTC, and what our calls of it cost, each in billionths of its money."""

    day: date
    theirs: int
    ours: int
    unpriced_calls: int
    read_at: datetime
    is_whole: bool

    @property
    def gap(self) -> int:
        """How much more the provider has."""
        return self.theirs - self.ours

    @property
    def agrees(self) -> bool:
        """Whether both sides agree to the cent."""
        return abs(self.gap) < CENT


def reconcile_days(engine: Engine, since: date, until: date) -> list[ReconciledDay]:
    """Compare days for a provider that only reports days; an incomplete day, until it was last read."""
    with engine.connect() as connection:
        log_since = _log_since(connection)
    if log_since is not None:
        since = max(since, log_since + DAY)  # whole by UTC, wherever the days of the log begin
    return [_reconciled(day) for day in provider_days.days(engine, since, until)]


def _reconciled(day: provider_days.Day) -> ReconciledDay:
    begin = datetime.combine(day.day, datetime.min.time(), UTC)
    end = begin + DAY if day.is_whole else day.read_at
    sums = reports.call_sums(CallFilter(since=begin, until=end), search_s=SUMMED_S)
    return ReconciledDay(day.day, day.cost, sums.cost, sums.unpriced_calls, day.read_at, day.is_whole)


def day_view(day: ReconciledDay) -> dict[str, object]:
    """Describe a day in UTC, by the names of DAYS_CSV_COLUMNS; an incomplete one is compared until `read_at`."""
    costs = decimal_string(day.ours), day.unpriced_calls, decimal_string(day.theirs)
    values = (day.day.isoformat(), *costs, reports.timestamp(day.read_at), day.is_whole)
    return dict(zip(DAYS_CSV_COLUMNS, values, strict=True))


def days_csv(days: Iterable[ReconciledDay], *, delimiter: str = ",", begin: str = "") -> Iterator[str]:
    """Yield the days as CSV."""
    rows = (list(day_view(day).values()) for day in days)
    return spreadsheet.lines(DAYS_CSV_COLUMNS, rows, delimiter=delimiter, begin=begin)

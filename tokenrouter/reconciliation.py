"""Our ledger beside the provider's own record, by day and model, and what the gap between both is made of."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine

from tokenrouter.database.log_status import CLIENT_CLOSED, INTERRUPTED, OK, PENDING, PROVIDER_ERROR, REJECTED
from tokenrouter.database.tables import ESTIMATED, AnyRow, ProviderEntry, RequestLog, writing
from tokenrouter.errors import InvalidRequest
from tokenrouter.matching import OurCall, Pair, Reason, match, tokens_of
from tokenrouter.periods import midnight
from tokenrouter.provider.account import Account
from tokenrouter.provider.history import Entry

SETTLES_WITHIN = timedelta(hours=1)
"""So long an entry may still change: a new one may show nothing at first."""
HISTORY_DAYS = 30
ROWS_AT_ONCE = 500
MARGIN = timedelta(hours=1)  # beyond the days, so that what lies at their edges finds its pair
REASONS = {
    CLIENT_CLOSED: Reason.LEFT,
    PROVIDER_ERROR: Reason.BROKE_OFF,
    INTERRUPTED: Reason.INTERRUPTED,
    OK: Reason.ESTIMATED,
}


@dataclass
class Sums:
    """Calls, their tokens, and what they cost in billionths, each as far as it is told."""

    calls: int = 0
    tokens: int = 0
    cost: int = 0

    def add(self, tokens: int | None, cost: int | None) -> None:
        """Add a call."""
        self.calls += 1
        self.tokens += tokens or 0
        self.cost += cost or 0


@dataclass
class Line:
    """What both say of a model on a day, and what their gap is made of: calls and tokens by reason."""

    day: date
    model: str
    ours: Sums = field(default_factory=Sums)
    theirs: Sums = field(default_factory=Sums)
    gaps: defaultdict[Reason, Sums] = field(default_factory=lambda: defaultdict(Sums))

    @property
    def gap_tokens(self) -> int:
        """How many tokens more the provider counts."""
        return self.theirs.tokens - self.ours.tokens


def fetch(engine: Engine, account: Account) -> int:
    """Take over what the provider wrote down since the last time; return how many entries are new or changed.

    Raises InvalidRequest where this provider has no such record, and an APIError that says why it cannot be had.
    """
    if account.kind != "poe":
        raise InvalidRequest("This provider has no API that tells its record of calls; Poe has one.")
    taken = 0
    fresh: list[Entry] = []
    for entry in account.history():
        fresh.append(entry)
        if len(fresh) == ROWS_AT_ONCE:
            known = _keep(engine, fresh)
            taken, fresh = taken + len(fresh) - known, []
            if known and entry.at < datetime.now(UTC) - SETTLES_WITHIN:
                return taken  # what is older is here by now
    return taken + len(fresh) - _keep(engine, fresh)


def _keep(engine: Engine, fresh: list[Entry]) -> int:
    """Write entries down; return how many were known as they are."""
    if not fresh:
        return 0
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    with writing(engine, durable=False) as connection:
        rows = connection.execute(select(ProviderEntry.__table__).where(ProviderEntry.id.in_([e.id for e in fresh])))
        known = {Entry(**row._mapping) for row in rows}
        adding = insert(ProviderEntry)
        changed = {name: adding.excluded[name] for name in ("cost", "points", "prompt_tokens", "completion_tokens")}
        upsert = adding.on_conflict_do_update(index_elements=["id"], set_=changed)
        if new := {entry.id: vars(entry) for entry in fresh if entry not in known}:
            connection.execute(upsert, list(new.values()))
    return sum(entry in known for entry in fresh)


def reconcile(
    engine: Engine, since: date, until: date, zone: ZoneInfo, key_name: str | None = None
) -> tuple[list[Line], list[Pair]]:
    """Return a line for each day, `until` among them, and model; and the calls that stand in one of both alone.

    `key_name` leaves out what other keys of the account did, where the provider tells it.
    """
    begin = datetime.fromtimestamp(midnight(since, zone), UTC)
    end = datetime.fromtimestamp(midnight(until + timedelta(days=1), zone), UTC)
    with engine.connect() as connection:
        ours = [_our_call(row) for row in connection.execute(_calls(begin - MARGIN, end + MARGIN))]
        theirs = [Entry(**row._mapping) for row in connection.execute(_entries(begin - MARGIN, end + MARGIN, key_name))]
    within = [pair for pair in match(ours, theirs) if begin <= _moment(pair) < end]
    lines: dict[tuple[date, str], Line] = {}
    for pair in within:
        day, model = _moment(pair).astimezone(zone).date(), _model(pair)
        _count(lines.setdefault((day, model.casefold()), Line(day, model)), pair)
    alone = [pair for pair in within if pair.ours is None or pair.theirs is None]
    return [lines[key] for key in sorted(lines)], sorted(alone, key=_moment)


def _count(line: Line, pair: Pair) -> None:
    if pair.ours is not None:
        line.ours.add(pair.ours.tokens, pair.ours.cost)
    if pair.theirs is not None:
        line.theirs.add(tokens_of(pair.theirs), pair.theirs.cost)
    if pair.gap_tokens or pair.ours is None or pair.theirs is None:
        cost = (pair.theirs.cost or 0 if pair.theirs else 0) - (pair.ours.cost or 0 if pair.ours else 0)
        line.gaps[pair.reason].add(pair.gap_tokens, cost)


def _moment(pair: Pair) -> datetime:
    """Return when a pair's call was made: ours tells it, else the provider's."""
    if pair.ours is not None:
        return pair.ours.began
    assert pair.theirs is not None  # noqa: S101 - a pair has one of both
    return pair.theirs.at


def _model(pair: Pair) -> str:
    return next(each.model for each in (pair.ours, pair.theirs) if each is not None)


def _calls(since: datetime, until: datetime) -> Any:
    is_charged = RequestLog.status.not_in((PENDING, REJECTED)), RequestLog.charged_tokens > 0
    return select(RequestLog.__table__).where(
        *is_charged, RequestLog.created_at >= since, RequestLog.created_at < until
    )


def _entries(since: datetime, until: datetime, key_name: str | None) -> Any:
    query = select(ProviderEntry.__table__).where(ProviderEntry.at >= since, ProviderEntry.at < until)
    return query if key_name is None else query.where(ProviderEntry.key_name == key_name)


def _our_call(row: AnyRow) -> OurCall:
    return OurCall(
        row.id,
        row.created_at,
        row.created_at + timedelta(milliseconds=row.latency_ms or 0),
        row.model,
        row.prompt_tokens,
        row.charged_tokens,
        row.cost,
        row.provider_request_id,
        REASONS.get(row.status, Reason.ESTIMATED) if row.usage_source == ESTIMATED else None,
    )


def gaps_of(lines: list[Line]) -> Iterator[tuple[Reason, Sums]]:
    """Yield what the gaps of all lines are made of, the largest first."""
    totals: defaultdict[Reason, Sums] = defaultdict(Sums)
    for line in lines:
        for reason, sums in line.gaps.items():
            total = totals[reason]
            total.calls, total.tokens, total.cost = (
                total.calls + sums.calls,
                total.tokens + sums.tokens,
                total.cost + sums.cost,
            )
    yield from sorted(totals.items(), key=lambda each: -abs(each[1].tokens))

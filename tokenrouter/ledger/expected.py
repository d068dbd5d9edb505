"""What counters have to be, by the pending calls and by the resets, renewals and repairs that were recorded."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from tokenrouter import changes
from tokenrouter.database.tables import Change, CostCorrection, RequestLog, Team
from tokenrouter.ledger.comparison import Books, streamed
from tokenrouter.ledger.counters import IS_PENDING


class Mark(NamedTuple):
    """A counter that only grows, and the mark from which use counts: the names of their columns."""

    settled: str
    reset: str
    recorded: str
    """What the record of a reset, and a renewal, call the amount by which the mark moved."""
    summed: str
    """What the daily totals call the amount by which the counter grew."""
    words: str


MARKS = (
    Mark("settled_tokens", "reset_mark_tokens", "used_tokens", "total_tokens", "settled, and {} charged"),
    Mark("settled_cost", "reset_mark_cost", "used_cost", "cost", "billionths of cost, and {}"),
    Mark(
        "settled_priced_tokens",
        "reset_mark_priced_tokens",
        "priced_tokens",
        "priced_tokens",
        "tokens with a price, and {}",
    ),
)

MOVED = [mark.recorded for mark in MARKS]


@dataclass
class Expected:
    """What the counters of a team or group have to be."""

    held_tokens: int = 0
    held_cost: int = 0
    calls_in_flight: int = 0
    moved: Counter[str] = field(default_factory=Counter)
    """By how much the marks have to have moved, by the names in the records."""
    is_proven: bool = False
    """Whether the records of moves go back to the creation, or to a repair."""
    renewals_in_repair: int = 0
    """The last renewal that the mark of a repair includes."""
    corrections_in_repair: int = 0
    """The last correction, likewise."""


Owners = defaultdict[int | None, Expected]


def expected_counters(connection: Connection, books: Books) -> Owners:
    """Return what the counters of teams, or of groups, have to be, by id."""
    owners: Owners = defaultdict(Expected)
    _add_pending_calls(connection, books, owners)
    _add_resets(connection, books, owners)
    _add_renewals(connection, books, owners)
    _add_corrections(connection, books, owners)
    return owners


def _add_pending_calls(connection: Connection, books: Books, owners: Owners) -> None:
    owner = books.of_calls[0]
    sums = func.sum(RequestLog.held_tokens), func.sum(RequestLog.held_cost), func.count()
    for owner_id, tokens, cost, calls in connection.execute(select(owner, *sums).where(IS_PENDING).group_by(owner)):
        own = owners[owner_id]
        own.held_tokens, own.held_cost, own.calls_in_flight = int(tokens), int(cost), calls


def _add_resets(connection: Connection, books: Books, owners: Owners) -> None:
    """Add what resets moved, and what took resets back; a repair set the marks, whatever was before."""
    resets = changes.USAGE_RESET, changes.USAGE_RESTORE
    owner, actions = books.of_changes, (books.creation, *resets, changes.USAGE_REPAIR)
    query = select(owner, Change.action, Change.before, Change.after)
    query = query.where(Change.action.in_(actions), owner.is_not(None)).order_by(Change.id)
    for owner_id, action, before, after in streamed(connection, query):
        own, before, after = owners[owner_id], before or {}, after or {}
        if action in resets:
            own.moved.update({name: int(before.get(name, 0)) - int(after.get(name, 0)) for name in MOVED})
            continue
        own.is_proven = True
        if action == changes.USAGE_REPAIR:
            own.moved = Counter({mark.recorded: int(after.get(mark.reset, 0)) for mark in MARKS})
            own.renewals_in_repair = int(after.get("last_renewal", 0))
            own.corrections_in_repair = int(after.get("last_correction", 0))


def _add_renewals(connection: Connection, books: Books, owners: Owners) -> None:
    amounts = [getattr(books.renewals, mark.recorded) for mark in MARKS]
    renewals = select(books.renewals.id, books.of_renewals, *amounts).order_by(books.renewals.id)
    for renewal_id, owner_id, *values in streamed(connection, renewals):
        if renewal_id > owners[owner_id].renewals_in_repair:
            owners[owner_id].moved.update(dict(zip(MOVED, values, strict=True)))


def _add_corrections(connection: Connection, books: Books, owners: Owners) -> None:
    owner = getattr(CostCorrection, books.of_days[0].key)
    is_past = CostCorrection.is_past if books.kind is Team else CostCorrection.is_past_of_group
    past = select(CostCorrection.id, owner, CostCorrection.cost, CostCorrection.priced_tokens).where(is_past)
    for correction_id, owner_id, cost, priced_tokens in streamed(connection, past):
        if correction_id > owners[owner_id].corrections_in_repair:
            owners[owner_id].moved.update({"used_cost": cost, "priced_tokens": priced_tokens})

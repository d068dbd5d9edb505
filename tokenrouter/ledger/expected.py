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
    """What it moved by, in the record of a reset and in a renewal."""
    summed: str
    """What it grew by, in the sums of days."""
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
class Resets:
    """What recorded resets and renewals sum up to; proven where they go back to the creation, or a repair."""

    moved: Counter[str] = field(default_factory=Counter)
    is_proven: bool = False


def resets_on_record(connection: Connection, books: Books) -> defaultdict[int | None, Resets]:
    """Return by how much the marks have to have moved, by id."""
    moving = changes.USAGE_RESET, changes.USAGE_RESTORE
    actions, owner = (books.creation, *moving, changes.USAGE_REPAIR), books.of_changes
    query = select(owner, Change.action, Change.before, Change.after).where(Change.action.in_(actions))
    resets: defaultdict[int | None, Resets] = defaultdict(Resets)
    renewals_upto: defaultdict[int | None, int] = defaultdict(int)  # those up to here are in the mark of a repair
    corrections_upto: defaultdict[int | None, int] = defaultdict(int)  # likewise
    for owner_id, action, before, after in streamed(connection, query.where(owner.is_not(None)).order_by(Change.id)):
        own, before, after = resets[owner_id], before or {}, after or {}
        if action in moving:
            own.moved.update({name: int(before.get(name, 0)) - int(after.get(name, 0)) for name in MOVED})
        elif action == changes.USAGE_REPAIR:
            moved = Counter({mark.recorded: int(after.get(mark.reset, 0)) for mark in MARKS})
            resets[owner_id] = Resets(moved, is_proven=True)
            renewals_upto[owner_id] = int(after.get("last_renewal", 0))
            corrections_upto[owner_id] = int(after.get("last_correction", 0))
        else:
            own.is_proven = True
    moved_by = [getattr(books.renewals, mark.recorded) for mark in MARKS]
    renewals = select(books.renewals.id, books.of_renewals, *moved_by).order_by(books.renewals.id)
    for renewal_id, owner_id, *values in streamed(connection, renewals):
        if renewal_id > renewals_upto[owner_id]:
            resets[owner_id].moved.update({mark.recorded: v for mark, v in zip(MARKS, values, strict=True)})
    owner = getattr(CostCorrection, books.of_days[0].key)
    is_past = CostCorrection.is_past if books.kind is Team else CostCorrection.is_past_of_group
    past = select(CostCorrection.id, owner, CostCorrection.cost, CostCorrection.priced_tokens).where(is_past)
    for correction_id, owner_id, cost, priced_tokens in streamed(connection, past):
        if correction_id > corrections_upto[owner_id]:
            resets[owner_id].moved.update({"used_cost": cost, "priced_tokens": priced_tokens})
    return resets


def held_by_calls(connection: Connection, books: Books) -> dict[int, tuple[int, int]]:
    """Return what pending calls hold, by id: tokens, and money."""
    owner = books.of_calls[0]
    sums = func.sum(RequestLog.held_tokens), func.sum(RequestLog.held_cost)
    held = connection.execute(select(owner, *sums).where(IS_PENDING).group_by(owner))
    return {owner_id: (int(tokens), int(cost)) for owner_id, tokens, cost in held}


def calls_in_flight(connection: Connection, books: Books) -> Counter[int]:
    """Return how many calls are pending, by id."""
    owner = books.of_calls[0]
    in_flight: Counter[int] = Counter()
    for owner_id, calls in connection.execute(select(owner, func.count()).where(IS_PENDING).group_by(owner)):
        in_flight[owner_id] = calls
    return in_flight

"""Take back a reset of usage, or an extra: by exactly what it moved, so that what was used since stays counted.

Each runs in the transaction of whoever takes back, who has locked the row, and records what is returned.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import func, select, text, update
from sqlalchemy.engine import Connection

from tokenrouter import changes
from tokenrouter.changes import CannotUndo, Changed
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.tables import AnyRow, Change, CostCorrection, Group, RequestLog, Team
from tokenrouter.ledger.comparison import OF_GROUPS, OF_TEAMS, Books
from tokenrouter.ledger.transaction import Transaction
from tokenrouter.money import decimal_string, parse_amount

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RENEWED = "The quota renewed since."
ROWS_AT_ONCE = 500

MARKS = {
    "used_tokens": ("settled_tokens", "reset_mark_tokens"),
    "used_cost": ("settled_cost", "reset_mark_cost"),
    "priced_tokens": ("settled_priced_tokens", "reset_mark_priced_tokens"),
}
"""What the record of a reset tells, and the counter and the mark that it is of."""


@dataclass(frozen=True)
class Beginnings:
    """When a running period began, by the resets that hold, and when the one did that ran before each of them."""

    running: datetime
    before: dict[int, datetime]


def resets_of(connection: Connection, books: Books, owner_id: int | None = None) -> Iterable[AnyRow]:
    """Select the resets of all, or of one, and what took them back, by owner and in order."""
    owner = books.of_changes
    query = select(owner.label("owner_id"), Change.id, Change.at, Change.action, Change.undoes_id)
    is_meant = owner.is_not(None) if owner_id is None else owner == owner_id
    query = query.where(Change.action.in_((changes.USAGE_RESET, changes.USAGE_RESTORE)), is_meant)
    return connection.execute(query.order_by(owner, Change.id))


def beginnings(resets: Iterable[AnyRow]) -> Beginnings:
    """Follow the resets of one owner: what takes one back brings the period before it back."""
    running, before = EPOCH, {}
    for each in resets:
        before[each.id] = running
        running = each.at if each.undoes_id is None else before.get(each.undoes_id, running)
    return Beginnings(running, before)


def keep_corrections_out(connection: Connection) -> None:
    """Let no costs be corrected until this transaction ends; it comes before any row is locked, as it does there."""
    if connection.dialect.name == "postgresql":  # on SQLite nobody else writes
        connection.execute(text("LOCK TABLE cost_corrections IN ROW EXCLUSIVE MODE"))


def undo_reset(connection: Connection, change: Change) -> Changed:
    """Move the marks back by what a reset took, or, where the change took one back, forward again.

    Raises CannotUndo where the quota renewed since, or another reset came after, or a repair.
    """
    books, id_ = _books_of(change)
    kind = books.kind
    counters = [getattr(kind, name) for pair in MARKS.values() for name in pair]
    query = select(kind.name, kind.is_due.label("is_due"), *counters).where(kind.id == id_, kind.deleted_at.is_(None))
    row = connection.execute(query.with_for_update(key_share=True)).one_or_none()
    if row is None:
        raise CannotUndo("It was deleted since.")
    if row.is_due or _renewed_since(connection, books, id_, change.at):
        raise CannotUndo(RENEWED)
    resets = list(resets_of(connection, books, id_))
    if not _is_last(resets, change):
        raise CannotUndo("Its usage was reset again, or a reset taken back, since.")
    if _repaired_since(connection, books, change):
        raise CannotUndo("Its counters were repaired since.")
    taken = {name: _of(change.before, name) - _of(change.after, name) for name in MARKS}
    moved = _move_corrections(connection, books, change, resets)
    marks: dict[str, int] = {}
    for name, (settled, mark) in MARKS.items():
        marks[mark] = getattr(row, mark) - taken[name] - moved.get(name, 0)
        if not 0 <= marks[mark] <= getattr(row, settled):
            raise CannotUndo("Its costs were corrected since.")
    connection.execute(update(kind).where(kind.id == id_).values(marks))
    used = {name: getattr(row, settled) - getattr(row, mark) for name, (settled, mark) in MARKS.items() if taken[name]}
    after = {name: value + taken[name] for name, value in used.items()}
    return Changed.of(kind, id_, row.name, used, after)


def _books_of(change: Change) -> tuple[Books, int]:
    if change.group_id is not None:
        return OF_GROUPS, change.group_id
    return OF_TEAMS, change.team_id or 0


def _of(told: dict[str, Any] | None, name: str) -> int:
    return int((told or {}).get(name, 0))


def _renewed_since(connection: Connection, books: Books, id_: int, at: datetime) -> bool:
    renewals = books.renewals
    last = select(func.max(renewals.due_at), func.max(renewals.renewed_at)).where(books.of_renewals == id_)
    return any(instant is not None and instant > at.timestamp() for instant in connection.execute(last).one())


def _repaired_since(connection: Connection, books: Books, change: Change) -> bool:
    repairs = Change.action == changes.USAGE_REPAIR, books.of_changes == _books_of(change)[1], Change.id > change.id
    return connection.execute(select(Change.id).where(*repairs).limit(1)).first() is not None


def _is_last(resets: Sequence[AnyRow], change: Change) -> bool:
    """Tell whether all that came after the change was taken back again."""
    undoes = {each.id: each.undoes_id for each in resets}
    holding = [each for each in resets if each.id > change.id and each.id not in undoes.values()]

    def first(id_: int) -> int:
        return id_ if undoes.get(id_) is None else first(undoes[id_])

    return all(each.action == changes.USAGE_RESTORE and first(each.id) > change.id for each in holding)


def _move_corrections(connection: Connection, books: Books, change: Change, resets: Sequence[AnyRow]) -> dict[str, int]:
    """Let corrections since the reset count to the period again that their calls are of; return by how much in all."""
    owner_is = books.of_renewals == _books_of(change)[1]
    last_renewal = connection.execute(select(func.max(books.renewals.due_at)).where(owner_is)).scalar() or 0
    renewed_at, known = EPOCH + timedelta(seconds=last_renewal), beginnings(resets)
    begins, began = (max(at, renewed_at) for at in (known.before[change.id], known.running))
    becomes_past = begins > began
    moved = {"used_cost": 0, "priced_tokens": 0}
    ids = []
    for each in _corrections(connection, books, change, max(begins, began), is_past=not becomes_past):
        ended = each.created_at + timedelta(milliseconds=each.latency_ms or 0)
        if (ended < begins) == becomes_past:
            ids.append(each.id)
            moved["used_cost"] += -each.cost if becomes_past else each.cost
            moved["priced_tokens"] += -each.priced_tokens if becomes_past else each.priced_tokens
    for at in range(0, len(ids), ROWS_AT_ONCE):
        chosen = CostCorrection.id.in_(ids[at : at + ROWS_AT_ONCE])
        connection.execute(update(CostCorrection).where(chosen).values({_past_of(books).key: becomes_past}))
    return moved


def _past_of(books: Books) -> Any:
    return CostCorrection.is_past if books.kind is Team else CostCorrection.is_past_of_group


def _corrections(
    connection: Connection, books: Books, change: Change, since: datetime, *, is_past: bool
) -> Iterator[AnyRow]:
    owner = CostCorrection.team_id if books.kind is Team else CostCorrection.group_id
    query = select(
        CostCorrection.id,
        CostCorrection.cost,
        CostCorrection.priced_tokens,
        RequestLog.created_at,
        RequestLog.latency_ms,
    ).join(RequestLog, RequestLog.id == CostCorrection.call_id)
    is_meant = owner == _books_of(change)[1], CostCorrection.at >= since, _past_of(books).is_(is_past)
    yield from connection.execute(query.where(*is_meant))


def undo_extra(connection: Connection, change: Change, zone: ZoneInfo) -> Changed:
    """Set an extra back to what it was, or, where the change did so, to what was given.

    Raises CannotUndo where the period is over, or the extra was changed since.
    """
    books, id_ = _books_of(change)
    kind = books.kind
    tx = Transaction(driver_connection(connection), worker_id=0, output_reserve_tokens=0, zone=zone)
    counters = tx.groups if kind is Group else tx.teams
    counters.lock(id_)  # and renews the quota first, where its time has come
    if _renewed_since(connection, books, id_, change.at):
        raise CannotUndo(RENEWED)
    columns = kind.name, kind.extra_tokens, kind.extra_budget
    row = connection.execute(select(*columns).where(kind.id == id_, kind.deleted_at.is_(None))).one_or_none()
    if row is None:
        raise CannotUndo("It was deleted since.")
    told = {"extra_tokens": row.extra_tokens, "extra_budget": decimal_string(row.extra_budget)}
    before, after = change.before or {}, change.after or {}
    if any(told[name] != value for name, value in after.items()):
        raise CannotUndo("Its extra was changed since.")
    values = {name: parse_amount(value) if name == "extra_budget" else value for name, value in before.items()}
    connection.execute(update(kind).where(kind.id == id_).values(values))
    return Changed.of(kind, id_, row.name, after, before)

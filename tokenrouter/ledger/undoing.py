"""Undo a reset of usage, or an extra, by exactly what it moved, so that what was used since stays counted.

The functions run in the caller's transaction, which has locked the rows, and return what the caller is to record.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.engine import Connection

from tokenrouter import changes
from tokenrouter.changes import CannotUndo, Changed
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.engine import lock_table
from tokenrouter.database.tables import AnyRow, Change, CostCorrection, Group, RequestLog, Team
from tokenrouter.ledger import expected
from tokenrouter.ledger.comparison import OF_GROUPS, OF_TEAMS, Books
from tokenrouter.ledger.transaction import Transaction
from tokenrouter.money import decimal_string, parse_amount

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RENEWED = "The quota renewed since."
ROWS_AT_ONCE = 500

MARKS = {mark.recorded: (mark.settled, mark.reset) for mark in expected.MARKS}
"""The counter and the mark behind each figure in the record of a reset."""


@dataclass(frozen=True)
class Beginnings:
    """When the running period began, and by the id of each reset when the period before it began."""

    running: datetime
    before: dict[int, datetime]


def resets_of(connection: Connection, books: Books, ids: Sequence[int] | None = None) -> Iterable[AnyRow]:
    """Select the resets of all owners, or of some, and their undoings, by owner and in order."""
    owner = books.of_changes
    query = select(owner.label("owner_id"), Change.id, Change.at, Change.action, Change.undoes_id)
    is_meant = owner.is_not(None) if ids is None else owner.in_(ids)
    query = query.where(Change.action.in_((changes.USAGE_RESET, changes.USAGE_RESTORE)), is_meant)
    return connection.execute(query.order_by(owner, Change.id))


def beginnings(resets: Iterable[AnyRow]) -> Beginnings:
    """Follow the resets of one owner: undoing one brings back the period before it."""
    running, before = EPOCH, {}
    for each in resets:
        before[each.id] = running
        running = each.at if each.undoes_id is None else before.get(each.undoes_id, running)
    return Beginnings(running, before)


def keep_corrections_out(connection: Connection) -> None:
    """Let no costs be corrected until this transaction ends; call it before any row is locked."""
    lock_table(connection, CostCorrection, "ROW EXCLUSIVE")


def undo_resets(connection: Connection, undone: Sequence[Change]) -> dict[int, Changed | CannotUndo]:
    """Move reset marks back by what resets moved them; of a change that undid a reset, forward again.

    Return by the ids of the changes what is to be recorded, or why it cannot be undone: the quota has renewed since, or
    another reset or a repair came later. It reads in bulk, since calls of these teams wait meanwhile.
    """
    outcomes: dict[int, Changed | CannotUndo] = {}
    for books in (OF_GROUPS, OF_TEAMS):
        of_kind = [change for change in undone if _books_of(change)[0] is books]
        if of_kind:
            outcomes |= _undo_resets(connection, _known(connection, books, of_kind), of_kind)
    return outcomes


@dataclass(frozen=True)
class _Known:
    """What the database has about the owners of some resets, by their ids."""

    books: Books
    rows: Mapping[int, AnyRow]
    """Of those that are not deleted, locked."""
    resets: Mapping[int, list[AnyRow]]
    renewals: Mapping[int, tuple[int, float]]
    """When the last one was due, and when it happened, in seconds since 1970."""
    repairs: Mapping[int, int]
    last_correction: datetime


def _known(connection: Connection, books: Books, undone: Sequence[Change]) -> _Known:
    kind, ids = books.kind, sorted({_books_of(change)[1] for change in undone})
    counters = [getattr(kind, name) for pair in MARKS.values() for name in pair]
    rows = select(kind.id, kind.name, kind.is_due.label("is_due"), *counters).where(kind.id.in_(ids))
    rows = rows.where(kind.deleted_at.is_(None)).order_by(kind.id).with_for_update(key_share=True)
    owner, renewals = books.of_changes, books.renewals
    repairs = select(owner, func.max(Change.id)).where(owner.in_(ids), Change.action == changes.USAGE_REPAIR)
    return _Known(
        books,
        {row.id: row for row in connection.execute(rows)},
        {id_: list(own) for id_, own in groupby(resets_of(connection, books, ids), attrgetter("owner_id"))},
        {
            id_: (due_at, renewed_at)
            for id_, due_at, renewed_at in connection.execute(
                select(books.of_renewals, func.max(renewals.due_at), func.max(renewals.renewed_at))
                .where(books.of_renewals.in_(ids))
                .group_by(books.of_renewals)
            )
        },
        dict(connection.execute(repairs.group_by(owner)).all()),
        connection.execute(select(func.max(CostCorrection.at))).scalar() or EPOCH,
    )


def _undo_resets(connection: Connection, known: _Known, undone: Sequence[Change]) -> dict[int, Changed | CannotUndo]:
    outcomes: dict[int, Changed | CannotUndo] = {}
    marks: list[dict[str, int]] = []
    for change in undone:
        try:
            moved, outcomes[change.id] = _undo_reset(connection, known, change)
        except CannotUndo as error:
            outcomes[change.id] = error
        else:
            marks.append(moved)
    table: Any = known.books.kind.__table__
    moving = update(table).where(table.c.id == bindparam("owner"))
    moving = moving.values({mark: bindparam(f"new_{mark}") for _, mark in MARKS.values()})
    if marks:
        connection.execute(moving, marks)
    return outcomes


def _undo_reset(connection: Connection, known: _Known, change: Change) -> tuple[dict[str, int], Changed]:
    """Return the new marks of a row, and what is to be recorded; raises CannotUndo."""
    books, id_ = _books_of(change)
    row = known.rows.get(id_)
    if row is None:
        raise CannotUndo("It was deleted since.")
    if row.is_due or any(instant > change.at.timestamp() for instant in known.renewals.get(id_, ())):
        raise CannotUndo(RENEWED)
    if not _is_last(known.resets[id_], change):
        raise CannotUndo("Its usage was reset again, or a reset taken back, since.")
    if known.repairs.get(id_, 0) > change.id:
        raise CannotUndo("Its counters were repaired since.")
    taken = {name: _of(change.before, name) - _of(change.after, name) for name in MARKS}
    moved = _move_corrections(connection, known, change)
    marks = {"owner": id_}
    for name, (settled, mark) in MARKS.items():
        marks[f"new_{mark}"] = moved_to = getattr(row, mark) - taken[name] - moved.get(name, 0)
        if not 0 <= moved_to <= getattr(row, settled):
            raise CannotUndo("Its costs were corrected since.")
    used = {name: getattr(row, settled) - getattr(row, mark) for name, (settled, mark) in MARKS.items() if taken[name]}
    after = {name: value + taken[name] for name, value in used.items()}
    return marks, Changed.of(books.kind, id_, row.name, used, after)


def _books_of(change: Change) -> tuple[Books, int]:
    if change.group_id is not None:
        return OF_GROUPS, change.group_id
    return OF_TEAMS, change.team_id or 0


def _of(recorded: dict[str, Any] | None, name: str) -> int:
    return int((recorded or {}).get(name, 0))


def _renewed_since(connection: Connection, books: Books, id_: int, at: datetime) -> bool:
    renewals = books.renewals
    last = select(func.max(renewals.due_at), func.max(renewals.renewed_at)).where(books.of_renewals == id_)
    return any(instant is not None and instant > at.timestamp() for instant in connection.execute(last).one())


def _is_last(resets: Sequence[AnyRow], change: Change) -> bool:
    """Tell whether all resets after the change were undone."""
    undoes = {each.id: each.undoes_id for each in resets}
    holding = [each for each in resets if each.id > change.id and each.id not in undoes.values()]

    def first(id_: int) -> int:
        return id_ if undoes.get(id_) is None else first(undoes[id_])

    return all(each.action == changes.USAGE_RESTORE and first(each.id) > change.id for each in holding)


def _move_corrections(connection: Connection, known: _Known, change: Change) -> dict[str, int]:
    """Let corrections since the reset count to the period of their calls again; return the sums that this moves."""
    books, id_ = _books_of(change)
    periods = beginnings(known.resets[id_])
    renewed_at = EPOCH + timedelta(seconds=known.renewals[id_][0] if id_ in known.renewals else 0)
    begins, began = (max(at, renewed_at) for at in (periods.before[change.id], periods.running))
    if known.last_correction < max(begins, began):
        return {}
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
    began_at = func.coalesce(CostCorrection.began_at, RequestLog.created_at)
    query = select(
        CostCorrection.id,
        CostCorrection.cost,
        CostCorrection.priced_tokens,
        began_at.label("created_at"),
        func.coalesce(CostCorrection.latency_ms, RequestLog.latency_ms).label("latency_ms"),
    ).outerjoin(RequestLog, CostCorrection.is_of(RequestLog.id))
    is_meant = (
        owner == _books_of(change)[1],
        CostCorrection.at >= since,
        _past_of(books).is_(is_past),
        began_at.is_not(None),
    )
    yield from connection.execute(query.where(*is_meant))


def undo_extra(connection: Connection, change: Change, zone: ZoneInfo) -> Changed:
    """Set an extra back to what it was before the change.

    Raises CannotUndo if the period is over, or the extra was changed since.
    """
    books, id_ = _books_of(change)
    kind = books.kind
    tx = Transaction(driver_connection(connection), worker_id=0, output_reserve_tokens=0, zone=zone)
    counters = tx.groups if kind is Group else tx.teams
    counters.lock(id_)  # which renews the quota first if it is due
    if _renewed_since(connection, books, id_, change.at):
        raise CannotUndo(RENEWED)
    columns = kind.name, kind.extra_tokens, kind.extra_budget
    row = connection.execute(select(*columns).where(kind.id == id_, kind.deleted_at.is_(None))).one_or_none()
    if row is None:
        raise CannotUndo("It was deleted since.")
    current = {"extra_tokens": row.extra_tokens, "extra_budget": decimal_string(row.extra_budget)}
    before, after = change.before or {}, change.after or {}
    if any(current[name] != value for name, value in after.items()):
        raise CannotUndo("Its extra was changed since.")
    values = {name: parse_amount(value) if name == "extra_budget" else value for name, value in before.items()}
    connection.execute(update(kind).where(kind.id == id_).values(values))
    return Changed.of(kind, id_, row.name, after, before)

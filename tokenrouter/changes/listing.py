"""The record of changes as it is listed: filtered, with changes made at once as one entry."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from tokenrouter.changes import paged, undone_of
from tokenrouter.database.tables import Change, Group, Team, clamp_id, clamp_text, db, normalized

SHOWN_OF_BATCH = 100
ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class ChangeFilter:
    """Which changes to list: those that meet all given conditions."""

    team_id: int | None = None
    group_id: int | None = None
    name: str | None = None
    """Part of the name that a team or group had, case-insensitive."""
    action: str | None = None
    who: str | None = None
    """The kind of an actor."""
    since: datetime | None = None
    until: datetime | None = None
    batch: str | None = None

    @property
    def tells_single_changes(self) -> bool:
        """Tell whether what was done at once is told one by one, since a part of it was asked for, or all of it."""
        return any((self.team_id is not None, self.group_id is not None, self.name, self.batch))

    def conditions(self, of: Any) -> list[ColumnElement[bool]]:
        """Return the conditions in SQL."""
        exact = {
            of.team_id: self.team_id if self.team_id is None else clamp_id(self.team_id),
            of.group_id: self.group_id if self.group_id is None else clamp_id(self.group_id),
            of.action: self.action,
            of.actor_kind: self.who,
            of.batch: self.batch if self.batch is None else clamp_text(self.batch),
        }
        found = [column == value for column, value in exact.items() if value is not None]
        if self.name:
            part = clamp_text(normalized(self.name))
            found.append(or_(*(each.icontains(part, autoescape=True) for each in (of.team_name, of.group_name))))
        if self.since is not None:
            found.append(of.at >= self.since)
        if self.until is not None:
            found.append(of.at < self.until)
        return found


@dataclass(frozen=True)
class Entry:
    """A change, or the first of several made at once, and how many these are."""

    rows: list[Change]
    total: int

    @property
    def head(self) -> Change:
        """Return the newest of them."""
        return self.rows[0]


@dataclass(frozen=True)
class Entries:
    """A page of entries, newest first, and where the next ones begin."""

    entries: list[Entry]
    before_id: int | None
    after_id: int | None
    undone: frozenset[int]
    """Those of the changes that were taken back."""
    living_teams: frozenset[int]
    living_groups: frozenset[int]


def entries(
    filter: ChangeFilter, before_id: int | None = None, after_id: int | None = None, limit: int = 50
) -> Entries:
    """Return the entries next older than `before_id`, or next newer than `after_id`, or the newest."""
    query = select(Change).where(*filter.conditions(Change))
    if not filter.tells_single_changes:
        other = aliased(Change)
        is_newer = other.batch == Change.batch, other.id > Change.id
        query = query.where(or_(Change.batch.is_(None), ~exists().where(*is_newer, *filter.conditions(other))))
    with Session(db.engine) as session:
        page = paged(query, before_id, after_id, limit)
        found = [Entry([row], 1) for row in page.rows]
        if not filter.tells_single_changes:
            found = _with_batches(session, filter, found)
        rows = [row for entry in found for row in entry.rows]
        return Entries(
            found,
            page.before_id,
            page.after_id,
            undone_of(session, rows),
            _living(session, Team, {row.team_id for row in rows}),
            _living(session, Group, {row.group_id for row in rows}),
        )


def _with_batches(session: Session, filter: ChangeFilter, found: list[Entry]) -> list[Entry]:
    """Add to each entry the first changes made together with its own."""
    batches = [entry.head.batch for entry in found if entry.head.batch]
    fitting = *filter.conditions(Change), Change.batch.in_(batches)
    totals = dict(session.execute(select(Change.batch, func.count()).where(*fitting).group_by(Change.batch)).all())
    number = func.row_number().over(partition_by=Change.batch, order_by=Change.id.desc())
    numbered = select(Change.id, number.label("number")).where(*fitting).subquery()
    first = select(Change).join(numbered, numbered.c.id == Change.id).where(numbered.c.number <= SHOWN_OF_BATCH)
    rows: dict[str | None, list[Change]] = {}
    for row in session.scalars(first.order_by(Change.id.desc())):
        rows.setdefault(row.batch, []).append(row)
    return [
        Entry(rows[entry.head.batch], totals[entry.head.batch]) if entry.head.batch in rows else entry
        for entry in found
    ]


def _living(session: Session, kind: type[Team | Group], ids: set[int | None]) -> frozenset[int]:
    living = select(kind.id).where(kind.id.in_(ids - {None}), kind.deleted_at.is_(None))
    return frozenset(session.scalars(living).all())


def ids_of_batch(batch: str) -> list[int]:
    """Return the changes of a batch, newest first."""
    with Session(db.engine) as session:
        query = select(Change.id).where(Change.batch == clamp_text(batch)).order_by(Change.id.desc())
        return list(session.scalars(query))


def iterate(filter: ChangeFilter) -> Iterator[Change]:
    """Yield all matching changes, newest first, without those made meanwhile."""
    query: Select[Change] = select(Change).where(*filter.conditions(Change)).order_by(Change.id.desc())
    last_id: int | None = None
    while True:
        with Session(db.engine) as session:
            older = query if last_id is None else query.where(Change.id < last_id)
            rows = list(session.scalars(older.limit(ROWS_AT_ONCE)))
        yield from rows
        if len(rows) < ROWS_AT_ONCE:
            return
        last_id = rows[-1].id

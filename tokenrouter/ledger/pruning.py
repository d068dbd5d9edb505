"""Delete old rows of the log, and of the responses that teams were given, in batches so short that nobody waits.

The transaction that deletes a batch of calls also adds their sums to those of pruned calls. So the books can be proven
at any moment, even if the power failed after a batch.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ColumnElement,
    Date,
    and_,
    bindparam,
    delete,
    func,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.engine import Connection, Engine

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.engine import lock_table, writing
from tokenrouter.database.log_status import PENDING
from tokenrouter.database.statements import Inserter, Statement
from tokenrouter.database.sums import Sums
from tokenrouter.database.tables import CostCorrection, GivenItem, GivenResponse, PrunedUsage, RequestLog
from tokenrouter.ledger.comparison import COUNTED_MODEL, SUMS_OF_CALLS
from tokenrouter.ledger.undoing import keep_corrections_out
from tokenrouter.periods import midnight

BATCH_S = 0.003  # of writing, commit included, while others may have to wait
REST = 6  # pause between batches, in multiples of a batch's time, for others to write
FIRST_ROWS, LEAST_ROWS, MOST_ROWS = 50, 20, 1000  # of a batch
LOOKED_THROUGH = 5000  # rows, in one read
BATCHES_A_CHECKPOINT = 3  # so few that no commit, which others wait for, has to write SQLite's log back
INCREMENTAL = 2  # SQLite's mode of files that can be made smaller in steps
SPARE_PAGES = 1000  # that are left free for new rows

Key = tuple[Any, ...]
Step = Callable[[Connection, Sequence[Key]], int]


@dataclass
class Pruned:
    """How many rows were deleted: calls of days before `before`, and responses and items that were given then."""

    before: date
    calls: int = 0
    responses: int = 0
    items: int = 0
    keeps_size: bool = False
    """Whether the database file cannot shrink; its free space is used again."""


def first_day_kept(days: int, zone: ZoneInfo) -> date:
    """Return the first day to keep, if so many whole days before today are kept."""
    return datetime.now(zone).date() - timedelta(days=days)


def last_day_pruned(connection: Connection) -> date | None:
    """Return the last day whose calls were pruned; None if none were."""
    day: date | None = connection.execute(select(func.max(PrunedUsage.day))).scalar()
    return day


def keep_pruning_out(connection: Connection) -> None:
    """Let nobody else prune until this transaction ends; call it before anything is read."""
    lock_table(connection, PrunedUsage)


def prune(engine: Engine, before: date, zone: ZoneInfo, *, by: Actor) -> Pruned:
    """Delete what is older than a day; pending calls, totals and counters stay.

    It may be stopped at any moment, and continues from there when it is run again. The first batch records it as a
    change.
    """
    batches = Batches(engine, before, by)
    since = datetime.fromtimestamp(midnight(before, zone), UTC)
    pruned = Pruned(before)
    is_old = before > _DAY, RequestLog.status != PENDING
    pruned.calls = batches.delete((RequestLog.id,), and_(*is_old), partial(_prune_calls, before))
    pruned.responses = batches.delete(*_given(GivenResponse, GivenResponse.response_hash, since))
    pruned.items = batches.delete(*_given(GivenItem, GivenItem.item_hash, since))
    pruned.keeps_size = not batches.give_back_space()
    return pruned


class Batches:
    """Delete rows in batches so short that no call becomes noticeably slower by waiting for one."""

    def __init__(self, engine: Engine, before: date, by: Actor) -> None:
        """`by` is whom the first batch is recorded for."""
        self._engine = engine
        self._before = before
        self._by = by
        self._size = FIRST_ROWS
        self._count = 0

    def delete(self, key: Sequence[Any], is_old: ColumnElement[bool], step: Step) -> int:
        """Delete the old rows by `step`, which gets the values of the key columns; return how many."""
        deleted = 0
        for keys in _old_keys(self._engine, key, is_old):
            while keys:
                batch, keys = keys[: self._size], keys[self._size :]
                deleted += self._write(partial(self._recorded, step, batch))
        return deleted

    def _recorded(self, step: Step, batch: Sequence[Key], connection: Connection) -> int:
        done = step(connection, batch)
        if not self._count:
            recorded = {"log_before": self._before.isoformat()}
            changes.record(connection, self._by, changes.LOG_PRUNE, Changed(None, None, None, recorded))
        return done

    def _write(self, run: Callable[[Connection], int]) -> int:
        """Run one batch in its own transaction, pause for others, and size the next batch so that it takes BATCH_S."""
        with writing(self._engine, durable=False) as connection:
            began = time.perf_counter()
            done = run(connection)
        took_s = time.perf_counter() - began
        self._size = min(max(int(self._size * min(BATCH_S / took_s, 2)), LEAST_ROWS), MOST_ROWS)
        self._count += 1
        if self._engine.dialect.name == "sqlite" and self._count % BATCHES_A_CHECKPOINT == 0:
            self._check_point()
        time.sleep(took_s * REST)
        return done

    def _check_point(self) -> None:
        """Checkpoint SQLite's write-ahead log, so that no call has to do that for these deletions."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def give_back_space(self) -> bool:
        """Return SQLite's free pages to the file system, in steps; return False if the file cannot shrink.

        PostgreSQL's autovacuum needs no help.
        """
        if self._engine.dialect.name != "sqlite":
            return True
        with self._engine.connect() as connection:
            shrinks: bool = connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() == INCREMENTAL
        while shrinks and self._write(self._give_back_pages):
            pass
        return shrinks

    def _give_back_pages(self, connection: Connection) -> int:
        free: int = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
        pages = max(min(free - SPARE_PAGES, self._size), 0)
        for _ in range(pages):
            driver_connection(connection).execute("PRAGMA incremental_vacuum(1)")  # sqlite3 steps once: one page a call
        return pages


def _old_keys(engine: Engine, key: Sequence[Any], is_old: ColumnElement[bool]) -> Iterator[list[Key]]:
    """Yield the keys of the old rows, in their order, a part of the table at a time."""
    order, last = tuple_(*key), None
    while True:
        with engine.connect() as connection:
            is_next = true() if last is None else order > tuple_(*last)
            part = select(*key).where(is_next).order_by(*key)
            end = connection.execute(part.offset(LOOKED_THROUGH).limit(1)).first()
            if end is not None:
                part = part.where(order <= tuple_(*end))
            keys = [tuple(row) for row in connection.execute(part.where(is_old))]
        yield keys
        if end is None:
            return
        last = end


# calls; the statements are compiled once, since batches are many and short

_DAY = func.coalesce(
    RequestLog.day, func.date(RequestLog.created_at)
)  # of calls from before the column was added, the day in UTC
_IS_OLD = and_(bindparam("before", type_=Date) > _DAY, RequestLog.status != literal_column(f"'{PENDING}'"))
_IS_MEANT = and_(RequestLog.id.between(bindparam("first"), bindparam("last")), _IS_OLD)


def _keep_sums(insert: Inserter) -> Any:
    key: dict[str, Any] = {
        "day": _DAY,
        "team_id": RequestLog.team_id,
        "group_id": func.coalesce(RequestLog.group_id, literal_column("0")),
        "token_id": RequestLog.token_id,
        "model": COUNTED_MODEL,
    }
    summed = select(*key.values(), *SUMS_OF_CALLS).where(_IS_MEANT).group_by(*key.values())
    adding = insert(PrunedUsage).from_select([*key, *Sums._fields], summed)
    more = {name: getattr(PrunedUsage, name) + adding.excluded[name] for name in Sums._fields}
    return adding.on_conflict_do_update(index_elements=list(key), set_=more)


KEEP_SUMS = Statement(_keep_sums)
DETACH_CORRECTIONS = Statement(
    update(CostCorrection)
    .where(CostCorrection.call_id.between(bindparam("first"), bindparam("last")))
    .where(CostCorrection.is_of(RequestLog.id), _IS_MEANT)
    .values(token_id=RequestLog.token_id, began_at=RequestLog.created_at, latency_ms=RequestLog.latency_ms)
)
DELETE_CALLS = Statement(delete(RequestLog).where(_IS_MEANT))


def _prune_calls(before: date, connection: Connection, keys: Sequence[Key]) -> int:
    """Delete calls, keep their sums, and copy to their corrections what those need to know about them."""
    if (
        connection.dialect.name == "postgresql"
    ):  # so that all statements see the same calls; it has to come before the locks
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    keep_pruning_out(connection)
    keep_corrections_out(connection)
    driver, values = driver_connection(connection), {"first": keys[0][0], "last": keys[-1][0], "before": before}
    KEEP_SUMS.execute(driver, values)
    DETACH_CORRECTIONS.execute(driver, values)
    deleted: int = DELETE_CALLS.execute(driver, values).rowcount
    return deleted


# what teams were given


def _given(
    table: type[GivenResponse | GivenItem], hashed: Any, since: datetime
) -> tuple[Sequence[Any], ColumnElement[bool], Step]:
    """Return what `Batches.delete` needs for a table of what teams were given."""
    is_old = table.created_at < since
    deleting = delete(table).where(table.team_id == bindparam("team"), hashed == bindparam("hash"), is_old)

    def step(connection: Connection, keys: Sequence[Key]) -> int:
        connection.execute(deleting, [{"team": team, "hash": hash_} for team, hash_ in keys])
        return len(keys)

    return (table.team_id, hashed), is_old, step

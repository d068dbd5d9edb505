"""Add up the daily totals of past days for reports, while calls are booked, and prove these sums.

It announces a day first, then reads it; the sums only count if no booking has removed the announcement meanwhile (see
`rollups.forget`). So it holds no lock while it reads, and misses nothing that was booked in between.
"""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import delete, func, insert, literal_column, select, update
from sqlalchemy.engine import Connection, Engine

from tokenrouter.database.engine import lock_table, writing
from tokenrouter.database.rollups import ONE_DAY, ROLLUPS, SETTLED_DAYS, Rollup, Span, first_of, last_of
from tokenrouter.database.sums import Sums
from tokenrouter.database.tables import UsageDaily, UsageTotals, UsageTotalsKept

MOST_YEARS = 10
ROWS_AT_ONCE = 500  # in one transaction; others may have to wait for it
KEY = ("owner_id", "team_id", "model")
NOTHING_MORE: Any = literal_column("0")
"""Added to an id to group by, so that SQLite uses the index of days, and not that of ids, which has all days."""
Row = tuple[Any, ...]


def sum_up(engine: Engine, zone: ZoneInfo) -> int:
    """Add up all days, thirds of months, and months that are not added up yet; return how many, of all kinds."""
    today, done = datetime.now(zone).date(), 0
    for rollup in ROLLUPS:
        whole: Span = "month" if rollup.span == "day" else rollup.span
        for _, days in groupby(_missing(engine, rollup, today), key=lambda day: first_of(whole, day)):
            done += _sum_up(engine, rollup, list(days))
    return done


def _missing(engine: Engine, rollup: Rollup, today: date) -> list[date]:
    """Return the days, or firsts of thirds or months, that have been over for long enough and are not added up yet."""
    until = today - (SETTLED_DAYS + 1) * ONE_DAY
    with engine.connect() as connection:
        oldest = connection.execute(select(func.min(UsageDaily.day)).where(UsageDaily.day <= until)).scalar()
        is_kept = UsageTotalsKept.kind == rollup.kind, UsageTotalsKept.complete
        kept = set(connection.execute(select(UsageTotalsKept.day).where(*is_kept)).scalars())
    if oldest is None:
        return []
    since = max(oldest, until.replace(year=until.year - MOST_YEARS, day=1))
    days = [since + timedelta(days=at) for at in range((until - since).days + 1)]
    firsts = dict.fromkeys(first_of(rollup.span, day) for day in days)
    return [day for day in firsts if day not in kept and last_of(rollup.span, day) <= until]


def _sum_up(engine: Engine, rollup: Rollup, days: list[date]) -> int:
    """Add up some days of one month, or a longer span; return how many succeeded."""
    ids = _announce(engine, rollup, days)
    with engine.connect() as connection:
        rows = [row for row in sums_of_days(connection, rollup, days[0], days[-1]) if row[0] in ids]
    names = ("day", *KEY, *Sums._fields)
    for at in range(0, len(rows), ROWS_AT_ONCE):
        values = [{"kind": rollup.kind} | dict(zip(names, row, strict=True)) for row in rows[at : at + ROWS_AT_ONCE]]
        with writing(engine, durable=False) as connection:
            connection.execute(insert(UsageTotals), values)
    with writing(engine, durable=False) as connection:
        is_theirs = UsageTotalsKept.id.in_(ids.values())
        done: int = connection.execute(update(UsageTotalsKept).where(is_theirs).values(complete=True)).rowcount
    return done


def _announce(engine: Engine, rollup: Rollup, days: list[date]) -> dict[date, int]:
    """Announce these days, after all running transactions that change them; return the ids of the announcements."""
    with writing(engine, durable=False) as connection:
        lock_table(connection, UsageTotalsKept)
        for table in (UsageTotalsKept, UsageTotals):
            connection.execute(delete(table).where(table.kind == rollup.kind, table.day.in_(days)))
        connection.execute(insert(UsageTotalsKept), [{"kind": rollup.kind, "day": day} for day in days])
        ids = select(UsageTotalsKept.day, UsageTotalsKept.id)
        is_new = UsageTotalsKept.kind == rollup.kind, UsageTotalsKept.day.in_(days)
        return dict(connection.execute(ids.where(*is_new)).all())


def sums_of_days(connection: Connection, rollup: Rollup, first: date, last: date) -> list[Row]:
    """Add up daily totals; return rows of day (or first of the span), owner, team, model, and the sums."""
    daily = rollup.daily
    ids = [None if column is None else column + NOTHING_MORE for column in (rollup.owner, rollup.team)]
    columns = [daily.day if rollup.span == "day" else None, *ids, daily.model if rollup.by_model else None]
    kept_by = [column for column in columns if column is not None]
    sums = [func.sum(getattr(daily, name)) for name in Sums._fields]
    is_meant = daily.day.between(first, last_of(rollup.span, last))
    rows = []
    for row in connection.execute(select(*kept_by, *sums).where(is_meant).group_by(*kept_by)):
        values, others = iter(row), (first, 0, 0, "")
        key = [other if column is None else next(values) for column, other in zip(columns, others, strict=True)]
        rows.append((*key, *map(int, values)))
    return rows


def wrong_totals(connection: Connection) -> Iterator[tuple[str, date]]:
    """Yield kind and day (or first of the span) of sums that differ from their daily totals."""
    for rollup in ROLLUPS:
        is_kept = UsageTotalsKept.kind == rollup.kind, UsageTotalsKept.complete
        kept = connection.execute(select(UsageTotalsKept.day).where(*is_kept).order_by(UsageTotalsKept.day)).scalars()
        for day in kept.all():
            columns = [getattr(UsageTotals, name) for name in ("day", *KEY, *Sums._fields)]
            is_its = UsageTotals.kind == rollup.kind, UsageTotals.day == day
            summed = {tuple(row) for row in connection.execute(select(*columns).where(*is_its))}
            if summed != set(sums_of_days(connection, rollup, day, day)):
                yield rollup.kind, day

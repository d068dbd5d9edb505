"""What the provider's key spent day by day, in UTC, where the provider tells only the running day's: kept as it passes.

A day is whole once a later one tells what the key had spent by its midnight; until then it is as of its last reading.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection, Engine

from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import AnyRow, ProviderDay
from tokenrouter.provider.account import Spending

NEAR_MIDNIGHT = timedelta(minutes=1)  # in which two clocks may not agree on the day
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Day:
    """What the provider's key spent on a day, in billionths of a dollar: all of it, or until `read_at`."""

    day: date
    cost: int
    read_at: datetime
    is_whole: bool


def keep(connection: Connection, at: datetime, told: Spending) -> None:
    """Keep what the key had spent on the day of `at`, and with it what it spent on the day before, to its end."""
    if (at - NEAR_MIDNIGHT).date() != (at + NEAR_MIDNIGHT).date():
        return
    today = at.date()
    row = {"day": today, "cost": told.today, "ever": told.ever, "key": told.key, "read_at": at, "is_whole": False}
    _set(connection, row)
    query = select(ProviderDay.__table__).where(ProviderDay.day == today - DAY, ProviderDay.is_whole.is_(False))
    before = connection.execute(query).first()
    cost = None if before is None else _whole(before, told)
    if before is not None and cost is not None:
        _set(connection, {**before._mapping, "cost": cost, "is_whole": True})


def _whole(before: AnyRow, told: Spending) -> int | None:
    """Return what a day came to: all that was spent by its end, less what was spent by its beginning."""
    if before.ever is None or told.ever is None or before.key != told.key:
        return None
    cost = int((told.ever - told.today) - (before.ever - before.cost))
    return cost if cost >= before.cost else None  # else it is not the same account that tells


def _set(connection: Connection, row: dict[str, Any]) -> None:
    insert = inserter(connection)
    changed = {name: value for name, value in row.items() if name != "day"}
    adding = insert(ProviderDay).values(row)
    connection.execute(adding.on_conflict_do_update(index_elements=["day"], set_=changed))


def days(engine: Engine, since: date, until: date) -> list[Day]:
    """Return the days that are kept, from one to another, both within."""
    query = select(ProviderDay.__table__).where(ProviderDay.day.between(since, until)).order_by(ProviderDay.day)
    with engine.connect() as connection:
        return [Day(row.day, row.cost, row.read_at, row.is_whole) for row in connection.execute(query)]

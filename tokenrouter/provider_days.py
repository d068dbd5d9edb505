"""What the provider's key spent day by day in UTC, if the provider only reports the current day: stored as it passes.

A day is complete once a later report shows what the key had spent by its end; until then it is as of its last report.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection, Engine

from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import AnyRow, ProviderDay
from tokenrouter.provider.account import Spending

NEAR_MIDNIGHT = timedelta(minutes=1)  # when two clocks may not agree on the day
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Day:
    """What the provider's key spent on a day, in billionths of a dollar: all of it, or until `read_at`."""

    day: date
    cost: int
    read_at: datetime
    is_whole: bool


def keep(connection: Connection, at: datetime, reported: Spending) -> None:
    """Store what the key has spent on the day of `at`, and complete the day before."""
    if (at - NEAR_MIDNIGHT).date() != (at + NEAR_MIDNIGHT).date():
        return
    today = at.date()
    row = {
        "day": today,
        "cost": reported.today,
        "ever": reported.ever,
        "key": reported.key,
        "read_at": at,
        "is_whole": False,
    }
    _set(connection, row)
    query = select(ProviderDay.__table__).where(ProviderDay.day == today - DAY, ProviderDay.is_whole.is_(False))
    before = connection.execute(query).first()
    cost = None if before is None else _whole(before, reported)
    if before is not None and cost is not None:
        _set(connection, {**before._mapping, "cost": cost, "is_whole": True})


def _whole(before: AnyRow, reported: Spending) -> int | None:
    """Return the spending of a whole day: all spending by its end, less that by its beginning; None if not known."""
    if before.ever is None or reported.ever is None or before.key != reported.key:
        return None
    cost = int((reported.ever - reported.today) - (before.ever - before.cost))
    return cost if cost >= before.cost else None  # otherwise the reports are of different accounts


def _set(connection: Connection, row: dict[str, Any]) -> None:
    insert = inserter(connection)
    changed = {name: value for name, value in row.items() if name != "day"}
    adding = insert(ProviderDay).values(row)
    connection.execute(adding.on_conflict_do_update(index_elements=["day"], set_=changed))


def days(engine: Engine, since: date, until: date) -> list[Day]:
    """Return the stored days from one to another, inclusive."""
    query = select(ProviderDay.__table__).where(ProviderDay.day.between(since, until)).order_by(ProviderDay.day)
    with engine.connect() as connection:
        return [Day(row.day, row.cost, row.read_at, row.is_whole) for row in connection.execute(query)]

"""Which sums of past daily totals are kept for reports, so that a report need not add up a year of days.

They never disagree: code that changes the daily totals of a past day removes its sums with `forget`, and reports add up
that day themselves until the next night.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Date, bindparam, delete
from sqlalchemy.engine import Connection

from tokenrouter.database.statements import DriverConnection, Statement
from tokenrouter.database.tables import GroupUsageDaily, TokenUsageDaily, UsageDaily, UsageTotalsKept

SETTLED_DAYS = 2
"""How many days after its end a day is added up; calls that are booked later still remove its sums."""
ONE_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Rollup:
    """A kind of sums: of which daily totals, by which owner, and by day or month."""

    kind: str
    daily: type[UsageDaily | GroupUsageDaily | TokenUsageDaily]
    owner: Any = None
    """The column of the owner in the daily totals; None adds up all owners."""
    team: Any = None
    """A further column by which the sums are kept."""
    by_month: bool = False

    def last_day(self, day: date) -> date:
        """Return the last of the days that are added up under this one."""
        return (day.replace(day=1) + 31 * ONE_DAY).replace(day=1) - ONE_DAY if self.by_month else day


ROLLUPS = (
    Rollup("days", UsageDaily),
    Rollup("token days", TokenUsageDaily),
    Rollup("group days", GroupUsageDaily, GroupUsageDaily.group_id),
    Rollup("team months", UsageDaily, UsageDaily.team_id, by_month=True),
    Rollup("group months", GroupUsageDaily, GroupUsageDaily.group_id, GroupUsageDaily.team_id, by_month=True),
    Rollup("token months", TokenUsageDaily, TokenUsageDaily.token_id, by_month=True),
)
"""Of those of the same daily totals, the one with fewer rows comes first."""

FORGET = Statement(
    delete(UsageTotalsKept).where(
        UsageTotalsKept.day.in_([bindparam("day", type_=Date), bindparam("month", type_=Date)])
    )
)


def forget(connection: DriverConnection, days: Iterable[date]) -> None:
    """Remove the sums of these days, and of their months, in the transaction that changes the days.

    Call it last there: adding up waits for transactions that have come to this point, and sees what they wrote.
    """
    for day in sorted(set(days)):
        FORGET.execute(connection, {"day": day, "month": day.replace(day=1)})


def forget_all(connection: Connection) -> None:
    """Remove all sums, likewise."""
    connection.execute(delete(UsageTotalsKept))

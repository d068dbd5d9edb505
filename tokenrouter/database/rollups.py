"""Which sums of past daily totals are kept for reports, so that a month, or a year, is not added up for each of them.

They are true copies: whoever changes the daily totals of a day that may be summed up takes it out with `forget`, and
reports add up that day anew until the next night.
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
"""How many days after its end a day may be summed up. A call that is booked later than a day after takes it out."""
ONE_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Rollup:
    """One kind of sums: of which daily totals, whose, and whether a whole month is one."""

    kind: str
    daily: type[UsageDaily | GroupUsageDaily | TokenUsageDaily]
    owner: Any = None
    """The column of the daily totals that tells whose they are; None adds up everybody's."""
    team: Any = None
    """The column of a team beside it."""
    by_month: bool = False

    def last_day(self, day: date) -> date:
        """Return the last of the days that are summed up under this one."""
        return (day.replace(day=1) + 31 * ONE_DAY).replace(day=1) - ONE_DAY if self.by_month else day


ROLLUPS = (
    Rollup("days", UsageDaily),
    Rollup("token days", TokenUsageDaily),
    Rollup("group days", GroupUsageDaily, GroupUsageDaily.group_id),
    Rollup("team months", UsageDaily, UsageDaily.team_id, by_month=True),
    Rollup("group months", GroupUsageDaily, GroupUsageDaily.group_id, GroupUsageDaily.team_id, by_month=True),
    Rollup("token months", TokenUsageDaily, TokenUsageDaily.token_id, by_month=True),
)
"""Of the same daily totals the fewest rows first."""

FORGET = Statement(
    delete(UsageTotalsKept).where(
        UsageTotalsKept.day.in_([bindparam("day", type_=Date), bindparam("month", type_=Date)])
    )
)


def forget(connection: DriverConnection, days: Iterable[date]) -> None:
    """Take these days, and their months, out of what is summed up, in the transaction that changes them.

    It comes last there: whoever sums up waits for those who were here, and sees what they wrote.
    """
    for day in sorted(set(days)):
        FORGET.execute(connection, {"day": day, "month": day.replace(day=1)})


def forget_all(connection: Connection) -> None:
    """Take out everything, likewise."""
    connection.execute(delete(UsageTotalsKept))

"""Which sums of past daily totals are kept for reports, so that a report need not add up a year of days.

They never disagree: code that changes the daily totals of a past day removes its sums with `forget`, and reports add up
that day themselves until the next night.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Date, bindparam, delete
from sqlalchemy.engine import Connection

from tokenrouter.database.statements import DriverConnection, Statement
from tokenrouter.database.tables import GroupUsageDaily, TokenUsageDaily, UsageDaily, UsageTotalsKept

SETTLED_DAYS = 2
"""How many days after its end a day is added up; calls that are booked later still remove its sums."""
ONE_DAY = timedelta(days=1)
Span = Literal["day", "third", "month"]
"""What is added up at once."""
THIRDS = (1, 11, 21)
"""The days of a month on which its thirds begin."""


def first_of(span: Span, day: date) -> date:
    """Return the first day of the span that has this day."""
    if span == "day":
        return day
    return day.replace(day=1 if span == "month" else max(first for first in THIRDS if first <= day.day))


def last_of(span: Span, first: date) -> date:
    """Return the last day of the span that begins on this day."""
    if span == "day":
        return first
    if span == "third" and first.day != THIRDS[-1]:
        return first + 9 * ONE_DAY
    return (first.replace(day=1) + 31 * ONE_DAY).replace(day=1) - ONE_DAY


@dataclass(frozen=True)
class Rollup:
    """A kind of sums: of which daily totals, by which owner, of which span, and whether by model too."""

    kind: str
    daily: type[UsageDaily | GroupUsageDaily | TokenUsageDaily]
    owner: Any = None
    """The column of the owner in the daily totals; None adds up all owners."""
    team: Any = None
    """A further column by which the sums are kept."""
    span: Span = "day"
    by_model: bool = True


ROLLUPS = (
    Rollup("days", UsageDaily),
    Rollup("token days", TokenUsageDaily),
    Rollup("group days", GroupUsageDaily, GroupUsageDaily.group_id),
    Rollup("team thirds", UsageDaily, UsageDaily.team_id, span="third", by_model=False),
    Rollup("team months", UsageDaily, UsageDaily.team_id, span="month"),
    Rollup("group months", GroupUsageDaily, GroupUsageDaily.group_id, GroupUsageDaily.team_id, span="month"),
    Rollup("token thirds", TokenUsageDaily, TokenUsageDaily.token_id, span="third", by_model=False),
    Rollup("token months", TokenUsageDaily, TokenUsageDaily.token_id, span="month"),
)
"""Of those of the same daily totals, the one with fewer rows comes first."""

FORGET = Statement(
    delete(UsageTotalsKept).where(UsageTotalsKept.day.in_([bindparam(span, type_=Date) for span in get_args(Span)]))
)


def forget(connection: DriverConnection, days: Iterable[date]) -> None:
    """Remove the sums of these days, and of their thirds and months, in the transaction that changes the days.

    Call it last there: adding up waits for transactions that have come to this point, and sees what they wrote.
    """
    for day in sorted(set(days)):
        FORGET.execute(connection, {span: first_of(span, day) for span in get_args(Span)})


def forget_all(connection: Connection) -> None:
    """Remove all sums, likewise."""
    connection.execute(delete(UsageTotalsKept))

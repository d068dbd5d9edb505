"""What is left of the paid account, and how long it lasts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import insert, or_, select
from sqlalchemy.engine import Connection, Engine

from tokenrouter import changes
from tokenrouter.account import spent
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import AccountCheck, AnyRow
from tokenrouter.money import decimal_string
from tokenrouter.provider.account import State

PACE_DAYS = 7
PACE_WORDS = f"At the pace of the last {PACE_DAYS} days"
SOON = timedelta(days=7)  # a warning is shown if it ends before that, and no grant is known
LEAST_HISTORY = timedelta(hours=6)  # a shorter history shows no pace
FARTHEST_DAYS = 3650


@dataclass(frozen=True)
class Runway:
    """What was left at the last report; None for a unit that is not known.

    `is_typed`: the administrator typed it, and the cost of later calls is deducted.
    """

    at: datetime
    points: int | None
    money: int | None
    currency: str
    next_grant_at: datetime | None
    next_grant_points: int | None
    is_typed: bool
    lasts_until: datetime | None
    """At the pace of the last seven days; None if not known, or if nothing was used."""
    is_idle: bool = False
    """Whether nothing was used in these days."""

    @property
    def ends_before_grant(self) -> timedelta | None:
        """How long before the next grant it ends; None if it does not, or if either is not known."""
        if self.lasts_until is None or self.next_grant_at is None or self.lasts_until >= self.next_grant_at:
            return None
        return self.next_grant_at - self.lasts_until

    def ends_soon(self, now: datetime) -> bool:
        """Tell whether it will end before the next grant, or, if none is known, within a week."""
        if self.next_grant_at is None:
            return self.lasts_until is not None and self.lasts_until < now + SOON
        return self.ends_before_grant is not None

    def words(self, zone: ZoneInfo, now: datetime) -> str:
        """Say in a sentence how long it lasts; days are in this zone."""
        if self.is_idle:
            return f"Nothing was used in the last {PACE_DAYS} days."
        if self.lasts_until is None:
            return "How long it lasts is not known yet: that takes what was left at two times some hours apart."
        if self.lasts_until <= now:
            return "Nothing is left."
        until = f"{PACE_WORDS} the account lasts until {_day(self.lasts_until, zone, now)}"
        if self.ends_before_grant is not None:
            return f"{until}, {_days(self.ends_before_grant)} before the next monthly grant."
        return f"{until}." if self.next_grant_at is None else f"{until}, beyond the next monthly grant."

    def grant_words(self, zone: ZoneInfo, now: datetime) -> str | None:
        """Say when the next grant comes, and what it will be; None if none is known."""
        if self.next_grant_at is None:
            return None
        points = "" if self.next_grant_points is None else f": {self.next_grant_points:,} points"
        return f"The next monthly grant comes on {_day(self.next_grant_at, zone, now)}{points}."


def _day(moment: datetime, zone: ZoneInfo, now: datetime) -> str:
    """Write a future day: `Thursday` within the week, otherwise `10 December`, with the year if it is another."""
    at, today = moment.astimezone(zone), now.astimezone(zone)
    if at.date() == today.date():
        return f"today, {at:%H:%M}"
    if at.date() - today.date() < SOON:
        return f"{at:%A}"
    return f"{at.day} {at:%B}" + (f" {at.year}" if at.year != today.year else "")


def _days(duration: timedelta) -> str:
    return "less than a day" if duration.days == 0 else "1 day" if duration.days == 1 else f"{duration.days:,} days"


def runway(engine: Engine, now: datetime | None = None) -> Runway | None:
    """Return what is left by the provider's last report, otherwise by the administrator's; None without any."""
    now = now or datetime.now(UTC)
    with engine.connect() as connection:
        check = connection.execute(NEWEST_REPORTED).first() or connection.execute(NEWEST_TYPED).first()
        if check is None:
            return None
        used = spent(connection) - check.spent if check.is_typed else 0
        money = check.money if check.money is None else check.money - used
        unit, left = ("points", check.points) if check.points is not None else ("money", money)
        pace = _pace(connection, "spent" if check.is_typed else unit, now)
    lasts_until = None
    if pace and left is not None:
        lasts_until = now + timedelta(days=min(max(0.0, left / pace), FARTHEST_DAYS))
    grant = check.next_grant_at, check.next_grant_points
    return Runway(check.at, check.points, money, check.currency, *grant, bool(check.is_typed), lasts_until, pace == 0)


def _pace(connection: Connection, column: str, now: datetime) -> float | None:
    """Return the use per day, by the checks of the last seven days; None if there are too few."""
    kept = getattr(AccountCheck, column)
    query = select(AccountCheck.at, kept).where(AccountCheck.at > now - timedelta(days=PACE_DAYS), kept.is_not(None))
    if column != "spent":
        query = query.where(AccountCheck.is_typed.is_(False))
    rows: Sequence[AnyRow] = connection.execute(query.order_by(AccountCheck.id)).all()
    if not rows or rows[-1].at - rows[0].at < LEAST_HISTORY:
        return None
    sign = 1 if column == "spent" else -1  # a balance falls; where it rises, that is a grant or a payment
    used = sum(max(0, sign * (later[1] - earlier[1])) for earlier, later in pairwise(rows))
    return float(used / ((rows[-1].at - rows[0].at) / timedelta(days=1)))


def set_balance(engine: Engine, amount: int, currency: str, *, by: Actor) -> None:
    """Store the balance that the administrator typed, in billionths; the cost of later calls is deducted from it."""
    check: dict[str, Any] = {"state": State.UNPROVEN.value, "words": "", "is_typed": True}
    with writing(engine) as connection:
        values = {"at": datetime.now(UTC), "money": amount, "currency": currency, "spent": spent(connection)}
        connection.execute(insert(AccountCheck).values(**check, **values))
        after = {"balance": decimal_string(amount), "currency": currency}
        changes.record(connection, by, changes.ACCOUNT_BALANCE, Changed(None, None, after=after))


CHECKS = select(AccountCheck.__table__).order_by(AccountCheck.id.desc()).limit(1)
TELLS = or_(AccountCheck.points.is_not(None), AccountCheck.money.is_not(None))
NEWEST_REPORTED = CHECKS.where(AccountCheck.is_typed.is_(False), TELLS)
NEWEST_TYPED = CHECKS.where(AccountCheck.is_typed.is_(True))

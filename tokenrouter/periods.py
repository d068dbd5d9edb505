"""When quotas renew: at the beginning of days, weeks and months in a time zone. Pure.

An instant is a whole number of seconds since 1970.
"""

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

NEVER, DAILY, WEEKLY, MONTHLY = "never", "daily", "weekly", "monthly"
UTC_ZONE = ZoneInfo("UTC")
RENEWALS = (NEVER, DAILY, WEEKLY, MONTHLY)
LAST_DAY_OF_MONTH = 31


@dataclass(frozen=True)
class Renewal:
    """How often a quota renews; `day` is the day of monthly renewals (in shorter months their last day), else None."""

    every: str = NEVER
    day: int | None = None

    def basis(self, zone: ZoneInfo) -> str | None:
        """Return what the next instant is computed from; None if it never renews.

        If a stored basis differs, the renewal or the zone was changed, and the stored instant is wrong.
        """
        return None if self.every == NEVER else f"{self.every} {self.day or ''} {zone.key}"

    def next_after(self, instant: float, zone: ZoneInfo) -> int | None:
        """Return the first instant after this one at which a period begins; None if it never renews."""
        if self.every == NEVER:
            return None
        today = datetime.fromtimestamp(instant, zone).date()
        while True:
            begins = self._next_begin(today)
            if (at := midnight(begins, zone)) > instant:
                return at
            today = begins  # clocks that went back over midnight can make it earlier than `instant`

    def _next_begin(self, today: date) -> date:
        """Return the first day after this one on which a period begins."""
        if self.every == DAILY:
            return today + timedelta(days=1)
        if self.every == WEEKLY:
            return today + timedelta(days=7 - today.weekday())
        begins = _in_month(today.year, today.month, self.day)
        if begins > today:
            return begins
        return _in_month(*((today.year, today.month + 1) if today.month < 12 else (today.year + 1, 1)), self.day)


NEVER_RENEWS = Renewal()


def _in_month(year: int, month: int, day: int | None) -> date:
    return date(year, month, min(day or 1, calendar.monthrange(year, month)[1]))


def read_renewal(every: str, day: int | None) -> Renewal:
    """Return a stored renewal; one that cannot be read never renews."""
    return Renewal(every, day) if is_renewal(every, day) else NEVER_RENEWS


def is_renewal(every: object, day: object) -> bool:
    """Tell whether these stored values can be read as a renewal."""
    if every not in RENEWALS:
        return False
    return day is None or (every == MONTHLY and isinstance(day, int) and 1 <= day <= LAST_DAY_OF_MONTH)


def midnight(day: date, zone: ZoneInfo) -> int:
    """Return when a day begins: its midnight, of two the first, or the first instant after one that does not exist."""
    wanted = datetime(day.year, day.month, day.day)
    at = int(wanted.replace(tzinfo=zone).timestamp())
    if _wall(at, zone) == wanted:
        return at
    before = int(wanted.replace(tzinfo=zone, fold=1).timestamp())
    while at - before > 1:  # the clocks went forward in between, at some second
        middle = (before + at) // 2
        if _wall(middle, zone) >= wanted:
            at = middle
        else:
            before = middle
    return at


def _wall(instant: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(instant, zone).replace(tzinfo=None)


def rfc3339(moment: datetime, timespec: str = "milliseconds") -> str:
    """Write a moment in UTC for programs: `2026-11-24T08:00:00.000Z`. Source: RFC 3339."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def zone_named(name: str | None) -> ZoneInfo:
    """Return the time zone of this name, as a browser gives it; UTC if this system does not know it."""
    try:
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, KeyError):
        return UTC_ZONE


def moment(instant: float | None) -> datetime | None:
    """Return an instant as a datetime in UTC."""
    return None if instant is None else datetime.fromtimestamp(instant, UTC)


def in_words(instant: float, zone: ZoneInfo) -> str:
    """Write an instant for people: `1 December 2026 at 00:00 Europe/Berlin`."""
    at = datetime.fromtimestamp(instant, zone)
    return f"{day_in_words(instant, zone)} at {at:%H:%M} {zone.key}"


def day_in_words(instant: float, zone: ZoneInfo) -> str:
    """Write the day of an instant: `1 December 2026`."""
    at = datetime.fromtimestamp(instant, zone)
    return f"{at.day} {at:%B %Y}"

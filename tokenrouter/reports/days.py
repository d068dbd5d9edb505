"""The days of reports, which begin at midnight in the service's time zone, as those of the daily totals do."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from flask import current_app

from tokenrouter.periods import midnight


def day_of(moment: datetime) -> date:
    """Return the day of a moment."""
    return moment.astimezone(_zone()).date()


def beginning(day: date) -> datetime:
    """Return when a day began, in UTC."""
    return datetime.fromtimestamp(midnight(day, _zone()), UTC)


def _zone() -> ZoneInfo:
    zone: ZoneInfo = current_app.config["TIMEZONE"]
    return zone

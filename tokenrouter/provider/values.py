"""Read figures in the provider's documents; whatever is malformed becomes None and raises nothing."""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from tokenrouter.money import BILLION, MOST_AMOUNT

LAST_SECOND = 10**11  # in the year 5138: anything larger is in smaller units


def whole_of(value: object) -> int | None:
    """Return a provider's number as an integer; None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST_AMOUNT < value < MOST_AMOUNT:
        return None
    return int(value)


def money_of(value: object) -> int | None:
    """Return an amount in billionths; providers send a number or a string. None if it is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(str(value)) * BILLION
    except InvalidOperation:
        return None
    return int(amount) if amount.is_finite() and abs(amount) <= MOST_AMOUNT else None


def moment_of(value: object) -> datetime | None:
    """Return a time given in seconds, or, as some providers do, in milliseconds or microseconds."""
    seconds = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    while seconds >= LAST_SECOND:
        seconds /= 1000
    return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None

"""Figures in the provider's documents, read with care: what is odd is not known, and nothing fails on it."""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from tokenrouter.money import BILLION, MOST_AMOUNT

LAST_SECOND = 10**11  # in the year 5138: what is more is in smaller units


def whole_of(value: object) -> int | None:
    """Return a whole number that a provider told; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST_AMOUNT < value < MOST_AMOUNT:
        return None
    return int(value)


def money_of(value: object) -> int | None:
    """Return an amount in billionths; providers write it as a number or as a text. None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(str(value)) * BILLION
    except InvalidOperation:
        return None
    return int(amount) if amount.is_finite() and abs(amount) <= MOST_AMOUNT else None


def moment_of(value: object) -> datetime | None:
    """Return a time that is told in seconds, or in the milliseconds or microseconds that some tell."""
    seconds = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    while seconds >= LAST_SECOND:
        seconds /= 1000
    return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None

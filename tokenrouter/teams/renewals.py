"""Renewals of quotas as people write them: `never`, `daily`, `weekly`, `monthly`, `monthly:15`."""

from tokenrouter.errors import InvalidRequest
from tokenrouter.periods import LAST_DAY_OF_MONTH, MONTHLY, RENEWALS, Renewal


def parse_renewal(text: str) -> Renewal:
    """Read when a quota begins anew; `monthly` alone is on the first.

    Raises InvalidRequest.
    """
    every, _, day = text.strip().lower().partition(":")
    if day and not (every == MONTHLY and day.isascii() and day.isdecimal()):
        raise _not_one(text)
    return check_renewal(every, int(day) if day else None)


def check_renewal(every: str, day: int | None) -> Renewal:
    """Return a renewal that can be kept; of months the first day where none is given.

    Raises InvalidRequest.
    """
    if every not in RENEWALS:
        raise _not_one(every)
    if every == MONTHLY:
        day = 1 if day is None else day
        if not 1 <= day <= LAST_DAY_OF_MONTH:
            message = f"A month's day is from 1 to {LAST_DAY_OF_MONTH}; in shorter months it is their last."
            raise InvalidRequest(message, param="renews_on")
    elif day is not None:
        raise InvalidRequest("Only what renews monthly has a day.", param="renews_on")
    return Renewal(every, day)


def format_renewal(renewal: Renewal) -> str:
    """Write a renewal as `parse_renewal` reads it."""
    return f"{renewal.every}:{renewal.day}" if renewal.every == MONTHLY else renewal.every


def _not_one(text: str) -> InvalidRequest:
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    return InvalidRequest(
        f"{shown!r} is none of never, daily, weekly, monthly, and monthly:15 with another day.", param="renews"
    )

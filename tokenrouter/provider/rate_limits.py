"""The rate limits of the whole account, which the provider reports in headers that callers never see."""

import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

KINDS = {
    kind: [tuple(f"x-ratelimit-{what}{ending}" for what in ("remaining", "limit", "reset")) for ending in endings]
    for kind, endings in {"requests": ("-requests", ""), "tokens": ("-tokens",)}.items()
}
"""The headers of each kind; some providers limit only requests, and their headers do not name the kind."""
DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
UNITS_S = 86400.0, 3600.0, 60.0, 1.0, 0.001
FIRST_EPOCH_S, FIRST_EPOCH_MS = 10**9, 10**12  # from which on a bare number is no duration
LONGEST = timedelta(days=366)
MOST = 2**53


@dataclass(frozen=True)
class RateLimit:
    """A rate limit of the account and what is left of it, as reported at one moment."""

    kind: str
    most: int | None
    remaining: int
    resets_at: datetime | None
    at: datetime


class RateLimits:
    """The newest limits reported to this process. Thread-safe."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[float, str | None, str, str | None]] = {}

    def note(self, headers: Mapping[str, str]) -> None:
        """Keep the limits in an answer's headers unparsed; `newest` parses them."""
        for kind, names in KINDS.items():
            for remaining, most, reset in names:
                if remaining in headers:
                    self._newest[kind] = time.time(), headers.get(most), headers[remaining], headers.get(reset)
                    break

    def newest(self) -> list[RateLimit]:
        """Return the newest readable limit of each kind."""
        found = []
        for kind, (at_s, most, remaining, reset) in list(self._newest.items()):
            at = datetime.fromtimestamp(at_s, UTC)
            if (left := _count(remaining)) is not None:
                found.append(RateLimit(kind, _count(most or ""), left, _moment(reset or "", at), at))
        return found


def requested_wait_s(headers: Mapping[str, str]) -> float | None:
    """Return for how many seconds an answer's headers ask to wait; None if they do not say.

    Source: RFC 9110, 10.2.3; `retry-after-ms` is OpenAI's.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            seconds = float(lowered[name]) * unit_s
            if math.isfinite(seconds):
                return max(0.0, seconds)
    with suppress(KeyError, ValueError, TypeError):  # the last of a date without a time zone
        return max(0.0, (parsedate_to_datetime(lowered["retry-after"]) - datetime.now(UTC)).total_seconds())
    return None


def _count(text: str) -> int | None:
    """Read a number; None if it is not one, or means unlimited (Azure sends -1)."""
    with suppress(ValueError):
        number = int(text)
        return number if 0 <= number < MOST else None
    return None


def _moment(text: str, at: datetime) -> datetime | None:
    """Read when a limit is reset: a duration (`6m0s`, `12ms`, bare seconds) or seconds since 1970."""
    with suppress(ValueError):
        number = float(text)
        if not 0 <= number < MOST:
            return None
        if number >= FIRST_EPOCH_S:
            return datetime.fromtimestamp(number / 1000 if number >= FIRST_EPOCH_MS else number, UTC)
        return _after(at, number)
    found = DURATION.fullmatch(text)
    if not text or found is None:
        return None
    return _after(at, sum(float(part or 0) * unit_s for part, unit_s in zip(found.groups(), UNITS_S, strict=True)))


def _after(at: datetime, seconds: float) -> datetime | None:
    return at + timedelta(seconds=seconds) if seconds < LONGEST.total_seconds() else None

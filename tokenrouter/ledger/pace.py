"""How fast a team may call: buckets of one minute's worth that refill steadily. Pure.

A bucket is stored as one number, the moment at which it will be full again: what has been taken lies between now and
then. Source: the generic cell rate algorithm of ITU-T I.371. Moments are nanoseconds since 1970.
"""

from dataclasses import dataclass

MINUTE_NS = 60 * 10**9


@dataclass
class Bucket:
    """What a team may still take, of requests or of tokens."""

    limit: int
    """How much it holds, which is also how much flows in per minute."""
    full_at: int

    def take(self, amount: int, now: int) -> None:
        """Take so much, whether it is there or not."""
        self.full_at = max(self.full_at, now) + self._flow_ns(amount)

    def give_back(self, amount: int) -> None:
        """Put back so much; what does not fit is lost."""
        self.full_at = max(0, self.full_at - self._flow_ns(amount))

    def correct(self, amount: int, now: int) -> None:
        """Take so much, or put it back if it is negative."""
        if amount > 0:
            self.take(amount, now)
        else:
            self.give_back(-amount)

    def wait_ns(self, amount: int, now: int) -> int | None:
        """Return how long it takes until so much is there; None if it never will be."""
        return None if amount > self.limit else self.wait_one_by_one_ns(amount, now)

    def wait_one_by_one_ns(self, amount: int, now: int) -> int:
        """Return how long it takes until so much could be taken in pieces, each as soon as it is there."""
        return max(0, max(self.full_at, now) + self._flow_ns(amount) - now - MINUTE_NS)

    def remaining(self, now: int) -> int:
        """Return how much is there."""
        return max(0, MINUTE_NS - self.reset_ns(now)) * self.limit // MINUTE_NS

    def reset_ns(self, now: int) -> int:
        """Return how long it takes until it is full."""
        return max(0, self.full_at - now)

    def _flow_ns(self, amount: int) -> int:
        return amount * MINUTE_NS // self.limit if self.limit else 0


def duration(nanoseconds: int) -> str:
    """Write a duration as OpenAI does in `x-ratelimit-reset-*`: `12ms`, `1s`, `6m0s`."""
    milliseconds = -(-nanoseconds // 10**6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"

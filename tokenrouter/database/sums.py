"""The figures of the daily totals, as one value."""

from operator import add, sub
from typing import NamedTuple


class Sums(NamedTuple):
    """What was used: `total_tokens` are those charged; `cost` is that of `priced_tokens`, in billionths."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost: int = 0
    priced_tokens: int = 0

    def plus(self, other: "Sums", sign: int = 1) -> "Sums":
        """Add, or with a sign of -1 subtract, sum by sum."""
        return Sums._make(map(add if sign == 1 else sub, self, other))

    @property
    def known_cost(self) -> int | None:
        """The cost; None if it is known of none of the tokens, which is not the same as zero."""
        return None if self.total_tokens and not self.priced_tokens and not self.cost else self.cost

    @property
    def unpriced_tokens(self) -> int:
        """How many of the tokens have no price."""
        return self.total_tokens - self.priced_tokens


NOTHING = Sums()

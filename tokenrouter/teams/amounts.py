"""Changes of a quota or budget as people write them: `2.5M` sets, `+100k` adds, `x1.5` and `150 %` multiply."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from tokenrouter.database.columns import UnreadableNumber
from tokenrouter.errors import InvalidRequest
from tokenrouter.teams.quotas import (
    NotANumber,
    check_budget,
    check_quota,
    parse_budget,
    parse_extra,
    parse_extra_budget,
    parse_quota,
)

NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
TIMES = re.compile(rf"[x×*] ?(?P<times>{NUMBER})|(?:by )?(?P<percent>{NUMBER}) ?%")
PLACES = 1000
"""A budget has six decimals, and is kept in billionths."""


@dataclass(frozen=True)
class AmountChange:
    """A change of an amount: a new one, a sum to add or subtract, or a factor.

    None is no limit, to which nothing can be added.
    """

    to: int | None = None
    plus: int | None = None
    times: Decimal | None = None

    @property
    def is_relative(self) -> bool:
        """Tell whether the result depends on the present amount."""
        return self.plus is not None or self.times is not None

    def of(self, amount: int | None, word: str) -> int | None:
        """Return the new amount; `word` names it in errors. Raises InvalidRequest."""
        if not self.is_relative:
            return self.to
        if amount is None:
            verb = "multiply" if self.plus is None else "add to" if self.plus >= 0 else "take from"
            raise InvalidRequest(f"It has no {word} to {verb}.")
        if isinstance(amount, UnreadableNumber):
            raise InvalidRequest(f"Its {word} cannot be read.")
        if self.times is not None:
            return int((amount * self.times).to_integral_value(ROUND_HALF_UP))
        return amount + (self.plus or 0)


def change_of_quota(change: AmountChange, quota_tokens: int | None) -> int | None:
    """Return the new quota. Raises InvalidRequest, also if it is not a valid quota."""
    return check_quota(change.of(quota_tokens, "quota"))


def change_of_budget(change: AmountChange, budget: int | None) -> int | None:
    """Return the new budget, in billionths, rounded to six decimals. Raises InvalidRequest likewise."""
    changed = change.of(budget, "budget")
    return check_budget(changed if changed is None else round(changed / Decimal(PLACES)) * PLACES)


def parse_quota_change(text: str) -> AmountChange:
    """Read a change of a quota. Raises InvalidRequest."""
    return _parsed(text, parse_quota, parse_extra)


def parse_budget_change(text: str) -> AmountChange:
    """Read a change of a budget. Raises InvalidRequest."""
    return _parsed(text, parse_budget, parse_extra_budget)


def _parsed(text: str, parse: Callable[[str], int | None], parse_more: Callable[[str], int]) -> AmountChange:
    spelling = text.strip().lower()
    if match := TIMES.fullmatch(spelling):
        factor = Decimal(match["times"] or match["percent"])
        return AmountChange(times=factor / 100 if match["percent"] else factor)
    if spelling.startswith(("+", "-")):
        try:
            return AmountChange(plus=parse_more(spelling))
        except NotANumber:
            raise NotANumber(
                f"{text[:40]!r} is nothing that can be added, such as +100k or -5.", param="quota"
            ) from None
    return AmountChange(to=parse(text))

"""Quotas as people write them."""

import re
from collections.abc import Callable
from decimal import Decimal

from tokenrouter.database.columns import UnreadableNumber
from tokenrouter.database.tables import MOST_QUOTA_TOKENS
from tokenrouter.errors import InvalidRequest
from tokenrouter.figures import SCALES
from tokenrouter.money import BILLION, MOST_AMOUNT, parse_amount

SUFFIXES = {"": 1} | {letter.lower(): size for letter, size in SCALES}
# A comma parts thousands, the last of them three digits; `250.000`, which may mean 250,000, is no number.
WHOLE = r"-?(?:[0-9]{1,3}(?:[,_ ][0-9]{2,3}){0,8}[,_ ][0-9]{3}|[0-9]{1,30})"
QUOTA = re.compile(rf"(?P<number>{WHOLE}(?:\.[0-9]{{1,9}}(?= ?[kmbt]))?) ?(?P<suffix>[kmbt]?)")
DECIMAL_COMMA = re.compile(r"\A(-?[0-9]{1,6}),([0-9]{1,2} ?[kmbt])\Z")  # 2.5M is `2,5M` in half of the world
UNLIMITED = "unlimited"
BUDGET_PLACES = 6
MOST_PACE = {"requests_per_minute": 10**6, "tokens_per_minute": 10**12, "calls_at_once": 10**6}


class NotANumber(InvalidRequest):
    """A text is not a number of tokens."""


def check_quota(quota_tokens: int | None) -> int | None:
    """Return a quota that can be kept; None is unlimited.

    Raises InvalidRequest.
    """
    if quota_tokens is not None and not 0 <= quota_tokens <= MOST_QUOTA_TOKENS:
        raise InvalidRequest(
            f"A quota is a whole number of tokens from 0 to {MOST_QUOTA_TOKENS:,}.", param="quota_tokens"
        )
    return quota_tokens


def check_pace(name: str, value: int | None) -> int | None:
    """Return a limit of PACES that can be kept; None is none.

    Raises InvalidRequest.
    """
    most = MOST_PACE[name]
    if value is not None and not 0 <= value <= most:
        raise InvalidRequest(f"{name} is a whole number from 0 to {most:,}.", param=name)
    return value


def check_budget(budget: int | None) -> int | None:
    """Return a budget that can be kept, in billionths of the currency; None is none.

    Raises InvalidRequest.
    """
    if budget is not None and not (0 <= budget <= MOST_AMOUNT and budget % 1000 == 0):
        raise InvalidRequest(
            f"A budget is an amount from 0 to {MOST_AMOUNT // BILLION:,} with at most {BUDGET_PLACES} decimals.",
            param="budget",
        )
    return budget


def parse_budget(text: str) -> int | None:
    """Read a budget as people write it: `12.50`, `$5`; `none`, or nothing, is None.

    Raises InvalidRequest.
    """
    if text.strip().lower() in ("", "none"):
        return None
    try:
        return parse_amount(text, BUDGET_PLACES)
    except ValueError as error:
        raise NotANumber(str(error), param="budget") from error


def parse_extra_budget(text: str) -> int:
    """Read an amount to add to a budget, or with a minus to take back: `5`, `-2.50`.

    Raises InvalidRequest.
    """
    return _signed(text, parse_budget, NotANumber("What is added is an amount, such as 12.50.", param="budget"))


def _signed(text: str, parse: Callable[[str], int | None], missing: NotANumber) -> int:
    spelling = text.strip()
    amount = parse(spelling[1:] if spelling[:1] in ("+", "-") else spelling)
    if amount is None:
        raise missing
    return -amount if spelling.startswith("-") else amount


def parse_pace(name: str, text: str) -> int | None:
    """Read a limit of PACES as people write it: `60`, `10k`; `none`, or nothing, is None.

    Raises InvalidRequest.
    """
    if text.strip().lower() in ("", "none"):
        return None
    try:
        number = parse_quota(text)
    except InvalidRequest:
        raise NotANumber(f"{text[:40]!r} is not a number such as 60 or 10k, nor none.", param=name) from None
    return check_pace(name, number)


def parse_quota(text: str) -> int | None:
    """Read a quota as people write it: `2500000`, `2,500,000`, `2_500_000`, `2.5M`, `2,5M`; `unlimited` is None.

    Raises InvalidRequest.
    """
    spelling = text.strip().lower()
    if spelling == UNLIMITED:
        return None
    match = QUOTA.fullmatch(DECIMAL_COMMA.sub(r"\1.\2", spelling))
    if match is None:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise NotANumber(f"{shown!r} is not a number of tokens such as 250000, 250k or 2.5M.", param="quota_tokens")
    number = Decimal(re.sub("[,_ ]", "", match["number"])) * SUFFIXES[match["suffix"]]
    if number != int(number):
        raise NotANumber(f"{text!r} is not a whole number of tokens.", param="quota_tokens")
    return check_quota(int(number))


def parse_extra(text: str) -> int:
    """Read tokens to add, or with a minus to take back: `100k`, `+100k`, `-2.5M`.

    Raises InvalidRequest.
    """
    return _signed(text, parse_quota, NotANumber("What is added is a number of tokens, such as 100k.", param="tokens"))


def format_quota(quota_tokens: int | None) -> str:
    """Write a quota as `parse_quota` reads it: `2.5M` where two decimals tell all of it, else `2,500,001`."""
    if quota_tokens is None:
        return UNLIMITED
    if isinstance(quota_tokens, UnreadableNumber):
        return str(quota_tokens)
    for suffix, size in SCALES:
        if quota_tokens >= size:
            number = Decimal(quota_tokens) / size
            return f"{number.normalize():,f}{suffix}" if number == round(number, 2) else f"{quota_tokens:,}"
    return f"{quota_tokens:,}"

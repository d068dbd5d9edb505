"""Amounts of money in whole billionths of a currency: reading and writing them, for people and programs. Pure."""

import re
from decimal import ROUND_HALF_UP, Decimal

BILLION = 10**9
BILLIONTH_PLACES = 9
MOST_AMOUNT = 10**9 * BILLION  # 10**18, which leaves room in a 64-bit column
SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
AMOUNT = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,10})(?:\.[0-9]{1,18})?")


def parse_amount(text: str, places: int = BILLIONTH_PLACES) -> int:
    """Read an amount such as `12.50`, `$12.50` or `1,250` with at most so many decimals; return billionths.

    Raises ValueError, which says what is wrong.
    """
    spelling = text.strip().lstrip("".join(SYMBOLS.values()))
    if not AMOUNT.fullmatch(spelling):
        raise ValueError(f"{text[:40]!r} is not an amount such as 12.50.")
    whole, _, decimals = spelling.replace(",", "").partition(".")
    if len(decimals.rstrip("0")) > places:
        raise ValueError(f"{text[:40]!r} has more than {places} decimals.")
    amount = int(whole) * BILLION + int(decimals[:BILLIONTH_PLACES].ljust(BILLIONTH_PLACES, "0"))
    if amount > MOST_AMOUNT:
        raise ValueError(f"{text[:40]!r} is more than {MOST_AMOUNT // BILLION:,}.")
    return amount


def billionths(amount: Decimal) -> int:
    """Return an amount in billionths, rounded up."""
    scaled = amount * BILLION
    return int(scaled.to_integral_value(rounding="ROUND_CEILING"))


def decimal_string(amount: int | None) -> str | None:
    """Write an amount for programs: a decimal without an exponent and without zeros at its end, `0.0000276`."""
    if amount is None:
        return None
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, decimals = divmod(amount, BILLION)
    return f"{sign}{whole}.{decimals:09}".rstrip("0").rstrip(".")


def shown(amount: int, currency: str) -> str:
    """Write an amount for people: `$12.50`, `€0.0042`; below a hundredth with two significant digits."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    number = Decimal(amount) / BILLION
    if amount and number < Decimal("0.01"):
        number = number.quantize(Decimal(1).scaleb(number.adjusted() - 1), ROUND_HALF_UP)  # as in JavaScript
        text = f"{number.normalize():f}"
    else:
        text = f"{number.quantize(Decimal('0.01'), ROUND_HALF_UP):,f}"
    symbol = SYMBOLS.get(currency, f"{currency} ")
    return f"{sign}{symbol}{text}"

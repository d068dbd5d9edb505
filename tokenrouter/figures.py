"""Numbers in few characters, written the same way on all pages and in all messages; `usage.js` has the same rule."""

import math

SCALES = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3))


def short(number: float) -> str:
    """Write a number in few characters, with one decimal at most: `2.5M`, `12.3k`, `950`."""
    for letter, size in SCALES:
        if abs(number) >= size * 0.9995:
            return _one_decimal(number / size) + letter
    return f"{number:.0f}"


def counted(number: int, thing: str) -> str:
    """Write how many there are of a thing: `1 call`, `2,500 calls`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _one_decimal(number: float) -> str:
    tenths = math.floor(abs(number) * 10 + 0.5)  # round half up, as JavaScript does
    return f"{math.copysign(tenths / 10, number):,.1f}".removesuffix(".0")

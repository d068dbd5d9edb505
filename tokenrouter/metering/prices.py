"""What calls cost, by prices that are whole billionths of a currency a million tokens. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

MILLION = 10**6
MOST_TOKENS = 10**15


@dataclass(frozen=True)
class Price:
    """What a model costs, or all whose names begin so, where `model` ends in a `*`: billionths of the currency."""

    model: str
    input: int
    """A million tokens of a prompt."""
    output: int
    """A million tokens of an answer."""
    cached_input: int | None = None
    """A million tokens of a prompt that the provider had read before; None is as `input`."""
    request: int = 0
    """A call."""
    is_of_provider: bool = False
    """Whether the provider's own list has it, and not the administrator."""

    def cost(self, prompt_tokens: int, cached_tokens: int, answer_tokens: int) -> int:
        """Return what a call costs, rounded up once."""
        cached_tokens = min(cached_tokens, prompt_tokens)
        cached_input = self.input if self.cached_input is None else self.cached_input
        millionths = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached_input
        millionths += answer_tokens * self.output
        return -(-millionths // MILLION) + self.request

    def output_tokens_for(self, amount: int, prompt_tokens: int) -> int:
        """Return how long an answer may be for so many billionths; below zero where the prompt costs more alone."""
        rest = (amount - self.request) * MILLION - prompt_tokens * self.input
        if self.output:
            return rest // self.output
        return MOST_TOKENS if rest >= 0 else -1

    def covers(self, model: str) -> bool:
        """Tell whether it is the price of a model, whose name is given in small letters."""
        name = self.model.casefold()
        return model.startswith(name[:-1]) if name.endswith("*") else model == name


class PriceList:
    """The prices that are valid now. The administrator's go before the provider's; the most exact wins."""

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        self.prices = sorted(prices, key=_exactness, reverse=True)
        self._found: dict[str, Price | None] = {}

    def find(self, model: str) -> Price | None:
        """Return the price of a model, whatever its capitals; None where none is known."""
        if model not in self._found:
            if len(self._found) > MOST_REMEMBERED:
                self._found.clear()
            name = model.casefold()
            self._found[model] = next((price for price in self.prices if price.covers(name)), None)
        return self._found[model]


MOST_REMEMBERED = 10_000  # callers may invent names


def _exactness(price: Price) -> tuple[bool, bool, int]:
    return not price.is_of_provider, not price.model.endswith("*"), len(price.model)

"""Usage: the tokens of a call, as the provider reports them and as they are booked."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from tokenrouter.metering.gather import dicts_in

# No model takes as much as this in one call, so who reports more is wrong.
ABSURD_TOKENS = 10_000_000
PROMPT_NAMES = ("prompt_tokens", "input_tokens")
COMPLETION_NAMES = ("completion_tokens", "output_tokens")
TOTAL_NAMES = ("total_tokens",)
DETAILS = ("prompt_tokens_details", "input_tokens_details")
CACHED_NAMES = ("cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens")  # Anthropic's, DeepSeek's
ABSURD_COST = 100_000


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, as they are booked."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    """Of the prompt, which the provider had read before."""
    cost: Decimal | None = None
    """In dollars, where the provider tells it."""


@dataclass(frozen=True)
class Report:
    """What the provider has reported so far; None where it said nothing."""

    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None = None
    cost: Decimal | None = None

    def merged(self, other: "Report") -> "Report":
        """Return what two reports on the same answer say together: of each figure the larger, in whatever order."""
        return Report(
            _larger(self.prompt_tokens, other.prompt_tokens),
            _larger(self.completion_tokens, other.completion_tokens),
            _larger(self.total_tokens, other.total_tokens),
            _larger(self.cached_tokens, other.cached_tokens),
            other.cost if self.cost is None else self.cost if other.cost is None else max(self.cost, other.cost),
        )

    def __add__(self, other: "Report") -> "Report":
        """Return what the reports on two parts of an answer say together."""
        return Report(
            _sum(self.prompt_tokens, other.prompt_tokens),
            _sum(self.completion_tokens, other.completion_tokens),
            _sum(self.total_tokens, other.total_tokens),
            _sum(self.cached_tokens, other.cached_tokens),
            other.cost if self.cost is None else self.cost if other.cost is None else self.cost + other.cost,
        )

    def __bool__(self) -> bool:
        """Tell whether it has a figure above zero."""
        return any((self.prompt_tokens, self.completion_tokens, self.total_tokens))

    def usage(self, count_prompt: Callable[[], int], count_completion: Callable[[], int]) -> Usage:
        """Return what is booked: a half that is missing is what the total leaves for it, else it is counted.

        A total above its parts stands, one below them is their sum.
        """
        prompt, completion, total = self.prompt_tokens, self.completion_tokens, self.total_tokens or 0
        if prompt is None:
            prompt = min(count_prompt(), total) if completion is None else total - completion
            prompt = prompt if prompt > 0 or completion is None else count_prompt()
            completion = total - prompt if completion is None else completion
        elif completion is None:
            completion = total - prompt if total > prompt else count_completion()
        cached = min(self.cached_tokens or 0, prompt)
        return Usage(prompt, completion, max(total, prompt + completion), cached, self.cost)


def _larger(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _sum(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else one + other


def read_usage(document: object) -> Report | None:
    """Return what an answer or an event reports; None where there is nothing, or nothing to be believed.

    Responses, images and sound report input and output tokens in place of prompt and completion tokens, some providers
    both; some report within a choice, or under `x_groq`.
    """
    if not isinstance(document, dict):
        return None
    places = [document, document.get("x_groq")]
    if document.get("usage") is None:  # else, as nearly always, nobody reports elsewhere too
        places += dicts_in(document.get("choices"))
    reports = [_read(place.get("usage")) for place in places if isinstance(place, dict)]
    return merge(report for report in reports if report is not None)


def merge(reports: Iterable[Report]) -> Report | None:
    """Return what reports on the same answer say together; None where there is none."""
    merged: Report | None = None
    for report in reports:
        merged = report if merged is None else merged.merged(report)
    return merged


def _read(usage: object) -> Report | None:
    if not isinstance(usage, dict):
        return None
    fields = [
        [usage[name] for name in names if usage.get(name) is not None]
        for names in (PROMPT_NAMES, COMPLETION_NAMES, TOTAL_NAMES)
    ]
    given = [count for counts in fields for count in counts]
    if not given or not all(_is_count(count) for count in given):
        return None
    prompt, completion, total = (max(map(int, counts), default=None) for counts in fields)
    return Report(prompt, completion, total, _cached(usage), _cost(usage))


def _cached(usage: dict[str, Any]) -> int | None:
    """Return how much of the prompt was read before, by whatever name; None where that is not told, or absurd."""
    details = [usage.get(name) for name in DETAILS]
    told = [place.get("cached_tokens") for place in details if isinstance(place, dict)]
    told += [usage.get(name) for name in CACHED_NAMES]
    return max((int(count) for count in told if count is not None and _is_count(count)), default=None)


def _cost(usage: dict[str, Any]) -> Decimal | None:
    cost = usage.get("cost")
    if isinstance(cost, bool) or not isinstance(cost, int | float | str):
        return None
    try:
        amount = Decimal(str(cost))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and 0 <= amount <= ABSURD_COST else None


def _is_count(value: object) -> bool:
    is_whole = type(value) is int or (type(value) is float and value.is_integer())
    return is_whole and 0 <= value <= ABSURD_TOKENS  # type: ignore[operator]

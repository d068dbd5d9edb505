"""Usage: the tokens of a call, as an answer or an event of the provider's reports them."""

from dataclasses import dataclass

# No model takes as much as this in one call, so who reports more is wrong.
ABSURD_TOKENS = 10_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, as reported or as counted by us."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum of what two parts of an answer report."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
        )


def read_usage(document: object) -> Usage | None:
    """Return the usage that an answer or an event reports; None where there is none, or none to be believed.

    A total counts as it is reported, also where it is not the sum; without one the sum counts. Responses, images and
    sound report input and output tokens in place of prompt and completion tokens.
    """
    usage = document.get("usage") if isinstance(document, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    total = usage.get("total_tokens")
    counts = [count for count in (prompt, completion, total) if count is not None]
    if not counts or not all(type(count) is int and 0 <= count <= ABSURD_TOKENS for count in counts):
        return None
    prompt, completion = prompt or 0, completion or 0
    return Usage(prompt, completion, prompt + completion if total is None else total)

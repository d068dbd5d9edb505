"""What a call may reserve, what it holds, and how it ends: plain values and the one decision about them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tokenrouter.database.tables import NOT_COUNTED
from tokenrouter.errors import QuotaExceeded, QuotaReserved
from tokenrouter.periods import in_words

LEAST_OUTPUT_TOKENS = 16


@dataclass(kw_only=True)  # frozen, each of its fields would cost as much as the statement that stores it
class CallRequest:
    """What a call wants to reserve. Tokens of the prompt are an estimate, those of the output the most it may cost."""

    request_id: str
    team_id: int
    team_name: str
    token_id: int
    token_prefix: str
    model: str
    endpoint: str
    stream: bool
    created_at: datetime
    known_caller: tuple[Any, ...] | None = None
    """What the database has to say of team and token still, where it was not asked for this call."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    choices: int = 0


class CallerChanged(Exception):
    """The team or the token is not what it was when it last called: all that was checked of the call is to be anew."""


@dataclass(frozen=True)
class Grant:
    """Tokens to hold for a call, and the output limit of each choice where the quota sets one."""

    held_tokens: int
    output_limit: int | None = None


@dataclass
class Reservation:
    """A call that is under way: its row of the log, what it holds, and how far it has come."""

    call_id: int
    team_id: int
    model: str
    day: date
    held_tokens: int
    output_limit: int | None = None
    progress: Callable[[], int] = int
    """Tells the tokens that have arrived; saved from time to time, and charged if this worker dies."""


@dataclass(kw_only=True)
class Outcome:
    """How a call ended and what it costs: `charged_tokens` is added to the team's use."""

    status: str
    status_code: int | None = None
    charged_tokens: int = 0
    usage_source: str = NOT_COUNTED
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    latency_ms: int | None = None
    first_byte_ms: int | None = None
    error_code: str | None = None
    provider_request_id: str | None = None


@dataclass
class Limit:
    """One limit that a call must fit, with what is used and held of it."""

    name: str
    """What it is called in a refusal: `quota`."""
    tokens: int
    used_tokens: int
    held_tokens: int
    renews_at: int | None = None
    """When it begins anew, in seconds since 1970; None where it never does."""

    def left(self, prompt_tokens: int) -> int:
        """Return what an output may have once the prompt is counted."""
        return self.tokens - self.used_tokens - self.held_tokens - prompt_tokens


@dataclass
class Balance:
    """A locked team's limit and counters, with all that its group of operations has moved so far."""

    quota_tokens: int | None
    extra_tokens: int
    used_tokens: int
    held_tokens: int
    renews_at: int | None = None

    def limits(self) -> list[Limit]:
        """Return all that a call must fit."""
        if self.quota_tokens is None:
            return []
        tokens = self.quota_tokens + self.extra_tokens
        return [Limit("quota", tokens, self.used_tokens, self.held_tokens, self.renews_at)]


def decide(limits: list[Limit], request: CallRequest, output_reserve_tokens: int, zone: ZoneInfo) -> Grant:
    """Say what to hold for a call in all limits, or raise QuotaExceeded or QuotaReserved.

    A call whose output does not fit is let through with a lower limit while that limit is still of use.
    """
    if not limits:
        return Grant(request.prompt_tokens + request.output_tokens)
    tightest = min(limits, key=lambda limit: limit.left(request.prompt_tokens))
    left = tightest.left(request.prompt_tokens)
    if request.output_tokens <= left:
        return Grant(request.prompt_tokens + request.output_tokens)
    least = LEAST_OUTPUT_TOKENS * request.choices
    may_limit = request.choices > 0 and left >= request.choices
    if may_limit and (left >= output_reserve_tokens or (tightest.held_tokens == 0 and left >= least)):
        return Grant(request.prompt_tokens + left, left // request.choices)
    figures = (
        f"{tightest.used_tokens:,} used and {tightest.held_tokens:,} held for calls in flight of a {tightest.name} of "
        f"{tightest.tokens:,} tokens; this call needs about {request.prompt_tokens:,} for its prompt"
    )
    if tightest.held_tokens > 0 and left + tightest.held_tokens >= least:
        raise QuotaReserved(f"Quota reserved by calls in flight: {figures}. Try again once they have ended.")
    renews = "" if tightest.renews_at is None else f" It renews on {in_words(tightest.renews_at, zone)}."
    raise QuotaExceeded(
        f"Quota exceeded: {figures}.{renews} Who administers this service can raise the quota or reset its use."
    )

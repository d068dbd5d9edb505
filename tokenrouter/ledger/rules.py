"""What a call may reserve, what it holds, and how it ends: plain values and the one decision about them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from tokenrouter.database.tables import NOT_COUNTED
from tokenrouter.errors import QuotaExceeded, QuotaReserved

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
class Balance:
    """A locked team's quota and counters, with all that its group of operations has moved so far."""

    quota_tokens: int | None
    used_tokens: int
    held_tokens: int


def decide(balance: Balance, request: CallRequest, output_reserve_tokens: int) -> Grant:
    """Say what to hold for a call, or raise QuotaExceeded or QuotaReserved.

    A call whose output does not fit is let through with a lower limit while that limit is still of use.
    """
    if balance.quota_tokens is None:
        return Grant(request.prompt_tokens + request.output_tokens)
    unused = balance.quota_tokens - balance.used_tokens - request.prompt_tokens
    left = unused - balance.held_tokens
    if request.output_tokens <= left:
        return Grant(request.prompt_tokens + request.output_tokens)
    least = LEAST_OUTPUT_TOKENS * request.choices
    may_limit = request.choices > 0 and left >= request.choices
    if may_limit and (left >= output_reserve_tokens or (balance.held_tokens == 0 and left >= least)):
        return Grant(request.prompt_tokens + left, left // request.choices)
    figures = (
        f"{balance.used_tokens:,} used and {balance.held_tokens:,} held for calls in flight "
        f"of a quota of {balance.quota_tokens:,} tokens; this call needs about {request.prompt_tokens:,} for its prompt"
    )
    if balance.held_tokens > 0 and unused >= least:
        raise QuotaReserved(f"Quota reserved by calls in flight: {figures}. Try again once they have ended.")
    raise QuotaExceeded(
        f"Quota exceeded: {figures}. Who administers this service can raise the quota or reset its use."
    )

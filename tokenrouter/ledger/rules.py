"""What a call requests, what it may hold, and how it ends: plain values, and the decisions about them. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal, Protocol
from zoneinfo import ZoneInfo

from tokenrouter.database.tables import NOT_COUNTED
from tokenrouter.errors import ModelHasNoPrice, PaceExceeded, QuotaExceeded, QuotaReserved
from tokenrouter.ledger.pace import Bucket, duration
from tokenrouter.metering.prices import Price
from tokenrouter.money import decimal_string, shown
from tokenrouter.periods import in_words

LEAST_OUTPUT_TOKENS = 16
MS_NS = 10**6
NO_RETRY = {"x-should-retry": "false"}
NO_HEADERS: Mapping[str, str] = {}
Kind = Literal["requests", "tokens"]
KINDS: tuple[Kind, ...] = ("requests", "tokens")


@dataclass(kw_only=True)  # not frozen: that would make each call's construction several times slower
class CallRequest:
    """What a call wants to reserve: an estimate of its prompt's tokens, and the most tokens of its output."""

    request_id: str
    team_id: int
    team_name: str
    token_id: int
    token_prefix: str
    model: str
    endpoint: str
    stream: bool
    created_at: datetime
    group_id: int | None = None
    """The team's group, whose limits hold the call as well."""
    caller_row: tuple[Any, ...] | None = None
    """The row that the caller was checked by; the database has to have the same when the tokens are held."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    choices: int = 0


@dataclass(frozen=True)
class MustWait:
    """A call fits all limits but finds no place at the provider; it waits under this id."""

    waiting_id: int


class CallerChanged(Exception):
    """The team, its group or the token has changed since the call was checked, which has to be done again."""


@dataclass(frozen=True)
class Grant:
    """The tokens to hold for a call, and the output limit of each choice if the quota sets one."""

    held_tokens: int
    output_limit: int | None = None
    held_cost: int = 0
    """What they cost at most, in billionths; 0 if the model has no price."""


@dataclass
class Reservation:
    """A call that is under way: its row of the log, what it holds, and how far it has come."""

    call_id: int
    team_id: int
    token_id: int
    model: str
    day: date
    held_tokens: int
    group_id: int | None = None
    held_cost: int = 0
    output_limit: int | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    """Headers that tell the caller the pace of its team and group."""
    request: CallRequest | None = None
    """What was requested, for the listeners of endings."""
    waited_s: float = 0.0
    """How long it waited for a place at the provider."""
    progress: Callable[[], int] = int
    """Counts the tokens that have arrived; saved with each heartbeat, and charged if this worker dies."""


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
    cached_tokens: int = 0
    reported_cost: int | None = None
    """The cost that the provider reported, in billionths of a dollar."""
    latency_ms: int | None = None
    first_byte_ms: int | None = None
    error_code: str | None = None
    reason: str | None = None
    provider_request_id: str | None = None


class Limit(Protocol):
    """A limit that a call must fit, with what is used and held of it."""

    renews_at: int | None
    """When it renews, in seconds since 1970; None if never."""

    @property
    def is_held(self) -> bool:
        """Whether calls in flight have reserved something of it."""

    def left(self, prompt_tokens: int, *, once_settled: bool = False) -> int:
        """Return how many output tokens fit beside the prompt, or would fit if nothing were held (`once_settled`)."""

    def figures(self) -> str:
        """Say how much is used and held, and whose limit it is, for the caller."""

    def reason(self, prompt_tokens: int) -> str:
        """Say the same briefly, with what this prompt needed, for the log."""


@dataclass
class TokenLimit:
    """A quota of tokens."""

    whose: str
    """Whose it is, in a refusal: `this team`."""
    tokens: int
    used_tokens: int
    held_tokens: int
    renews_at: int | None = None

    @property
    def is_held(self) -> bool:
        """See Limit."""
        return self.held_tokens > 0

    def left(self, prompt_tokens: int, *, once_settled: bool = False) -> int:
        """See Limit."""
        held_tokens = 0 if once_settled else self.held_tokens
        return self.tokens - self.used_tokens - held_tokens - prompt_tokens

    def figures(self) -> str:
        """See Limit."""
        return (
            f"{self.used_tokens:,} used and {self.held_tokens:,} held for calls in flight of the quota of "
            f"{self.tokens:,} tokens that {self.whose} has"
        )

    def reason(self, prompt_tokens: int) -> str:
        """See Limit."""
        figures = f"{self.used_tokens:,} used, {self.held_tokens:,} held, {prompt_tokens:,} needed for the prompt"
        return f"{figures}; limit {self.tokens:,} tokens, of {self.whose}"


@dataclass
class MoneyLimit:
    """A budget, in billionths of the currency, at the price of the call's model."""

    whose: str
    price: Price
    currency: str
    amount: int
    used_cost: int
    held_cost: int
    renews_at: int | None = None

    @property
    def is_held(self) -> bool:
        """See Limit."""
        return self.held_cost > 0

    def left(self, prompt_tokens: int, *, once_settled: bool = False) -> int:
        """See Limit; a budget of 0 blocks, whatever the price."""
        if not self.amount:
            return -prompt_tokens - 1
        left = self.amount - self.used_cost - (0 if once_settled else self.held_cost)
        return self.price.output_tokens_for(left, prompt_tokens)

    def figures(self) -> str:
        """See Limit."""
        used, held, amount = (shown(each, self.currency) for each in (self.used_cost, self.held_cost, self.amount))
        return f"{used} used and {held} held for calls in flight of the budget of {amount} that {self.whose} has"

    def reason(self, prompt_tokens: int) -> str:
        """See Limit."""
        needed = self.price.cost(prompt_tokens, 0, 0)
        used, held, need, most = map(decimal_string, (self.used_cost, self.held_cost, needed, self.amount))
        return f"{used} used, {held} held, {need} needed for the prompt; limit {most} {self.currency}, of {self.whose}"


@dataclass
class Balance:
    """Limits and counters of a locked team or group, with all moves of the transaction so far."""

    whose: str
    quota_tokens: int | None
    extra_tokens: int
    used_tokens: int
    held_tokens: int
    renews_at: int | None = None
    requests: Bucket | None = None
    tokens: Bucket | None = None
    calls_at_once: int | None = None
    calls_in_flight: int = 0
    now: int = 0
    """The database's clock when it was read, in nanoseconds since 1970."""
    budget: int | None = None
    extra_budget: int = 0
    used_cost: int = 0
    held_cost: int = 0
    prices_version: int | None = None
    """See PRICES_VERSION."""

    @property
    def has_buckets(self) -> bool:
        """Whether there is a bucket to write back."""
        return self.requests is not None or self.tokens is not None

    @property
    def is_paced(self) -> bool:
        """Whether there is any limit of pace."""
        return self.requests is not None or self.tokens is not None or self.calls_at_once is not None

    @property
    def is_full(self) -> bool:
        """Whether no further call may be under way."""
        return self.calls_at_once is not None and self.calls_in_flight >= self.calls_at_once

    def move(
        self, *, held: int, settled: int = 0, calls: int, cost: int = 0, priced: int = 0, held_cost: int = 0
    ) -> None:
        """Count what a call holds, or gives back and costs; the bucket of tokens changes by the same."""
        self.held_tokens += held
        self.used_tokens += settled
        self.calls_in_flight += calls
        self.held_cost += held_cost
        self.used_cost += cost
        if self.tokens is not None:
            self.tokens.correct(held + settled, self.now)

    def limits(self, price: Price | None, currency: str) -> Iterator[Limit]:
        """Yield all limits that a call of a model with this price must fit.

        Raises ModelHasNoPrice if there is a budget and the model has none.
        """
        if self.quota_tokens is not None:
            tokens = self.quota_tokens + self.extra_tokens
            yield TokenLimit(self.whose, tokens, self.used_tokens, self.held_tokens, self.renews_at)
        if self.budget is not None:
            if price is None:
                raise ModelHasNoPrice(
                    f"This model has no price, and {self.whose} has a budget. "
                    "Who administers this service can set one.",
                    reason=f"no price; budget {decimal_string(self.budget)} {currency}, of {self.whose}",
                )
            amount = self.budget + self.extra_budget
            yield MoneyLimit(self.whose, price, currency, amount, self.used_cost, self.held_cost, self.renews_at)


def check_pace(balances: Sequence[Balance], tokens: int) -> None:
    """Raise PaceExceeded if a call that takes so many tokens is too much for the pace of team or group.

    If several limits refuse it, the error is about the one that takes longest.
    """
    waits = [wait for balance in balances for wait in _waits(balance, tokens)]
    if not waits:
        return
    wait_ns, kind, words = max(waits, key=lambda wait: (wait[0] is None, wait[0] or 0))
    headers = pace_headers(balances)
    if wait_ns is None:
        raise PaceExceeded(f"{words}. It can never fit.", kind, 60_000, {**headers, **NO_RETRY}, reason=words)
    wait_ms = -(-wait_ns // MS_NS)
    wait = f"{wait_ms / 1000:g} s"
    raise PaceExceeded(f"{words}. Try again in {wait}.", kind, wait_ms, headers, reason=f"{words}; fits in {wait}")


def _waits(balance: Balance, tokens: int) -> Iterator[tuple[int | None, Kind, str]]:
    """Yield for each limit that refuses a call how long to wait (None: for ever), its kind, and a sentence."""
    now, requests, whose = balance.now, balance.requests, balance.whose
    if balance.is_full:
        most, has = f"{balance.calls_at_once:,}", f"{balance.calls_in_flight:,}"
        wait_ns = 1000 * MS_NS if balance.calls_at_once else None
        yield wait_ns, "requests", f"Too many calls at once: {whose} may have {most}, and has {has}"
    if requests is not None and (wait_ns := requests.wait_ns(1, now)) != 0:
        yield wait_ns, "requests", f"Too many requests: {whose} may make {requests.limit:,} a minute"
    if balance.tokens is not None and (wait_ns := balance.tokens.wait_ns(tokens, now)) != 0:
        most = f"Too many tokens: {whose} may use {balance.tokens.limit:,} a minute, and this call needs {tokens:,}"
        yield wait_ns, "tokens", f"{most} for its prompt and its longest answer"


def pace_headers(balances: Sequence[Balance]) -> dict[str, str]:
    """Return the headers about the pace, of team or group whichever is tighter.

    Source: OpenAI's API reference, "Rate limits in headers".
    """
    headers: dict[str, str] = {}
    for kind in KINDS:
        states = [
            (bucket.remaining(each.now), -bucket.reset_ns(each.now), bucket.limit)
            for each in balances
            if (bucket := getattr(each, kind)) is not None
        ]
        if states:
            remaining, minus_reset_ns, limit = min(states)  # the fewest, then the longest to reset
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(-minus_reset_ns)
    return headers


def decide(
    limits: Sequence[Limit],
    request: CallRequest,
    output_reserve_tokens: int,
    zone: ZoneInfo,
    price: Price | None = None,
) -> Grant:
    """Return what to hold for a call in all limits, or raise QuotaExceeded or QuotaReserved.

    A call whose output does not fit gets a lower output limit, as long as that is still useful.
    """
    prompt_tokens, output_tokens = request.prompt_tokens, request.output_tokens
    if all(output_tokens <= limit.left(prompt_tokens) for limit in limits):
        return _grant(prompt_tokens, output_tokens, price)
    tightest = min(limits, key=lambda limit: (limit.left(prompt_tokens), limit.is_held))
    left = tightest.left(prompt_tokens)
    least = LEAST_OUTPUT_TOKENS * request.choices
    may_limit = request.choices > 0 and left >= request.choices
    if may_limit and (left >= output_reserve_tokens or (not tightest.is_held and left >= least)):
        return _grant(prompt_tokens, left, price, left // request.choices)
    needs = f"this call needs about {prompt_tokens:,} tokens for its prompt"
    smallest = min(limits, key=lambda limit: limit.left(prompt_tokens, once_settled=True))
    if tightest.is_held and smallest.left(prompt_tokens, once_settled=True) >= least:
        figures = f"{tightest.figures()}; {needs}"
        raise QuotaReserved(
            f"Quota reserved by calls in flight: {figures}. Try again once they have ended.",
            reason=tightest.reason(prompt_tokens),
        )
    renews = "" if smallest.renews_at is None else f" It renews on {in_words(smallest.renews_at, zone)}."
    raise QuotaExceeded(
        f"Quota exceeded: {smallest.figures()}; {needs}.{renews} Who administers this service can raise it or reset "
        f"its use.",
        reason=smallest.reason(prompt_tokens),
    )


def _grant(prompt_tokens: int, output_tokens: int, price: Price | None, output_limit: int | None = None) -> Grant:
    held_cost = 0 if price is None else price.cost(prompt_tokens, 0, output_tokens)
    return Grant(prompt_tokens + output_tokens, output_limit, held_cost)

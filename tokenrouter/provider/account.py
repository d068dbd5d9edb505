"""The paid account: whether its key is accepted and, if the provider's API says so, what is left of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import urlsplit

from tokenrouter.config import Settings
from tokenrouter.errors import APIError, ProviderBadResponse
from tokenrouter.provider.causes import IS_V1, cause_in_words
from tokenrouter.provider.client import Provider
from tokenrouter.provider.documents import read_document
from tokenrouter.provider.history import Page, pages
from tokenrouter.provider.refusals import words_of
from tokenrouter.provider.values import moment_of, money_of, whole_of

Kind = Literal["poe", "openrouter", "deepseek", "none"]
LONGEST_KEY = 100
UNREACHABLE = "The provider could not be reached: "
HOSTS: dict[str, Kind] = {"api.poe.com": "poe", "openrouter.ai": "openrouter", "api.deepseek.com": "deepseek"}


@dataclass(frozen=True)
class Spending:
    """What a key has spent so far, in billionths of a dollar, and the provider's name for that key."""

    today: int
    """On the current day in UTC."""
    ever: int | None
    key: str | None


@dataclass(frozen=True)
class Balance:
    """What is left. None means not reported; for money it can also mean that the account has no limit."""

    points: int | None = None
    money: int | None = None
    """In billionths of `currency`."""
    currency: str = "USD"
    next_grant_at: datetime | None = None
    next_grant_points: int | None = None
    spending: Spending | None = field(default=None, compare=False)

    @property
    def is_empty(self) -> bool | None:
        """Whether nothing is left; None if it is not known."""
        amounts = [each for each in (self.points, self.money) if each is not None]
        return all(each <= 0 for each in amounts) if amounts else None


class State(Enum):
    """The state of the account, worst first; documents show the value."""

    EMPTY = "empty"
    KEY_REFUSED = "key_refused"
    UNREACHABLE = "unreachable"
    BROKEN = "broken"
    LIMITED = "rate_limited"
    SLOW = "slow"
    UNPROVEN = "key_not_proven"
    GOOD = "good"

    @property
    def is_good(self) -> bool:
        """Whether calls can be expected to be answered."""
        return self in (State.GOOD, State.UNPROVEN)


@dataclass(frozen=True)
class AccountCheck:
    """The result of a check: the state of the account, also in words, and its balance if reported."""

    at: datetime
    state: State
    words: str
    balance: Balance | None = None


class Account:
    """The account at one provider. Every method call asks the provider."""

    def __init__(self, provider: Provider, settings: Settings, ask_for_models: Callable[[], None]) -> None:
        """`ask_for_models` is called if the provider has no API for balances; it raises an APIError on failure."""
        self._provider = provider
        self._ask_for_models = ask_for_models
        self.kind = kind_of(settings)

    def balance(self) -> Balance | None:
        """Fetch what is left; None if this provider has no API for it. An answer proves that the key is valid.

        Raises an APIError that says why it failed.
        """
        if self.kind == "none":
            return None
        path, is_beside, read = APIS[self.kind]
        document = read_document(self._provider, path, "its balance", is_beside=is_beside)
        if not isinstance(document, dict):
            raise ProviderBadResponse("The provider's answer is not a balance.")
        return read(document)

    def history(self, after: str | None = None) -> Iterator[Page]:
        """Fetch the provider's own record of the account's calls; see `history.pages`."""
        return pages(self._provider, after)

    def check(self) -> AccountCheck:
        """Ask for the balance, which proves the key; without such an API, check that the provider answers at all."""
        now = datetime.now(UTC)
        try:
            balance = self.balance()
            if balance is None:
                self._ask_for_models()
                return AccountCheck(now, State.UNPROVEN, "The provider answers; the key is not proven before a call.")
        except APIError as error:
            return AccountCheck(now, *trouble(error))
        if balance.is_empty:
            return AccountCheck(now, State.EMPTY, "The provider's account is empty.", balance)
        return AccountCheck(now, State.GOOD, "The provider answers and accepts the key.", balance)


def trouble(error: APIError) -> tuple[State, str]:
    """Return the state of the account that a provider's error shows, and the reason in words."""
    if error.status == HTTPStatus.NOT_FOUND:
        return State.BROKEN, f"The provider has nothing at this address (404): {IS_V1}"
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return State.LIMITED, "The provider refuses requests for now: the account makes too many (429)."
    state = STATES_BY_ERROR.get(error.code or "", State.BROKEN)
    cause = cause_in_words(error) if state is State.UNREACHABLE else None
    return state, words_of(error) if cause is None else f"{UNREACHABLE}{_ended(cause)}"


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith("?") else f"{sentence}."


STATES_BY_ERROR = {
    "provider_quota_exhausted": State.EMPTY,
    "provider_auth_failed": State.KEY_REFUSED,
    "provider_unreachable": State.UNREACHABLE,
    "provider_timeout": State.SLOW,
}
"""The state by the code of an error; any other code means BROKEN."""


def kind_of(settings: Settings) -> Kind:
    """Return which account API to use: the one set, otherwise the one of the provider's host."""
    if settings.provider_account != "auto":
        return settings.provider_account
    return HOSTS.get(urlsplit(settings.provider_base_url).hostname or "", "none")


def _poes(document: dict[str, Any]) -> Balance:
    """Read Poe's. Source: its API documentation, "Usage API", and the fields that its clients read beside it."""
    parts = [whole_of(document.get(name)) for name in ("plan_points_balance", "addon_point_balance")]
    points = whole_of(document.get("current_point_balance"))
    if points is None and any(part is not None for part in parts):
        points = sum(part or 0 for part in parts)
    return Balance(
        points,
        money_of(document.get("total_balance_usd")),
        next_grant_at=moment_of(document.get("next_monthly_grant_time")),
        next_grant_points=whole_of(document.get("next_monthly_grant_amount")),
    )


def _openrouters(document: dict[str, Any]) -> Balance:
    """Read OpenRouter's: what the key may still spend, and spent. Source: its API reference, "Get current API key"."""
    key = document.get("data")
    if not isinstance(key, dict):
        return Balance()
    today, label = money_of(key.get("usage_daily")), key.get("label")
    shown_key = label[:LONGEST_KEY] if isinstance(label, str) else None
    spending = None if today is None else Spending(today, money_of(key.get("usage")), shown_key)
    return Balance(money=money_of(key.get("limit_remaining")), spending=spending)


def _deepseeks(document: dict[str, Any]) -> Balance:
    """Read DeepSeek's, whose first currency stands for all. Source: its API reference, "Get user balance"."""
    balances = document.get("balance_infos")
    first = balances[0] if isinstance(balances, list) and balances and isinstance(balances[0], dict) else {}
    currency = first.get("currency")
    return Balance(
        money=money_of(first.get("total_balance")),
        currency=currency if isinstance(currency, str) and len(currency) == len("USD") else "USD",
    )


APIS: dict[Kind, tuple[str, bool, Callable[[dict[str, Any]], Balance]]] = {
    "poe": ("/usage/current_balance", True, _poes),
    "openrouter": ("/key", False, _openrouters),
    "deepseek": ("/user/balance", True, _deepseeks),
}
"""By kind: the path of the balance, whether it is beside `/v1` of the base URL, and the function that reads it."""

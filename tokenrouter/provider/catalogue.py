"""The models that a team may call: exact names as written, prefixes expanded by the provider's list."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokenrouter.config import is_allowed
from tokenrouter.errors import APIError, ProviderBadResponse, ProviderRefusal
from tokenrouter.provider.client import Provider
from tokenrouter.provider.documents import read_document
from tokenrouter.provider.refusals import RelayedError, words_of

CACHE_S = 300.0
FAILURE_CACHE_S = 10.0
FIRST_MILLISECONDS = 10**11  # as seconds, the year 5138


@dataclass(frozen=True)
class Check:
    """The result of asking the provider for its models: their names, or what is wrong."""

    at: datetime
    models: tuple[str, ...] | None
    problem: str | None = None
    code: str | None = None


class Catalogue:
    """The provider's list of models, fetched when needed, at most every five minutes.

    One thread fetches it, within FETCH_S; the others get the previous list at once.
    """

    def __init__(self, provider: Provider, default_model: str) -> None:
        """Start with an empty list."""
        self._provider = provider
        self._default_model = default_model
        self._listed: dict[str, dict[str, Any]] = {}
        self._fresh_until = float("-inf")
        self._fetching = threading.Lock()
        self.last_check: Check | None = None
        self._error: APIError | None = None

    def models(self, patterns: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return OpenAI's model objects for names and prefixes: exact names always, models of a prefix if known.

        Names are spelled as in the provider's list. While that list is empty, it counts as the default model alone.
        """
        if time.monotonic() > self._fresh_until and self._fetching.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._fetching.release()
        return [_model_object(name, self._listed.get(name, {})) for name in self.known_names(patterns)]

    def known_names(self, patterns: tuple[str, ...]) -> list[str]:
        """Return only the names, by the list as it is now."""
        listed = self._listed
        spelled = {name.casefold(): name for name in reversed(listed)} | {name: name for name in listed}
        exact = [pattern for pattern in patterns if not pattern.endswith("*")]
        names = [spelled.get(name) or spelled.get(name.casefold(), name) for name in exact]
        candidates = listed or (self._default_model,)
        names += [name for name in candidates if is_allowed(name, patterns) and not is_allowed(name, tuple(exact))]
        return list(dict.fromkeys(names))

    def listed(self, name: str, patterns: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the object of a listed model that may be called, or None."""
        return next((each for each in self.models(patterns) if each["id"].casefold() == name.casefold()), None)

    def ask_for(self, name: str) -> dict[str, Any] | None:
        """Ask the provider for a model missing from its list, and return its object; None if it does not exist.

        Raises RelayedError or ProviderRefusal for any other refusal.
        """
        if any(part in ("", ".", "..") for part in name.split("/")):
            return None  # that path may lead to something else of the account
        try:
            found = self._fetch(f"/models/{name}")
        except (RelayedError, ProviderRefusal) as error:
            if error.status == 404:
                return None
            raise
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("id"), str)
            or found.get("object", "model") != "model"
        ):
            return None
        return _model_object(found["id"], found)

    def fetch(self) -> dict[str, dict[str, Any]]:
        """Fetch the provider's models now, and return its object for each, by name.

        Raises an APIError that says why it failed.
        """
        try:
            return _listed_in(self._fetch("/models"))
        except RelayedError as error:
            raise ProviderBadResponse(words_of(error)) from error

    def check(self, within_s: float = 0.0) -> Check:
        """Fetch the models, unless done within the last `within_s` seconds, and return the result."""
        with self._fetching:
            last = self.last_check
            if last is None or (datetime.now(UTC) - last.at).total_seconds() >= within_s:
                last = self._refresh()
            return last

    def ask(self) -> None:
        """Fetch the models now, and keep them. Raises an APIError that says why it failed."""
        with self._fetching:
            self._refresh()
            if self._error is not None:
                raise self._error

    def _refresh(self) -> Check:
        """Fetch the list, keep the previous one if that fails, and set when to fetch it again."""
        self._error = None
        try:
            self._listed = _listed_in(self._fetch("/models"))
            models, problem, code, cache_s = tuple(self._listed), None, None, CACHE_S
        except APIError as error:
            self._error = error
            models, problem, code, cache_s = None, words_of(error), error.code, FAILURE_CACHE_S
        self._fresh_until = time.monotonic() + cache_s
        self.last_check = Check(datetime.now(UTC), models, problem, code)
        return self.last_check

    def _fetch(self, path: str) -> Any:
        return read_document(self._provider, path, "its models")


def _listed_in(document: object) -> dict[str, dict[str, Any]]:
    listed = document.get("data") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ProviderBadResponse("The provider's answer is not a list of models.")
    return {model["id"]: model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)}


def _model_object(name: str, listed: Mapping[str, Any]) -> dict[str, Any]:
    owner = listed.get("owned_by")
    return {
        "id": name,
        "object": "model",
        "created": _in_seconds(listed.get("created")),
        "owned_by": owner if isinstance(owner, str) else "provider",
    }


def _in_seconds(created: object) -> int:
    """Return a time in whole seconds, as OpenAI does; some providers give milliseconds."""
    if isinstance(created, bool) or not isinstance(created, int | float) or not 0 <= created < 10**18:
        return 0
    while created >= FIRST_MILLISECONDS:
        created /= 1000
    return int(created)


def lacking(patterns: tuple[str, ...], models: tuple[str, ...]) -> list[str]:
    """Return the allowed names and prefixes that fit none of the provider's models."""
    return [pattern for pattern in patterns if not any(is_allowed(model, (pattern,)) for model in models)]

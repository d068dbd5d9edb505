"""The models that a team may call: exact names as they are, prefixes by what the provider has."""

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokenrouter.config import is_allowed
from tokenrouter.errors import APIError, ProviderBadResponse
from tokenrouter.provider.client import Provider
from tokenrouter.provider.refusals import RelayedError
from tokenrouter.untrusted_json import parse_json

CACHE_S = 300.0
FAILURE_CACHE_S = 10.0


@dataclass(frozen=True)
class Check:
    """What came of asking the provider for its models: their names, or what is wrong."""

    at: datetime
    models: tuple[str, ...] | None
    problem: str | None = None
    code: str | None = None


class Catalogue:
    """The provider's own list of models, asked for when a prefix has to be expanded, at most every five minutes."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._listed: dict[str, dict[str, Any]] = {}
        self._fresh_until = float("-inf")
        self._lock = threading.Lock()
        self.last_check: Check | None = None

    def models(self, patterns: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return OpenAI's model objects for names and prefixes: exact names always, what prefixes cover if known."""
        prefixes = tuple(pattern for pattern in patterns if pattern.endswith("*"))
        names = [pattern for pattern in patterns if pattern not in prefixes]
        listed = self._provider_models() if prefixes else {}
        names += [name for name in listed if name not in names and is_allowed(name, prefixes)]
        return [_model_object(name, listed.get(name, {})) for name in names]

    def check(self, within_s: float = 0.0) -> Check:
        """Ask the provider for its models, unless that was done within the last seconds, and say what came of it."""
        with self._lock:
            last = self.last_check
            if last is None or (datetime.now(UTC) - last.at).total_seconds() >= within_s:
                last = self._refresh()
            return last

    def _provider_models(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            if time.monotonic() > self._fresh_until:
                self._refresh()
            return self._listed

    def _refresh(self) -> Check:
        """Ask, keep what was known before where that fails, and remember when to ask again."""
        try:
            self._listed = self._fetch()
            models, problem, code, cache_s = tuple(self._listed), None, None, CACHE_S
        except APIError as error:
            models, problem, code, cache_s = None, _words(error), error.code, FAILURE_CACHE_S
        self._fresh_until = time.monotonic() + cache_s
        self.last_check = Check(datetime.now(UTC), models, problem, code)
        return self.last_check

    def _fetch(self) -> dict[str, dict[str, Any]]:
        reply = self._provider.get("/models")
        try:
            document = parse_json(reply.read())
        finally:
            reply.close()
        listed = document.get("data") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise ProviderBadResponse("The provider's answer is not a list of models.")
        return {model["id"]: model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)}


def _words(error: APIError) -> str:
    """Say what is wrong; of an error that callers see as it is, the status and the provider's own message."""
    if not isinstance(error, RelayedError):
        return error.message
    return f"The provider answered with status {error.status}: {parse_json(error.body())['error']['message'][:500]}"


def _model_object(name: str, listed: dict[str, Any]) -> dict[str, Any]:
    created, owner = listed.get("created"), listed.get("owned_by")
    return {
        "id": name,
        "object": "model",
        "created": created if isinstance(created, int) else 0,
        "owned_by": owner if isinstance(owner, str) else "provider",
    }

"""The models that a team may call: exact names as they are, prefixes by what the provider has."""

import threading
import time
from typing import Any

from tokenrouter.config import is_allowed
from tokenrouter.errors import APIError
from tokenrouter.metering import parse_json
from tokenrouter.provider import Provider

CACHE_S = 300.0
FAILURE_CACHE_S = 10.0


class Catalogue:
    """The provider's own list of models, asked for when a prefix has to be expanded, at most every five minutes."""

    def __init__(self, provider: Provider) -> None:
        """Ask for nothing yet."""
        self._provider = provider
        self._listed: dict[str, dict[str, Any]] = {}
        self._fresh_until = float("-inf")
        self._lock = threading.Lock()

    def models(self, patterns: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return OpenAI's model objects for names and prefixes: exact names always, what prefixes cover if known."""
        prefixes = tuple(pattern for pattern in patterns if pattern.endswith("*"))
        names = [pattern for pattern in patterns if pattern not in prefixes]
        listed = self._provider_models() if prefixes else {}
        names += [name for name in listed if name not in names and is_allowed(name, prefixes)]
        return [_model_object(name, listed.get(name, {})) for name in names]

    def _provider_models(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            if time.monotonic() > self._fresh_until:
                asked = self._ask()
                self._listed = self._listed if asked is None else asked
                self._fresh_until = time.monotonic() + (FAILURE_CACHE_S if asked is None else CACHE_S)
            return self._listed

    def _ask(self) -> dict[str, dict[str, Any]] | None:
        """Return the provider's list by name, or None when it cannot be had."""
        try:
            reply = self._provider.get("/models")
            try:
                document = parse_json(reply.read())
            finally:
                reply.close()
        except APIError:
            return None
        listed = document.get("data") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            return None
        return {model["id"]: model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)}


def _model_object(name: str, listed: dict[str, Any]) -> dict[str, Any]:
    created, owner = listed.get("created"), listed.get("owned_by")
    return {
        "id": name,
        "object": "model",
        "created": created if isinstance(created, int) else 0,
        "owned_by": owner if isinstance(owner, str) else "provider",
    }

"""The model that a body names, and whether the team may call it."""

import re
from collections.abc import Mapping
from typing import Any

from tokenrouter.config import is_allowed
from tokenrouter.errors import InvalidRequest, ModelNotFound

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
SHOWN_MODEL_LENGTH = 100


def model_of(body: Mapping[str, Any], default: str | None) -> str:
    """Return the model that a body names, or the default.

    Raises InvalidRequest where it is no text, and where there is neither.
    """
    model = body.get("model")
    if model is None:
        if default is None:
            message = "model is missing. Here it has to be named, since a team may call some models only."
            raise InvalidRequest(message, param="model")
        return default
    if not isinstance(model, str):
        raise InvalidRequest("model is not a string.", param="model")
    if CONTROL_CHARACTER.search(model):
        raise InvalidRequest("model has a control character.", param="model")
    return model


def check_model(model: str, allowed: tuple[str, ...], team_models: tuple[str, ...] | None) -> None:
    """Raise ModelNotFound unless both lists have the model."""
    if is_allowed(model, allowed) and (team_models is None or is_allowed(model, team_models)):
        return
    shown = model if len(model) <= SHOWN_MODEL_LENGTH else f"{model[:SHOWN_MODEL_LENGTH]}…"
    names = ", ".join(name.replace("*", "…") if name != "*" else "any model" for name in narrowed(allowed, team_models))
    raise ModelNotFound(f"The model `{shown}` is not allowed for this team. Allowed: {names or 'none'}.", param="model")


def narrowed(allowed: tuple[str, ...], team_models: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names and prefixes that both lists let through."""
    if team_models is None:
        return allowed
    both = [name for name in team_models if _covers(allowed, name)]
    both += [name for name in allowed if name not in both and _covers(team_models, name)]
    return tuple(both)


def _covers(patterns: tuple[str, ...], name: str) -> bool:
    stem = name.removesuffix("*")
    if stem == name:
        return is_allowed(name, patterns)
    return any(pattern.endswith("*") and stem.startswith(pattern[:-1]) for pattern in patterns)

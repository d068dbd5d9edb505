"""The model that a body names, and whether the team may call it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tokenrouter.config import is_allowed
from tokenrouter.errors import InvalidRequest, ModelNotFound

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
SHOWN_MODEL_LENGTH = 100


def model_of(body: Mapping[str, Any], default: str | None, *, any_model: bool = False) -> str:
    """Return the model that a body names, or the default; an empty name where there is neither, and any will do.

    Raises InvalidRequest where it is no text, and where there is neither though not every model is allowed.
    """
    model = body.get("model")
    if model is None:
        if default is None and any_model:
            return ""
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
    if not _is_allowed_by_both(model, allowed, team_models):
        raise ModelNotFound(_refusal(model, allowed, team_models), param="model")


def check_named_models(
    models: Iterable[tuple[str, str]], allowed: tuple[str, ...], team_models: tuple[str, ...] | None
) -> None:
    """Raise InvalidRequest unless both lists have the models that other fields name; each comes with its field."""
    for param, model in models:
        if not _is_allowed_by_both(model, allowed, team_models):
            raise InvalidRequest(f"{param}: {_refusal(model, allowed, team_models)}", param=param)


def may_call_any(allowed: tuple[str, ...], team_models: tuple[str, ...] | None) -> bool:
    """Tell whether both lists have every model."""
    return "*" in allowed and (team_models is None or "*" in team_models)


def _is_allowed_by_both(model: str, allowed: tuple[str, ...], team_models: tuple[str, ...] | None) -> bool:
    return is_allowed(model, allowed) and (team_models is None or is_allowed(model, team_models))


def _refusal(model: str, allowed: tuple[str, ...], team_models: tuple[str, ...] | None) -> str:
    shown = model if len(model) <= SHOWN_MODEL_LENGTH else f"{model[:SHOWN_MODEL_LENGTH]}…"
    names = ", ".join(name.replace("*", "…") if name != "*" else "any model" for name in narrowed(allowed, team_models))
    return f"The model `{shown}` is not allowed for this team. Allowed: {names or 'none'}."


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

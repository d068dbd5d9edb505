"""The model that a body names, and whether the team may call it."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenrouter.config import is_allowed
from tokenrouter.errors import InvalidRequest, ModelNotFound

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
SHOWN_MODEL_LENGTH = 100
SHOWN_MODELS = 20

Expand = Callable[[tuple[str, ...]], list[str]]


def model_of(body: Mapping[str, Any], default: str | None) -> str | None:
    """Return the model that a body names, or the default.

    Raises InvalidRequest if it is no text.
    """
    model = body.get("model")
    if model is None:
        return default
    if not isinstance(model, str):
        raise InvalidRequest("model is not a string.", param="model")
    if CONTROL_CHARACTER.search(model):
        raise InvalidRequest("model has a control character.", param="model")
    return model


def check_model(
    model: str | None, allowed: tuple[str, ...], team_models: tuple[str, ...] | None, expand: Expand
) -> None:
    """Check that both lists have the model; without one the provider chooses, so that both have to have every model.

    `expand` returns the names for patterns.
    Raises ModelNotFound, which lists what may be called, and InvalidRequest where one has to be named.
    """
    if model is None:
        if "*" not in allowed or (team_models is not None and "*" not in team_models):
            message = "model is missing. Here it has to be named, since your team may call some models only."
            raise InvalidRequest(message, param="model")
        return
    if not _is_allowed_by_both(model, allowed, team_models):
        may_call = ", ".join(narrowed(allowed, team_models)) or "none"
        raise ModelNotFound(
            _refusal(model, allowed, team_models, expand), param="model", reason=f"the team may call: {may_call}"
        )


def check_named_models(
    models: Iterable[tuple[str, str]], allowed: tuple[str, ...], team_models: tuple[str, ...] | None, expand: Expand
) -> None:
    """Raise InvalidRequest unless both lists have the models that other fields name; each comes with its field."""
    for param, model in models:
        if not _is_allowed_by_both(model, allowed, team_models):
            raise InvalidRequest(f"{param}: {_refusal(model, allowed, team_models, expand)}", param=param)


def _is_allowed_by_both(model: str, allowed: tuple[str, ...], team_models: tuple[str, ...] | None) -> bool:
    return is_allowed(model, allowed) and (team_models is None or is_allowed(model, team_models))


def _refusal(model: str, allowed: tuple[str, ...], team_models: tuple[str, ...] | None, expand: Expand) -> str:
    shown = model if len(model) <= SHOWN_MODEL_LENGTH else f"{model[:SHOWN_MODEL_LENGTH]}…"
    return f"The model `{shown}` is not allowed for this team. {_in_words(narrowed(allowed, team_models), expand)}"


def _in_words(patterns: tuple[str, ...], expand: Expand) -> str:
    """Say what may be called, by full names as far as they are known."""
    if not patterns:
        return (
            "It may call none at present, since ALLOWED_MODELS has nothing of the team's own list. "
            "Who administers this service can change both."
        )
    names = expand(patterns)
    words = names[:SHOWN_MODELS]
    if len(names) > SHOWN_MODELS:
        words.append(f"{len(names) - SHOWN_MODELS} more")
    prefixes = [pattern for pattern in patterns if pattern.endswith("*")]
    unknown = [prefix for prefix in prefixes if not any(is_allowed(name, (prefix,)) for name in names)]
    words += [f"any whose name begins with {prefix[:-1]}" for prefix in unknown]
    return f"Allowed: {', '.join(words[:-1])} and {words[-1]}." if len(words) > 1 else f"Allowed: {words[0]}."


def narrowed(allowed: tuple[str, ...], team_models: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names and prefixes that both lists let through."""
    if team_models is None:
        return allowed
    both = [name for name in team_models if _covers(allowed, name)]
    seen = {name.casefold() for name in both}
    both += [name for name in allowed if name.casefold() not in seen and _covers(team_models, name)]
    return tuple(both)


def _covers(patterns: tuple[str, ...], name: str) -> bool:
    stem = name.removesuffix("*")
    if stem == name:
        return is_allowed(name, patterns)
    return any(pattern.endswith("*") and is_allowed(stem, (pattern,)) for pattern in patterns)


def example_model(patterns: tuple[str, ...], default: str, known: Iterable[str]) -> str:
    """Return a model to show to who may call these: the default where it is among them, else one that is known."""
    stems = (pattern.removesuffix("*") for pattern in patterns)
    return next((name for name in (default, *known, *stems) if name and is_allowed(name, patterns)), default)

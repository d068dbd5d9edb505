"""Check and normalise a request's body, and work out what the call may cost. Knows neither Flask nor the database."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tokenrouter.config import Settings, is_allowed
from tokenrouter.errors import InvalidRequest, ModelNotFound
from tokenrouter.metering import Prompt, read_chat_prompt

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
MOST_CHOICES = 128  # OpenAI's own limit for n
MOST_OUTPUT_TOKENS = 2**31 - 1
MOST_LEVELS = 254  # what orjson writes; it reads more
SHOWN_MODEL_LENGTH = 100


@dataclass(frozen=True)
class Endpoint:
    """What is particular to one of the provider's endpoints; adding one is adding a row."""

    path: str
    """Below the provider's root, and below /v1 here."""
    limits: tuple[str, ...]
    """The fields that limit the output; the last is written where the caller used none."""
    read_prompt: Callable[[Mapping[str, Any]], Prompt]
    lists: tuple[str, ...] = ()
    """Fields that are lists if they are there at all."""


CHAT = Endpoint("/chat/completions", ("max_tokens", "max_completion_tokens"), read_chat_prompt, ("messages", "tools"))


@dataclass
class Call:
    """A checked request: what will be sent, and the most it may cost."""

    endpoint: Endpoint
    body: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    """Whether the caller asked for the event that reports usage."""
    prompt: Prompt
    prompt_tokens: int
    output_tokens: int
    choices: int

    def limit_output(self, tokens: int) -> None:
        """Limit each choice, in the field or fields that the caller used."""
        used = [name for name in self.endpoint.limits if self.body.get(name) is not None]
        for name in used or self.endpoint.limits[-1:]:
            self.body[name] = tokens

    def output_ceiling(self) -> int | None:
        """Return the most tokens that an answer within the request's limit can have; None where it has none."""
        limits = [limit for name in self.endpoint.limits if (limit := self.body.get(name))]
        return self.choices * max(limits) if limits else None

    @property
    def asks_for_usage_unasked(self) -> bool:
        """Whether what is sent asks for the usage of a stream though the caller did not."""
        return self.stream and not self.wants_usage

    def encode(self) -> bytes:
        """Return the body to send: of a stream, the provider is always asked for its usage."""
        if not self.asks_for_usage_unasked:
            return self.encode_as_asked()
        options = self.body.get("stream_options") or {}
        return orjson.dumps({**self.body, "stream_options": {**options, "include_usage": True}})

    def encode_as_asked(self) -> bytes:
        """Return the body with nothing but the caller's own stream options."""
        return orjson.dumps(self.body)


def parse(data: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Raises InvalidRequest.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object.")
    if data.count(b"{") + data.count(b"[") > MOST_LEVELS:  # only then can it be nested deeper
        try:
            orjson.dumps(body)
        except TypeError:
            raise InvalidRequest(f"The body is nested deeper than {MOST_LEVELS} levels.") from None
    return body


def model_of(body: Mapping[str, Any], default: str) -> str:
    """Return the model that a body names, or the default.

    Raises InvalidRequest where it is no text.
    """
    model = body.get("model")
    if model is None:
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


def check(endpoint: Endpoint, body: dict[str, Any], model: str, settings: Settings) -> Call:
    """Check the fields that decide what a call costs, set what the settings demand, and leave all others alone.

    Raises InvalidRequest, naming the field.
    """
    body["model"] = model
    stream = _of_type(body, "stream", bool, "a boolean") or False
    options = _of_type(body, "stream_options", dict, "an object") or {}
    for name in endpoint.lists:
        _of_type(body, name, list, "an array")
    choices = _whole_number(body, "n", 1, MOST_CHOICES) or 1
    given = [limit for name in endpoint.limits if (limit := _whole_number(body, name, 0, MOST_OUTPUT_TOKENS))]
    limit = max(given, default=settings.max_output_tokens or settings.output_reserve_tokens)
    prompt = endpoint.read_prompt(body)
    call = Call(
        endpoint=endpoint,
        body=body,
        model=model,
        stream=stream,
        wants_usage=options.get("include_usage") is True,
        prompt=prompt,
        prompt_tokens=prompt.estimate(),
        output_tokens=choices * limit,
        choices=choices,
    )
    _set_ceiling(call, given, settings.max_output_tokens)
    return call


def _set_ceiling(call: Call, given: list[int], ceiling: int | None) -> None:
    if ceiling is None or (given and max(given) <= ceiling):
        return
    call.limit_output(ceiling)
    call.output_tokens = call.choices * ceiling


def _of_type(body: Mapping[str, Any], name: str, kind: type, words: str) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"{name} is not {words}.", param=name)
    return value


def _whole_number(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise InvalidRequest(f"{name} is not a whole number from {least} to {most:,}.", param=name)
    return value

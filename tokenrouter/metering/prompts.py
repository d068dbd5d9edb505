"""Gather what a request gives the model to read: every text in it, in whatever field, and figures for the rest."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from tokenrouter.metering.gather import Gathered, as_text, dicts_in

# Source: OpenAI's cookbook, "How to count tokens with tiktoken": three tokens a message and its role, one more for a
# name, three before the answer; tools and calls come with some words around their texts.
MESSAGE_TOKENS = 4
NAME_TOKENS = 1
ANSWER_START_TOKENS = 3
TOOL_TOKENS = 12
CALL_TOKENS = 8

TOOLS = ("tools", "functions")
CALL_KINDS = ("function", "custom")
ARGUMENTS = ("arguments", "input", "parameters")
NOT_READ = frozenset(
    (
        "model",
        "models",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "metadata",
        "client_metadata",
        "previous_response_id",
        "service_tier",
        "include",
        "truncation",
        "modalities",
        "audio",
        "voice",
        "reasoning",
        "reasoning_effort",
        "verbosity",
        "tool_choice",
        "function_call",
        "stop",
        "logit_bias",
        "encoding_format",
        "size",
        "quality",
        "style",
        "background",
        "moderation",
        "output_format",
        "response_format",
        "text",
        "language",
        "timestamp_granularities",
        "stream_options",
        "stream_format",
        "route",
        "fallbacks",
        "provider",
        "transforms",
        "plugins",
        *TOOLS,
    )
)
"""Fields that steer a call and that the model does not read, or that are read apart."""


class Prompt(Gathered):
    """What a request gives the model to read."""

    @cached_property
    def tokens(self) -> int:
        """What it counts, exactly for its texts; without what is added later by `add`."""
        return self.count()


def read_prompt(body: Mapping[str, Any], *, messages: str = "", inputs: tuple[str, ...] = ()) -> Prompt:
    """Gather what the model reads of a body.

    The items of the field `messages` are messages; the fields of `inputs` may be arrays of tokens. All other fields
    count by the texts within them.
    """
    prompt = Prompt(flat_tokens=ANSWER_START_TOKENS if messages else 0)
    for name, value in body.items():
        if name == messages:
            _read_messages(value, prompt)
        elif name in inputs:
            _read_input(value, prompt)
        elif name == "instructions" and messages and value is not None:
            _read_message(value, prompt)
        elif name not in NOT_READ:
            prompt.take(value)
    for name in TOOLS:
        for tool in dicts_in(body.get(name)):
            prompt.flat_tokens += TOOL_TOKENS
            prompt.texts.append(as_text(tool))
    prompt.texts += _schemas(body)
    return prompt


def _schemas(body: Mapping[str, Any]) -> list[str]:
    """Return the schemas of the answer: a chat's in `response_format`, a response's in `text`."""
    chats, text = body.get("response_format"), body.get("text")
    schemas = []
    if isinstance(chats, dict) and len(chats) > 1:
        schemas.append(as_text(chats))
    if isinstance(text, dict) and isinstance(text.get("format"), dict) and len(text["format"]) > 1:
        schemas.append(as_text(text["format"]))
    return schemas


def _read_messages(value: object, prompt: Prompt) -> None:
    for message in value if isinstance(value, list) else [value]:
        if message is not None:
            _read_message(message, prompt)


def _read_message(message: object, prompt: Prompt) -> None:
    prompt.flat_tokens += MESSAGE_TOKENS
    if not isinstance(message, dict):
        prompt.take(message)
        return
    if isinstance(message.get("name"), str) and "role" in message:
        prompt.flat_tokens += NAME_TOKENS
    calls = dicts_in(message.get("tool_calls"))
    for call in [*calls, *([message["function_call"]] if isinstance(message.get("function_call"), dict) else [])]:
        prompt.flat_tokens += CALL_TOKENS
        prompt.take([*read_call(call), *_others_of_call(call)])
    prompt.take({name: value for name, value in message.items() if name not in ("tool_calls", "function_call")})


def read_call(call: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name and the arguments of a call of a tool, in whatever dress: a function's, a custom tool's, bare."""
    inner = next((call[kind] for kind in CALL_KINDS if isinstance(call.get(kind), dict)), call)
    return as_text(inner.get("name")), "".join(as_text(inner.get(field)) for field in ARGUMENTS)


def _others_of_call(call: Mapping[str, Any]) -> Iterator[object]:
    """Yield what a call brings beside its name and its arguments."""
    kinds = [kind for kind in CALL_KINDS if isinstance(call.get(kind), dict)]
    for holder in (call, *(call[kind] for kind in kinds)):
        yield {name: value for name, value in holder.items() if name not in ("name", *ARGUMENTS, *kinds)}


def read_inputs(*names: str) -> Callable[[Mapping[str, Any]], Prompt]:
    """Return a reader of bodies whose named fields may be a text, texts, an array of tokens, arrays of them, parts."""
    return lambda body: read_prompt(body, inputs=names)


def read_chat_prompt(body: Mapping[str, Any]) -> Prompt:
    """Gather what a chat completion's model reads."""
    return read_prompt(body, messages="messages")


def read_response_prompt(body: Mapping[str, Any]) -> Prompt:
    """Gather what the model of a response reads: instructions, input items, tools, and the schema of the answer."""
    return read_prompt(body, messages="input")


def _read_input(value: object, prompt: Prompt) -> None:
    if not isinstance(value, list):
        prompt.take(value)
        return
    if _are_tokens(value):
        prompt.flat_tokens += len(value)
        return
    for item in value:
        if isinstance(item, list) and _are_tokens(item):
            prompt.flat_tokens += len(item)
        else:
            prompt.take(item)


def _are_tokens(value: list[object]) -> bool:
    return bool(value) and all(type(item) is int for item in value)


def count_inputs(name: str) -> Callable[[Mapping[str, Any]], int]:
    """Return a function that tells how many prompts a field holds: an array is several, unless it is one of tokens."""

    def count(body: Mapping[str, Any]) -> int:
        value = body.get(name)
        return len(value) if isinstance(value, list) and value and not _are_tokens(value) else 1

    return count

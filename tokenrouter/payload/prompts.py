"""Gather what the models of the other endpoints read; a chat's prompt is read in `metering`."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from tokenrouter.metering.streams import (
    ANSWER_START_TOKENS,
    AUDIO_TOKENS,
    FILE_TOKENS,
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    TOOL_TOKENS,
    Prompt,
)

FLAT_TOKENS = {
    "image_url": IMAGE_TOKENS,
    "input_image": IMAGE_TOKENS,
    "computer_screenshot": IMAGE_TOKENS,
    "image_generation_call": IMAGE_TOKENS,
    "input_audio": AUDIO_TOKENS,
    "input_file": FILE_TOKENS,
}
"""By the type of a part that is not text; nothing in it is counted as text."""
LABELS = frozenset(("type", "role", "id", "call_id", "status", "phase"))
"""Members whose texts the model does not read, or which the figure for each item covers."""


def read_inputs(*names: str) -> Callable[[Mapping[str, Any]], Prompt]:
    """Return a reader of fields that are a text, texts, an array of tokens, arrays of tokens, or parts."""

    def read(body: Mapping[str, Any]) -> Prompt:
        prompt = Prompt()
        for name in names:
            _read_input(body.get(name), prompt)
        return prompt

    return read


def _read_input(value: object, prompt: Prompt) -> None:
    if isinstance(value, str):
        prompt.texts.append(value)
    elif isinstance(value, dict):
        _gather(value, prompt)
    elif isinstance(value, list):
        if _are_tokens(value):
            prompt.flat_tokens += len(value)
            return
        for item in value:
            _read_input(item, prompt)


def _are_tokens(value: list[object]) -> bool:
    return bool(value) and all(type(item) is int for item in value)


def count_inputs(name: str) -> Callable[[Mapping[str, Any]], int]:
    """Return a function that tells how many prompts a field holds: an array is several, unless it is one of tokens."""

    def count(body: Mapping[str, Any]) -> int:
        value = body.get(name)
        return len(value) if isinstance(value, list) and value and not _are_tokens(value) else 1

    return count


def read_response_prompt(body: Mapping[str, Any]) -> Prompt:
    """Gather what the model of a response reads: instructions, input items, tools, and the schema of the answer."""
    prompt = Prompt(flat_tokens=ANSWER_START_TOKENS)
    for name in ("instructions", "input"):
        value = body.get(name)
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                prompt.flat_tokens += MESSAGE_TOKENS
                _gather(item, prompt)
    for tool in body.get("tools") or ():
        prompt.flat_tokens += TOOL_TOKENS
        prompt.texts.append(orjson.dumps(tool).decode())
    text = body.get("text")
    if isinstance(text, dict) and "format" in text:
        prompt.texts.append(orjson.dumps(text["format"]).decode())
    return prompt


def _gather(value: object, prompt: Prompt) -> None:
    """Take every text within an item, of whatever type: one that is new to us counts too high rather than nothing."""
    if isinstance(value, str):
        prompt.texts.append(value)
    elif isinstance(value, list):
        for item in value:
            _gather(item, prompt)
    elif isinstance(value, dict):
        flat = FLAT_TOKENS.get(kind) if isinstance(kind := value.get("type"), str) else None
        if flat is not None:
            prompt.flat_tokens += flat
            return
        for name, item in value.items():
            if name not in LABELS:
                _gather(item, prompt)

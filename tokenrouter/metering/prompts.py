"""Gather what a request gives the model to read, and estimate or count it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.estimate import estimate_text_tokens
from tokenrouter.metering.texts import call_texts, dicts_in

# Source: OpenAI's cookbook, "How to count tokens with tiktoken": three tokens a message and its role, one more for a
# name, three before the answer.
MESSAGE_TOKENS = 4
NAME_TOKENS = 1
ANSWER_START_TOKENS = 3
TOOL_TOKENS = 12
CALL_TOKENS = 8
# Flat figures for what is not text; an image's is the most that OpenAI's vision pricing gives for one in high detail.
IMAGE_TOKENS = 1445
AUDIO_TOKENS = 1500
FILE_TOKENS = 3000


@dataclass
class Prompt:
    """What a request gives the model to read: its texts, and tokens for all that is not text."""

    texts: list[str] = field(default_factory=list)
    flat_tokens: int = 0

    def estimate(self) -> int:
        """Return a figure at or above the true one, in microseconds."""
        return self.flat_tokens + estimate_text_tokens("\n".join(self.texts))

    def count(self) -> int:
        """Return the exact figure for the texts."""
        return self.flat_tokens + count_tokens(self.texts)


def read_chat_prompt(body: Mapping[str, Any]) -> Prompt:
    """Gather what a chat completion's model reads. What has no known shape is left to the provider to refuse."""
    prompt = Prompt(flat_tokens=ANSWER_START_TOKENS)
    for message in dicts_in(body.get("messages")):
        prompt.flat_tokens += MESSAGE_TOKENS
        _read_content(message.get("content"), prompt)
        if isinstance(name := message.get("name"), str):
            prompt.flat_tokens += NAME_TOKENS
            prompt.texts.append(name)
        for text in call_texts(message):
            prompt.flat_tokens += CALL_TOKENS
            prompt.texts.append(text)
    for key in ("tools", "functions"):
        for tool in dicts_in(body.get(key)):
            prompt.flat_tokens += TOOL_TOKENS
            prompt.texts.append(orjson.dumps(tool).decode())
    if isinstance(schema := body.get("response_format"), dict) and "json_schema" in schema:
        prompt.texts.append(orjson.dumps(schema).decode())
    return prompt


def _read_content(content: object, prompt: Prompt) -> None:
    if isinstance(content, str):
        prompt.texts.append(content)
        return
    for part in dicts_in(content):
        kind = part.get("type")
        if kind == "image_url":
            prompt.flat_tokens += IMAGE_TOKENS
        elif kind == "input_audio":
            prompt.flat_tokens += AUDIO_TOKENS
        elif kind == "file":
            prompt.flat_tokens += FILE_TOKENS
        else:
            prompt.texts += [text for key in ("text", "refusal") if isinstance(text := part.get(key), str)]


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

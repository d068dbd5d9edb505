"""The texts that answers and their events bring, which are counted where nobody reports usage."""

from collections.abc import Iterator, Mapping
from typing import Any


def dicts_in(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list; nothing where the value is none, or has none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def call_texts(message: Mapping[str, Any]) -> list[str]:
    """Return the names and arguments of the function calls in a message or a delta."""
    functions = [call.get("function") for call in dicts_in(message.get("tool_calls"))] + [message.get("function_call")]
    return [
        text
        for function in functions
        if isinstance(function, dict)
        for key in ("name", "arguments")
        if isinstance(text := function.get(key), str)
    ]


TEXT_KEYS = ("content", "reasoning_content", "reasoning", "refusal", "text")


def answer_texts(document: object) -> list[str]:
    """Return every text that an answer or an event brings, over all choices."""
    texts: list[str] = []
    for choice in dicts_in(document.get("choices") if isinstance(document, dict) else None):
        for part in (choice.get("message"), choice.get("delta"), choice):
            if isinstance(part, dict):
                texts += [text for key in TEXT_KEYS if isinstance(text := part.get(key), str)]
                texts += call_texts(part)
    return texts


def response_texts(document: object) -> list[str]:
    """Return every text that a response's output brings: messages, reasoning, and calls of functions."""
    output = document.get("output") if isinstance(document, dict) else None
    return list(_texts_within(output)) if isinstance(output, list) else []


RESPONSE_TEXT_KEYS = frozenset(("text", "refusal", "name", "arguments", "input", "code", "transcript"))


def _texts_within(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _texts_within(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, str):
                if name in RESPONSE_TEXT_KEYS:
                    yield item
            elif name != "annotations":
                yield from _texts_within(item)

"""The ids in an answer by which a later request may name a part of it."""

from collections.abc import Mapping
from typing import Any

from tokenrouter.metering.gather import dicts_in

MOST_ITEMS = 1000


def item_ids(document: object) -> list[str]:
    """Return the ids of the items of a response, and of the spoken answers of a chat."""
    if not isinstance(document, dict):
        return []
    ids = [item.get("id") for item in dicts_in(document.get("output"))]
    for choice in dicts_in(document.get("choices")):
        ids += [audio_id(part) for name in ("message", "delta") if isinstance(part := choice.get(name), dict)]
    return [each for each in ids if isinstance(each, str)][:MOST_ITEMS]


def audio_id(message: Mapping[str, Any]) -> object:
    """Return the id of a message's sound; None where it has none."""
    audio = message.get("audio")
    return audio.get("id") if isinstance(audio, dict) else None

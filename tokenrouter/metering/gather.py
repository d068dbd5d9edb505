"""Gather the texts within values of whatever shape, and figures for what is not text, without recursion."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenrouter.metering import media
from tokenrouter.metering.counting import count_tokens

CHARACTERS_PER_ENCRYPTED_TOKEN = 8
LABELS = frozenset(
    (
        "type",
        "role",
        "id",
        "item_id",
        "call_id",
        "tool_call_id",
        "tool_use_id",
        "status",
        "phase",
        "object",
        "index",
        "format",
        "mime_type",
        "media_type",
        "detail",
        "signature",
        "thought_signature",
        "cache_control",
        "logprobs",
        "annotations",
        "finish_reason",
    )
)
"""Members whose texts the model neither reads nor writes, or which the figure for each item covers."""
ENCRYPTED = frozenset(("encrypted_content", "redacted_thinking"))
ENCRYPTED_TYPE = re.compile("encrypted|redacted")
BASE64 = re.compile(r"[A-Za-z0-9+/_=\r\n-]{64,}")
BARE_MEDIA = {"images": media.IMAGE, "image": media.IMAGE, "audio": media.SOUND, "video": media.VIDEO}
"""Members that may be content in base64, or a list of such, as Ollama's are."""
BESIDE_MEDIA = frozenset(("transcript", "mime_type", "media_type", "mimeType", "format"))


@dataclass
class Gathered:
    """Texts, and tokens for what is not text."""

    texts: list[str] = field(default_factory=list)
    flat_tokens: int = 0
    has_media: bool = False

    def count(self) -> int:
        """Return the tokens of both."""
        return self.flat_tokens + sum(map(count_tokens, self.texts))

    def take(self, value: object, *, counts_media: bool = True) -> None:
        """Take every text within a value, in its order, known to us or not; of media the figure of their kind and size.

        What an answer brings of media counts nothing: `counts_media` is False.
        """
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                self._take_text(value, counts_media)
            elif isinstance(value, list):
                waiting.extend(reversed(value))
            elif isinstance(value, dict):
                waiting.extend(reversed(list(self._members(value, counts_media))))

    def _take_text(self, text: str, counts_media: bool) -> None:
        if media.is_data_url(text):
            self.has_media = True
            self.flat_tokens += media.tokens_of_data_url(text) if counts_media else 0
        else:
            self.texts.append(text)

    def _take_medium(self, kind: str, part: dict[str, Any], counts_media: bool) -> None:
        self.has_media = True
        self.flat_tokens += media.tokens(kind, part) if counts_media else 0

    def _members(self, value: dict[str, Any], counts_media: bool) -> Iterator[object]:
        """Yield the members that may have text, and count those that have none."""
        if (kind := media.kind_of(value)) is not None:
            self._take_medium(kind, value, counts_media)
            return
        is_of_media = value.get("type") != "text" and not BESIDE_MEDIA.isdisjoint(value)
        for name, member in value.items():
            if name in ENCRYPTED or (name == "data" and ENCRYPTED_TYPE.search(str(value.get("type")))):
                self.flat_tokens += len(member) // CHARACTERS_PER_ENCRYPTED_TOKEN if isinstance(member, str) else 0
            elif name in media.PAYLOADS and isinstance(member, str) and (is_of_media or BASE64.fullmatch(member)):
                self._take_medium(media.FILE, {name: member}, counts_media)
            elif name in BARE_MEDIA and (pieces := _bare_content(member)):
                for piece in pieces:
                    self._take_medium(BARE_MEDIA[name], {"data": piece}, counts_media)
            elif name not in LABELS:
                yield member


def _bare_content(member: object) -> list[str]:
    """Return the pieces of base64 that a member is, or that its list is of; none where there is anything else."""
    pieces = member if isinstance(member, list) else [member]
    found = [piece for piece in pieces if isinstance(piece, str) and BASE64.fullmatch(piece)]
    return found if len(found) == len(pieces) else []


def dicts_in(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list; nothing where the value is none, or has none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_text(value: object) -> str:
    """Return a value as the text that a model reads or wrote: a text as it is, an object as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError):  # nested too deep, or with half a surrogate
        return repr(value)

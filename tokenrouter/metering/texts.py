"""The texts that an answer brings, each counted once however many fields repeat it, whole or piece by piece."""

from collections.abc import Iterator
from typing import Any

from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.gather import LABELS, Gathered, as_text, dicts_in
from tokenrouter.metering.prompts import read_call

SAID, THOUGHT = "said", "thought"
GROUPS = {
    "content": SAID,
    "text": SAID,
    "reasoning": THOUGHT,
    "reasoning_content": THOUGHT,
    "reasoning_text": THOUGHT,
    "reasoning_details": THOUGHT,
    "thinking": THOUGHT,
    "thinking_blocks": THOUGHT,
}
"""Fields that bring the same text in several dresses, by what they bring."""
NO_TEXT = frozenset(
    (
        "role",
        "type",
        "id",
        "index",
        "name",
        "object",
        "model",
        "finish_reason",
        "native_finish_reason",
        "stop_reason",
        "logprobs",
        "annotations",
        "citations",
        "signature",
        "token_ids",
        "error",
        "usage",
        "tool_calls",
        "function_call",
    )
)
"""Members of a message that bring no text, or are read apart."""

CALL = " call "
Place = tuple[str, str]
"""Of which choice or item, and what it brings."""


class Pieces:
    """A text as one field brings it: in pieces, or all of it so far each time."""

    __slots__ = ("_counted_bytes", "_counted_tokens", "text")

    def __init__(self) -> None:
        self.text = bytearray()  # a list of its pieces would take several times as much
        self._counted_bytes = 0
        self._counted_tokens = 0

    def take_whole(self, text: bytes) -> None:
        """Take all of the text so far; what does not begin as the text before is one more piece of it after all."""
        if text.startswith(self.text):
            self.text += text[len(self.text) :]
        elif not self.text.startswith(text):
            self.text += text

    def running_tokens(self) -> int:
        """Count what has come since the last time, and return all."""
        new = self.text[self._counted_bytes :]
        self._counted_bytes = len(self.text)
        self._counted_tokens += count_tokens(new.decode(errors="replace"))
        return self._counted_tokens


class AnswerTexts:
    """What has arrived of an answer: by place, as each of the fields brings it that bring the same."""

    def __init__(self) -> None:
        self._places: dict[Place, dict[str, Pieces]] = {}
        self._flat_tokens = 0
        self.additions = 0
        """How often something came."""

    def pieces(self, place: Place, field: str) -> Pieces:
        """Return what a field brings to a place."""
        fields = self._places.setdefault(place, {})
        if field not in fields:
            fields[field] = Pieces()
        return fields[field]

    def add(self, place: Place, field: str, value: object, *, is_whole: bool = False) -> None:
        """Take what a field brings: one more piece of its text, or all of it so far."""
        gathered = Gathered()
        gathered.take(value, counts_media=False)
        self._flat_tokens += gathered.flat_tokens
        self.additions += gathered.has_media or gathered.flat_tokens > 0
        if text := "".join(gathered.texts).encode(errors="replace"):
            pieces = self.pieces(place, field)
            if is_whole:
                pieces.take_whole(text)
            else:
                pieces.text += text
            self.additions += 1

    def forget(self, item: str) -> None:
        """Leave out the pieces of an item, which comes whole."""
        for place in [place for place in self._places if place[0] == item]:
            del self._places[place]

    def add_choice(self, choice: dict[str, Any], at: int = 0) -> None:
        """Take a choice of a chat or a completion: a message, a delta, a text, or several of them.

        `at` is where it stands among others, in case that it does not say so.
        """
        where = str(at if choice.get("index") is None else choice["index"])
        if isinstance(choice.get("delta"), dict):
            self._add_message(where, choice["delta"], "delta", is_whole=False)
        if isinstance(choice.get("message"), dict):
            self._add_message(where, choice["message"], "message", is_whole=True)
        if isinstance(choice.get("text"), str):
            self.add((where, SAID), "text", choice["text"])

    def _add_message(self, where: str, message: dict[str, Any], source: str, *, is_whole: bool) -> None:
        for name, value in message.items():
            if not value or name in NO_TEXT:
                continue
            if name == "audio" and isinstance(value, dict):
                self.additions += bool(value.get("data"))
                value = value.get("transcript")
            for part, text in _parts(name, value):
                brought = text if part in GROUPS else {part: text}  # what is known for a text needs no second look
                self.add((where, GROUPS.get(part, part)), f"{source}.{name}.{part}", brought, is_whole=is_whole)
        calls = dicts_in(message.get("tool_calls"))
        if isinstance(message.get("function_call"), dict):
            calls = [*calls, {"index": "function", "function": message["function_call"]}]
        for at, call in enumerate(calls):
            self._add_call(f"{where}{CALL}{call.get('index', at)}", call, source, is_whole=is_whole)

    def _add_call(self, where: str, call: dict[str, Any], source: str, *, is_whole: bool) -> None:
        self.additions += 1
        name, arguments = read_call(call)
        self.add((where, "name"), source, name, is_whole=True)  # some repeat it with each piece
        self.add((where, "arguments"), source, arguments, is_whole=is_whole)

    def tokens(self) -> int:
        """Count what has arrived, exactly."""
        return self._flat_tokens + sum(count_tokens(each.text.decode(errors="replace")) for each in self._chosen())

    def running_tokens(self) -> int:
        """Count what has arrived; each call looks only at what is new, so it may come often."""
        return self._flat_tokens + sum(each.running_tokens() for each in self._chosen())

    def _chosen(self) -> Iterator[Pieces]:
        """Yield of each place the field that brought most, without places that only repeat another of the choice."""
        seen: set[tuple[str, int]] = set()
        for (where, _), fields in list(self._places.items()):  # another thread may be adding
            longest = max(list(fields.values()), key=lambda pieces: len(pieces.text))
            key = where, hash(bytes(longest.text)) if len(self._places) > 1 else 0
            if key not in seen or CALL in where:
                seen.add(key)
                yield longest


def answer_texts(document: object) -> AnswerTexts:
    """Return the texts of a chat's or a completion's JSON answer, over all choices."""
    texts = AnswerTexts()
    for at, choice in enumerate(dicts_in(document.get("choices") if isinstance(document, dict) else None)):
        texts.add_choice(choice, at)
    return texts


def _parts(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield by name what a member of a message brings: those of an object, which may repeat others of the message."""
    if isinstance(value, dict) and name not in GROUPS and "type" not in value:
        yield from ((part, text) for part, text in value.items() if text and part not in NO_TEXT | LABELS)
    else:
        yield name, value


def response_texts(document: object) -> AnswerTexts:
    """Return the texts of a response's output: messages, reasoning, and calls of functions."""
    texts = AnswerTexts()
    output = document.get("output") if isinstance(document, dict) else None
    for at, item in enumerate(dicts_in(output)):
        add_item(texts, str(at), item)
    return texts


def add_item(texts: AnswerTexts, where: str, item: dict[str, Any]) -> None:
    """Take an item of a response, whole."""
    rest = {name: as_text(value) if name in ("arguments", "input") else value for name, value in item.items()}
    texts.add((where, "name"), "item", rest.pop("name", ""), is_whole=True)
    texts.add((where, "item"), "item", rest, is_whole=True)
    if str(item.get("type")).endswith("_call"):
        texts.additions += 1

"""The meter of streams whose events name their type, and which one of certain types ends, as those of responses do.

Source: OpenAI's API reference: streaming events of responses, images, speech and transcriptions.
"""

from dataclasses import dataclass
from typing import Any

from tokenrouter.errors import code_and_type
from tokenrouter.metering import sse
from tokenrouter.metering.gather import Gathered
from tokenrouter.metering.given import item_ids
from tokenrouter.metering.meter import StreamState
from tokenrouter.metering.streams import is_error
from tokenrouter.metering.texts import THOUGHT, AnswerTexts, add_item, response_texts
from tokenrouter.metering.usage import Report, merge, read_usage
from tokenrouter.untrusted_json import parse_json

OPENING = frozenset(("response.created", "response.queued", "response.in_progress", "keepalive", "ping"))
"""Events that bring nothing of an answer."""
PART_DONE = "response.content_part.done"
ITEM_EVENTS = frozenset(("response.output_item.added", "response.output_item.done"))
WHOLE_TEXTS = ("text", "refusal", "arguments", "input", "code", "transcript")
"""What the last event of a part repeats."""


FRAME = frozenset(
    ("type", "sequence_number", "response", "item", "part", "usage", "created_at", "object", "obfuscation")
)
"""Members of an event that bring nothing by themselves, or that are read apart."""


def _is_bare(document: dict[str, Any]) -> bool:
    """Tell whether an event brings neither a text nor a medium."""
    gathered = Gathered()
    gathered.take({name: value for name, value in document.items() if name not in FRAME}, counts_media=False)
    return not (gathered.has_media or gathered.flat_tokens or any(gathered.texts))


def _is_of_sound(kind: str) -> bool:
    return "audio" in kind and "transcript" not in kind


def _has_failed(response: object) -> bool:
    return isinstance(response, dict) and is_error(response)


def _what(kind: str) -> str:
    """Return what events of a type bring; of a thought a text and a summary, which may be the same."""
    return THOUGHT if kind.startswith("response.reasoning") else kind.rpartition(".")[0]


@dataclass(frozen=True)
class LastEvents:
    """The types of the events after which nothing of an answer comes: it is whole, or it failed."""

    good: frozenset[str] = frozenset()
    bad: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Tell whether any event is the last one by its type."""
        return bool(self.good)


NOTHING_LAST = LastEvents()


class TypedMeter:
    """The meter of streams that an event of a certain type ends."""

    def __init__(self, last_events: LastEvents, answers: int) -> None:
        """Expect so many last events: each image has one of its own."""
        self.state = StreamState.WAITING
        self.report: Report | None = None
        self.error = ""
        self.response_id: str | None = None
        self.item_ids: dict[str, None] = {}
        self._last = last_events
        self._to_come = answers
        self._came = 0
        self._texts = AnswerTexts()
        self._items: dict[str, str] = {}  # where the texts of an item are, by its number and its id

    def read(self, event: bytes) -> bool:
        """Take note of an event; return False: none of them came only since usage was requested."""
        document = parse_json(sse.event_data(event))
        if isinstance(document, dict):
            has_type = isinstance(document.get("type"), str)
            self._read_document(document["type"] if has_type else sse.event_name(event), document)
        return False

    def take_plain_chunk(self, data: bytes) -> bool:
        """Return False: only a parsed event can be told apart from the last one."""
        return False

    def _read_document(self, kind: str, document: dict[str, Any]) -> None:
        response = document.get("response")
        reported = merge(report for report in (read_usage(response), read_usage(document)) if report is not None)
        if reported is not None:
            self.report = self._with(reported)
        is_bad = kind in self._last.bad or is_error(document) or (kind in self._last.good and _has_failed(response))
        before = self._texts.additions
        self._take_texts(kind, document)
        is_bare = is_bad or kind in OPENING or not self.state.has_nothing or _is_bare(document)
        if reported or self._texts.additions > before or not is_bare:
            self.state = self.state.after_answer()
        if kind in ITEM_EVENTS:
            self.item_ids |= dict.fromkeys(item_ids({"output": [document.get("item")]}))
        if is_bad:
            self.state, self.error = self.state.after_error(), code_and_type(document)
        elif kind in self._last.good:
            self._came += 1
            self._take_whole(response)
            if self._came >= self._to_come:
                self.state = self.state.after_end()

    def _with(self, reported: Report) -> Report:
        """Return all that was reported: of images that have each its own report the sum, else the larger figures."""
        if self.report is None:
            return reported
        return self.report + reported if self._came else self.report.merged(reported)

    def _take_texts(self, kind: str, document: dict[str, Any]) -> None:
        item, part = document.get("item"), document.get("part")
        where = self._place(document, item)
        if isinstance(item, dict):
            if kind.endswith(".done"):
                self._texts.forget(where)
                self._texts.forget("")  # what named no item was of the one at work
            add_item(self._texts, where, item)
        elif kind.endswith(".delta") and not _is_of_sound(kind):
            self._texts.add((where, _what(kind)), kind, document.get("delta"))
        elif kind == PART_DONE and isinstance(part, dict):
            self._texts.add((where, _what(f"response.{part.get('type')}.done")), kind, part)
        elif kind.endswith(".done"):
            for name in WHOLE_TEXTS:
                if isinstance(document.get(name), str):
                    self._texts.add((where, _what(kind)), kind, document[name])

    def _place(self, document: dict[str, Any], item: object) -> str:
        """Return of which item an event is: some events give its number, some its id, and some an id of their own."""
        item_id = item.get("id") if isinstance(item, dict) else document.get("item_id")
        names = [str(each) for each in (document.get("output_index"), item_id) if each is not None]
        if isinstance(item, dict) and not names:
            names = [f"item {len(self._items)}"]
        place = next((self._items[name] for name in names if name in self._items), names[0] if names else "")
        if isinstance(item, dict) or place not in self._items:
            self._items |= dict.fromkeys(names, place)
        return place

    def _take_whole(self, response: object) -> None:
        """Trust the whole answer, where the last event repeats it, more than its pieces."""
        if isinstance(response, dict):
            if isinstance(response.get("id"), str):
                self.response_id = response["id"]
            self.item_ids |= dict.fromkeys(item_ids(response))
            whole = response_texts(response)
            if whole.additions:
                self._texts = whole
                self.state = self.state.after_answer()

    def is_whole(self, answers: int) -> bool:
        """Tell whether an answer came to its end, though perhaps not as many as were requested."""
        return self._came > 0

    def completion_tokens(self) -> int:
        """Count what has arrived, exactly."""
        return self._texts.tokens()

    def running_tokens(self) -> int:
        """Count what has arrived, nearly; each call looks only at what is new, so it may come often."""
        return self._texts.running_tokens()

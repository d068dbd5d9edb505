"""Watch streams whose events name their type, and which one of certain types ends, as those of responses do.

Source: OpenAI's API reference: streaming events of responses, images, speech and transcriptions.
"""

from dataclasses import dataclass
from typing import Any

from tokenrouter.metering import sse
from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.estimate import estimate_text_tokens
from tokenrouter.metering.given import item_ids
from tokenrouter.metering.meter import StreamState
from tokenrouter.metering.texts import response_texts
from tokenrouter.metering.usage import Usage, read_usage
from tokenrouter.untrusted_json import parse_json

OPENING = frozenset(("response.created", "response.queued", "response.in_progress", "keepalive"))
"""Events that bring nothing of an answer."""
ITEM_EVENTS = frozenset(("response.output_item.added", "response.output_item.done"))
BINARY_DELTA = "response.audio.delta"


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
        self.usage: Usage | None = None
        self.response_id: str | None = None
        self.item_ids: dict[str, None] = {}
        self._last = last_events
        self._to_come = answers
        self._came = 0
        self._texts: list[str] = []
        self._estimated_tokens = 0
        self._estimated_texts = 0

    def read(self, event: bytes) -> bool:
        """Take note of an event; return False: none of them is there for usage alone."""
        document = parse_json(sse.event_data(event))
        if not isinstance(document, dict):
            return False
        kind = document["type"] if isinstance(document.get("type"), str) else ""
        response = document.get("response")
        if (usage := read_usage(response) or read_usage(document)) is not None:
            self.usage = usage + self.usage if self._came and self.usage else usage
        self._note(kind, document)
        if kind in self._last.good:
            self._came += 1
            self._take_whole(response)
            if self._came >= self._to_come:
                self.state = StreamState.WHOLE
        elif kind in self._last.bad or document.get("error"):
            self.state = self.state.after_error()
        return False

    def take_plain_chunk(self, data: bytes) -> bool:
        """Return False: only a parsed event can be told apart from the last one."""
        return False

    def _note(self, kind: str, document: dict[str, Any]) -> None:
        is_answer = self.usage is not None or not (kind in OPENING or kind in self._last.bad)
        if is_answer and self.state is StreamState.WAITING:
            self.state = StreamState.ANSWERING
        delta = document.get("delta")
        if kind.endswith(".delta") and isinstance(delta, str) and kind != BINARY_DELTA:
            self._texts.append(delta)
        item = document.get("item")
        if kind in ITEM_EVENTS:
            self.item_ids |= dict.fromkeys(item_ids({"output": [item]}))
        if kind == "response.output_item.added" and isinstance(item, dict) and isinstance(item.get("name"), str):
            self._texts.append(item["name"])

    def _take_whole(self, response: object) -> None:
        """Trust the whole answer, where the last event repeats it, more than its pieces."""
        if isinstance(response, dict):
            if isinstance(response.get("id"), str):
                self.response_id = response["id"]
            self.item_ids |= dict.fromkeys(item_ids(response))
            self._texts = response_texts(response) or self._texts

    def is_whole(self, answers: int) -> bool:
        """Tell whether an answer came to its end, though perhaps not as many as were requested."""
        return self._came > 0

    def completion_tokens(self) -> int:
        """Count what has arrived, exactly."""
        return count_tokens(["".join(self._texts)])

    def estimated_tokens(self) -> int:
        """Estimate what has arrived; each call looks only at what is new, so it may come often."""
        new = self._texts[self._estimated_texts :]
        self._estimated_texts += len(new)
        self._estimated_tokens += estimate_text_tokens("".join(new))
        return self._estimated_tokens

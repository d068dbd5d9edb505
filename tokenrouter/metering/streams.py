"""Usage: read it from an answer or its events, estimate it before a call, count it where nobody reported it."""

import re

from tokenrouter.metering import sse
from tokenrouter.metering.counting import count_tokens
from tokenrouter.metering.estimate import estimate_text_tokens
from tokenrouter.metering.given import item_ids
from tokenrouter.metering.meter import StreamState
from tokenrouter.metering.texts import answer_texts, dicts_in
from tokenrouter.metering.usage import Usage, read_usage
from tokenrouter.untrusted_json import parse_json

CONTENT = re.compile(rb'"content"\s*:\s*"([^"]*)"')
NO_EVENT = b"\0"  # begins and ends none


def _plain_text(choices: object) -> str | None:
    """Return the text of the one choice whose delta is nothing else, as nearly all are; half the work of a chunk."""
    if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict):
        choice = choices[0]
        delta = choice.get("delta")
        if isinstance(delta, dict) and len(delta) == 1 and not choice.get("finish_reason"):
            text = delta.get("content")
            return text if isinstance(text, str) and "text" not in choice and "message" not in choice else None
    return None


class StreamMeter:
    """The meter of chats and completions, whose stream [DONE] ends."""

    def __init__(self) -> None:
        self.state = StreamState.WAITING
        self.usage: Usage | None = None
        self.response_id: str | None = None  # none that a later call may name
        self.item_ids: dict[str, None] = {}
        self._finished: set[str] = set()  # the choices that said why they ended
        self._text = bytearray()  # all that arrived; a list of its pieces would take several times as much
        self._estimated_tokens = 0
        self._estimated_bytes = 0
        self._before_text = self._after_text = NO_EVENT

    def read(self, event: bytes) -> bool:
        """Take note of an event; return whether it is the extra one that only reports usage."""
        return not self.take_plain_chunk(event) and self._read_whole(event)

    def take_plain_chunk(self, data: bytes) -> bool:
        """Take note of bytes that are one event and differ from an earlier chunk in its text alone, or return False."""
        if data.startswith(self._before_text) and data.endswith(self._after_text):
            text = data[len(self._before_text) : -len(self._after_text)]
            if b'"' not in text and b"\\" not in text:
                self._text += text
                return True
        return False

    def _read_whole(self, event: bytes) -> bool:
        data = sse.event_data(event)
        if data.strip() == b"[DONE]":
            self.state = StreamState.WHOLE
            return False
        document = parse_json(data)
        if not isinstance(document, dict):
            return False
        if document.get("error"):
            self.state = self.state.after_error()
            return False
        choices = document.get("choices")
        if (text := _plain_text(choices)) is not None and not document.get("usage"):
            self._note_answer()
            self._text += text.encode()
            self._remember(event)
            return False
        self.usage = read_usage(document) or self.usage
        self._text += "".join(answer_texts(document)).encode()
        if choices:
            self._note_answer()
            self.item_ids |= dict.fromkeys(item_ids(document))
        self._finished |= {str(choice.get("index")) for choice in dicts_in(choices) if choice.get("finish_reason")}
        only_usage = choices == [] and isinstance(document.get("usage"), dict)
        if only_usage:
            self.state = StreamState.REPORTED
        return only_usage

    def _note_answer(self) -> None:
        if self.state is StreamState.WAITING:
            self.state = StreamState.ANSWERING

    def _remember(self, event: bytes) -> None:
        """Keep what surrounds the text of a plain chunk: one that differs in its text alone need not be parsed.

        That holds where the event has no escapes, so that its one `content` is the one whose text was read.
        """
        if b"\\" not in event and event.count(b'"content"') == 1 and (text := CONTENT.search(event)):
            self._before_text, self._after_text = event[: text.start(1)], event[text.end(1) :]

    def is_whole(self, answers: int) -> bool:
        """Tell whether nothing of so many answers is missing though [DONE] never came."""
        return self.state in (StreamState.WHOLE, StreamState.REPORTED) or len(self._finished) >= answers

    def completion_tokens(self) -> int:
        """Count what has arrived, exactly."""
        return count_tokens([self._text.decode(errors="replace")])

    def estimated_tokens(self) -> int:
        """Estimate what has arrived; each call looks only at what is new, so it may come often."""
        new = bytes(self._text[self._estimated_bytes :])
        self._estimated_bytes += len(new)
        self._estimated_tokens += estimate_text_tokens(new.decode(errors="replace"))
        return self._estimated_tokens

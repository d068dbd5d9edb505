"""The meter of chats and completions: what their events bring, what they report, and whether the answer is whole."""

import re
from typing import Any

from tokenrouter.errors import code_and_type
from tokenrouter.metering import sse
from tokenrouter.metering.gather import dicts_in
from tokenrouter.metering.given import item_ids
from tokenrouter.metering.meter import StreamState
from tokenrouter.metering.texts import SAID, AnswerTexts, Pieces
from tokenrouter.metering.usage import Report, merge, read_usage
from tokenrouter.untrusted_json import parse_json

CONTENT = re.compile(rb'"content"\s*:\s*"([^"]*)"')
NO_EVENT = b"\0"  # begins and ends none
FRAME = frozenset(
    (
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "service_tier",
        "provider",
        "choices",
        "obfuscation",  # letters of OpenAI's, so that the length of an event tells nothing
    )
)
"""Members of an event that bring nothing by themselves."""
BROUGHT_BY_OUR_REQUEST = frozenset(("usage", "cost"))
PLAIN = FRAME | {"usage"}
OF_X_GROQ = frozenset(("id", "usage"))
ANSWERS = ("choices", "data", "output")
GOOD_CODES = (None, "", 0, "0", 200, "200")


def is_error(document: dict[str, Any]) -> bool:
    """Tell whether a document under status 200, or an event, is an error, in whatever shape."""
    if document.get("error") or "error" in (document.get("object"), document.get("type")) or document.get("error_code"):
        return True
    status = document.get("base_resp")
    if isinstance(status, dict) and status.get("status_code"):
        return True
    return not any(document.get(name) for name in ANSWERS) and _tells_a_failure(document)


def _tells_a_failure(document: dict[str, Any]) -> bool:
    """Tell whether a document without an answer says why: FastAPI's, Cloudflare's, or a code beside a message."""
    if document.get("detail") or document.get("success") is False or document.get("status") == "failed":
        return True
    has_message = isinstance(document.get("message"), str) or isinstance(document.get("msg"), str)
    return has_message and document.get("code") not in GOOD_CODES


def _as_error(document: object) -> dict[str, Any]:
    """Return what came as an error, in whatever shape, as a document that says so."""
    fields = document if isinstance(document, dict) else {}
    return {**fields, "error": fields.get("error") or fields or True}


def has_error(document: dict[str, Any]) -> bool:
    """Tell whether a document, or one of its choices, is an error."""
    return is_error(document) or any(map(_has_failed, dicts_in(document.get("choices"))))


def _has_failed(choice: dict[str, Any]) -> bool:
    return bool(choice.get("error")) or choice.get("finish_reason") == "error"


def _has_finished(choice: dict[str, Any]) -> bool:
    """Tell whether a choice says why it ended; some write a null as a text."""
    return bool(choice.get("finish_reason")) and choice["finish_reason"] != "null"


def _plain_text(document: dict[str, Any]) -> str | None:
    """Return the text of the one choice whose delta is nothing else, as nearly all are; half the work of a chunk."""
    choices = document.get("choices")
    if document.get("usage") or not document.keys() <= PLAIN:
        return None
    if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict):
        choice = choices[0]
        delta = choice.get("delta")
        if isinstance(delta, dict) and len(delta) == 1 and not choice.get("finish_reason"):
            text = delta.get("content")
            is_plain = isinstance(text, str) and choice.keys().isdisjoint(("text", "message", "error", "usage"))
            return text if is_plain else None
    return None


class StreamMeter:
    """The meter of streams that [DONE] ends."""

    def __init__(self) -> None:
        self.state = StreamState.WAITING
        self.report: Report | None = None
        self.error = ""
        self.response_id: str | None = None  # none that a later call may name
        self.item_ids: dict[str, None] = {}
        self._texts = AnswerTexts()
        self._finished: set[str] = set()  # the choices that said why they ended
        self._before_text = self._after_text = NO_EVENT
        self._plain = Pieces()  # where the text of plain chunks goes

    def read(self, event: bytes) -> bool:
        """Take note of an event; return whether it came only since usage was requested."""
        return not self.take_plain_chunk(event) and self._read_whole(event)

    def take_plain_chunk(self, data: bytes) -> bool:
        """Take note of bytes that are one event and differ from an earlier chunk in its text alone, or return False."""
        if data.startswith(self._before_text) and data.endswith(self._after_text):
            text = data[len(self._before_text) : -len(self._after_text)]
            if b'"' not in text and b"\\" not in text:
                self._plain.text += text
                return True
        return False

    def _read_whole(self, event: bytes) -> bool:
        data = sse.event_data(event)
        if data.strip() == b"[DONE]":
            self.state = self.state.after_end()
            return False
        document = parse_json(data)
        if sse.is_error(event):
            document = _as_error(document)
        if not isinstance(document, dict):
            return False
        if text := _plain_text(document):
            self._take_plain(event, text, document["choices"])
            return False
        return self._read_document(document)

    def _take_plain(self, event: bytes, text: str, choices: Any) -> None:
        """Take a chunk that brings a text alone, and let those like it go by without being parsed.

        That holds where the event has no escapes, so that its one `content` is the one whose text was read.
        """
        pieces = self._texts.pieces((str(choices[0].get("index", 0)), SAID), "delta.content")
        pieces.text += text.encode(errors="replace")
        self.state = self.state.after_answer()
        if b"\\" not in event and event.count(b'"content"') == 1 and (found := CONTENT.search(event)):
            self._before_text, self._after_text = event[: found.start(1)], event[found.end(1) :]
            self._plain = pieces

    def _read_document(self, document: dict[str, Any]) -> bool:
        choices = dicts_in(document.get("choices"))
        reported = read_usage(document)
        self.report = merge(report for report in (self.report, reported) if report is not None)
        before = self._texts.additions
        for at, choice in enumerate(choices):
            self._texts.add_choice(choice, at)
        self.item_ids |= dict.fromkeys(item_ids(document))
        if reported or self._texts.additions > before:
            self.state = self.state.after_answer()
        if has_error(document):
            self.state, self.error = self.state.after_error(), code_and_type(document)
            return False
        self._finished |= {str(choice.get("index")) for choice in choices if _has_finished(choice)}
        only_usage = not choices and not BROUGHT_BY_OUR_REQUEST.isdisjoint(document) and _brings_no_more(document)
        if only_usage and reported is not None:
            self.state = self.state.after_report()
            self._before_text = self._after_text = NO_EVENT  # a text behind it has to be seen
        return only_usage

    def is_whole(self, answers: int) -> bool:
        """Tell whether nothing of so many answers is missing though [DONE] never came."""
        return self.state in (StreamState.WHOLE, StreamState.REPORTED) or len(self._finished) >= answers

    def completion_tokens(self) -> int:
        """Count what has arrived, exactly."""
        return self._texts.tokens()

    def running_tokens(self) -> int:
        """Count what has arrived; each call looks only at what is new, so it may come often."""
        return self._texts.running_tokens()


def _brings_no_more(document: dict[str, Any]) -> bool:
    """Tell whether an event has nothing but usage or a cost, in its frame."""
    if document.get("usage") is None and "cost" not in document:
        return False
    others = {name for name, value in document.items() if value and name not in FRAME | BROUGHT_BY_OUR_REQUEST}
    groq = document.get("x_groq")
    return not others or (others == {"x_groq"} and isinstance(groq, dict) and groq.keys() <= OF_X_GROQ)

"""The fields that we add to a request, and which of them are refused: what was learned of a model is remembered."""

import re
import threading
import time

from tokenrouter.metering.gather import as_text
from tokenrouter.payload.calls import STREAM_OPTIONS, Call
from tokenrouter.untrusted_json import parse_json

REMEMBERED_S = 3600.0  # a provider may learn a field, and without reported usage a stream's charge is an estimate
MOST_REMEMBERED = 10_000
NAMES = {STREAM_OPTIONS: ("streamoptions", "includeusage")}
MAY_BE_ABOUT_FIELDS = (400, 404, 405, 406, 415, 422, 500, 501)
REFUSED = (
    r"un(?:known|recogni[sz]ed|supported|expected|permitted)|extra|additional|no such|cannot find|"
    r"not (?:\w+ )?(?:supported|permitted|allowed|recogni[sz]ed|known|expected|accepted)|"
    r"(?:does not|doesn't) (?:support|accept|allow|know)"
)
FIELD = r"field|param|argument|propert|input|option|attribute|\bkey"
VAGUE = re.compile(rf"(?:invalid|illegal|bad|wrong) (?:{FIELD}|request|body|payload|schema)|validation|参数|字段")
"""What may be said of any field, and so of ours only where none of the caller's is named."""
WORDS = re.compile(f"extra_forbidden|(?:{REFUSED})[^.]{{0,60}}(?:{FIELD})|(?:{FIELD})[^.]{{0,60}}(?:{REFUSED})")


def blamed(call: Call, status: int, provider_text: bytes) -> frozenset[str]:
    """Return which of the fields that only we wrote a provider's error may be about.

    That are those that it names, in whatever spelling; where it names none, and speaks of fields that are unknown, all.
    """
    if not call.additions or status not in MAY_BE_ABOUT_FIELDS:
        return frozenset()
    document = parse_json(provider_text)  # where letters beyond ASCII may be written as escapes
    text = (provider_text.decode(errors="replace") if document is None else as_text(document)).lower()
    letters = re.sub(r"[\W_]+", "", text)
    named = frozenset(field for field in call.additions if any(name in letters for name in _names(field)))
    if named or status >= 500:
        return named
    is_meant = WORDS.search(text) or (VAGUE.search(text) and not _names_callers_field(call, text))
    return call.additions if is_meant else frozenset()


def _names_callers_field(call: Call, text: str) -> bool:
    return any(re.search(rf"\b{re.escape(field)}", text) for field in call.body if field not in call.additions)


def _names(field: str) -> tuple[str, ...]:
    return NAMES.get(field) or (field.replace("_", ""),)


class RefusedAdditions:
    """Which fields of ours are refused, by model, as far as this worker has learned. Safe for many threads.

    Each team learns for itself: by what it asks for, none can have the streams of another counted less exactly.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._learned: dict[tuple[int, str, str], tuple[frozenset[str], float]] = {}
        self._lock = threading.Lock()

    def of(self, team_id: int, call: Call) -> frozenset[str]:
        """Return the fields that are better left out of a call."""
        fields, until = self._learned.get((team_id, call.endpoint.path, call.model), (frozenset(), 0.0))
        return fields if time.monotonic() < until else frozenset()

    def learn(self, team_id: int, call: Call, fields: frozenset[str]) -> None:
        """Remember that these fields were refused, and that the call went through without them."""
        key = team_id, call.endpoint.path, call.model
        with self._lock:
            fields |= self.of(team_id, call)
            self._learned.pop(key, None)
            if len(self._learned) >= MOST_REMEMBERED:
                del self._learned[next(iter(self._learned))]  # the oldest
            self._learned[key] = fields, time.monotonic() + REMEMBERED_S

"""What is known of a streamed answer while it passes: the part that every meter of streams plays."""

from enum import Enum, auto
from typing import Protocol

from tokenrouter.metering.usage import Report


class StreamState(Enum):
    """How far a streamed answer has come. Something of an answer is a text, a call, a medium, or usage above zero."""

    WAITING = auto()
    """Nothing of an answer came."""
    ANSWERING = auto()
    """Something of it came."""
    REPORTED = auto()
    """The event that only reports usage came, and nothing of the answer since."""
    WHOLE = auto()
    """The event that ends it came."""
    EMPTY = auto()
    """The event that ends it came, and nothing before it."""
    REFUSED = auto()
    """An error came before anything of an answer."""
    BROKEN = auto()
    """An error came in the middle of the answer."""

    @property
    def has_failed(self) -> bool:
        """Whether the provider sent an error."""
        return self in (StreamState.REFUSED, StreamState.BROKEN)

    @property
    def has_ended(self) -> bool:
        """Whether nothing that still comes counts."""
        return self in (StreamState.WHOLE, StreamState.EMPTY) or self.has_failed

    @property
    def has_nothing(self) -> bool:
        """Whether nothing of an answer came."""
        return self in (StreamState.WAITING, StreamState.EMPTY, StreamState.REFUSED)

    def after_answer(self) -> "StreamState":
        """Return the state once something of an answer came."""
        return self if self.has_ended else StreamState.ANSWERING

    def after_report(self) -> "StreamState":
        """Return the state once an event came that only reports usage."""
        return StreamState.REPORTED if self is StreamState.ANSWERING else self

    def after_end(self) -> "StreamState":
        """Return the state once the event came that ends the stream."""
        return StreamState.EMPTY if self.has_nothing else StreamState.WHOLE

    def after_error(self) -> "StreamState":
        """Return the state once the provider has sent an error."""
        return StreamState.REFUSED if self.has_nothing else StreamState.BROKEN


class Meter(Protocol):
    """Watch the events of one streamed answer: what arrived, what it cost, and whether it came to its end."""

    state: StreamState
    report: Report | None
    """What the provider reported so far."""
    response_id: str | None
    """The id by which a later call may name the answer."""
    error: str
    """The code and type of the error that came, if one did."""
    item_ids: dict[str, None]
    """The ids by which it may name parts of it, in the order they came."""

    def read(self, event: bytes) -> bool:
        """Take note of an event, blank line or not; return whether it came only since usage was requested."""

    def take_plain_chunk(self, data: bytes) -> bool:
        """Take note of bytes that are one event and differ from an earlier one in their text alone, or return False."""

    def is_whole(self, answers: int) -> bool:
        """Tell whether nothing of so many answers is missing though no event ended the stream."""

    def completion_tokens(self) -> int:
        """Count what has arrived, exactly."""

    def running_tokens(self) -> int:
        """Count what has arrived, nearly; each call looks only at what is new, so it may come often."""

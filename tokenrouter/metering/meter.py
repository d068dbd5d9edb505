"""What is known of a streamed answer while it passes: the part that every meter of streams plays."""

from enum import Enum, auto
from typing import Protocol

from tokenrouter.metering.usage import Usage


class StreamState(Enum):
    """How far a streamed answer has come."""

    WAITING = auto()
    """Nothing of an answer came."""
    ANSWERING = auto()
    """Something of it came."""
    REPORTED = auto()
    """The event that only reports usage came, after which nothing of the answer comes."""
    WHOLE = auto()
    """The event that ends it came."""
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
        return self is StreamState.WHOLE or self.has_failed

    @property
    def has_nothing(self) -> bool:
        """Whether nothing of an answer came."""
        return self in (StreamState.WAITING, StreamState.REFUSED)

    def after_error(self) -> "StreamState":
        """Return the state once the provider has sent an error."""
        return StreamState.REFUSED if self.has_nothing else StreamState.BROKEN


class Meter(Protocol):
    """Watch the events of one streamed answer: what arrived, what it cost, and whether it came to its end."""

    state: StreamState
    usage: Usage | None
    """As the provider reported it so far."""
    response_id: str | None
    """The id by which a later call may name the answer."""
    item_ids: dict[str, None]
    """The ids by which it may name parts of it, in the order they came."""

    def read(self, event: bytes) -> bool:
        """Take note of an event, whose blank line may be missing; return whether it is there for usage alone."""

    def take_plain_chunk(self, data: bytes) -> bool:
        """Take note of bytes that are one event and differ from an earlier one in their text alone, or return False."""

    def is_whole(self, answers: int) -> bool:
        """Tell whether nothing of so many answers is missing though no event ended the stream."""

    def completion_tokens(self) -> int:
        """Count what has arrived, exactly."""

    def estimated_tokens(self) -> int:
        """Estimate what has arrived; each call looks only at what is new, so it may come often."""

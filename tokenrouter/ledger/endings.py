"""How calls ended, passed to those who write a line or count of each, once it is committed.

A transaction notes an ending where it adds the call to the daily totals, so each call is reported exactly once:
settled, refused, or settled by recovery.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from tokenrouter.ledger.rules import CallRequest, Outcome


class Ending(NamedTuple):
    """A call that has ended, or a refusal and how many more calls it stands for."""

    request: CallRequest
    outcome: Outcome
    cost: int | None
    """In billionths of the currency; None if not known."""
    times: int = 1
    retries: int = 0
    """How many attempts to settle it failed."""
    is_recovered: bool = False
    """Whether it was settled for a worker that died."""


class Listener(Protocol):
    """Somebody who is interested in endings."""

    def take(self, endings: Sequence[Ending]) -> None:
        """Take these and return at once, to work on them later: callers wait meanwhile."""

    def close(self, timeout_s: float) -> None:
        """Finish the work on what was taken, within this time; nothing more comes."""


class Endings:
    """The endings of one process."""

    def __init__(self) -> None:
        self._listeners: Sequence[Listener] = ()

    def listen(self, *listeners: Listener) -> None:
        """Pass all endings from now on to these."""
        self._listeners = listeners

    def add(self, endings: Iterable[Ending]) -> None:
        """Pass on endings that were committed."""
        if ended := list(endings):
            for listener in self._listeners:
                listener.take(ended)

    def close(self, timeout_s: float) -> None:
        """Let the listeners finish."""
        for listener in self._listeners:
            listener.close(timeout_s)

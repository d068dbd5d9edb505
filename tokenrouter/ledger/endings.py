"""What became of calls, told to whoever keeps a line or a count of each, once it is committed.

A transaction notes an ending where it adds the call to the sums of its day, so that each is told once, whichever way it
came: settled, refused, or settled by recovery.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from tokenrouter.ledger.rules import CallRequest, Outcome


class Ending(NamedTuple):
    """A call that has ended, or a refusal and how many calls more it stands for."""

    request: CallRequest
    outcome: Outcome
    cost: int | None
    """In billionths of the currency; None if it is not known."""
    times: int = 1
    retries: int = 0
    """How often its settlement was tried in vain."""
    is_recovered: bool = False
    """Whether its worker had died."""


class Listener(Protocol):
    """Who is told of endings."""

    def take(self, endings: Sequence[Ending]) -> None:
        """Take these over at once, to do something about them later: the writer's turn is held, and callers wait."""

    def close(self, timeout_s: float) -> None:
        """Be done with what was taken within this time: no more comes."""


class Endings:
    """The endings of one process."""

    def __init__(self) -> None:
        self._listeners: Sequence[Listener] = ()

    def tell(self, *listeners: Listener) -> None:
        """Have all endings from now on told to these."""
        self._listeners = listeners

    def add(self, endings: Iterable[Ending]) -> None:
        """Tell what was committed."""
        if ended := list(endings):
            for listener in self._listeners:
                listener.take(ended)

    def close(self, timeout_s: float) -> None:
        """Let them be done with it."""
        for listener in self._listeners:
            listener.close(timeout_s)

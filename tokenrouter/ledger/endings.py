"""What became of calls, told to whoever keeps a line or a count of each, once it is committed.

A transaction notes an ending where it adds the call to the sums of its day, so that each is told once, whichever way it
came: settled, refused, or settled by recovery. It is told outside of the transaction, with no lock held.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tokenrouter.ledger.rules import CallRequest, Outcome


class Ending(NamedTuple):
    """A call that has ended, or a refusal and how many calls more it stands for."""

    request: CallRequest
    outcome: Outcome
    cost: int | None
    """In billionths of the currency; None where it is not known."""
    times: int = 1
    retries: int = 0
    """How often its settlement was tried in vain."""
    is_recovered: bool = False
    """Whether its worker had died."""


Listener = Callable[[Ending], None]


class Endings:
    """The endings of one process that are committed and not told yet."""

    def __init__(self) -> None:
        self._listeners: Sequence[Listener] = ()
        self._untold: deque[Ending] = deque()
        self._thread: threading.Thread | None = None

    def tell(self, *listeners: Listener) -> None:
        """Have all endings from now on told to these."""
        self._listeners = listeners

    def add(self, endings: Iterable[Ending]) -> None:
        """Take over what was committed; it is quick, since the writer's turn is held meanwhile."""
        if self._listeners:
            self._untold.extend(endings)

    def pass_on(self) -> None:
        """Tell what is untold. Any thread may, and each ending is told by one of them."""
        while (ending := self._next()) is not None:
            for listener in self._listeners:
                listener(ending)

    def pass_on_apart(self) -> None:
        """Have a thread of its own do it, which may wait for whoever reads the log: the caller must not."""
        if self._untold and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self.pass_on, name="endings", daemon=True)
            self._thread.start()

    def _next(self) -> Ending | None:
        try:
            return self._untold.popleft()
        except IndexError:
            return None

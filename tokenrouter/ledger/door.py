"""Requests that are turned away before they get a row of the log: counted in memory, written with the heartbeats.

Somebody who tries tokens, from however many addresses, causes no write per request and no memory that grows. Counts
that are not yet written are lost if this process is killed.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import bindparam, delete

from tokenrouter.database.statements import Inserter, Statement
from tokenrouter.database.tables import DoorRefusal
from tokenrouter.ledger.transaction import Transaction

MOST_OF_STRANGERS = 100  # lines a minute; beyond them only requests with a team's token get their own
MOST_LINES = 1_000
MOST_WAITING = 10_000  # while the database is away
KEPT_MINUTES = 30 * 24 * 60
OTHERS = "others"
"""Stands for the addresses of all that have no line of their own."""


class Line(NamedTuple):
    """The key of a count; all workers write these in its order."""

    minute: int
    address: str
    reason: str
    token_id: int


class Door:
    """The counts of requests that were turned away and are not written yet."""

    def __init__(self) -> None:
        self._counts: Counter[Line] = Counter()
        self._minute = 0
        self._lines: set[Line] = set()  # of this minute
        self._is_writing = False
        self._lock = threading.Lock()  # of this process, for as long as it takes to add one

    def count(self, address: str, reason: str, token_id: int = 0) -> None:
        """Count a request; `token_id` is 0 if it came without a token that is, or was, a team's."""
        line = Line(int(time.time()) // 60, address, reason, token_id)
        with self._lock:
            if line.minute != self._minute:
                self._minute, self._lines = line.minute, set()
            if line not in self._lines and not self._has_room(token_id):
                line = Line(line.minute, OTHERS, reason, 0)
            self._lines.add(line)
            self._counts[line] += 1

    def _has_room(self, token_id: int) -> bool:
        most = MOST_LINES if token_id else MOST_OF_STRANGERS
        return len(self._lines) < most and len(self._counts) < MOST_WAITING

    def take(self) -> "CountTurnedAway | None":
        """Return what is to be written; None if there is nothing, or the last batch is still being written."""
        with self._lock:
            if self._is_writing or not self._counts:
                return None
            counts, self._counts = self._counts, Counter()
            self._is_writing = True
        return CountTurnedAway(sorted(counts.items()))

    def note_written(self) -> None:
        """Let more be taken."""
        self._is_writing = False


@dataclass(frozen=True)
class CountTurnedAway:
    """Add to the counts of minutes, and delete old ones."""

    counts: list[tuple[Line, int]]
    must_happen: ClassVar[bool] = True
    durable: ClassVar[bool] = False
    team_id: ClassVar[None] = None
    group_id: ClassVar[None] = None

    def apply(self, tx: Transaction) -> None:
        """Write a row for each line."""
        for line, requests in self.counts:
            ADD_TO_LINE.execute(tx.connection, {**line._asdict(), "requests": requests})
        newest = self.counts[-1][0].minute
        FORGET_LINES.execute(tx.connection, {"oldest": newest - KEPT_MINUTES})

    def undo(self) -> None:
        """Return None: this is retried until it is written."""


def _add_to_line(insert_or_update: Inserter) -> Any:
    adding = insert_or_update(DoorRefusal).values({name: bindparam(name) for name in (*Line._fields, "requests")})
    total = DoorRefusal.requests + adding.excluded.requests
    return adding.on_conflict_do_update(index_elements=Line._fields, set_={"requests": total})


ADD_TO_LINE = Statement(_add_to_line)
FORGET_LINES = Statement(delete(DoorRefusal).where(DoorRefusal.minute < bindparam("oldest")))

"""Refusals that repeat: the first of a minute gets a row of the log, the others are counted in memory and added to it.

A caller in a loop is refused hundreds of times a second, which must not cost a write each. Counts that are not yet
written are lost if this process is killed; they are never charges.
"""

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from tokenrouter.ledger.rules import CallRequest, Outcome

REPEATS_WITHIN = timedelta(minutes=1)
FORGOTTEN_AFTER = 2 * REPEATS_WITHIN  # not earlier: a transaction that found it may still be running
MOST_KNOWN = 10_000

Key = tuple[int, int | None, int, str, str, int, str | None, date]


@dataclass
class LoggedRefusal:
    """A refusal that has a row, and how many repetitions are not yet written to it."""

    request_id: str
    request: CallRequest
    """One of the refused calls."""
    outcome: Outcome
    created_at: datetime
    day: date
    """The day to which it counts."""
    counted_model: str
    unwritten: int = 0

    def covers(self, at: datetime) -> bool:
        """Tell whether a refusal at this moment is a repetition of it."""
        return at - self.created_at < REPEATS_WITHIN


@dataclass(frozen=True)
class Repetition:
    """How many more calls the row of a refusal stands for."""

    request_id: str
    request: CallRequest
    """One of them."""
    outcome: Outcome
    day: date
    counted_model: str
    times: int


def key_of(request: CallRequest, status_code: int, error_code: str | None, day: date) -> Key:
    """Return the key that equal refusals share; day and group are part of it, as they are of the daily totals."""
    whose = request.team_id, request.group_id, request.token_id
    return *whose, request.model, request.endpoint, status_code, error_code, day


class Refusals:
    """The refusals of the last minute whose rows this process knows."""

    def __init__(self) -> None:
        self._known: dict[Key, LoggedRefusal] = {}
        self._ended: list[LoggedRefusal] = []  # of which only the count is still needed
        self._lock = threading.Lock()

    def find(self, key: Key, at: datetime) -> LoggedRefusal | None:
        """Return the refusal that another one at this moment would repeat."""
        logged = self._known.get(key)
        return logged if logged is not None and logged.covers(at) else None

    def repeat(self, key: Key, at: datetime) -> str | None:
        """Count a repetition, and return the id of its row; None if it is the first."""
        with self._lock:
            logged = self.find(key, at)
            if logged is None:
                return None
            logged.unwritten += 1
            return logged.request_id

    def add(self, new: dict[Key, LoggedRefusal], repeated: Iterable[LoggedRefusal]) -> None:
        """Take over from a committed transaction its new rows, and its repetitions of these and earlier ones."""
        with self._lock:
            for logged in repeated:
                logged.unwritten += 1
            for key, logged in new.items():
                old = self._known.get(key)
                if old is None and len(self._known) >= MOST_KNOWN:
                    self._ended.append(logged)
                    continue
                if old is not None:
                    self._ended.append(old)
                self._known[key] = logged

    def take(self) -> dict[int, list[Repetition]]:
        """Return what is to be written, by team, and forget refusals that are too old to be repeated."""
        taken: defaultdict[int, list[Repetition]] = defaultdict(list)
        with self._lock:
            for logged in (*self._ended, *self._known.values()):
                if logged.unwritten:
                    counted = logged.request, logged.outcome, logged.day, logged.counted_model
                    taken[logged.request.team_id].append(Repetition(logged.request_id, *counted, logged.unwritten))
                    logged.unwritten = 0
            self._ended.clear()
            oldest = datetime.now(UTC) - FORGOTTEN_AFTER
            self._known = {key: logged for key, logged in self._known.items() if logged.created_at > oldest}
        return taken


class NewRefusals:
    """The refusals of one transaction, which count once it is committed."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._new: dict[Key, LoggedRefusal] = {}
        self._repeated: list[LoggedRefusal] = []

    def repeat(self, key: Key, at: datetime) -> str | None:
        """Note a repetition, and return the id of its row; None if it is the first."""
        logged = self._new.get(key) or self._refusals.find(key, at)
        if logged is None or not logged.covers(at):
            return None
        self._repeated.append(logged)
        return logged.request_id

    def learn(self, key: Key, logged: LoggedRefusal) -> None:
        """Note a refusal that has a row."""
        self._new[key] = logged

    def commit(self) -> None:
        """Count them, now that the transaction is committed."""
        if self._new or self._repeated:
            self._refusals.add(self._new, self._repeated)

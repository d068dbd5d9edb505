"""Tell that the database cannot be written, which no row of it can: by the process of this machine that sees it first.

Processes that were forked from one share an open file. Who has locked it speaks, until the database is back; the system
unlocks it where that process dies.
"""

import fcntl
import os
import socket
import tempfile
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy import insert
from sqlalchemy.engine import Engine

from tokenrouter.alerts.delivery import DELIVERED, GIVEN_UP, NOW, Receivers
from tokenrouter.alerts.kinds import OVER, AlertRecord, Kind
from tokenrouter.alerts.message import Answer, Message
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import REASON_LENGTH, Alert, Delivery
from tokenrouter.errors import StorageUnavailable
from tokenrouter.ledger import Ledger
from tokenrouter.ledger.crossings import BEGUN
from tokenrouter.troubles import one_line

AFTER_S = 60.0
PAUSE_S = 60.0


class OutageWatch:
    """Watches whether this process can write, by when it last did: its heartbeat writes every few seconds."""

    def __init__(self, engine: Engine, ledger: Ledger, receivers: Receivers) -> None:
        self._engine = engine
        self._ledger = ledger
        self._receivers = receivers
        self._lock, path = tempfile.mkstemp(prefix="tokenrouter-outage-")
        os.unlink(path)
        self._close = weakref.finalize(self, os.close, self._lock)
        self._alert: AlertRecord | None = None
        self._answers: dict[tuple[str, str], Answer] = {}
        self._told_at = -PAUSE_S
        self._speaks = False
        self.clock: Callable[[], float] = time.monotonic
        self._began_at = self.clock()

    def look(self) -> None:
        """Report an outage that lasts a minute, and store it in the database once that is back."""
        written_at = self._ledger.written_at
        silent_s = self.clock() - (self._began_at if written_at is None else written_at)
        if silent_s >= AFTER_S:
            self._speaks = self._speaks or self._may_speak()
            if self._speaks:
                self._tell(silent_s)
        elif self._speaks:
            self._note_end()
            self._speaks = False
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock, so that another process can report."""
        self._close()

    def _may_speak(self) -> bool:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _tell(self, silent_s: float) -> None:
        """Send it once a minute to those who have not got it yet."""
        if self._alert is None and (cause := self._cause()) is not None:
            began = datetime.now(UTC) - timedelta(seconds=silent_s)
            details = {"cause": cause, "host": socket.gethostname()}
            self._alert = AlertRecord(uuid4().hex, Kind.DATABASE, began, details)
        if self._alert is None or self.clock() - self._told_at < PAUSE_S:
            return
        self._told_at = self.clock()
        for receiver in self._receivers.of(None):
            if receiver not in self._answers or not self._answers[receiver].is_taken:
                self._answers[receiver] = self._receivers.send(*receiver, Message(self._alert))

    def _cause(self) -> str | None:
        """Return why the database cannot be written; None if it can be again."""
        try:
            self._ledger.check_writing()
        except StorageUnavailable as error:
            return one_line(error.__cause__ or error)[:REASON_LENGTH]
        return None

    def _note_end(self) -> None:
        """Store the alert that was sent, and have its end reported."""
        if (alert := self._alert) is None:
            return
        values = {"kind": alert.kind, "uid": alert.uid, "at": alert.at, "details": dict(alert.details)}
        with writing(self._engine) as connection:
            adding = insert(Alert).values(**values, ended_at=datetime.now(UTC), to_hand_out=OVER)
            id_ = connection.execute(adding.returning(Alert.id)).scalar_one()
            for (channel, address), answer in self._answers.items():
                state = DELIVERED if answer.is_taken else GIVEN_UP
                to = {"alert_id": id_, "says": BEGUN, "channel": channel, "address": address}
                sent = {"created_at": NOW, "due_at": NOW, "attempts": 1, "answer": answer.words, "state": state}
                connection.execute(insert(Delivery).values(**to, **sent))
        self._alert, self._answers, self._told_at = None, {}, -PAUSE_S

"""What is sent to a receiver, by mail or webhook, and its answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from tokenrouter.alerts.kinds import AlertRecord, Speaker
from tokenrouter.database.tables import REASON_LENGTH
from tokenrouter.ledger.crossings import BEGUN
from tokenrouter.periods import rfc3339


@dataclass(frozen=True)
class Message:
    """An alert as it is sent: that it began, or that it is over."""

    alert: AlertRecord
    says: str = BEGUN

    @property
    def id(self) -> str:
        """The same each time it is sent."""
        return self.alert.webhook_id(self.says)

    def document(self, speaker: Speaker) -> dict[str, Any]:
        """Return it for programs; chat programs show its `text`, and take no notice of the rest."""
        alert = self.alert
        ended = None if alert.ended_at is None else moment_text(alert.ended_at)
        facts = {
            "id": alert.uid,
            "kind": alert.kind,
            "state": self.says,
            "at": moment_text(alert.at),
            "ended_at": ended,
            "team_id": alert.team_id,
            "group_id": alert.group_id,
            "percent": alert.percent,
            "details": dict(alert.details),
        }
        return {"text": f"TokenRouter: {speaker.words(alert, self.says)}", "alert": facts}


def moment_text(moment: datetime) -> str:
    """Write a moment as documents have it."""
    return rfc3339(moment, "seconds")


@dataclass(frozen=True)
class Answer:
    """Whether a receiver took a message, and what it said."""

    is_taken: bool
    words: str

    def __post_init__(self) -> None:
        """Cut the words to what a column holds, without invisible characters."""
        text = "".join(each if each.isprintable() else " " for each in self.words[:REASON_LENGTH])
        object.__setattr__(self, "words", text.strip())


class Channel(Protocol):
    """A way to a receiver."""

    def send(self, message: Message, address: str) -> Answer:
        """Send a message and return the answer; failures are answers too, and never raised."""

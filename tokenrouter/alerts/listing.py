"""What the panel and the commands show of alerts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.engine import Engine

from tokenrouter.alerts.delivery import DELIVERED, GIVEN_UP, NOW, WAITING, alert_record
from tokenrouter.alerts.kinds import AlertRecord, Speaker, Words
from tokenrouter.alerts.message import moment_text
from tokenrouter.database.tables import Alert, AnyRow, Delivery, clamp_id, db
from tokenrouter.periods import moment
from tokenrouter.reports.reading import reading

PER_PAGE = 50
WEEK_S = 7 * 86_400.0


@dataclass(frozen=True)
class Sent:
    """How the delivery of a message to a receiver went."""

    says: str
    channel: str
    address: str
    state: str
    attempts: int
    answer: str | None
    at: datetime | None
    """When it is tried next if it waits, otherwise when it was last tried."""

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt failed."""
        return self.state == GIVEN_UP or (self.state == WAITING and self.attempts > 0 and self.answer is not None)

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.state == DELIVERED


@dataclass(frozen=True)
class Shown:
    """An alert, in words, with how it was delivered."""

    id: int
    record: AlertRecord
    words: Words
    seen_at: datetime | None
    deliveries: list[Sent]


@dataclass(frozen=True)
class AlertsPage:
    """Alerts, the newest first, and where older ones follow."""

    alerts: list[Shown]
    before_id: int | None


def alerts_page(
    speaker: Speaker, *, unseen: bool = False, before_id: int | None = None, per_page: int = PER_PAGE
) -> AlertsPage:
    """Return a page of alerts, all or those that were not seen."""
    query = select(Alert.__table__).order_by(Alert.id.desc()).limit(per_page + 1)
    if unseen:
        query = query.where(Alert.seen_at.is_(None))
    if before_id is not None:
        query = query.where(Alert.id < clamp_id(before_id))
    with reading() as connection:
        rows = connection.execute(query).all()
        of_these = Delivery.alert_id.in_([row.id for row in rows[:per_page]])
        deliveries = connection.execute(select(Delivery.__table__).where(of_these).order_by(Delivery.id)).all()
    shown = [_shown(row, deliveries, speaker) for row in rows[:per_page]]
    return AlertsPage(shown, shown[-1].id if len(rows) > per_page else None)


def _shown(row: AnyRow, deliveries: Sequence[AnyRow], speaker: Speaker) -> Shown:
    record = alert_record(row)
    sent = [
        Sent(each.says, each.channel, each.address, each.state, each.attempts, each.answer, moment(each.due_at))
        for each in deliveries
        if each.alert_id == row.id
    ]
    return Shown(row.id, record, speaker.words(record), row.seen_at, sent)


def count_unseen() -> int:
    """Return how many alerts were not seen yet."""
    with db.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(Alert).where(Alert.seen_at.is_(None))).scalar_one()


@dataclass(frozen=True)
class Undelivered:
    """How many deliveries failed, so far or for good, and the last answer to one."""

    deliveries: int
    answer: str | None


def undelivered(engine: Engine) -> Undelivered:
    """Return what was not delivered in the last week."""
    is_failed = Delivery.state != DELIVERED, Delivery.answer.is_not(None), Delivery.created_at > NOW - WEEK_S
    with engine.connect() as connection:
        answers = connection.scalars(select(Delivery.answer).where(*is_failed).order_by(Delivery.due_at)).all()
    return Undelivered(len(answers), answers[-1] if answers else None)


def alert_view(alert: Shown) -> dict[str, Any]:
    """Return an alert as a document."""
    record = alert.record
    return {
        "id": alert.id,
        "kind": record.kind,
        "at": moment_text(record.at),
        "ended_at": None if record.ended_at is None else moment_text(record.ended_at),
        "seen_at": None if alert.seen_at is None else moment_text(alert.seen_at),
        "team_id": record.team_id,
        "group_id": record.group_id,
        "percent": record.percent,
        "text": str(alert.words),
        "deliveries": [
            {
                "state": each.says,
                "channel": each.channel,
                "address": each.address or None,
                "result": each.state,
                "attempts": each.attempts,
                "answer": each.answer,
                "at": None if each.at is None else moment_text(each.at),
            }
            for each in alert.deliveries
        ],
    }

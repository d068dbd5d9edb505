"""Deliver alerts: each to each receiver, claimed in the database before it is sent, and tried for a day.

A worker that dies between the claim and the answer leaves a claim that runs out; another one then sends the message
once more, by the same id.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import exists, or_, select, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from tokenrouter import troubles
from tokenrouter.alerts.kinds import OVER, AlertRecord, trial_alert
from tokenrouter.alerts.mail import Mail
from tokenrouter.alerts.message import Answer, Channel, Message
from tokenrouter.alerts.outbox import BOTH
from tokenrouter.alerts.webhook import Webhook
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.engine import writing
from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import Alert, AnyRow, Delivery, Team
from tokenrouter.ledger.crossings import BEGUN
from tokenrouter.troubles import one_line

logger = logging.getLogger(__name__)

LOOK_S = 2.0
CLOSE_S = 2.0
CLAIM_S = 180.0  # longer than any attempt takes
FIRST_PAUSE_S, PAUSE_GROWS, LONGEST_PAUSE_S = 10.0, 3.0, 3600.0
TRIED_S = 86_400.0
HANDED_OUT_AT_ONCE = 100
WEBHOOK, MAIL = "webhook", "mail"
WAITING, DELIVERED, GIVEN_UP = "waiting", "delivered", "given_up"
NOW = epoch_now()


@dataclass(frozen=True)
class Receivers:
    """Who gets alerts, and how."""

    webhook: Webhook | None
    mail: Mail | None
    mail_to: tuple[str, ...]

    def of(self, team_mail: str | None) -> Iterator[tuple[str, str]]:
        """Yield the ways, with addresses, by which an alert is sent; `team_mail` is the team's own address."""
        if self.webhook is not None:
            yield WEBHOOK, ""
        if self.mail is not None:
            addresses = self.mail_to if team_mail is None else (*self.mail_to, team_mail)
            for address in dict.fromkeys(addresses):
                yield MAIL, address

    def send(self, channel: str, address: str, message: Message) -> Answer:
        """Send a message one way."""
        way: Channel | None = self.webhook if channel == WEBHOOK else self.mail
        if way is None:
            return Answer(False, f"{'ALERT_WEBHOOK_URL' if channel == WEBHOOK else 'SMTP_URL'} is not set any more")
        return way.send(message, address)


def send_test(receivers: Receivers, uid: str, channel: str | None = None) -> list[tuple[str, Answer]]:
    """Send a test alert to all receivers, or one way, now; return the ways and the answers."""
    message = Message(trial_alert(uid))
    ways = [(way, address) for way, address in receivers.of(None) if channel in (None, way)]
    return [(way, receivers.send(way, address, message)) for way, address in ways]


@dataclass(frozen=True)
class Claimed:
    """A delivery claimed by this process; `attempts` distinguishes it from a later claim by another."""

    id: int
    attempts: int
    channel: str
    address: str
    message: Message


def hand_out(engine: Engine, receivers: Receivers) -> None:
    """Create the deliveries of alerts that have none yet."""
    is_new = select(Alert.id).where(Alert.to_hand_out.is_not(None))
    with engine.connect() as connection:
        if connection.execute(is_new.limit(1)).first() is None:
            return
    with writing(engine) as connection:
        some = select(Alert.__table__).where(Alert.to_hand_out.is_not(None)).order_by(Alert.id)
        for alert in connection.execute(some.limit(HANDED_OUT_AT_ONCE).with_for_update(skip_locked=True)).all():
            _hand_out(connection, alert, receivers)


def _hand_out(connection: Connection, alert: AnyRow, receivers: Receivers) -> None:
    is_theirs = Team.id == alert.team_id, Team.deleted_at.is_(None)
    team_mail = None if alert.team_id is None else connection.execute(select(Team.mail).where(*is_theirs)).scalar()
    insert = inserter(connection)
    messages = (BEGUN, OVER) if alert.to_hand_out == BOTH else (alert.to_hand_out,)
    for says in messages:
        for channel, address in receivers.of(team_mail):
            values = {"alert_id": alert.id, "says": says, "channel": channel, "address": address}
            adding = insert(Delivery).values(**values, state=WAITING, created_at=NOW, due_at=NOW, attempts=0)
            connection.execute(adding.on_conflict_do_nothing())
    connection.execute(update(Alert).where(Alert.id == alert.id).values(to_hand_out=None))


_earlier = aliased(Delivery)
_begun_still_waits = exists().where(
    _earlier.alert_id == Delivery.alert_id,
    _earlier.channel == Delivery.channel,
    _earlier.address == Delivery.address,
    _earlier.says == BEGUN,
    _earlier.state == WAITING,
)
IS_DUE = Delivery.state == WAITING, Delivery.due_at <= NOW, or_(Delivery.says == BEGUN, ~_begun_still_waits)
DUE = select(Delivery.id).where(*IS_DUE).order_by(Delivery.due_at, Delivery.id).limit(1)


def claim(engine: Engine) -> Claimed | None:
    """Claim a due delivery for this process, for as long as an attempt may take; None if none is due."""
    with engine.connect() as connection:
        if connection.execute(DUE).first() is None:
            return None
    with writing(engine) as connection:
        id_ = connection.execute(DUE.with_for_update(skip_locked=True)).scalar()
        if id_ is None:
            return None
        claiming = update(Delivery).where(Delivery.id == id_)
        claiming = claiming.values(due_at=NOW + CLAIM_S, attempts=Delivery.attempts + 1)
        row = connection.execute(claiming.returning(Delivery.__table__)).one()
        alert = connection.execute(select(Alert.__table__).where(Alert.id == row.alert_id)).one()
    return Claimed(row.id, row.attempts, row.channel, row.address, Message(alert_record(alert), row.says))


def alert_record(row: AnyRow | Alert) -> AlertRecord:
    """Return the alert of a row."""
    return AlertRecord(**{each.name: getattr(row, each.name) for each in fields(AlertRecord)})


def record(engine: Engine, claimed: Claimed, answer: Answer) -> None:
    """Write down how an attempt went, and when the next one is due, unless another process has claimed it meanwhile."""
    is_ours = Delivery.id == claimed.id, Delivery.attempts == claimed.attempts, Delivery.state == WAITING
    values: dict[str, Any] = {"answer": answer.words, "due_at": NOW}
    with writing(engine) as connection:
        if answer.is_taken:
            values["state"] = DELIVERED
        else:
            age = connection.execute(select(NOW - Delivery.created_at).where(Delivery.id == claimed.id)).scalar_one()
            if age + (pause := pause_after(claimed.attempts)) > TRIED_S:
                values["state"] = GIVEN_UP
            else:
                values["due_at"] = NOW + pause
        connection.execute(update(Delivery).where(*is_ours).values(values))


def pause_after(attempts: int) -> float:
    """Return the wait before the next attempt: 10 seconds, then three times as long each time, up to an hour."""
    return min(FIRST_PAUSE_S * PAUSE_GROWS ** min(attempts - 1, 10), LONGEST_PAUSE_S)


class Sender:
    """Delivers what is due, in a thread of its own. Each process has one; claims keep them apart."""

    def __init__(self, engine: Engine, receivers: Receivers, also: Callable[[], None] = lambda: None) -> None:
        """`also` is called in each round."""
        self.receivers = receivers
        self._engine = engine
        self._also = also
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, in the process that serves: threads do not survive a fork."""
        self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, waiting only briefly for a delivery in progress; if cut off, it is resent once its claim runs out."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _work(self) -> None:
        while not self._stop.wait(LOOK_S):
            for do in (self._also, self.deliver_due):
                try:
                    do()
                except SQLAlchemyError as error:
                    troubles.warn("alerts", "Alerts cannot be delivered (%s); trying again", one_line(error))
                except Exception:
                    logger.exception("Alerts cannot be delivered; trying again")  # the thread must live

    def deliver_due(self) -> None:
        """Deliver all that is due, one after the other."""
        hand_out(self._engine, self.receivers)
        while not self._stop.is_set() and (claimed := claim(self._engine)) is not None:
            self._record(claimed, self._send(claimed))

    def _send(self, claimed: Claimed) -> Answer:
        try:
            answer = self.receivers.send(claimed.channel, claimed.address, claimed.message)
        except Exception as error:  # whatever it is, only this delivery fails; the others go on
            logger.exception("An alert could not be sent")
            return Answer(False, one_line(error))
        if not answer.is_taken:
            troubles.warn("alert-delivery", "An alert was not delivered: %s", answer.words)
        return answer

    def _record(self, claimed: Claimed, answer: Answer) -> None:
        """Record the result, if need be once the database is back, so that nothing is sent twice."""
        while True:
            try:
                record(self._engine, claimed, answer)
                return
            except SQLAlchemyError as error:
                troubles.warn("alerts", "The delivery of an alert cannot be noted (%s)", one_line(error))
                if self._stop.wait(LOOK_S):
                    return

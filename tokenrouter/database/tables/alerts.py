"""Alerts, and their deliveries."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from tokenrouter.database.columns import RowId, UtcDateTime
from tokenrouter.database.tables.base import MAIL_LENGTH, REASON_LENGTH, Base


class Alert(Base):
    """An alert; its words are made in `alerts`, and each receiver has a row of `Delivery`."""

    __tablename__ = "alerts"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    uid: Mapped[str] = mapped_column(String(32), unique=True)  # by which receivers know it
    kind: Mapped[str] = mapped_column(String(32))
    once: Mapped[str | None] = mapped_column(String(200), unique=True)  # its key: not repeated while a row has it
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    team_id: Mapped[int | None] = mapped_column(BigInteger)
    group_id: Mapped[int | None] = mapped_column(BigInteger)
    percent: Mapped[int | None]  # of a quota or budget, where that is what was crossed
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    to_hand_out: Mapped[str | None] = mapped_column(String(8))  # which message has no deliveries yet: begun, or over

    __table_args__ = (
        *(
            Index(f"ix_alerts_{name}", "id", sqlite_where=text(where), postgresql_where=text(where))
            for name, where in (
                ("to_hand_out", "to_hand_out IS NOT NULL"),
                ("unseen", "seen_at IS NULL"),
                ("open", "ended_at IS NULL"),
            )
        ),
        {"sqlite_autoincrement": True},
    )


class Delivery(Base):
    """A message about an alert to one receiver, and how its delivery went."""

    __tablename__ = "alert_deliveries"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    alert_id: Mapped[int] = mapped_column(ForeignKey("alerts.id"))
    says: Mapped[str] = mapped_column(String(8))  # begun, or over
    channel: Mapped[str] = mapped_column(String(8))  # webhook, or mail
    address: Mapped[str] = mapped_column(String(MAIL_LENGTH))  # of the mail
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]  # seconds since 1970 by the database's clock
    due_at: Mapped[float]  # likewise: when it is tried next, or was taken last
    attempts: Mapped[int]
    answer: Mapped[str | None] = mapped_column(String(REASON_LENGTH))  # to the last attempt

    __table_args__ = (
        UniqueConstraint("alert_id", "says", "channel", "address"),
        Index(
            "ix_alert_deliveries_waiting",
            "due_at",
            sqlite_where=text("state = 'waiting'"),
            postgresql_where=text("state = 'waiting'"),
        ),
    )

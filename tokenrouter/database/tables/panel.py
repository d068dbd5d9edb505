"""Who changed what, and who is signed in."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from tokenrouter.database.columns import RowId, UtcDateTime
from tokenrouter.database.tables.base import NAME_LENGTH, Base


class Change(Base):
    """A change that somebody made to a team, a group or a token: who, what, and the changed fields before and after."""

    __tablename__ = "changes"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor_kind: Mapped[str] = mapped_column(String(16))
    actor_detail: Mapped[str] = mapped_column(String(NAME_LENGTH))
    action: Mapped[str] = mapped_column(String(32))
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    team_name: Mapped[str | None] = mapped_column(String(NAME_LENGTH))  # as it was before the change
    group_id: Mapped[int | None] = mapped_column(BigInteger)
    group_name: Mapped[str | None] = mapped_column(String(NAME_LENGTH))  # likewise
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    batch: Mapped[str | None] = mapped_column(String(32))  # the same for all that was done at once
    undoes_id: Mapped[int | None] = mapped_column(BigInteger, unique=True, index=True)  # that this one took back

    __table_args__ = (
        Index("ix_changes_team_id_id", "team_id", "id"),
        Index(
            "ix_changes_batch",
            "batch",
            sqlite_where=text("batch IS NOT NULL"),
            postgresql_where=text("batch IS NOT NULL"),
        ),
    )


class PanelSession(Base):
    """An open session of the administrator."""

    __tablename__ = "panel_sessions"

    id_hash: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 in hexadecimal
    password_print: Mapped[str] = mapped_column(String(128))  # it changes with the password, and so ends the session
    signed_in_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SignInAttempt(Base):
    """A wrong guess at the administrator's password, or at a code to join with; kept for a minute."""

    __tablename__ = "sign_in_attempts"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    address: Mapped[str] = mapped_column(String(64), index=True)  # or another kind of guesser: see attempts.py
    at: Mapped[float]  # seconds since 1970 by the database's clock

    __table_args__ = ({"sqlite_autoincrement": True},)

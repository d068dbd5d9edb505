"""Teams, their groups, the codes by which teams are made, and bearer tokens."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, String, select, text
from sqlalchemy.orm import Mapped, column_property, mapped_column

from tokenrouter.database.columns import Flag, RowId, UtcDateTime
from tokenrouter.database.tables.base import MAIL_LENGTH, NAME_LENGTH, Base
from tokenrouter.database.tables.limits import HasLimits, unique_among_living


class Group(HasLimits, Base):
    """Teams that share limits: a call has to fit the limits of its team and of the group, and counts in both."""

    __tablename__ = "groups"
    __table_args__ = (unique_among_living(__tablename__),)


class Team(HasLimits, Base):
    """A team, its quota, and its counters."""

    __tablename__ = "teams"

    group_id: Mapped[int | None] = mapped_column(ForeignKey("groups.id"), index=True)
    active: Mapped[bool] = mapped_column(Flag, default=True, server_default=text("true"))
    models: Mapped[str | None]  # names and prefixes separated by commas; None means ALLOWED_MODELS alone decides
    mail: Mapped[str | None] = mapped_column(String(MAIL_LENGTH))  # gets the team's alerts
    join_code_id: Mapped[int | None] = mapped_column(BigInteger, index=True)  # by which it was made
    group_name: Mapped[str | None] = column_property(
        select(Group.name).where(Group.id == group_id).correlate_except(Group).scalar_subquery()
    )

    __table_args__ = (unique_among_living(__tablename__),)

    @property
    def model_patterns(self) -> tuple[str, ...] | None:
        """The team's own list of models; None if it has none."""
        return split_models(self.models)


def split_models(models: str | None) -> tuple[str, ...] | None:
    """Read a team's `models` column, which people may have written by hand."""
    if models is None:
        return None
    return tuple(name.strip() for name in str(models).split(",") if name.strip())


CodeState = Literal["open", "revoked", "expired", "used up", "group deleted"]


class JoinCode(Base):
    """A code by which anybody who knows it can create a team, as often as `uses` says.

    It is stored in clear, since the panel shows it again.
    """

    __tablename__ = "join_codes"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    code: Mapped[str] = mapped_column(String(32), unique=True)
    label: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    group_id: Mapped[int | None] = mapped_column(ForeignKey("groups.id"))
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)  # of each team, and its models, by the names of its columns
    uses: Mapped[int | None]  # how many teams it may make; None is any number
    used: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    group_name: Mapped[str | None] = column_property(
        select(Group.name).where(Group.id == group_id).correlate_except(Group).scalar_subquery()
    )
    group_deleted_at: Mapped[datetime | None] = column_property(
        select(Group.deleted_at).where(Group.id == group_id).correlate_except(Group).scalar_subquery()
    )

    @property
    def team_to_be(self) -> Team:
        """A team as the code creates it, without a name, in no session."""
        return Team(**self.limits)

    def state_at(self, now: datetime) -> CodeState:
        """Return `open` if one can join with it, otherwise why not."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        if self.uses is not None and self.used >= self.uses:
            return "used up"
        return "open" if self.group_deleted_at is None else "group deleted"


class ApiToken(Base):
    """A team's bearer token, of which only the hash and the first characters are stored."""

    __tablename__ = "api_tokens"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), index=True)
    label: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    prefix: Mapped[str] = mapped_column(String(8))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256 in hexadecimal
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    replaced_by_id: Mapped[int | None] = mapped_column(BigInteger)  # the token that it was rotated into


class ManagementToken(Base):
    """A bearer token of the management API, which belongs to no team; stored like a team's."""

    __tablename__ = "management_tokens"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    label: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    prefix: Mapped[str] = mapped_column(String(8))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256 in hexadecimal
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # to the minute
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

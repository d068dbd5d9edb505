"""The paid account: its state, the provider's own record, and the pace that all teams share."""

from datetime import date, datetime

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from tokenrouter.database.columns import RowId, UtcDateTime
from tokenrouter.database.tables.base import REASON_LENGTH, Base


class AccountCheck(Base):
    """What the provider, or the administrator, said about the paid account at a moment."""

    __tablename__ = "account_checks"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    state: Mapped[str] = mapped_column(String(16))
    words: Mapped[str] = mapped_column(String(REASON_LENGTH))
    points: Mapped[int | None] = mapped_column(BigInteger)
    money: Mapped[int | None] = mapped_column(BigInteger)  # billionths of `currency`
    currency: Mapped[str] = mapped_column(String(3))
    next_grant_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    next_grant_points: Mapped[int | None] = mapped_column(BigInteger)
    spent: Mapped[int] = mapped_column(BigInteger)  # what all calls had cost by then, in billionths of CURRENCY
    is_typed: Mapped[bool]


class ProviderEntry(Base):
    """A call in the provider's own record, kept so that it is fetched once."""

    __tablename__ = "provider_entries"

    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    model: Mapped[str]
    cost: Mapped[int | None] = mapped_column(BigInteger)  # billionths of a dollar
    points: Mapped[int | None] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int | None] = mapped_column(BigInteger)
    completion_tokens: Mapped[int | None] = mapped_column(BigInteger)
    key_name: Mapped[str | None]


class ProviderPace(Base):
    """How fast all teams together call the provider: one row, which is locked to take a place."""

    __tablename__ = "provider_pace"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    # nanoseconds since 1970 by the database's clock, as all moments of it and of those who wait
    full_at: Mapped[int] = mapped_column(BigInteger)
    blocked_until: Mapped[int] = mapped_column(BigInteger)  # as the provider demanded
    waiting: Mapped[int] = mapped_column(BigInteger)  # calls that have no place yet


class WaitingCall(Base):
    """A call that waits for a place at the provider, or was granted one and has not taken it yet."""

    __tablename__ = "provider_queue"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    worker: Mapped[str] = mapped_column(String(32))  # the process that it waits in
    team_id: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)  # that it will hold
    since: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[int] = mapped_column(BigInteger)  # when its process last said that it still waits
    granted_at: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = ({"sqlite_autoincrement": True},)  # a reused id would be another call's place


class ProviderLimit(Base):
    """What the provider last said about a rate limit of the whole account."""

    __tablename__ = "provider_limits"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    most: Mapped[int | None] = mapped_column(BigInteger)
    remaining: Mapped[int] = mapped_column(BigInteger)
    resets_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class ProviderFetch(Base):
    """When the provider's record was last requested, and the error if that failed; one row."""

    __tablename__ = "provider_fetches"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(String(REASON_LENGTH))
    until: Mapped[datetime | None] = mapped_column(UtcDateTime)  # up to when all is kept, but for stretches


class ProviderStretch(Base):
    """A part of the provider's record that is still to be read: from an entry down to where all is kept again."""

    __tablename__ = "provider_stretches"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    after: Mapped[str | None] = mapped_column(String(100))  # the id of the last entry that was read; none: from the top
    read_to: Mapped[datetime] = mapped_column(UtcDateTime)  # the time of that entry, or when it was begun
    down_to: Mapped[datetime | None] = mapped_column(UtcDateTime)  # none: to the end


class ProviderDay(Base):
    """What the provider's key spent on a day in UTC, as last reported on that day or after it."""

    __tablename__ = "provider_days"

    day: Mapped[date] = mapped_column(primary_key=True)
    cost: Mapped[int] = mapped_column(BigInteger)  # billionths of a dollar, as of `read_at`
    ever: Mapped[int | None] = mapped_column(BigInteger)  # what the key had ever spent, as of `read_at`
    key: Mapped[str | None] = mapped_column(String(100))  # as the provider names it
    read_at: Mapped[datetime] = mapped_column(UtcDateTime)
    is_whole: Mapped[bool]

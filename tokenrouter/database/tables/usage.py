"""What was used by day, renewals of quotas, prices, and corrections of costs."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, Index, String, UniqueConstraint, and_, text
from sqlalchemy.orm import Mapped, mapped_column

from tokenrouter.database.columns import RowId, UtcDateTime
from tokenrouter.database.tables.base import NAME_LENGTH, Base


class DailySums:
    """What was used on a day, in the service's time zone as it was when the calls began."""

    requests: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    total_tokens: Mapped[int] = mapped_column(BigInteger)  # what was charged
    cost: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # as far as it is known
    priced_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # of what it is known


class UsageDaily(DailySums, Base):
    """What a team used of a model on a day."""

    __tablename__ = "usage_daily"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)  # empty for calls that were refused for their model

    __table_args__ = (Index("ix_usage_daily_day", "day"),)


class GroupUsageDaily(DailySums, Base):
    """The part of it that was booked in a group: the team's group when the call began."""

    __tablename__ = "group_usage_daily"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id"), primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)

    __table_args__ = (Index("ix_group_usage_daily_day", "day"),)


class TokenUsageDaily(DailySums, Base):
    """What a token of a team used of a model on a day."""

    __tablename__ = "token_usage_daily"

    token_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    day: Mapped[date] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)

    # on SQLite ordered by its key, which saves a second tree
    __table_args__ = (Index("ix_token_usage_daily_day", "day"), {"sqlite_with_rowid": False})


class PrunedUsage(DailySums, Base):
    """The sums of calls that were pruned from the log, so that the books can still be proven."""

    __tablename__ = "pruned_usage"

    day: Mapped[date] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    group_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # 0 where there was none
    token_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(primary_key=True)  # as the sums of days count it

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageTotals(DailySums, Base):
    """Daily totals of days that are long over, added up once more for reports: by model alone, or by third or month.

    Only what `usage_totals_kept` names as complete counts.
    """

    __tablename__ = "usage_totals"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # see rollups.py
    day: Mapped[date] = mapped_column(primary_key=True)  # of a third or a month, the first
    owner_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # 0 is everybody
    team_id: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False
    )  # of a group's months, else 0
    model: Mapped[str] = mapped_column(primary_key=True)

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageTotalsKept(Base):
    """For which day, third or month `usage_totals` has sums of a kind; booking on such a day deletes the row."""

    __tablename__ = "usage_totals_kept"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    day: Mapped[date]
    complete: Mapped[bool] = mapped_column(default=False, server_default=text("false"))  # until then they are written

    __table_args__ = (UniqueConstraint("kind", "day"), {"sqlite_autoincrement": True})  # an id means one summing up


class RenewalColumns:
    """A renewal of a quota, as the first call after it was due found the counters; proves the reset mark."""

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    due_at: Mapped[int] = mapped_column(BigInteger)  # seconds since 1970
    renewed_at: Mapped[float]  # likewise, by the database's clock
    used_tokens: Mapped[int] = mapped_column(BigInteger)  # by which the mark moved
    used_cost: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # likewise
    priced_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # likewise
    extra_tokens: Mapped[int] = mapped_column(BigInteger)  # that ended with the period
    extra_budget: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # likewise


class QuotaRenewal(RenewalColumns, Base):
    """A renewal of a team's quota."""

    __tablename__ = "renewals"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), index=True)

    __table_args__ = ({"sqlite_autoincrement": True},)  # repairs name the last of them


class GroupRenewal(RenewalColumns, Base):
    """A renewal of a group's quota."""

    __tablename__ = "group_renewals"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id"), index=True)

    __table_args__ = ({"sqlite_autoincrement": True},)


class ModelPrice(Base):
    """A price of a model, or of all models with a prefix, valid until the next one of the same name.

    In billionths of CURRENCY, for a million tokens each except `request_price`. A row without an input price ends the
    previous one.
    """

    __tablename__ = "prices"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    model: Mapped[str] = mapped_column(String(NAME_LENGTH))  # in small letters
    shown_model: Mapped[str] = mapped_column(String(NAME_LENGTH))
    is_of_provider: Mapped[bool]
    input_price: Mapped[int | None] = mapped_column(BigInteger)
    output_price: Mapped[int | None] = mapped_column(BigInteger)
    cached_input_price: Mapped[int | None] = mapped_column(BigInteger)
    request_price: Mapped[int] = mapped_column(BigInteger, default=0)
    since: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (
        Index("ix_prices_model", "is_of_provider", "model", "id"),
        {"sqlite_autoincrement": True},  # the largest id shows whether any is new
    )


class CostCorrection(Base):
    """By how much more a call costs than its row of the log says, in billionths; negative if less."""

    __tablename__ = "cost_corrections"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    call_id: Mapped[int] = mapped_column(BigInteger, index=True)
    team_id: Mapped[int] = mapped_column(BigInteger)
    group_id: Mapped[int | None] = mapped_column(BigInteger)
    day: Mapped[date]
    model: Mapped[str]  # as the sums of days count it
    cost: Mapped[int] = mapped_column(BigInteger)
    priced_tokens: Mapped[int] = mapped_column(BigInteger)  # that had no price before
    # whether the call is of a period of its team, or of its group, that was over by then
    is_past: Mapped[bool]
    is_past_of_group: Mapped[bool]
    # what the call's row of the log said, once that is pruned; until then there is nothing
    token_id: Mapped[int | None] = mapped_column(BigInteger)
    began_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    latency_ms: Mapped[int | None]

    __table_args__ = ({"sqlite_autoincrement": True},)  # repairs name the last of them

    @classmethod
    def is_of(cls, call_id: Any) -> ColumnElement[bool]:
        """Select the corrections of a call in the log; SQLite may reuse the id of one that was pruned."""
        return and_(cls.call_id == call_id, cls.token_id.is_(None))

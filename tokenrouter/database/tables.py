"""The tables: columns and facts about one row. Nothing here commits, and only the ledger moves a counter."""

import unicodedata
from datetime import date, datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    and_,
    case,
    select,
    text,
    type_coerce,
)
from sqlalchemy.engine import Row
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, declared_attr, mapped_column

from tokenrouter.database.columns import Flag, RowId, Tokens, UtcDateTime, epoch_now, is_quota
from tokenrouter.database.log_status import RARE_STATUSES
from tokenrouter.periods import NEVER, Renewal, is_renewal, read_renewal

NAME_LENGTH = 200
REASON_LENGTH = 300
MAIL_LENGTH = 254
MOST_QUOTA_TOKENS = 10**15

# With these words, since SQLite takes a partial index where a query's term is one of its own.
IS_RARE = " OR ".join(f"status = '{status}'" for status in RARE_STATUSES)

BY_PROVIDER = "provider"
ESTIMATED = "estimated"
NOT_COUNTED = "none"

BY_PRICE = "price"
NO_COST = "none"


class Base(DeclarativeBase):
    """The base of all tables."""


db = SQLAlchemy(model_class=Base)

AnyRow = Row[*tuple[Any, ...]]
"""A row of whatever columns, which are attributes."""


PACES = ("requests_per_minute", "tokens_per_minute", "calls_at_once")
BUDGETS = ("budget", "extra_budget")
LIMITS = ("quota_tokens", "extra_tokens", "renews", "renews_on", *PACES, *BUDGETS)
"""The columns of the limits that people set of a team, or of a group."""


def unreadable_limits(
    quota_tokens: object, extra_tokens: object, renews: object, renews_on: object, *others: object
) -> list[str]:
    """Return which of these limits cannot be read, as a database has them, in the order of LIMITS."""
    readable = {
        "quota_tokens": is_quota(quota_tokens),
        "extra_tokens": extra_tokens is not None and is_quota(extra_tokens),
        "renews": is_renewal(renews, renews_on),
        **{name: is_quota(value) for name, value in zip((*PACES, *BUDGETS), others, strict=True)},
    }
    if others[-1] is None:
        readable["extra_budget"] = False
    return [name for name, is_readable in readable.items() if not is_readable]


def clamp_id(number: int) -> int:
    """Return a number that somebody gave for an id, or, where no database could hold it, one that no row has either."""
    return min(max(number, -1), 2**63 - 1)


def clamp_text(text: str) -> str:
    """Return a text to search for, or, where PostgreSQL would refuse it, one that no row has either."""
    return text if "\0" not in text else "\1"


def normalized(text: str) -> str:
    """Return a name in Unicode's composed form, NFC, in which names are kept and compared."""
    return unicodedata.normalize("NFC", text)


class HasLimits:
    """What a team has, and a group of teams: a name, limits, and the counters of what is used and held.

    `settled_tokens` only grows; a reset or a renewal moves `reset_mark_tokens` up to it. What is deleted keeps its row,
    so that its running calls are still booked and its log still adds up; its name is free again.
    """

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    quota_tokens: Mapped[int | None] = mapped_column(Tokens)
    renews: Mapped[str] = mapped_column(String(8), default=NEVER, server_default=NEVER)
    renews_on: Mapped[int | None]  # of `monthly`, the day
    renews_at: Mapped[int | None] = mapped_column(BigInteger)  # seconds since 1970, by the database's clock
    renewal_basis: Mapped[str | None]  # what `renews_at` was computed from
    extra_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # until it renews
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    calls_at_once: Mapped[int | None]
    budget: Mapped[int | None] = mapped_column(Tokens)  # billionths of CURRENCY
    extra_budget: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # until it renews
    # when the buckets of the pace will be full again, in nanoseconds since 1970
    requests_full_at: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    tokens_full_at: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    calls_in_flight: Mapped[int] = mapped_column(default=0, server_default="0")
    settled_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reset_mark_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    held_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # money, in billionths of CURRENCY, and the tokens whose cost is known; their marks move with that of tokens
    held_cost: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    settled_cost: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reset_mark_cost: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    settled_priced_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reset_mark_priced_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    @declared_attr
    def is_due(cls) -> Mapped[bool]:  # noqa: N805 - it is a class
        """Tell whether the time has come to renew since a call last touched the row."""
        renews_at: Any = cls.renews_at
        return column_property(and_(renews_at.is_not(None), renews_at <= epoch_now()))

    @declared_attr
    def read_at(cls) -> Mapped[float]:  # noqa: N805
        """Tell when the row was read, by the database's clock."""
        return column_property(type_coerce(epoch_now(), Float))

    @hybrid_property
    def used_tokens(self) -> int:
        """Return what settled since the last reset and renewal; of the class, an expression for it in SQL.

        Nothing, once the time has come to renew: whatever settles next moves the mark first.
        """
        return 0 if self.is_due else self.settled_tokens - self.reset_mark_tokens

    @used_tokens.inplace.expression
    @classmethod
    def _used_tokens(cls) -> ColumnElement[int]:
        return case((cls.is_due, 0), else_=cls.settled_tokens - cls.reset_mark_tokens)

    @property
    def cost(self) -> int | None:
        """What the used tokens cost, as far as that is known; None where it is of none of them."""
        known = 0 if self.is_due else self.settled_cost - self.reset_mark_cost
        return known if known or not self.unpriced_tokens else None

    @property
    def unpriced_tokens(self) -> int:
        """How many of the used tokens have no price."""
        priced = 0 if self.is_due else self.settled_priced_tokens - self.reset_mark_priced_tokens
        return self.used_tokens - priced

    @hybrid_property
    def allowance_tokens(self) -> int | None:
        """Return the quota with what was added to the running period; None where it is unlimited, likewise."""
        if self.quota_tokens is None:
            return None
        return self.quota_tokens + self.current_extra_tokens

    @allowance_tokens.inplace.expression
    @classmethod
    def _allowance_tokens(cls) -> ColumnElement[int | None]:
        return cls.quota_tokens + case((cls.is_due, 0), else_=cls.extra_tokens)

    @property
    def current_extra_tokens(self) -> int:
        """What was added to the running period."""
        return 0 if self.is_due else self.extra_tokens

    @property
    def current_extra_budget(self) -> int:
        """What was added to the budget of the running period."""
        return 0 if self.is_due else self.extra_budget

    @property
    def remaining_budget(self) -> int | None:
        """What budget and extra still let through; None where there is no budget."""
        if self.budget is None:
            return None
        return max(0, self.budget + self.current_extra_budget - (self.cost or 0) - self.held_cost)

    @property
    def remaining_tokens(self) -> int | None:
        """What quota and extra still let through; None where it is unlimited."""
        if self.allowance_tokens is None:
            return None
        return max(0, self.allowance_tokens - self.used_tokens - self.held_tokens)

    @property
    def renewal(self) -> Renewal:
        """How often the quota begins anew; never, where that cannot be read."""
        return read_renewal(self.renews, self.renews_on)

    def next_renewal(self, zone: ZoneInfo) -> int | None:
        """Return when the quota begins anew next, as every reader and every call will see it."""
        if self.renews_at is not None and not self.is_due and self.renewal_basis == self.renewal.basis(zone):
            return self.renews_at
        return self.renewal.next_after(self.read_at, zone)


def _unique_among_living(table: str) -> Index:
    is_living = text("deleted_at IS NULL")
    return Index(f"ix_{table}_name_living", "name", unique=True, sqlite_where=is_living, postgresql_where=is_living)


class Group(HasLimits, Base):
    """Teams that share limits: what a team of it calls has to fit both, and counts in both."""

    __tablename__ = "groups"
    __table_args__ = (_unique_among_living(__tablename__),)


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

    __table_args__ = (_unique_among_living(__tablename__),)

    @property
    def model_patterns(self) -> tuple[str, ...] | None:
        """The team's own list of models; None where it has none."""
        return split_models(self.models)


def split_models(models: str | None) -> tuple[str, ...] | None:
    """Read a team's `models` column, which people may have written by hand."""
    if models is None:
        return None
    return tuple(name.strip() for name in str(models).split(",") if name.strip())


CodeState = Literal["open", "revoked", "expired", "used up", "group deleted"]


class JoinCode(Base):
    """A code with which whoever knows it makes a team of its own, by a name: as often as `uses` says.

    It is kept as it is, since it is shown again, on a wall.
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
        """A team as the code makes it, without a name, in no session."""
        return Team(**self.limits)

    def state_at(self, now: datetime) -> CodeState:
        """Return whether it can be joined with, else why not."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        if self.uses is not None and self.used >= self.uses:
            return "used up"
        return "open" if self.group_deleted_at is None else "group deleted"


class ApiToken(Base):
    """A team's bearer token, of which only the hash and the first characters are kept."""

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
    """A bearer token of the management API, which belongs to no team and is kept like a team's."""

    __tablename__ = "management_tokens"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    label: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    prefix: Mapped[str] = mapped_column(String(8))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256 in hexadecimal
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # to the minute
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Worker(Base):
    """A process that makes calls, and the time until which it is taken to be alive."""

    __tablename__ = "workers"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str]  # host and process, for people
    lease_expires_at: Mapped[float]  # seconds since 1970 by the database's clock, since machines' clocks differ
    running_calls: Mapped[str | None]  # at its last heartbeat: ids of the log, separated by commas
    running_upto: Mapped[int | None] = mapped_column(BigInteger)  # the last id that it had reserved by then

    __table_args__ = ({"sqlite_autoincrement": True},)  # an id used again would bring a dead worker's calls to life


class RequestLog(Base):
    """One call. It is written as `pending` when its tokens are reserved and completed when it is settled.

    While it is pending, `prompt_tokens` is the estimate and `completion_tokens` what has arrived so far.
    """

    __tablename__ = "request_logs"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    request_id: Mapped[str] = mapped_column(String(36), unique=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"))
    team_name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    group_id: Mapped[int | None] = mapped_column(BigInteger)  # in which it was held
    token_id: Mapped[int] = mapped_column(BigInteger)
    token_prefix: Mapped[str] = mapped_column(String(8))
    worker_id: Mapped[int | None] = mapped_column(BigInteger)
    model: Mapped[str]
    endpoint: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    status_code: Mapped[int | None]
    error_code: Mapped[str | None]
    repeats: Mapped[int] = mapped_column(default=1, server_default="1")  # how many calls the row stands for
    stream: Mapped[bool]
    held_tokens: Mapped[int] = mapped_column(BigInteger)
    held_cost: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    total_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # of the prompt
    charged_tokens: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[int | None] = mapped_column(BigInteger)  # billionths of CURRENCY; none where it is not known
    cost_source: Mapped[str] = mapped_column(String(16), default=NO_COST, server_default=NO_COST)
    usage_source: Mapped[str] = mapped_column(String(16))
    latency_ms: Mapped[int | None]
    first_byte_ms: Mapped[int | None]
    provider_request_id: Mapped[str | None]
    reason: Mapped[str | None] = mapped_column(String(REASON_LENGTH))  # why it was refused, or failed; never content
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    day: Mapped[date | None]  # to which it counts; of calls from before that was kept, the one in UTC
    group_name: Mapped[str | None] = column_property(
        select(Group.name).where(Group.id == group_id).correlate_except(Group).scalar_subquery()
    )

    __table_args__ = (
        Index("ix_request_logs_team_id_id", "team_id", "id"),
        Index(
            "ix_request_logs_group_id_id",
            "group_id",
            "id",
            sqlite_where=text("group_id IS NOT NULL"),
            postgresql_where=text("group_id IS NOT NULL"),
        ),
        Index(
            "ix_request_logs_pending",
            "worker_id",
            sqlite_where=text("status = 'pending'"),
            postgresql_where=text("status = 'pending'"),
        ),
        # for the newest failures: calls that end well, nearly all, cost it nothing
        Index("ix_request_logs_rare", "status", "id", sqlite_where=text(IS_RARE), postgresql_where=text(IS_RARE)),
    )


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
    """The part of it that was booked in a group: the one that the team was in when its call began."""

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

    # in the order of its key on SQLite too, which spares each count a second tree
    __table_args__ = (Index("ix_token_usage_daily_day", "day"), {"sqlite_with_rowid": False})


class PrunedUsage(DailySums, Base):
    """What the calls came to that are no longer in the log, so that the books can be proven without them."""

    __tablename__ = "pruned_usage"

    day: Mapped[date] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    group_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # 0 where there was none
    token_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(primary_key=True)  # as the sums of days count it

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageTotals(DailySums, Base):
    """Daily totals of days that are long over, added up once more for reports: by model alone, or by month.

    Only what `usage_totals_kept` names as complete counts.
    """

    __tablename__ = "usage_totals"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # see rollups.py
    day: Mapped[date] = mapped_column(primary_key=True)  # of a month, the first
    owner_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # 0 is everybody
    team_id: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False
    )  # of a group's months, else 0
    model: Mapped[str] = mapped_column(primary_key=True)

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageTotalsKept(Base):
    """Of which day or month `usage_totals` has sums of a kind; whoever adds to such a day takes it out."""

    __tablename__ = "usage_totals_kept"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    day: Mapped[date]
    complete: Mapped[bool] = mapped_column(default=False, server_default=text("false"))  # until then they are written

    __table_args__ = (UniqueConstraint("kind", "day"), {"sqlite_autoincrement": True})  # an id means one summing up


class RenewalColumns:
    """A renewal of a quota, as the first call after its time found it: so the mark can be proven."""

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
    """A price of a model, or of all whose names begin so, from when it was set until the next of the same name.

    Billionths of CURRENCY, for a million tokens each but for `request_price`; without an input price it ends the one
    before.
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
        {"sqlite_autoincrement": True},  # the last of them tells whether any is new
    )


class CostCorrection(Base):
    """By how much more a call costs than its row of the log says, in billionths; less is below zero."""

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
        """Select the corrections of a call of the log; SQLite may give the id of one that was pruned to another."""
        return and_(cls.call_id == call_id, cls.token_id.is_(None))


class GivenResponse(Base):
    """A response that a team was given, and may go on from: at the provider it belongs to the whole account."""

    __tablename__ = "responses"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    response_hash: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of its id, in hexadecimal
    total_tokens: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class GivenItem(Base):
    """An item of a response that a team was given, and may name: at the provider it belongs to the whole account."""

    __tablename__ = "response_items"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    item_hash: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of its id, in hexadecimal
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


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


class DoorRefusal(Base):
    """How many requests of an address were turned away in a minute, before any team was charged with a call."""

    __tablename__ = "door_refusals"

    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True)  # since 1970
    address: Mapped[str] = mapped_column(String(64), primary_key=True)
    reason: Mapped[str] = mapped_column(String(32), primary_key=True)
    token_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # 0 where it never was one
    requests: Mapped[int] = mapped_column(BigInteger)


class Job(Base):
    """Something that one worker of all does by the clock, and when it is due next, by the database's clock."""

    __tablename__ = "jobs"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    due_at: Mapped[float]  # seconds since 1970
    began_at: Mapped[float | None]  # likewise, as all that follow
    ended_at: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(String(REASON_LENGTH))  # of the last run, if it failed
    worker_id: Mapped[int | None] = mapped_column(BigInteger)  # who runs it


class MetricTotal(Base):
    """What all processes have counted of something, ever: for Prometheus, whose counters only grow."""

    __tablename__ = "metric_totals"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(primary_key=True)  # their values, as a JSON array
    value: Mapped[int] = mapped_column(BigInteger)  # of times in microseconds, of money in billionths


class Alert(Base):
    """Something that people are told of, in words that `alerts` finds for it; who is told has a row of `Delivery`."""

    __tablename__ = "alerts"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    uid: Mapped[str] = mapped_column(String(32), unique=True)  # by which receivers know it
    kind: Mapped[str] = mapped_column(String(32))
    once: Mapped[str | None] = mapped_column(String(200), unique=True)  # what is not told again while this stands here
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    team_id: Mapped[int | None] = mapped_column(BigInteger)
    group_id: Mapped[int | None] = mapped_column(BigInteger)
    percent: Mapped[int | None]  # of a quota or budget, where that is what was crossed
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    to_hand_out: Mapped[str | None] = mapped_column(String(8))  # what of it has no deliveries yet: begun, or over

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
    """What of an alert goes to one receiver, and how that went."""

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


class AccountCheck(Base):
    """What the provider said of the paid account at a moment, or the administrator did."""

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
    """A call as the provider's own record has it, kept so that it is fetched once."""

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
    """How fast all teams together call the provider: one row, which whoever takes a place has locked."""

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

    __table_args__ = ({"sqlite_autoincrement": True},)  # an id used again would be another call's place


class ProviderLimit(Base):
    """What the provider last said of a limit of the whole account."""

    __tablename__ = "provider_limits"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    most: Mapped[int | None] = mapped_column(BigInteger)
    remaining: Mapped[int] = mapped_column(BigInteger)
    resets_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class ProviderFetch(Base):
    """When the provider's record was asked for last, and why it could not be had; one row."""

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
    """What the provider's key spent on a day in UTC, as it was told last on that day, or after it."""

    __tablename__ = "provider_days"

    day: Mapped[date] = mapped_column(primary_key=True)
    cost: Mapped[int] = mapped_column(BigInteger)  # billionths of a dollar, as of `read_at`
    ever: Mapped[int | None] = mapped_column(BigInteger)  # what the key had ever spent, as of `read_at`
    key: Mapped[str | None] = mapped_column(String(100))  # as the provider names it
    read_at: Mapped[datetime] = mapped_column(UtcDateTime)
    is_whole: Mapped[bool]


class PanelSession(Base):
    """A session in which the administrator signed in, and was not signed out of."""

    __tablename__ = "panel_sessions"

    id_hash: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 in hexadecimal
    password_print: Mapped[str] = mapped_column(String(128))  # it changes with the password, and so ends the session
    signed_in_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SignInAttempt(Base):
    """A wrong guess at the administrator's password, or at a code to join with; kept for a minute."""

    __tablename__ = "sign_in_attempts"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    address: Mapped[str] = mapped_column(String(64), index=True)  # or another guesser: see attempts
    at: Mapped[float]  # seconds since 1970 by the database's clock

    __table_args__ = ({"sqlite_autoincrement": True},)

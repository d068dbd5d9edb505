"""What a team and a group have alike: a name, limits, and the counters of what is used and held."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import BigInteger, ColumnElement, Float, Index, String, and_, case, text, type_coerce
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, column_property, declared_attr, mapped_column

from tokenrouter.database.columns import RowId, Tokens, UtcDateTime, epoch_now, is_quota
from tokenrouter.database.tables.base import NAME_LENGTH
from tokenrouter.periods import NEVER, Renewal, is_renewal, read_renewal

MOST_QUOTA_TOKENS = 10**15

PACES = ("requests_per_minute", "tokens_per_minute", "calls_at_once")
BUDGETS = ("budget", "extra_budget")
LIMITS = ("quota_tokens", "extra_tokens", "renews", "renews_on", *PACES, *BUDGETS)
"""The columns of the limits that people set, of a team or a group."""


def unreadable_limits(
    quota_tokens: object, extra_tokens: object, renews: object, renews_on: object, *others: object
) -> list[str]:
    """Return the names of these stored limits that cannot be read; the arguments are in the order of LIMITS."""
    readable = {
        "quota_tokens": is_quota(quota_tokens),
        "extra_tokens": extra_tokens is not None and is_quota(extra_tokens),
        "renews": is_renewal(renews, renews_on),
        **{name: is_quota(value) for name, value in zip((*PACES, *BUDGETS), others, strict=True)},
    }
    if others[-1] is None:
        readable["extra_budget"] = False
    return [name for name, is_readable in readable.items() if not is_readable]


def remaining(allowance: int | None, used: int, held: int) -> int | None:
    """Return what an allowance, None being unlimited, still lets through."""
    return None if allowance is None else max(0, allowance - used - held)


class HasLimits:
    """What a team has, and a group of teams: a name, limits, and the counters of what is used and held.

    `settled_tokens` only grows; a reset or a renewal moves `reset_mark_tokens` up to it. A deleted team or group keeps
    its row, so that running calls are still booked and the log still adds up; its name can be taken again.
    """

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    quota_tokens: Mapped[int | None] = mapped_column(Tokens)
    renews: Mapped[str] = mapped_column(String(8), default=NEVER, server_default=NEVER)
    renews_on: Mapped[int | None]  # the day, if monthly
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
        """Tell whether the quota has to renew, which the next call that locks the row will do."""
        renews_at: Any = cls.renews_at
        return column_property(and_(renews_at.is_not(None), renews_at <= epoch_now()))

    @declared_attr
    def read_at(cls) -> Mapped[float]:  # noqa: N805
        """Tell when the row was read, by the database's clock."""
        return column_property(type_coerce(epoch_now(), Float))

    @hybrid_property
    def used_tokens(self) -> int:
        """Return what settled since the last reset and renewal; of the class, its SQL.

        It is 0 once the renewal is due: the next settlement moves the mark first.
        """
        return 0 if self.is_due else self.settled_tokens - self.reset_mark_tokens

    @used_tokens.inplace.expression
    @classmethod
    def _used_tokens(cls) -> ColumnElement[int]:
        return case((cls.is_due, 0), else_=cls.settled_tokens - cls.reset_mark_tokens)

    @hybrid_property
    def used_cost(self) -> int:
        """Return what the used tokens cost in billionths, as far as that is known; of the class, its SQL."""
        return 0 if self.is_due else self.settled_cost - self.reset_mark_cost

    @used_cost.inplace.expression
    @classmethod
    def _used_cost(cls) -> ColumnElement[int]:
        return case((cls.is_due, 0), else_=cls.settled_cost - cls.reset_mark_cost)

    @property
    def cost(self) -> int | None:
        """What the used tokens cost, as far as that is known; None if it is known of none of them."""
        return self.used_cost if self.used_cost or not self.unpriced_tokens else None

    @property
    def unpriced_tokens(self) -> int:
        """How many of the used tokens have no price."""
        priced = 0 if self.is_due else self.settled_priced_tokens - self.reset_mark_priced_tokens
        return self.used_tokens - priced

    @hybrid_property
    def allowance_tokens(self) -> int | None:
        """Return the quota with what was added to the running period, None if unlimited; of the class, its SQL."""
        if self.quota_tokens is None:
            return None
        return self.quota_tokens + self.current_extra_tokens

    @allowance_tokens.inplace.expression
    @classmethod
    def _allowance_tokens(cls) -> ColumnElement[int | None]:
        return cls.quota_tokens + case((cls.is_due, 0), else_=cls.extra_tokens)

    @hybrid_property
    def allowance_budget(self) -> int | None:
        """Return the budget with what was added to the running period, None if there is none; of the class, SQL."""
        return None if self.budget is None else self.budget + self.current_extra_budget

    @allowance_budget.inplace.expression
    @classmethod
    def _allowance_budget(cls) -> ColumnElement[int | None]:
        return cls.budget + case((cls.is_due, 0), else_=cls.extra_budget)

    @property
    def current_extra_tokens(self) -> int:
        """What was added to the running period."""
        return 0 if self.is_due else self.extra_tokens

    @property
    def current_extra_budget(self) -> int:
        """What was added to the budget of the running period."""
        return 0 if self.is_due else self.extra_budget

    @property
    def remaining_tokens(self) -> int | None:
        """What quota and extra still let through; None if it is unlimited."""
        return remaining(self.allowance_tokens, self.used_tokens, self.held_tokens)

    @property
    def renewal(self) -> Renewal:
        """How often the quota begins anew; never, where that cannot be read."""
        return read_renewal(self.renews, self.renews_on)

    def next_renewal(self, zone: ZoneInfo) -> int | None:
        """Return when the quota begins anew next, as every reader and every call will see it."""
        if self.renews_at is not None and not self.is_due and self.renewal_basis == self.renewal.basis(zone):
            return self.renews_at
        return self.renewal.next_after(self.read_at, zone)


def unique_among_living(table: str) -> Index:
    """Return an index that keeps names unique, but for those of what was deleted."""
    is_living = text("deleted_at IS NULL")
    return Index(f"ix_{table}_name_living", "name", unique=True, sqlite_where=is_living, postgresql_where=is_living)

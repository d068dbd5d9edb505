"""How near teams and groups are to their limits."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from flask import current_app
from sqlalchemy import ColumnElement, SQLColumnExpression, case, or_

from tokenrouter.database.tables import PACES, Group, Team
from tokenrouter.database.tables.limits import remaining
from tokenrouter.periods import Renewal, moment

NEAR_SHARE = 0.8

Nearness = Literal["exhausted", "over80"]


@dataclass(frozen=True)
class Use:
    """A living team or group, its limits and its counters."""

    id: int
    name: str
    quota_tokens: int | None
    allowance_tokens: int | None
    """The quota with what was added to the running period."""
    used_tokens: int
    cost: int | None
    """The cost of the used tokens, in billionths, as far as known; None if no token has a price."""
    unpriced_tokens: int
    budget: int | None
    """In billionths, without what was added to the running period."""
    extra_budget: int
    held_cost: int
    held_tokens: int
    renewal: Renewal
    renews_at: datetime | None
    pace: dict[str, int | None]
    """By the names of PACES."""

    @property
    def extra_tokens(self) -> int:
        """What was added to the running period."""
        return (self.allowance_tokens or 0) - (self.quota_tokens or 0)

    @property
    def remaining_tokens(self) -> int | None:
        """The tokens left of quota and extra; None if unlimited."""
        return remaining(self.allowance_tokens, self.used_tokens, self.held_tokens)

    @property
    def share(self) -> float | None:
        """The share of quota or budget used or held, whichever is larger, 1.0 being all; None if unlimited."""
        of_limits = [(self.used_tokens + self.held_tokens, self.allowance_tokens)]
        if self.budget is not None:
            of_limits.append(((self.cost or 0) + self.held_cost, self.budget + self.extra_budget))
        return max((taken / limit if limit else 1.0 for taken, limit in of_limits if limit is not None), default=None)


def use_of(row: Team | Group) -> dict[str, Any]:
    """Return the fields of a Use."""
    return {
        "id": row.id,
        "name": row.name,
        "quota_tokens": row.quota_tokens,
        "allowance_tokens": row.allowance_tokens,
        "used_tokens": row.used_tokens,
        "cost": row.cost,
        "unpriced_tokens": row.unpriced_tokens,
        "budget": row.budget,
        "extra_budget": row.current_extra_budget,
        "held_cost": row.held_cost,
        "held_tokens": row.held_tokens,
        "renewal": row.renewal,
        "renews_at": moment(row.next_renewal(current_app.config["TIMEZONE"])),
        "pace": {name: getattr(row, name) for name in PACES},
    }


def taken_of(kind: type[Team | Group]) -> SQLColumnExpression[int]:
    """Return what is used and held, in SQL."""
    return kind.used_tokens + kind.held_tokens


def share_of(kind: type[Team | Group]) -> ColumnElement[Any]:
    """Return the larger share of quota and budget that is used or held, in SQL; NULL if there is neither."""
    of_quota = _share(taken_of(kind), kind.allowance_tokens)
    of_budget = _share(kind.used_cost + kind.held_cost, kind.allowance_budget)
    return case((or_(of_budget.is_(None), of_quota >= of_budget), of_quota), else_=of_budget)


def _share(taken: Any, limit: Any) -> ColumnElement[Any]:
    return case((limit == 0, 1.0), else_=taken * 1.0 / limit)


def nearness_of(kind: type[Team | Group]) -> dict[Nearness, ColumnElement[bool]]:
    """Return the SQL conditions for having used up quota or budget, and for being near that."""
    return {"exhausted": share_of(kind) >= 1, "over80": share_of(kind) >= NEAR_SHARE}

"""What all teams may still spend, compared with what is left of the paid account.

Budgets are in money. What a quota of tokens will cost depends on the models that will be called, so it is estimated by
the recent cost of a token. A team with neither may spend all that is left.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, case, func, select, true
from sqlalchemy.engine import Connection, Engine

from tokenrouter.database.tables import AnyRow, Group, ProviderEntry, Team, UsageDaily
from tokenrouter.figures import short
from tokenrouter.ledger.costs import DOLLARS
from tokenrouter.money import shown
from tokenrouter.runway import Runway

LATELY = timedelta(days=30)


@dataclass(frozen=True)
class Commitments:
    """What the active teams may still spend until their limits renew; money is in billionths."""

    currency: str
    money: int
    """What budgets allow, of teams or of their groups."""
    tokens: int
    """What quotas allow, of teams without a budget."""
    tokens_money: int | None
    """What these tokens cost, at what one cost in the last 30 days; None if that is not known."""
    unlimited_teams: int
    left: int | None
    """What is left of the account in `currency`; None if not known."""
    is_left_estimated: bool = False
    """Whether the account is in points, converted by the provider's record."""

    @property
    def whole(self) -> int:
        """All of it in money, as far as that is known."""
        return self.money + (self.tokens_money or 0)

    @property
    def exceeds(self) -> bool:
        """Whether that is more than what is left, as far as both are known."""
        return self.left is not None and self.whole > self.left

    @property
    def warning(self) -> str | None:
        """A warning if it is more; None otherwise."""
        if self.left is None or not self.exceeds:
            return None
        whole, left = shown(self.whole, self.currency), shown(max(0, self.left), self.currency)
        about = "about " if self.tokens_money or self.is_left_estimated else ""
        return f"All teams together may still spend {about}{whole}, more than what is left, {left}."

    @property
    def words(self) -> list[str]:
        """The commitments in sentences."""
        sentences = []
        if self.money:
            sentences.append(f"Budgets let through {shown(self.money, self.currency)} more.")
        if self.tokens:
            worth = "what they cost is not known before their models are"
            if self.tokens_money is not None:
                worth = f"about {shown(self.tokens_money, self.currency)} at what a token cost in the last 30 days"
            sentences.append(f"Quotas without a budget let through {short(self.tokens)} tokens more: {worth}.")
        if self.unlimited_teams:
            teams = "1 team has" if self.unlimited_teams == 1 else f"{self.unlimited_teams:,} teams have"
            sentences.append(f"Without limit: {teams} neither quota nor budget, and may spend all that is left.")
        return sentences or ["No team may spend anything now."]


@dataclass
class _Open:
    """What the teams of one group, or of none, may still spend by their own limits."""

    budgets: int = 0
    quotas: int = 0
    with_quota: int = 0
    without: int = 0


def commitments(engine: Engine, left: Runway | None, currency: str, now: datetime | None = None) -> Commitments:
    """Return what all teams may still spend, compared with what is left."""
    since = (now or datetime.now(UTC)) - LATELY
    with engine.connect() as connection:
        own = _by_group(connection)
        groups = {row.id: row for row in connection.execute(_limits(Group).where(Group.deleted_at.is_(None)))}
        found = [_within(each, groups.get(group_id)) for group_id, each in own.items()]
        money, tokens, unlimited = (sum(each) for each in zip(*found, strict=True)) if found else (0, 0, 0)
        rate = _cost_of_a_token(connection, since) if tokens else None
        balance, is_estimated = _in_money(connection, left, currency, since)
    worth = None if rate is None else round(tokens * rate)
    return Commitments(currency, money, tokens, worth, unlimited, balance, is_estimated)


def _limits(kind: type[Team | Group], *columns: Any) -> Any:
    """Select the rows with what quota and budget still allow; NULL if there is none."""
    return select(kind.id, *columns, _left_of_budget(kind).label("budget"), _left_of_quota(kind).label("quota"))


def _left_of_budget(kind: type[Team | Group]) -> ColumnElement[Any]:
    left = kind.allowance_budget - kind.used_cost - kind.held_cost
    return case((left < 0, 0), else_=left)


def _left_of_quota(kind: type[Team | Group]) -> ColumnElement[Any]:
    left = kind.allowance_tokens - kind.used_tokens - kind.held_tokens
    return case((left < 0, 0), else_=left)


def _by_group(connection: Connection) -> dict[int | None, _Open]:
    found: defaultdict[int | None, _Open] = defaultdict(_Open)
    query = _limits(Team, Team.group_id).where(Team.deleted_at.is_(None), Team.active.is_(true()))
    for row in connection.execute(query):
        _add(found[row.group_id], row)
    return found


def _add(own: _Open, row: AnyRow) -> None:
    if row.budget is not None:
        own.budgets += int(row.budget)
    elif row.quota is not None:
        own.quotas += int(row.quota)
        own.with_quota += 1
    else:
        own.without += 1


def _within(own: _Open, group: AnyRow | None) -> tuple[int, int, int]:
    """Return money, tokens, and how many teams have no limit, as far as the group's limits let it through.

    A group's limits bound all its teams; a team without its own limit may use all of them.
    """
    budget = None if group is None else group.budget
    quota = None if group is None else group.quota
    if budget is not None:
        bounded = own.with_quota == own.without == 0
        return min(int(budget), own.budgets) if bounded else int(budget), 0, 0
    if quota is not None:
        return own.budgets, int(quota) if own.without else min(int(quota), own.quotas), 0
    return own.budgets, own.quotas, own.without


def _cost_of_a_token(connection: Connection, since: datetime) -> float | None:
    """Return what a token cost since a day, in billionths of CURRENCY, of those that have a price."""
    sums = select(func.sum(UsageDaily.cost), func.sum(UsageDaily.priced_tokens)).where(UsageDaily.day >= since.date())
    cost, tokens = connection.execute(sums).one()
    return float(cost) / float(tokens) if tokens else None


def _in_money(connection: Connection, left: Runway | None, currency: str, since: datetime) -> tuple[int | None, bool]:
    """Return what is left in a currency, and whether points were converted by what the provider's record says."""
    if left is None:
        return None, False
    if left.money is not None:
        return (left.money, False) if left.currency == currency else (None, False)
    if left.points is None or currency != DOLLARS:
        return None, False
    is_meant = ProviderEntry.at >= since, ProviderEntry.points > 0, ProviderEntry.cost > 0
    sums = select(func.sum(ProviderEntry.cost), func.sum(ProviderEntry.points)).where(*is_meant)
    cost, points = connection.execute(sums).one()
    return (round(left.points * float(cost or 0) / float(points)), True) if points else (None, False)

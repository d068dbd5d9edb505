"""What a call costs: fixed when it settles, by the price that is valid in the same transaction."""

from typing import Any, NamedTuple

from sqlalchemy import func, select

from tokenrouter.database.log_status import OK
from tokenrouter.database.statements import DriverConnection, Statement
from tokenrouter.database.tables import BY_PRICE, BY_PROVIDER, NO_COST, ModelPrice
from tokenrouter.ledger.rules import Outcome
from tokenrouter.metering.prices import Price, PriceList

DOLLARS = "USD"

PRICES_VERSION: Any = select(func.max(ModelPrice.id)).scalar_subquery()
"""Changes whenever a price of any model is set, since prices are only ever added."""
_newest = select(func.max(ModelPrice.id)).group_by(ModelPrice.is_of_provider, ModelPrice.model)
VALID_PRICES = Statement(
    select(
        ModelPrice.shown_model,
        ModelPrice.input_price,
        ModelPrice.output_price,
        ModelPrice.cached_input_price,
        ModelPrice.request_price,
        ModelPrice.is_of_provider,
        PRICES_VERSION,
    ).where(ModelPrice.id.in_(_newest))
)


class Cost(NamedTuple):
    """What a call cost, in billionths, None if that is not known; and where the figure comes from."""

    amount: int | None
    source: str


class KnownPrices:
    """The prices as this process last read them."""

    def __init__(self, currency: str = DOLLARS) -> None:
        """Know none yet."""
        self.prices = PriceList()
        self.version: int | None = None
        self.currency = currency
        self._takes_reports = currency == DOLLARS

    def read(self, connection: DriverConnection) -> None:
        """Read the prices that are valid in this transaction."""
        rows = VALID_PRICES.execute(connection, {}).fetchall()
        self.prices = PriceList(Price(*row[:-1]) for row in rows if row[1] is not None)
        self.version = rows[0][-1] if rows else None

    def cost(self, model: str, outcome: Outcome) -> Cost:
        """Return what a call with this outcome cost; one that failed and is charged no tokens costs nothing."""
        if outcome.reported_cost is not None and self._takes_reports:
            return Cost(outcome.reported_cost, BY_PROVIDER)
        if outcome.status != OK and not outcome.charged_tokens:
            return Cost(0, NO_COST)
        price = self.prices.find(model)
        if price is None:
            return Cost(None, NO_COST)
        answer_tokens = max(outcome.completion_tokens, outcome.total_tokens - outcome.prompt_tokens)
        return Cost(price.cost(outcome.prompt_tokens, outcome.cached_tokens, answer_tokens), BY_PRICE)

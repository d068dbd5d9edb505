"""What models cost: the administrator's prices, and those of the provider's own list.

Prices are never edited: a new one of the same name replaces the old one from then on. Every function that changes
something is one transaction, which records who made the change, and commits.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from flask import current_app
from sqlalchemy import func, insert, select
from sqlalchemy.engine import Connection

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.config import parse_models
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import NAME_LENGTH, ModelPrice, UsageDaily, db
from tokenrouter.errors import InvalidRequest, NotFound
from tokenrouter.ledger.costs import DOLLARS, KnownPrices
from tokenrouter.metering.prices import MILLION, Price, PriceList
from tokenrouter.money import MOST_AMOUNT, billionths, decimal_string, parse_amount

FIELDS = {name: f"{name}_price" for name in ("input", "output", "cached_input", "request")}
PROPOSALS_S = 20.0
USED_DAYS = 30
PROVIDERS_NAMES = {"input": "prompt", "output": "completion", "cached_input": "input_cache_read", "request": "request"}
"""The names in a provider's list of models: dollars per token, or per request, as texts."""


@dataclass(frozen=True)
class Fetched:
    """The result of fetching the provider's prices: how many models have one, and the names of those that changed."""

    priced: int
    changed: list[str]


def parse_price(text: str) -> int:
    """Read a price per million tokens, or per request, as people write it; return billionths.

    Raises InvalidRequest.
    """
    try:
        return parse_amount(text)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def valid() -> PriceList:
    """Return the prices that are valid now."""
    known = KnownPrices()
    with db.engine.connect() as connection:
        known.read(driver_connection(connection))
    return known.prices


def views() -> list[dict[str, Any]]:
    """Return the prices that are valid now, and since when, as documents; the administrator's first."""
    newest = select(func.max(ModelPrice.id)).group_by(ModelPrice.is_of_provider, ModelPrice.model)
    query = (
        select(ModelPrice.__table__)
        .where(ModelPrice.id.in_(newest), ModelPrice.input_price.is_not(None))
        .order_by(ModelPrice.is_of_provider, ModelPrice.model)
    )
    with db.engine.connect() as connection:
        return [
            {
                "model": row.shown_model,
                **{name: decimal_string(getattr(row, column)) for name, column in FIELDS.items()},
                "source": "provider" if row.is_of_provider else "administrator",
                "since": row.since,
            }
            for row in connection.execute(query)
        ]


def unpriced_models() -> dict[str, int]:
    """Return the models used in the last 30 days that have no price now, with their tokens, the most first."""
    prices = valid()
    since = datetime.now(current_app.config["TIMEZONE"]).date() - timedelta(days=USED_DAYS)
    tokens = func.sum(UsageDaily.total_tokens)
    query = select(UsageDaily.model, tokens).where(UsageDaily.day >= since, UsageDaily.model != "")
    with db.engine.connect() as connection:
        used = connection.execute(query.group_by(UsageDaily.model).order_by(tokens.desc(), UsageDaily.model)).all()
    return {model: int(total) for model, total in used if total and prices.find(model) is None}


def set_price(
    model: str, input: int, output: int, cached_input: int | None = None, request: int = 0, *, by: Actor
) -> None:
    """Set the price of a model, or of all models with a prefix, in billionths per million tokens or per request.

    Raises InvalidRequest.
    """
    name = _check_model(model)
    price = Price(name, input, output, cached_input, request)
    with writing(db.engine) as connection:
        before = _administrators(connection, name)
        _add(connection, [price])
        _record(connection, by, changes.PRICE_SET, name, before, price)


def unset_price(model: str, *, by: Actor) -> None:
    """End the administrator's price of a model or prefix; then the provider's applies, if it has one.

    Raises InvalidRequest and NotFound.
    """
    name = _check_model(model)
    with writing(db.engine) as connection:
        if (before := _administrators(connection, name)) is None:
            raise NotFound(f"You have set no price of {name!r}.")
        _add(connection, [], ended=[before])
        _record(connection, by, changes.PRICE_UNSET, name, before, None)


def take_over(listed: Mapping[str, Mapping[str, Any]], *, by: Actor) -> Fetched:
    """Store the prices in the provider's list of models; they apply where the administrator has set none.

    Prices that the list no longer has end. Raises InvalidRequest if CURRENCY is not that of the list.
    """
    _expect_dollars()
    listed_prices = {name.casefold(): price for name, model in listed.items() if (price := provider_price(name, model))}
    with writing(db.engine) as connection:
        before = {price.model.casefold(): price for price in _read(connection).prices if price.is_of_provider}
        new = [price for name, price in listed_prices.items() if before.get(name) != price]
        ended = [price for name, price in before.items() if name not in listed_prices]
        _add(connection, new, ended=ended)
        changed = sorted(price.model for price in (*new, *ended))
        if changed:
            changes.record(connection, by, changes.PRICES_FETCH, Changed(None, None, None, {"models": changed[:100]}))
    return Fetched(len(listed_prices), changed)


def compared(listed: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the provider's prices, each with the administrator's own price of the model, which would take precedence.

    Raises InvalidRequest if CURRENCY is not that of the list.
    """
    _expect_dollars()
    own = PriceList(price for price in valid().prices if not price.is_of_provider)
    listed_prices = [price for name, model in listed.items() if (price := provider_price(name, model))]
    rows = []
    for price in sorted(listed_prices, key=lambda price: price.model.casefold()):
        mine = own.find(price.model)
        own_price = None if mine is None else _described(mine)
        rows.append({"model": price.model, "provider": _described(price), "own": own_price})
    return rows


def proposals(models: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the prices of a public list for these models, by name, in dollars per million tokens, as decimals.

    Raises InvalidRequest if CURRENCY is another, or the list cannot be read.
    """
    _expect_dollars()
    # -P: otherwise modules beside the script would hide Python's own of the same name
    command = [sys.executable, "-P", str(Path(__file__).with_name("price_proposals.py"))]
    try:
        done = subprocess.run(  # noqa: S603 - names go in as JSON, not as arguments
            command, input=json.dumps(list(models)), capture_output=True, text=True, timeout=PROPOSALS_S, check=True
        )
        found: dict[str, dict[str, str]] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InvalidRequest(f"The public list of prices cannot be read ({type(error).__name__}).") from error
    return found


def provider_price(name: str, model: Mapping[str, Any]) -> Price | None:
    """Return the price of a model from an entry of the provider's list; None if it has none."""
    pricing = model.get("pricing")
    if not isinstance(pricing, dict) or len(name) > NAME_LENGTH:
        return None
    amounts = {ours: _dollars(pricing.get(theirs), ours) for ours, theirs in PROVIDERS_NAMES.items()}
    if amounts["input"] is None or amounts["output"] is None:
        return None
    return Price(
        name, amounts["input"], amounts["output"], amounts["cached_input"], amounts["request"] or 0, is_of_provider=True
    )


def _expect_dollars() -> None:
    if (currency := current_app.config["CURRENCY"]) != DOLLARS:
        raise InvalidRequest(f"The provider's prices are in US dollars, and CURRENCY is {currency}: set your own.")


def _dollars(text: object, kind: str) -> int | None:
    """Return an amount in billionths, per million tokens or per request; None if the value is no amount."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return None
    try:
        dollars = Decimal(str(text))
        if not 0 <= dollars <= MOST_AMOUNT:  # before multiplying: a number may have a million digits
            return None
    except InvalidOperation:  # no number, or NaN, which cannot be compared
        return None
    amount = billionths(dollars * (1 if kind == "request" else MILLION))
    return amount if amount <= MOST_AMOUNT else None


def _check_model(model: str) -> str:
    try:
        (name,) = parse_models(model)
    except ValueError:
        raise InvalidRequest("A model is one name, with at most a trailing *.", param="model") from None
    if len(name) > NAME_LENGTH:
        raise InvalidRequest(f"A model's name has at most {NAME_LENGTH} characters.", param="model")
    return name


def _read(connection: Connection) -> PriceList:
    known = KnownPrices()
    known.read(driver_connection(connection))
    return known.prices


def _administrators(connection: Connection, name: str) -> Price | None:
    own = (price for price in _read(connection).prices if not price.is_of_provider)
    return next((price for price in own if price.model.casefold() == name.casefold()), None)


def _add(connection: Connection, prices: Iterable[Price], ended: Iterable[Price] = ()) -> None:
    now = datetime.now(UTC)

    def row(price: Price) -> dict[str, Any]:
        return {
            "model": price.model.casefold(),
            "shown_model": price.model,
            "is_of_provider": price.is_of_provider,
            **{column: getattr(price, name) for name, column in FIELDS.items()},
            "since": now,
        }

    rows = [row(price) for price in prices]
    rows += [row(price) | dict.fromkeys(("input_price", "output_price", "cached_input_price")) for price in ended]
    if rows:
        connection.execute(insert(ModelPrice), rows)


def _record(
    connection: Connection, by: Actor, action: str, model: str, before: Price | None, after: Price | None
) -> None:
    old, new = ({"model": model, **_described(price)} if price else None for price in (before, after))
    changes.record(connection, by, action, Changed(None, None, old, new))


def _described(price: Price) -> dict[str, str | None]:
    return {name: decimal_string(getattr(price, name)) for name in FIELDS}

"""Keep what models cost."""

from datetime import datetime
from typing import Any

import click
from flask import current_app

from tokenrouter import ledger, prices, reports
from tokenrouter.cli.commands import Group, Parsed, as_json, confirm, is_terminal, me, print_table, show_list
from tokenrouter.database.tables import db
from tokenrouter.figures import counted
from tokenrouter.money import decimal_string

price_commands = Group("prices", help="Keep what models cost.")


@price_commands.command("list")
@as_json
def list_prices(as_json: bool) -> None:
    """List the prices that are valid now, yours before the provider's, for a million tokens each, or a request."""
    views = [{**view, "since": reports.timestamp(view["since"])} for view in prices.views()]
    currency = current_app.config["CURRENCY"]
    show_list(views, _price_row, as_json, empty="There are no prices yet. Set one: flask prices set MODEL …")
    if not as_json:
        click.echo(f"In {currency}, a million tokens each, but for those a request.")
        for model, tokens in prices.unpriced_models().items():
            click.echo(f"No price: {model}, of which {tokens:,} tokens were used in the last 30 days.")


AMOUNT = Parsed("amount", prices.parse_price)


@price_commands.command("set")
@click.argument("model")
@click.option("--input", "input_", type=AMOUNT, required=True, metavar="P", help="A million tokens of a prompt.")
@click.option("--output", type=AMOUNT, required=True, metavar="P", help="A million tokens of an answer.")
@click.option("--cached-input", type=AMOUNT, metavar="P", help="A million tokens that the provider had read before.")
@click.option("--request", type=AMOUNT, default="0", metavar="P", help="A call.")
def set_price(model: str, input_: int, output: int, cached_input: int | None, request: int) -> None:
    """Set what MODEL costs from now on, or all models that begin so: `GPT-5*`."""
    prices.set_price(model, input_, output, cached_input, request, by=me())
    click.echo(f"Set the price of {model!r}: it holds for what settles from now on.")


@price_commands.command("unset")
@click.argument("model")
def unset_price(model: str) -> None:
    """End your price of MODEL; the provider's then holds, where it has one."""
    prices.unset_price(model, by=me())
    click.echo(f"Ended your price of {model!r}.")


@price_commands.command("correct")
@click.argument("model")
@click.option("--since", type=click.DateTime(("%Y-%m-%d",)), required=True, help="The first day, such as 2026-11-01.")
def correct_prices(model: str, since: datetime) -> None:
    """Let the price of MODEL that holds now hold for the calls since a day too; the log stays as it is."""
    corrected = ledger.correct_costs(db.engine, model, since.date(), by=me())
    more = f"{decimal_string(corrected.cost)} {current_app.config['CURRENCY']} more in all"
    click.echo(f"Corrected the cost of {counted(corrected.calls, 'call')}: {more}.")


@price_commands.command("fetch")
def fetch_prices() -> None:
    """Ask the provider for its prices, and show them beside yours; they hold where you have set none.

    On a terminal they are taken over once you say so.
    """
    listed = current_app.extensions["tokenrouter"].catalogue.fetch()
    rows = [
        {"model": row["model"], "provider": _price(row["provider"]), "yours, which goes before it": _price(row["own"])}
        for row in prices.compared(listed)
    ]
    if rows:
        print_table(rows, headers="keys", tablefmt="simple")
        confirm("Let them hold where you have set none?", yes=not is_terminal())
    fetched = prices.take_over(listed, by=me())
    click.echo(f"The provider has prices of {counted(fetched.priced, 'model')}, {len(fetched.changed):,} of them new.")


def _price(price: dict[str, str | None] | None) -> str:
    """Write a price in short: input, and output."""
    return "-" if price is None else f"{price['input']} / {price['output']}"


def _price_row(view: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in view.items()}

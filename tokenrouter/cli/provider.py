"""Ask the provider about the one paid account."""

import json

import click
from flask import current_app

from tokenrouter.cli.commands import Group, as_json
from tokenrouter.money import decimal_string, shown
from tokenrouter.provider.account import Account, Balance
from tokenrouter.reports import timestamp

provider_commands = Group("provider", help="Ask the provider about the one paid account.")


@provider_commands.command("check")
@as_json
def check_provider(as_json: bool) -> None:
    """Ask whether the provider answers and accepts the key; exit status 1 where calls would fail."""
    check = _account().check()
    if as_json:
        click.echo(json.dumps({"state": check.state.value, "message": check.words, "at": timestamp(check.at)}))
    elif check.state.is_good:
        click.echo(check.words)
    if not check.state.is_good:
        raise click.ClickException(check.words)


@provider_commands.command("balance")
@as_json
def show_balance(as_json: bool) -> None:
    """Ask what is left of the account, where the provider has an API that tells it."""
    balance = _account().balance()
    if as_json:
        click.echo(json.dumps(None if balance is None else _view(balance)))
    elif balance is None:
        click.echo("This provider has no API that tells what is left; PROVIDER_ACCOUNT names those that have one.")
    else:
        click.echo(_sentence(balance))


def _account() -> Account:
    account: Account = current_app.extensions["tokenrouter"].account
    return account


def _view(balance: Balance) -> dict[str, object]:
    return {
        "points": balance.points,
        "balance": decimal_string(balance.money),
        "currency": None if balance.money is None else balance.currency,
        "next_grant_at": timestamp(balance.next_grant_at),
        "next_grant_points": balance.next_grant_points,
    }


def _sentence(balance: Balance) -> str:
    points = [] if balance.points is None else [f"{balance.points:,} points"]
    money = [] if balance.money is None else [shown(balance.money, balance.currency)]
    left = ", ".join(points + money)
    return f"Left: {left}." if left else "The provider answered, and told no balance: the account may have no bound."

"""Ask the provider about the one paid account."""

import json
from datetime import datetime, timedelta

import click
from flask import current_app

from tokenrouter import account_pace, reconciliation
from tokenrouter.cli.commands import Group, as_json, show_list
from tokenrouter.database.tables import db
from tokenrouter.money import decimal_string, shown
from tokenrouter.provider.account import Account, Balance
from tokenrouter.provider.rate_limits import RateLimit
from tokenrouter.reports import timestamp

RECONCILED_DAYS = 7

provider_commands = Group("provider", help="Ask the provider about the one paid account.")


@provider_commands.command("check")
@as_json
def check_provider(as_json: bool) -> None:
    """Ask whether the provider answers and accepts the key; exit status 1 where calls would fail."""
    check = _account().check()
    limits = _rate_limits()
    if as_json:
        view = {"state": check.state.value, "message": check.words, "at": timestamp(check.at)}
        click.echo(json.dumps(view | {"rate_limits": [_limit_view(limit) for limit in limits]}))
    elif check.state.is_good:
        click.echo(check.words)
        zone = current_app.config["TIMEZONE"]
        if (told := account_pace.told_words(limits, zone)) is not None:
            click.echo(f"The provider says: {told}, as of {max(limit.at for limit in limits).astimezone(zone):%H:%M}.")
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


@provider_commands.command("reconcile")
@click.option("--since", type=click.DateTime(("%Y-%m-%d",)), help="The first day; the last 7 days unless it is given.")
@click.option("--key", help="Only what this key of the account did, as the provider names it.")
@as_json
def show_reconciliation(since: datetime | None, key: str | None, as_json: bool) -> None:
    """Compare the log with the provider's own record, by day and model, and say what the gap is made of."""
    zone = current_app.config["TIMEZONE"]
    today = datetime.now(zone).date()
    first = today - timedelta(days=RECONCILED_DAYS - 1) if since is None else since.date()
    reconciliation.fetch(db.engine, _account())
    lines, alone = reconciliation.reconcile(db.engine, first, today, zone, key)
    views = [_line_view(line) for line in lines]
    if as_json:
        gaps = [{"reason": reason.name.lower(), **vars(sums)} for reason, sums in reconciliation.gaps_of(lines)]
        click.echo(json.dumps({"data": views, "gaps": gaps, "alone": len(alone)}))
        return
    show_list(views, dict, False, empty="Neither the log nor the provider has calls of these days.")
    for reason, sums in reconciliation.gaps_of(lines):
        click.echo(f"{sums.tokens:+,} tokens of {sums.calls:,} calls: {reason.value}.")


def _line_view(line: reconciliation.Line) -> dict[str, object]:
    return {
        "day": line.day.isoformat(),
        "model": line.model,
        "calls": line.ours.calls,
        "provider_calls": line.theirs.calls,
        "tokens": line.ours.tokens,
        "provider_tokens": line.theirs.tokens,
        "gap_tokens": line.gap_tokens,
        "cost": decimal_string(line.ours.cost),
        "provider_cost": decimal_string(line.theirs.cost),
    }


def _rate_limits() -> list[RateLimit]:
    """Return the provider's limits as it told them last, to this check or to a worker."""
    account_pace.Keeper(db.engine, current_app.extensions["tokenrouter"].provider.rate_limits).keep()
    return account_pace.told_limits(db.engine)


def _limit_view(limit: RateLimit) -> dict[str, object]:
    return {
        "kind": limit.kind,
        "limit": limit.most,
        "remaining": limit.remaining,
        "resets_at": timestamp(limit.resets_at),
        "at": timestamp(limit.at),
    }


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

"""Ask the provider about the one paid account."""

import json
from datetime import UTC, datetime, timedelta

import click
from flask import current_app

from tokenrouter import account, account_pace, commitments, provider_record, reconciliation, runway
from tokenrouter.cli.commands import Group, as_json, show_list
from tokenrouter.commitments import Commitments
from tokenrouter.database.tables import db
from tokenrouter.figures import counted
from tokenrouter.money import decimal_string, shown
from tokenrouter.provider.account import Account
from tokenrouter.provider.rate_limits import RateLimit
from tokenrouter.reports import timestamp
from tokenrouter.runway import Runway

RECONCILED_DAYS = 7
NO_BALANCE = (
    "What is left is not known: this provider has no API for it, or the account has no limit. PROVIDER_ACCOUNT names "
    "the APIs; the balance on the provider’s own pages can be typed in the panel."
)

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
        if (words := account_pace.limits_words(limits, zone)) is not None:
            click.echo(f"The provider says: {words}, as of {max(limit.at for limit in limits).astimezone(zone):%H:%M}.")
    if not check.state.is_good:
        raise click.ClickException(check.words)


@provider_commands.command("balance")
@as_json
def show_balance(as_json: bool) -> None:
    """Say what is left of the account, how long that lasts, and what all teams may still spend.

    The provider is asked where it has an API that tells it; else it is what was typed in the panel, less costs since.
    """
    if _account().kind != "none":
        _ask_for_balance()
    left, now = runway.runway(db.engine), datetime.now(UTC)
    found = commitments.commitments(db.engine, left, current_app.config["CURRENCY"], now)
    if as_json:
        click.echo(json.dumps(None if left is None else _view(left, found)))
        return
    zone = current_app.config["TIMEZONE"]
    lasts = [] if left is None else [left.words(zone, now), left.grant_words(zone, now), *found.words]
    for line in (NO_BALANCE if left is None else _sentence(left), *lasts):
        if line is not None:
            click.echo(line)
    if left is not None and left.ends_soon(now):
        click.echo("Warning: what is left will not last.")
    if found.warning is not None:
        click.echo(f"Warning: {found.warning}")


def _ask_for_balance() -> None:
    """Ask now, and keep the answer; fail with the provider's error if there is none."""
    found = account.refresh(db.engine, _account())
    if found.balance is None:
        raise click.ClickException(found.words)


@provider_commands.command("reconcile")
@click.option("--since", type=click.DateTime(("%Y-%m-%d",)), help="The first day; the last 7 days unless it is given.")
@click.option("--key", help="Only what this key of the account did, as the provider names it.")
@as_json
def show_reconciliation(since: datetime | None, key: str | None, as_json: bool) -> None:
    """Compare the log with the provider's own record, by day and model, and say what the gap is made of."""
    zone, currency = current_app.config["TIMEZONE"], current_app.config["CURRENCY"]
    today = datetime.now(zone).date()
    first = today - timedelta(days=RECONCILED_DAYS - 1) if since is None else since.date()
    provider_record.fetch(db.engine, _account())
    if _account().kind == "openrouter":
        days = [reconciliation.day_view(day) for day in reconciliation.reconcile_days(db.engine, first, today)]
        show_list(days, dict, as_json, empty="The provider has reported no day yet.")
        return
    found = reconciliation.reconcile(db.engine, first, today, zone, key, currency=currency)
    views = [reconciliation.view(line) for line in found.lines]
    if as_json:
        gaps = [{"reason": reason.name.lower(), **vars(sums)} for reason, sums in found.gaps]
        click.echo(json.dumps({"data": views, "gap_tokens": found.gap_tokens, "gaps": gaps}))
        return
    show_list(views, dict, False, empty="Neither the log nor the provider has calls of these days.")
    for reason, sums in found.gaps:
        click.echo(f"{sums.tokens:+,} tokens of {counted(sums.calls, 'call')}: {reason.value}.")


def _rate_limits() -> list[RateLimit]:
    """Return the provider's limits as last reported to this check or to a worker."""
    account_pace.Keeper(db.engine, current_app.extensions["tokenrouter"].provider.rate_limits).keep()
    return account_pace.reported_limits(db.engine)


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


def _view(left: Runway, found: Commitments) -> dict[str, object]:
    return {
        "at": timestamp(left.at),
        "points": left.points,
        "balance": decimal_string(left.money),
        "currency": None if left.money is None else left.currency,
        "is_typed": left.is_typed,
        "next_grant_at": timestamp(left.next_grant_at),
        "next_grant_points": left.next_grant_points,
        "lasts_until": timestamp(left.lasts_until),
        "teams_may_spend": decimal_string(found.money),
        "teams_may_use_tokens": found.tokens,
        "teams_may_use_tokens_cost": decimal_string(found.tokens_money),
        "teams_without_limit": found.unlimited_teams,
        "exceeds": found.exceeds,
    }


def _sentence(left: Runway) -> str:
    points = [] if left.points is None else [f"{left.points:,} points"]
    money = [] if left.money is None else [shown(left.money, left.currency)]
    typed = ", typed in and counted down by what calls cost since" if left.is_typed else ""
    return f"Left: {', '.join(points + money)}{typed}."

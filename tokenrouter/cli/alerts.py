"""Show alerts, and find out whether they arrive."""

import json
from typing import Any
from uuid import uuid4

import click
from flask import current_app

from tokenrouter import alerts
from tokenrouter.cli.commands import Group, as_json, show_list

MOST_LISTED = 100

alert_commands = Group("alerts", help="Show alerts, and find out whether they arrive.")


@alert_commands.command("list")
@click.option("--unseen", is_flag=True, help="Only those that were not seen in the panel.")
@as_json
def list_alerts(unseen: bool, as_json: bool) -> None:
    """List the newest alerts, and how they were delivered."""
    speaker = alerts.Speaker(current_app.config["TIMEZONE"], current_app.config["CURRENCY"])
    page = alerts.alerts_page(speaker, unseen=unseen, per_page=MOST_LISTED)
    views = [alerts.alert_view(alert) for alert in page.alerts]
    show_list(views, _row, as_json, empty="There are no alerts.")


def _row(view: dict[str, Any]) -> dict[str, Any]:
    deliveries = [f"{each['channel']} {each['result'].replace('_', ' ')}" for each in view["deliveries"]]
    return {
        "at": view["at"],
        "state": "over" if view["ended_at"] else "now",
        "seen": view["seen_at"] is not None,
        "alert": view["text"],
        "delivery": deliveries or None,
    }


@alert_commands.command("test")
@as_json
def test_alerts(as_json: bool) -> None:
    """Send a test to the webhook and by mail; exit status 1 where it is not taken, or there is nobody to send it to."""
    receivers: alerts.Receivers = current_app.extensions["tokenrouter"].sender.receivers
    answers = alerts.send_test(receivers, uuid4().hex)
    if not answers:
        raise click.ClickException("Alerts go nowhere: set ALERT_WEBHOOK_URL, or SMTP_URL and ALERT_MAIL_TO.")
    if as_json:
        views = [{"channel": way, "delivered": answer.is_taken, "answer": answer.words} for way, answer in answers]
        click.echo(json.dumps(views, ensure_ascii=False))
    else:
        for way, answer in answers:
            click.echo(f"{way}: {'delivered' if answer.is_taken else 'not delivered'}. {answer.words}")
    if not all(answer.is_taken for _, answer in answers):
        raise click.exceptions.Exit(1)


@alert_commands.command("secret")
def show_secret() -> None:
    """Print the secret by which a receiver verifies that a webhook is ours, as Standard Webhooks has it."""
    click.echo(alerts.webhook_secret(current_app))

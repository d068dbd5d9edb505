"""Read the log of calls, and prune it."""

from typing import Any

import click
from flask import current_app

from tokenrouter import ledger, reports, teams
from tokenrouter.cli.commands import Group, as_json, confirm, me, show_list, without_confirmation
from tokenrouter.config import MOST_RETENTION_DAYS
from tokenrouter.database.log_status import describe
from tokenrouter.database.tables import db
from tokenrouter.figures import counted

log_commands = Group("logs", help="Read the log of calls, and prune it.")

KEEPS_SIZE = (
    "The database keeps its size, and new calls take what is free of it: its file was made by an older version. "
    "`flask backup` and, with the service stopped, `flask restore` make it one that shrinks."
)


@log_commands.command("list")
@click.option("--team", help="Only the calls of this team; it may be deleted.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many.")
@as_json
def list_logs(team: str | None, limit: int, as_json: bool) -> None:
    """List the calls, the newest first."""
    team_ids = teams.ids_ever_named(team) if team is not None else None
    views = [reports.log_view(row) for row in reports.newest_calls(team_ids, limit)]
    show_list(views, _log_row, as_json, empty="No calls yet.")


@log_commands.command("prune")
@click.option(
    "--older-than",
    type=click.IntRange(0, MOST_RETENTION_DAYS),
    metavar="DAYS",
    help="How many whole days before today stay; LOG_RETENTION_DAYS by default.",
)
@without_confirmation
def prune_logs(older_than: int | None, yes: bool) -> None:
    """Delete the calls of old days from the log; counters, totals and charts keep them. It can run while serving."""
    days = current_app.config["LOG_RETENTION_DAYS"] if older_than is None else older_than
    if days is None:
        raise click.UsageError("Give --older-than DAYS, or set LOG_RETENTION_DAYS.")
    zone = current_app.config["TIMEZONE"]
    before = ledger.first_day_kept(days, zone)
    confirm(f"Delete the calls of all days before {before} from the log?", yes)
    pruned = ledger.prune(db.engine, before, zone, by=me())
    responses = counted(pruned.responses, "response")
    click.echo(f"Deleted {counted(pruned.calls, 'call')} of days before {before} from the log, and {responses}.")
    if pruned.keeps_size:
        click.echo(KEEPS_SIZE)


def _log_row(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": view["created_at"],
        "team": view["team"],
        "model": view["model"],
        "status": describe(view["status"]).words,
        "code": view["status_code"],
        "tokens": view["total_tokens"],
        "counted": view["usage_source"],
        "ms": view["latency_ms"],
        "request": view["request_id"],
    }

"""Read the log of calls."""

from typing import Any

import click

from tokenrouter import reports, teams
from tokenrouter.cli.commands import Group, as_json, show_list
from tokenrouter.database.log_status import describe

log_commands = Group("logs", help="Read the log of calls.")


@log_commands.command("list")
@click.option("--team", help="Only the calls of this team; it may be deleted.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many.")
@as_json
def list_logs(team: str | None, limit: int, as_json: bool) -> None:
    """List the calls, the newest first."""
    team_ids = teams.ids_ever_named(team) if team is not None else None
    views = [reports.log_view(row) for row in reports.newest_calls(team_ids, limit)]
    show_list(views, _log_row, as_json, empty="No calls yet.")


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

"""Show, reset and verify what was used."""

import json
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app

from tokenrouter import ledger, reports, teams
from tokenrouter.cli.commands import Group, as_json, confirm, me, show_limits, show_list, team_row, without_confirmation
from tokenrouter.database import schema
from tokenrouter.database.tables import Team, db
from tokenrouter.figures import counted

DAY = click.DateTime(["%Y-%m-%d"])

usage_commands = Group("usage", help="Show, reset and verify what was used.")


@usage_commands.command("show")
@click.argument("team", required=False)
@as_json
def show_usage(team: str | None, as_json: bool) -> None:
    """Show what TEAM used since its last reset, or what all teams did."""
    if team is not None:
        show_limits(teams.find(team), as_json)
        return
    views = [reports.team_view(each) for each in teams.living()]
    show_list(views, team_row, as_json, empty="There are no teams yet.")


@usage_commands.command("report")
@click.option(
    "--since", type=DAY, metavar="DAY", help="The first day, such as 2026-11-01; that of the month by default."
)
@click.option("--until", type=DAY, metavar="DAY", help="The last day, which counts too; today by default.")
@click.option("--by", default="team", help="team, group, model, day or token, or two of them, such as team,model.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@as_json
def report_usage(since: datetime | None, until: datetime | None, by: str, as_csv: bool, as_json: bool) -> None:
    """Sum up what was used from one day to another, the most first, beside the period before."""
    if as_csv and as_json:
        raise click.UsageError("Give either --csv or --json.")
    today = reports.day_of(datetime.now(UTC))
    last = until.date() if until else today
    days = reports.check_days(since.date() if since else min(last, today).replace(day=1), last)
    report = reports.usage_report(days, reports.check_dimensions([name.strip() for name in by.split(",")]), today)
    if as_csv:
        for lines in reports.csv_lines(report):
            click.echo(lines, nl=False)
        return
    view = reports.report_view(report)
    if as_json:
        click.echo(json.dumps(view, ensure_ascii=False))
        return
    show_list(view["rows"], _report_row, False, empty="Nothing was used on these days.")
    total, before = view["total"], view["before"]
    click.echo(f"{days.since} to {days.until}: {_in_words(total)}")
    click.echo(f"Before, {before['since']} to {before['until']}: {_in_words(before)}")


def _report_row(row: dict[str, Any]) -> dict[str, Any]:
    left_out = {"prompt_tokens", "completion_tokens", "requests_before", "cost_before"}
    return {name: value for name, value in row.items() if name not in left_out}


def _used(team: Team) -> str:
    return counted(team.used_tokens, "token")


def _in_words(sums: dict[str, Any]) -> str:
    cost = "cost not known" if sums["cost"] is None else f"cost {sums['cost']} {current_app.config['CURRENCY']}"
    unpriced = f" and {counted(sums['unpriced_tokens'], 'token')} without a price" if sums["unpriced_tokens"] else ""
    used = f"{counted(sums['total_tokens'], 'token')}, {counted(sums['requests'], 'call')}"
    return f"{used}, {sums['errors']:,} failed, {cost}{unpriced}."


@usage_commands.command("reset")
@click.argument("team", required=False)
@click.option("--all", "all_teams", is_flag=True, help="Reset every team and every group.")
@without_confirmation
def reset_usage(team: str | None, all_teams: bool, yes: bool) -> None:
    """Count the use of TEAM, or of --all teams and groups, from zero again; the log keeps everything."""
    if (team is None) != all_teams:
        raise click.UsageError("Give either a TEAM or --all.")
    chosen: list[Team] = teams.living() if team is None else [teams.find(team)]
    groups = teams.living_groups() if team is None else []
    whom = f"all teams ({len(chosen):,})" if team is None else f"the team {team!r}, {_used(chosen[0])}"
    whom += f" and groups ({len(groups):,})" if groups else ""
    confirm(f"Reset the use of {whom}?", yes)
    ledger.reset(db.engine, [each.id for each in chosen], [each.id for each in groups], by=me())
    click.echo(f"Reset the use of {whom}.")


@usage_commands.command("verify")
def verify_usage() -> None:
    """Prove that the counters equal the log; exit status 1, and a line for each difference, where they do not."""
    found = ledger.verify(db.engine)
    for problem in found.problems:
        click.echo(problem)
    for note in found.notes:
        click.echo(note, err=bool(found.problems))
    renewals = f" and {counted(found.renewals, 'renewal')}" if found.renewals else ""
    read = f"Read {counted(found.rows, 'row')} of the log{renewals} in {found.seconds:.1f} s, of {schema.shown_url()}."
    click.echo(read, err=bool(found.problems))
    if found.problems:
        raise click.ClickException(f"{len(found.problems)} things do not agree.")
    click.echo("The counters equal the log.")


@usage_commands.command("repair")
@without_confirmation
def repair_usage(yes: bool) -> None:
    """Set counters and daily totals to what the log says; what the log itself says wrongly stays."""
    confirm("Set the counters and daily totals of all teams to what the log says?", yes)
    changed = ledger.repair(db.engine, by=me())
    for line in changed:
        click.echo(line)
    click.echo(f"Repaired {len(changed)} teams and groups." if changed else "There was nothing to repair.")

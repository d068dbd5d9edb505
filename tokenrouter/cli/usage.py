"""Show, reset and verify what was used."""

import click

from tokenrouter import ledger, reports, teams
from tokenrouter.cli.commands import Group, as_json, confirm, me, show_limits, show_list, team_row, without_confirmation
from tokenrouter.database import schema
from tokenrouter.database.tables import Team, db

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
    whom = f"all {len(chosen)} teams" if team is None else f"the team {team!r}, {chosen[0].used_tokens:,} tokens"
    whom += f" and {len(groups)} groups" if groups else ""
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
    renewals = f" and {found.renewals:,} renewals" if found.renewals else ""
    read = f"Read {found.rows:,} rows of the log{renewals} in {found.seconds:.1f} s, of {schema.shown_url()}."
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

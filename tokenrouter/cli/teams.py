"""Create, change and delete teams."""

from typing import IO, Any

import click
from flask import current_app

from tokenrouter import ledger, reports, spreadsheet, teams
from tokenrouter.cli.commands import (
    LIMIT_OPTIONS,
    Group,
    as_json,
    confirm,
    limited_words,
    me,
    show_limits,
    show_list,
    team_row,
    with_extras,
    with_limits,
    without_confirmation,
)
from tokenrouter.database.tables import db
from tokenrouter.teams import imports

NO_MAIL = "none"

team_commands = Group("teams", help="Create, change and delete teams.")


@team_commands.command("create", makes_database=True)
@click.argument("name")
@with_limits
@click.option("--group", metavar="G", help="The group whose limits it shares.")
@click.option("--models", help="Names separated by commas, which narrow ALLOWED_MODELS.")
@click.option("--mail", metavar="ADDRESS", help="Gets the team's alerts, or none.")
def create_team(name: str, limits: dict[str, Any], group: str | None, models: str | None, mail: str | None) -> None:
    """Create the team NAME and print its API token, for the only time."""
    group = None if group == teams.NO_GROUP else group
    mail = None if mail == NO_MAIL else mail
    team, bearer_token = teams.create(name, models=models, group=group, mail=mail, **limits, by=me())
    click.echo(f"Created the team {team.name!r}{limited_words(team)}. Its API token, shown only now:")
    click.echo(bearer_token)


@team_commands.command("list")
@as_json
def list_teams(as_json: bool) -> None:
    """List all teams with their quota and use."""
    views = [reports.team_view(team) for team in teams.living()]
    show_list(views, team_row, as_json, empty="There are no teams yet. Create one: flask teams create NAME")


@team_commands.command("show")
@click.argument("name")
@as_json
def show_team(name: str, as_json: bool) -> None:
    """Show the team NAME."""
    show_limits(teams.find(name), as_json)


@team_commands.command("update")
@click.argument("name")
@with_limits
@click.option("--rename", metavar="NEW", help="Its new name.")
@click.option("--enable/--disable", "active", default=None, help="Let its calls through, or refuse them.")
@click.option("--group", metavar="G", help="The group whose limits it shares, or none.")
@click.option("--models", help="Names separated by commas, which narrow ALLOWED_MODELS; `default` ends that.")
@click.option("--mail", metavar="ADDRESS", help="Gets the team's alerts, or none.")
def update_team(
    name: str,
    limits: dict[str, Any],
    rename: str | None,
    active: bool | None,
    group: str | None,
    models: str | None,
    mail: str | None,
) -> None:
    """Change the team NAME; what is not given stays as it is."""
    if not limits and all(value is None for value in (rename, active, group, models, mail)):
        others = "--rename, --enable, --disable, --group, --models and --mail"
        raise click.UsageError(f"Give at least one of {LIMIT_OPTIONS}, {others}.")
    changed: dict[str, Any] = {**limits, "rename": rename, "active": active}
    if group is not None:
        changed["group"] = None if group == teams.NO_GROUP else group
    if models is not None:
        changed["models"] = None if models == "default" else models
    if mail is not None:
        changed["mail"] = None if mail == NO_MAIL else mail
    show_limits(teams.update(name, **changed, by=me()))


@team_commands.command("extra")
@click.argument("name")
@with_extras
def give_extra(name: str, extras: dict[str, int]) -> None:
    """Add to what the team NAME may use until its quota renews; what is unlimited stays so."""
    team = teams.find(name)
    ledger.add_extra(db.engine, team, zone=current_app.config["TIMEZONE"], by=me(), **extras)
    show_limits(teams.get(team.id))


@team_commands.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--dry-run", is_flag=True, help="Only say what is wrong with the list.")
def import_teams(file: IO[bytes], dry_run: bool) -> None:
    """Create the teams of a list, all or none, and print CSV of their names and API tokens, for the only time.

    Each line of FILE is NAME[,GROUP][,QUOTA][,MODELS][,LABEL], parted by commas, semicolons or tabs, below a line of
    headings or not; `-` reads standard input.
    """
    checked = imports.check(imports.decode(file.read(4 * imports.MOST_BYTES)))  # what is cut there is too long anyway
    try:
        if dry_run:
            checked.raise_faults()
            click.echo(f"Nothing is wrong with the list. Teams that it would create: {len(checked.new):,}")
            return
        created = imports.create(checked, by=me())
    except imports.NotImported as error:
        raise click.ClickException(f"Nothing was created.\n{error}") from error
    rows = [(spreadsheet.cell(team.name), bearer_token) for team, bearer_token in created]
    for lines in spreadsheet.lines(("name", "token"), rows):
        click.echo(lines.replace("\r\n", "\n"), nl=False)  # as `cut` and `while read` take it; no name has a line's end


@team_commands.command("delete")
@click.argument("name")
@without_confirmation
def delete_team(name: str, yes: bool) -> None:
    """Delete the team NAME and revoke its tokens; its log rows keep the name."""
    teams.find(name)
    confirm(f"Delete the team {name!r} and revoke its tokens?", yes)
    teams.delete(name, by=me())
    click.echo(f"Deleted the team {name!r}.")

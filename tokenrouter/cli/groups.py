"""Create, change and delete groups, whose teams share limits."""

from typing import Any

import click
from flask import current_app

from tokenrouter import ledger, reports, teams
from tokenrouter.cli.commands import (
    LIMIT_OPTIONS,
    Group,
    as_json,
    confirm,
    limited_words,
    me,
    quota_cells,
    show_limits,
    show_list,
    with_extras,
    with_limits,
    without_confirmation,
)
from tokenrouter.database.tables import db
from tokenrouter.figures import counted

group_commands = Group("groups", help="Create, change and delete groups, whose teams share limits.")


@group_commands.command("create", makes_database=True)
@click.argument("name")
@with_limits
def create_group(name: str, limits: dict[str, Any]) -> None:
    """Create the group NAME, without teams; `flask teams update TEAM --group NAME` puts one into it."""
    group = teams.create_group(name, **limits, by=me())
    click.echo(f"Created the group {group.name!r}{limited_words(group)}.")


@group_commands.command("list")
@as_json
def list_groups(as_json: bool) -> None:
    """List all groups with their quota and use."""
    views = reports.group_views(teams.living_groups())
    show_list(views, _group_row, as_json, empty="There are no groups yet. Create one: flask groups create NAME")


@group_commands.command("show")
@click.argument("name")
@as_json
def show_group(name: str, as_json: bool) -> None:
    """Show the group NAME and its teams."""
    show_limits(teams.find_group(name), as_json)


@group_commands.command("update")
@click.argument("name")
@with_limits
@click.option("--rename", metavar="NEW", help="Its new name.")
def update_group(name: str, limits: dict[str, Any], rename: str | None) -> None:
    """Change the group NAME; what is not given stays as it is."""
    if rename is None and not limits:
        raise click.UsageError(f"Give at least one of {LIMIT_OPTIONS} and --rename.")
    group = teams.update_group(name, rename=rename, **limits, by=me())
    show_limits(teams.find_group(group.id))


@group_commands.command("extra")
@click.argument("name")
@with_extras
def give_group_extra(name: str, extras: dict[str, int]) -> None:
    """Add to what the teams of the group NAME may use together until its quota renews."""
    group = teams.find_group(name)
    ledger.add_extra(db.engine, group, zone=current_app.config["TIMEZONE"], by=me(), **extras)
    show_limits(teams.find_group(group.id))


@group_commands.command("reset")
@click.argument("name")
@without_confirmation
def reset_group(name: str, yes: bool) -> None:
    """Count the use of the group NAME from zero again; what its teams used of their own quotas stays."""
    group = teams.find_group(name)
    whom = f"the group {name!r}, {counted(group.used_tokens, 'token')}"
    confirm(f"Reset the use of {whom}?", yes)
    ledger.reset(db.engine, (), [group.id], by=me())
    click.echo(f"Reset the use of {whom}.")


@group_commands.command("delete")
@click.argument("name")
@without_confirmation
def delete_group(name: str, yes: bool) -> None:
    """Delete the group NAME; its teams stay, without a group."""
    members = len(reports.group_views([teams.find_group(name)])[0]["teams"])
    confirm(f"Delete the group {name!r} and leave {counted(members, 'team')} without a group?", yes)
    teams.delete_group(name, by=me())
    click.echo(f"Deleted the group {name!r}.")


def _group_row(view: dict[str, Any]) -> dict[str, Any]:
    cells = {"id": str(view["id"]), "name": view["name"], "teams": len(view["teams"])}
    return cells | quota_cells(view)

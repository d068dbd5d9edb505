"""Back up the service, put a backup back, and move the database elsewhere."""

from collections.abc import Mapping
from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from tokenrouter import backups, config
from tokenrouter.cli.commands import Command, confirm, without_confirmation
from tokenrouter.database import schema
from tokenrouter.database.tables import db
from tokenrouter.figures import counted
from tokenrouter.ledger import Verification

ANY_FILE = click.Path(path_type=Path)


@click.command("backup", cls=Command)
@click.argument("file", type=ANY_FILE)
@click.option("--with-env", is_flag=True, help="Put .env in too, with the provider's key and the admin password.")
@with_appcontext
def backup(file: Path, with_env: bool) -> None:
    """Write the database and the key that signs sessions into FILE, while the service runs.

    FILE is a new file, or a folder, in which it gets a name of this moment. None but its owner can read it.
    """
    path = file / backups.name_of_now() if file.is_dir() else file
    manifest = backups.take(db.engine, path, Path(current_app.instance_path), with_env=with_env)
    click.echo(f"Backed up {_described(manifest.counts)} to {path}, with {', '.join(manifest.files)}.")


@click.command("restore", cls=Command)
@click.argument("file", type=ANY_FILE)
@click.option("--with-env", is_flag=True, help="Put its .env back too.")
@without_confirmation
@with_appcontext
def restore(file: Path, with_env: bool, yes: bool) -> None:
    """Put the backup in FILE in place of the database, while the service is stopped.

    What is there now is kept aside, an older backup is brought up to date, and the books are verified.
    """
    backups.refuse_while_served(db.engine)
    archive = backups.read(file, db.engine)
    manifest = archive.manifest
    what = f"the backup of {manifest.taken_at} with {_described(manifest.counts)}"
    confirm(f"Put {what} in place of {schema.shown_url()}?", yes)
    restored = backups.restore(current_app, archive, with_env=with_env)
    click.echo(f"Restored {what}.")
    for where in restored.moved:
        click.echo(f"What was there before is now {where}.")
    _say_what_was_found(restored.found)


@click.command("copy-to", cls=Command)
@click.argument("database_url")
@with_appcontext
def copy_to(database_url: str) -> None:
    """Copy the database into an empty one at DATABASE_URL, while the service is stopped; this one stays as it is."""
    schema.ensure(current_app, may_make=False)
    copied = backups.copy_to(current_app, config.database_url(database_url))
    click.echo(f"Copied {_described(copied.counts)}. The rows of all tables are as many as here.")
    _say_what_was_found(copied.found)
    click.echo("Set DATABASE_URL to it, and start the service.")


def _described(counts: Mapping[str, int]) -> str:
    teams, calls = counts.get("teams", 0), counts.get("request_logs", 0)
    return f"{counted(teams, 'team')} and {counted(calls, 'call')} of the log"


def _say_what_was_found(found: Verification) -> None:
    for line in found.problems:
        click.echo(line)
    if found.problems:
        raise click.ClickException(f"It is in place, and {len(found.problems)} things in it do not agree.")
    click.echo("The counters equal the log.")

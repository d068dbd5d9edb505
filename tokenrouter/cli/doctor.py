"""Say what is wrong with this installation."""

import json
from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from tokenrouter.cli.commands import as_json
from tokenrouter.database.tables import db
from tokenrouter.doctor import Finding, Installation, Mark, examine

COLORS = {Mark.OK: "green", Mark.WARNING: "yellow", Mark.WRONG: "red"}


@click.command("doctor")
@click.option("--url", help="Where callers reach the service, to have the proxy in front of it looked at too.")
@click.option("--quick", is_flag=True, help="Leave out the proof of the books, which reads the whole log.")
@as_json
@with_appcontext
def doctor(url: str | None, quick: bool, as_json: bool) -> None:
    """Say what is wrong with this installation, a line each, and what to do; exit status 1 if something is."""
    own = current_app.extensions["tokenrouter"]
    place = Installation(
        own.settings, db.engine, Path(current_app.instance_path), own.account, own.catalogue, own.jobs.names
    )
    found = []
    for finding in examine(place, url=url, proves_books=not quick):
        found.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        click.echo(json.dumps([_view(finding) for finding in found], ensure_ascii=False))
    if any(finding.mark is Mark.WRONG for finding in found):
        raise SystemExit(1)


def _show(finding: Finding) -> None:
    click.echo(f"{click.style(f'{finding.mark.value:<8}', fg=COLORS[finding.mark])} {finding.about:<9} {finding.words}")
    if finding.advice:
        click.echo(f"{'':<18} → {finding.advice}")


def _view(finding: Finding) -> dict[str, str | None]:
    return {
        "about": finding.about,
        "mark": finding.mark.value,
        "message": finding.words,
        "advice": finding.advice or None,
    }

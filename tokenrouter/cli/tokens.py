"""Give teams tokens, and revoke them."""

from datetime import datetime

import click

from tokenrouter import reports, teams
from tokenrouter.cli.commands import Expiry, Group, as_json, me, show_list

token_commands = Group("tokens", help="Give teams tokens, and revoke them.")


@token_commands.command("create")
@click.argument("team")
@click.option("--label", help="What it is for.")
@click.option(
    "--expires",
    type=Expiry(),
    help="The last day on which it works, such as 2026-12-31, or when it ends: 2026-12-31T18:00:00Z. Both in UTC.",
)
def create_token(team: str, label: str | None, expires: datetime | None) -> None:
    """Give TEAM one more API token and print it, for the only time."""
    _, bearer_token = teams.create_token(team, label, expires, by=me())
    click.echo(f"Created a token for the team {team!r}, shown only now:")
    click.echo(bearer_token)


@token_commands.command("list")
@click.argument("team")
@as_json
def list_tokens(team: str, as_json: bool) -> None:
    """List the tokens of TEAM: their first characters and their use, never the tokens."""
    views = [reports.token_view(token) for token in teams.tokens(team)]
    show_list(views, dict, as_json, empty=f"The team has no token. Create one: flask tokens create {team!r}")


@token_commands.command("revoke")
@click.argument("team")
@click.argument("prefix")
def revoke_token(team: str, prefix: str) -> None:
    """Revoke the token of TEAM that begins with PREFIX; it is refused from its next call on."""
    token = teams.revoke_token(team, prefix, by=me())
    click.echo(f"Revoked the token {token.prefix}… of the team {team!r}.")

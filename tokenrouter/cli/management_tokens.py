"""Keep the tokens of the management API."""

import click

from tokenrouter import reports
from tokenrouter.cli.commands import Group, as_json, me, show_list
from tokenrouter.teams import management_tokens

management_token_commands = Group("management-tokens", help="Keep the tokens of the management API.")


@management_token_commands.command("create")
@click.option("--label", help="What it is for; the record of changes names it.")
def create_management_token(label: str | None) -> None:
    """Make a token of the management API and print it, for the only time."""
    _, bearer_token = management_tokens.create(label, by=me())
    click.echo("Created a management token, shown only now. It can change and delete every team:")
    click.echo(bearer_token)


@management_token_commands.command("list")
@as_json
def list_management_tokens(as_json: bool) -> None:
    """List the management tokens: their first characters and their use, never the tokens."""
    views = [reports.management_token_view(token) for token in management_tokens.living()]
    show_list(views, dict, as_json, empty="There is no management token. Create one: flask management-tokens create")


@management_token_commands.command("revoke")
@click.argument("prefix")
def revoke_management_token(prefix: str) -> None:
    """Revoke the management token that begins with PREFIX; it is refused from its next request on."""
    token = management_tokens.revoke(prefix, by=me())
    click.echo(f"Revoked the management token {token.prefix}….")

"""Keep the codes with which people make their own teams, on the page /join."""

from datetime import UTC, datetime
from typing import Any

import click

from tokenrouter import reports, teams
from tokenrouter.cli.commands import Expiry, Group, as_json, limited_words, me, show_list, with_limits
from tokenrouter.figures import counted
from tokenrouter.teams import codes

code_commands = Group("codes", help="Keep the codes with which people make their own teams, on the page /join.")


@code_commands.command("create")
@with_limits
@click.option("--group", metavar="G", help="The group that its teams are put into.")
@click.option("--models", help="Names separated by commas, which narrow ALLOWED_MODELS for its teams.")
@click.option("--uses", type=click.IntRange(1, codes.MOST_USES), help="How many teams it may make; else any number.")
@click.option(
    "--expires",
    type=Expiry(),
    help="The last day on which it works, such as 2026-12-31, or when it ends: 2026-12-31T18:00:00Z. Both in UTC.",
)
@click.option("--label", help="What it is for.")
def create_code(limits: dict[str, Any], group: str | None, expires: datetime | None, **options: Any) -> None:
    """Make a code and print it; the limits are those of each team that it makes."""
    group = None if group == teams.NO_GROUP else group
    code = codes.create(**options, expires_at=expires, group=group, **limits, by=me())
    many = "any number of teams" if code.uses is None else counted(code.uses, "team")
    each = limited_words(code.team_to_be).removeprefix(", ")
    click.echo(f"Created a code for {many}. Each has: {each}. The code:")
    click.echo(code.code)


@code_commands.command("list")
@as_json
def list_codes(as_json: bool) -> None:
    """List the codes, with what became of them."""
    now = datetime.now(UTC)
    views = [reports.code_view(code, now) for code in reports.codes(now)]
    show_list(views, _row, as_json, empty="There is no code. Create one: flask codes create --uses 30")


def _row(view: dict[str, Any]) -> dict[str, Any]:
    names = ("code", "label", "state", "used", "uses", "expires_at", "group", "quota_tokens")
    return {"quota" if name == "quota_tokens" else name: view[name] for name in names}


@code_commands.command("revoke")
@click.argument("code")
def revoke_code(code: str) -> None:
    """Revoke CODE: nobody joins with it any more. The teams that it made stay, with their tokens."""
    revoked = codes.revoke(code, by=me())
    click.echo(f"Revoked the code {revoked.code}. Teams that it made, which stay: {revoked.used:,}.")

"""The `flask` commands: each is one call of the domain and one echo."""

import functools
import getpass
import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError
from tabulate import tabulate

from tokenrouter import changes, config, first_start, ledger, reports, teams
from tokenrouter.changes import Actor
from tokenrouter.database import schema
from tokenrouter.database.tables import PACES, Team, db
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.periods import NEVER_RENEWS, Renewal
from tokenrouter.teams import KEEP, UNLIMITED, management_tokens

PACE_WORDS = {
    "requests_per_minute": "Calls that may begin in a minute, or none.",
    "tokens_per_minute": "Tokens that may be used in a minute, or none.",
    "calls_at_once": "Calls in flight at the same time, or none.",
}
PERIODS = "never, daily, weekly (Monday), monthly, or monthly:15 for another day than the first"
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
LIMITS = ("quota_tokens", "remaining_tokens")


class Group(AppGroup):
    """A group whose commands say in one line, on standard error, what went wrong."""

    def command(  # type: ignore[override]
        self, name: str, *, makes_database: bool = False
    ) -> Callable[[Callable[..., None]], click.Command]:
        """Register a command that finds the database brought up to date; few make one that is not there."""

        def register(run: Callable[..., None]) -> click.Command:
            @functools.wraps(run)
            def run_on_database(*args: Any, **options: Any) -> None:
                schema.ensure(current_app, may_make=makes_database)
                run(*args, **options)

            command: click.Command = AppGroup.command(self, name)(run_on_database)
            return command

        return register

    def invoke(self, ctx: click.Context) -> Any:
        """Translate what the domain raises; exit status 1."""
        try:
            return super().invoke(ctx)
        except (APIError, config.ConfigError) as error:
            raise click.ClickException(str(error)) from error
        except SQLAlchemyError as error:
            raise click.ClickException(f"The database failed: {schema.cause_of(error)}") from error
        except UnicodeEncodeError as error:
            raise click.ClickException("An argument is not UTF-8.") from error


class Quota(click.ParamType[int | None]):
    """A number of tokens as people write it."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number; None is unlimited."""
        try:
            return teams.parse_quota(value) if isinstance(value, str) else value
        except teams.NotANumber as error:
            self.fail(str(error), param, ctx)


class Extra(click.ParamType[int]):
    """Tokens to add, or with a minus to take back."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            return teams.parse_extra(value) if isinstance(value, str) else value
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


class Period(click.ParamType[Renewal]):
    """When a quota begins anew, as people write it."""

    name = "period"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Renewal:
        """Return the renewal."""
        try:
            return teams.parse_renewal(value) if isinstance(value, str) else value
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


class Pace(click.ParamType[int | None]):
    """A limit a minute, or of calls at once."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number; None is none."""
        name = param.name if param is not None and param.name else ""
        try:
            return teams.parse_pace(name, value) if isinstance(value, str) else value
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


class Expiry(click.ParamType[datetime]):
    """A day, or a moment in UTC, as people write them."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return when it is over; a day is valid to its end."""
        try:
            if DAY.fullmatch(value):
                return teams.end_of_day(date.fromisoformat(value))
            return datetime.strptime(value.removesuffix("Z"), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{value!r} is no day such as 2026-12-31, and no time such as 2026-12-31T18:00:00Z.", param, ctx)


team_commands = Group("teams", help="Create, change and delete teams.")
token_commands = Group("tokens", help="Give teams tokens, and revoke them.")
usage_commands = Group("usage", help="Show, reset and verify what was used.")
log_commands = Group("logs", help="Read the log of calls.")


management_token_commands = Group("management-tokens", help="Keep the tokens of the management API.")

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
without_confirmation = click.option("--yes", is_flag=True, help="Do not ask.")


def with_pace(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the limits of a pace; those that are not given are not passed on."""

    @functools.wraps(command)
    def run(*arguments: Any, **values: Any) -> None:
        command(*arguments, **{name: each for name, each in values.items() if name not in PACES or each is not KEEP})

    for name, words in reversed(PACE_WORDS.items()):
        run = click.option(f"--{name.replace('_', '-')}", type=Pace(), default=KEEP, help=words)(run)
    return run


def init_app(app: Flask) -> None:
    """Register the commands."""
    for command in (team_commands, token_commands, usage_commands, log_commands, management_token_commands, setup):
        app.cli.add_command(command)


@team_commands.command("create", makes_database=True)
@click.argument("name")
@click.option("--quota", type=Quota(), help="Tokens in all, such as 250000, 250k or 2.5M. Unlimited if not given.")
@click.option("--renews", type=Period(), default=NEVER_RENEWS, help=f"When the quota begins anew: {PERIODS}.")
@with_pace
@click.option("--models", help="Names separated by commas, which narrow ALLOWED_MODELS.")
def create_team(name: str, quota: int | None, renews: Renewal, models: str | None, **pace: Any) -> None:
    """Create the team NAME and print its API token, for the only time."""
    team, bearer_token = teams.create(name, quota, models, renewal=renews, by=_me(), **pace)
    again = "" if renews == NEVER_RENEWS else f", renewed {teams.format_renewal(renews)}"
    described = f"quota {_quota(team.quota_tokens)}{again}"
    click.echo(f"Created the team {team.name!r}, {described}. Its API token, shown only now:")
    click.echo(bearer_token)


@team_commands.command("list")
@as_json
def list_teams(as_json: bool) -> None:
    """List all teams with their quota and use."""
    views = [reports.team_view(team) for team in teams.living()]
    _show_list(views, _team_row, as_json, empty="There are no teams yet. Create one: flask teams create NAME")


@team_commands.command("show")
@click.argument("name")
@as_json
def show_team(name: str, as_json: bool) -> None:
    """Show the team NAME."""
    _show_one(reports.team_view(teams.find(name)), as_json)


@team_commands.command("update")
@click.argument("name")
@click.option("--quota", type=Quota(), default=KEEP, help="Tokens in all, or `unlimited`.")
@click.option("--renews", type=Period(), default=KEEP, help=f"When the quota begins anew: {PERIODS}.")
@with_pace
@click.option("--rename", metavar="NEW", help="Its new name.")
@click.option("--enable/--disable", "active", default=None, help="Let its calls through, or refuse them.")
@click.option("--models", help="Names separated by commas, which narrow ALLOWED_MODELS; `default` ends that.")
def update_team(
    name: str, quota: Any, renews: Any, rename: str | None, active: bool | None, models: str | None, **pace: Any
) -> None:
    """Change the team NAME; what is not given stays as it is."""
    if quota is KEEP and renews is KEEP and rename is None and active is None and models is None and not pace:
        raise click.UsageError(
            "Give at least one of --quota, --renews, --requests-per-minute, --tokens-per-minute, --calls-at-once, "
            "--rename, --enable, --disable and --models."
        )
    own_models = KEEP if models is None else None if models == "default" else models
    changed = {"rename": rename, "active": active, "quota_tokens": quota, "models": own_models, "renewal": renews}
    _show_one(reports.team_view(teams.update(name, **changed, **pace, by=_me())), as_json=False)


@team_commands.command("extra")
@click.argument("name")
@click.option("--tokens", type=Extra(), required=True, help="How many, such as 100k; -100k takes some back.")
def give_extra(name: str, tokens: int) -> None:
    """Add to what the team NAME may use until its quota renews; an unlimited quota stays unlimited."""
    team = teams.find(name)
    ledger.add_extra(db.engine, team, tokens, current_app.config["TIMEZONE"], by=_me())
    _show_one(reports.team_view(teams.get(team.id)), as_json=False)


@team_commands.command("delete")
@click.argument("name")
@without_confirmation
def delete_team(name: str, yes: bool) -> None:
    """Delete the team NAME and revoke its tokens; its log rows keep the name."""
    teams.find(name)
    _confirm(f"Delete the team {name!r} and revoke its tokens?", yes)
    teams.delete(name, by=_me())
    click.echo(f"Deleted the team {name!r}.")


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
    _, bearer_token = teams.create_token(team, label, expires, by=_me())
    click.echo(f"Created a token for the team {team!r}, shown only now:")
    click.echo(bearer_token)


@token_commands.command("list")
@click.argument("team")
@as_json
def list_tokens(team: str, as_json: bool) -> None:
    """List the tokens of TEAM: their first characters and their use, never the tokens."""
    views = [reports.token_view(token) for token in teams.tokens(team)]
    _show_list(views, dict, as_json, empty=f"The team has no token. Create one: flask tokens create {team!r}")


@token_commands.command("revoke")
@click.argument("team")
@click.argument("prefix")
def revoke_token(team: str, prefix: str) -> None:
    """Revoke the token of TEAM that begins with PREFIX; it is refused from its next call on."""
    token = teams.revoke_token(team, prefix, by=_me())
    click.echo(f"Revoked the token {token.prefix}… of the team {team!r}.")


@usage_commands.command("show")
@click.argument("team", required=False)
@as_json
def show_usage(team: str | None, as_json: bool) -> None:
    """Show what TEAM used since its last reset, or what all teams did."""
    if team is not None:
        _show_one(reports.team_view(teams.find(team)), as_json)
        return
    views = [reports.team_view(each) for each in teams.living()]
    _show_list(views, _team_row, as_json, empty="There are no teams yet.")


@usage_commands.command("reset")
@click.argument("team", required=False)
@click.option("--all", "all_teams", is_flag=True, help="Reset every team.")
@without_confirmation
def reset_usage(team: str | None, all_teams: bool, yes: bool) -> None:
    """Count the use of TEAM, or of --all, from zero again; the log keeps everything."""
    if (team is None) != all_teams:
        raise click.UsageError("Give either a TEAM or --all.")
    chosen: list[Team] = teams.living() if team is None else [teams.find(team)]
    whom = f"all {len(chosen)} teams" if team is None else f"the team {team!r}, {chosen[0].used_tokens:,} tokens"
    _confirm(f"Reset the use of {whom}?", yes)
    ledger.reset(db.engine, [each.id for each in chosen], by=_me())
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
    _confirm("Set the counters and daily totals of all teams to what the log says?", yes)
    changed = ledger.repair(db.engine, by=_me())
    for line in changed:
        click.echo(line)
    click.echo(f"Repaired {len(changed)} teams." if changed else "There was nothing to repair.")


@log_commands.command("list")
@click.option("--team", help="Only the calls of this team; it may be deleted.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many.")
@as_json
def list_logs(team: str | None, limit: int, as_json: bool) -> None:
    """List the calls, the newest first."""
    team_ids = teams.ids_ever_named(team) if team is not None else None
    views = [reports.log_view(row) for row in reports.newest_calls(team_ids, limit)]
    _show_list(views, _log_row, as_json, empty="No calls yet.")


@management_token_commands.command("create")
@click.option("--label", help="What it is for; the record of changes names it.")
def create_management_token(label: str | None) -> None:
    """Make a token of the management API and print it, for the only time."""
    _, bearer_token = management_tokens.create(label, by=_me())
    click.echo("Created a management token, shown only now. It can change and delete every team:")
    click.echo(bearer_token)


@management_token_commands.command("list")
@as_json
def list_management_tokens(as_json: bool) -> None:
    """List the management tokens: their first characters and their use, never the tokens."""
    views = [reports.management_token_view(token) for token in management_tokens.living()]
    _show_list(views, dict, as_json, empty="There is no management token. Create one: flask management-tokens create")


@management_token_commands.command("revoke")
@click.argument("prefix")
def revoke_management_token(prefix: str) -> None:
    """Revoke the management token that begins with PREFIX; it is refused from its next request on."""
    token = management_tokens.revoke(prefix, by=_me())
    click.echo(f"Revoked the management token {token.prefix}….")


@click.command("setup")
def setup() -> None:
    """Ask for the provider's key and the admin password, and save them to .env."""
    try:
        first_start.ask(config.load())
    except config.ConfigError as error:
        raise click.ClickException(str(error)) from error


def _me() -> Actor:
    """Return who runs the command, for the record of changes."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number alone
        user = str(os.getuid())
    return Actor(changes.CLI, f"{user}@{socket.gethostname()}")


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True)


def _show_one(view: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(view, ensure_ascii=False))
        return
    rows = [(name, UNLIMITED if value is None and name in LIMITS else _cell(value)) for name, value in view.items()]
    click.echo(tabulate(rows, tablefmt="plain", disable_numparse=True))


def _show_list(views: Sequence[dict[str, Any]], row: Callable[..., dict[str, Any]], as_json: bool, empty: str) -> None:
    if as_json:
        click.echo(json.dumps(views, ensure_ascii=False))
    elif not views:
        click.echo(empty)
    else:
        rows = [{name: _cell(value) for name, value in row(view).items()} for view in views]
        click.echo(tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _quota(quota_tokens: int | None) -> str:
    return UNLIMITED if quota_tokens is None else f"{quota_tokens:,} tokens"


def _team_row(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(view["id"]),
        "name": view["name"],
        "quota": UNLIMITED if view["quota_tokens"] is None else view["quota_tokens"],
        "used": view["used_tokens"],
        "held": view["held_tokens"],
        "remaining": UNLIMITED if view["remaining_tokens"] is None else view["remaining_tokens"],
        "active": view["active"],
    }


def _log_row(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": view["created_at"],
        "team": view["team"],
        "model": view["model"],
        "status": view["status"],
        "code": view["status_code"],
        "tokens": view["total_tokens"],
        "counted": view["usage_source"],
        "ms": view["latency_ms"],
        "request": view["request_id"],
    }

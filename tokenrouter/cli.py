"""The `flask` commands: each is one call of the domain and one echo."""

import functools
import getpass
import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError
from tabulate import tabulate

from tokenrouter import changes, config, first_start, ledger, prices, reports, teams
from tokenrouter.changes import Actor
from tokenrouter.database import schema, tables
from tokenrouter.database.tables import Team, db
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.money import decimal_string
from tokenrouter.periods import NEVER_RENEWS
from tokenrouter.teams import KEEP, UNLIMITED, management_tokens

PACE_WORDS = {
    "requests_per_minute": "Calls that may begin in a minute, or none.",
    "tokens_per_minute": "Tokens that may be used in a minute, or none.",
    "calls_at_once": "Calls in flight at the same time, or none.",
}
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
UNLIMITED_WHERE_NONE = ("quota_tokens", "remaining_tokens")


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


class Parsed(click.ParamType[Any]):
    """What people write, as the domain reads it."""

    def __init__(self, name: str, parse: Callable[[str], Any], refused: type[APIError] = InvalidRequest) -> None:
        """`refused` is what `parse` raises where the usage is wrong."""
        self.name = name
        self._parse = parse
        self._refused = refused

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the domain made of it."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except self._refused as error:
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
group_commands = Group("groups", help="Create, change and delete groups, whose teams share limits.")
token_commands = Group("tokens", help="Give teams tokens, and revoke them.")
usage_commands = Group("usage", help="Show, reset and verify what was used.")
price_commands = Group("prices", help="Keep what models cost.")
log_commands = Group("logs", help="Read the log of calls.")


management_token_commands = Group("management-tokens", help="Keep the tokens of the management API.")

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
without_confirmation = click.option("--yes", is_flag=True, help="Do not ask.")


LIMITS: dict[str, tuple[Parsed, str]] = {
    "quota": (
        Parsed("tokens", teams.parse_quota, teams.NotANumber),
        "Tokens in all, such as 250000, 250k or 2.5M, or unlimited.",
    ),
    "budget": (Parsed("amount", teams.parse_budget), "Money in all, such as 12.50, or none."),
    "renews": (
        Parsed("period", teams.parse_renewal),
        "When the quota begins anew: never, daily, weekly (Monday), monthly, or monthly:15 for another day than the "
        "first.",
    ),
    **{name: (Parsed("number", partial(teams.parse_pace, name)), words) for name, words in PACE_WORDS.items()},
}
ARGUMENTS = {"quota": "quota_tokens", "renews": "renewal"}
LIMIT_OPTIONS = ", ".join(f"--{name.replace('_', '-')}" for name in LIMITS)


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the limits; those that are given are its argument `limits`, as the domain's."""

    @functools.wraps(command)
    def run(*arguments: Any, **values: Any) -> None:
        given = {name: value for name in LIMITS if (value := values.pop(name)) is not KEEP}
        limits = {ARGUMENTS.get(name, name): value for name, value in given.items()}
        command(*arguments, limits=limits, **values)

    for name, (kind, words) in reversed(LIMITS.items()):
        run = click.option(f"--{name.replace('_', '-')}", type=kind, default=KEEP, help=words)(run)
    return run


def with_extras(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of what is added to a period, one of them at least; they are its `extras`."""

    @functools.wraps(command)
    def run(name: str, tokens: int | None, budget: int | None) -> None:
        if tokens is None and budget is None:
            raise click.UsageError("Give at least one of --tokens and --budget.")
        command(name, extras={"tokens": tokens or 0, "budget": budget or 0})

    tokens, budget = Parsed("tokens", teams.parse_extra), Parsed("amount", teams.parse_extra_budget)
    run = click.option("--budget", type=budget, help="How much money, such as 12.50; -12.50 takes some back.")(run)
    return click.option("--tokens", type=tokens, help="How many, such as 100k; -100k takes some back.")(run)


def init_app(app: Flask) -> None:
    """Register the commands."""
    for command in (
        team_commands,
        group_commands,
        token_commands,
        price_commands,
        usage_commands,
        log_commands,
        management_token_commands,
        setup,
    ):
        app.cli.add_command(command)


@team_commands.command("create", makes_database=True)
@click.argument("name")
@with_limits
@click.option("--group", metavar="G", help="The group whose limits it shares.")
@click.option("--models", help="Names separated by commas, which narrow ALLOWED_MODELS.")
def create_team(name: str, limits: dict[str, Any], group: str | None, models: str | None) -> None:
    """Create the team NAME and print its API token, for the only time."""
    group = None if group == teams.NO_GROUP else group
    team, bearer_token = teams.create(name, models=models, group=group, **limits, by=_me())
    click.echo(f"Created the team {team.name!r}{_limited(team)}. Its API token, shown only now:")
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
    _show_limits(teams.find(name), as_json)


@team_commands.command("update")
@click.argument("name")
@with_limits
@click.option("--rename", metavar="NEW", help="Its new name.")
@click.option("--enable/--disable", "active", default=None, help="Let its calls through, or refuse them.")
@click.option("--group", metavar="G", help="The group whose limits it shares, or none.")
@click.option("--models", help="Names separated by commas, which narrow ALLOWED_MODELS; `default` ends that.")
def update_team(
    name: str, limits: dict[str, Any], rename: str | None, active: bool | None, group: str | None, models: str | None
) -> None:
    """Change the team NAME; what is not given stays as it is."""
    if not limits and all(value is None for value in (rename, active, group, models)):
        others = "--rename, --enable, --disable, --group and --models"
        raise click.UsageError(f"Give at least one of {LIMIT_OPTIONS}, {others}.")
    changed: dict[str, Any] = {**limits, "rename": rename, "active": active}
    if group is not None:
        changed["group"] = None if group == teams.NO_GROUP else group
    if models is not None:
        changed["models"] = None if models == "default" else models
    _show_limits(teams.update(name, **changed, by=_me()))


@team_commands.command("extra")
@click.argument("name")
@with_extras
def give_extra(name: str, extras: dict[str, int]) -> None:
    """Add to what the team NAME may use until its quota renews; what is unlimited stays so."""
    team = teams.find(name)
    ledger.add_extra(db.engine, team, zone=current_app.config["TIMEZONE"], by=_me(), **extras)
    _show_limits(teams.get(team.id))


@team_commands.command("delete")
@click.argument("name")
@without_confirmation
def delete_team(name: str, yes: bool) -> None:
    """Delete the team NAME and revoke its tokens; its log rows keep the name."""
    teams.find(name)
    _confirm(f"Delete the team {name!r} and revoke its tokens?", yes)
    teams.delete(name, by=_me())
    click.echo(f"Deleted the team {name!r}.")


@group_commands.command("create", makes_database=True)
@click.argument("name")
@with_limits
def create_group(name: str, limits: dict[str, Any]) -> None:
    """Create the group NAME, without teams; `flask teams update TEAM --group NAME` puts one into it."""
    group = teams.create_group(name, **limits, by=_me())
    click.echo(f"Created the group {group.name!r}{_limited(group)}.")


@group_commands.command("list")
@as_json
def list_groups(as_json: bool) -> None:
    """List all groups with their quota and use."""
    views = reports.group_views(teams.living_groups())
    _show_list(views, _group_row, as_json, empty="There are no groups yet. Create one: flask groups create NAME")


@group_commands.command("show")
@click.argument("name")
@as_json
def show_group(name: str, as_json: bool) -> None:
    """Show the group NAME and its teams."""
    _show_limits(teams.find_group(name), as_json)


@group_commands.command("update")
@click.argument("name")
@with_limits
@click.option("--rename", metavar="NEW", help="Its new name.")
def update_group(name: str, limits: dict[str, Any], rename: str | None) -> None:
    """Change the group NAME; what is not given stays as it is."""
    if rename is None and not limits:
        raise click.UsageError(f"Give at least one of {LIMIT_OPTIONS} and --rename.")
    group = teams.update_group(name, rename=rename, **limits, by=_me())
    _show_limits(teams.find_group(group.id))


@group_commands.command("extra")
@click.argument("name")
@with_extras
def give_group_extra(name: str, extras: dict[str, int]) -> None:
    """Add to what the teams of the group NAME may use together until its quota renews."""
    group = teams.find_group(name)
    ledger.add_extra(db.engine, group, zone=current_app.config["TIMEZONE"], by=_me(), **extras)
    _show_limits(teams.find_group(group.id))


@group_commands.command("reset")
@click.argument("name")
@without_confirmation
def reset_group(name: str, yes: bool) -> None:
    """Count the use of the group NAME from zero again; what its teams used of their own quotas stays."""
    group = teams.find_group(name)
    whom = f"the group {name!r}, {group.used_tokens:,} tokens"
    _confirm(f"Reset the use of {whom}?", yes)
    ledger.reset(db.engine, (), [group.id], by=_me())
    click.echo(f"Reset the use of {whom}.")


@group_commands.command("delete")
@click.argument("name")
@without_confirmation
def delete_group(name: str, yes: bool) -> None:
    """Delete the group NAME; its teams stay, without a group."""
    members = len(reports.group_views([teams.find_group(name)])[0]["teams"])
    _confirm(f"Delete the group {name!r} and leave its {members} teams without a group?", yes)
    teams.delete_group(name, by=_me())
    click.echo(f"Deleted the group {name!r}.")


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
        _show_limits(teams.find(team), as_json)
        return
    views = [reports.team_view(each) for each in teams.living()]
    _show_list(views, _team_row, as_json, empty="There are no teams yet.")


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
    _confirm(f"Reset the use of {whom}?", yes)
    ledger.reset(db.engine, [each.id for each in chosen], [each.id for each in groups], by=_me())
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
    click.echo(f"Repaired {len(changed)} teams and groups." if changed else "There was nothing to repair.")


@price_commands.command("list")
@as_json
def list_prices(as_json: bool) -> None:
    """List the prices that are valid now, yours before the provider's, for a million tokens each, or a request."""
    views = [{**view, "since": reports.timestamp(view["since"])} for view in prices.views()]
    currency = current_app.config["CURRENCY"]
    _show_list(views, _price_row, as_json, empty="There are no prices yet. Set one: flask prices set MODEL …")
    if not as_json:
        click.echo(f"In {currency}, a million tokens each, but for those a request.")
        for model, tokens in prices.unpriced_models(datetime.now(UTC) - timedelta(days=30)).items():
            click.echo(f"No price: {model}, of which {tokens:,} tokens were used in the last 30 days.")


AMOUNT = Parsed("amount", prices.parse_price)


@price_commands.command("set")
@click.argument("model")
@click.option("--input", "input_", type=AMOUNT, required=True, metavar="P", help="A million tokens of a prompt.")
@click.option("--output", type=AMOUNT, required=True, metavar="P", help="A million tokens of an answer.")
@click.option("--cached-input", type=AMOUNT, metavar="P", help="A million tokens that the provider had read before.")
@click.option("--request", type=AMOUNT, default="0", metavar="P", help="A call.")
def set_price(model: str, input_: int, output: int, cached_input: int | None, request: int) -> None:
    """Set what MODEL costs from now on, or all models that begin so: `GPT-5*`."""
    prices.set_price(model, input_, output, cached_input, request, by=_me())
    click.echo(f"Set the price of {model!r}: it holds for what settles from now on.")


@price_commands.command("unset")
@click.argument("model")
def unset_price(model: str) -> None:
    """End your price of MODEL; the provider's then holds, where it has one."""
    prices.unset_price(model, by=_me())
    click.echo(f"Ended your price of {model!r}.")


@price_commands.command("correct")
@click.argument("model")
@click.option("--since", type=click.DateTime(("%Y-%m-%d",)), required=True, help="The first day, such as 2026-11-01.")
def correct_prices(model: str, since: datetime) -> None:
    """Let the price of MODEL that holds now hold for the calls since a day too; the log stays as it is."""
    corrected = ledger.correct_costs(db.engine, model, since.date(), by=_me())
    more = f"{decimal_string(corrected.cost)} {current_app.config['CURRENCY']} more in all"
    click.echo(f"Corrected the cost of {corrected.calls:,} calls: {more}.")


@price_commands.command("fetch")
def fetch_prices() -> None:
    """Ask the provider for its prices, and show them beside yours; they hold where you have set none."""
    listed = current_app.extensions["tokenrouter"].catalogue.fetch()
    rows = [
        {"model": row["model"], "provider": _price(row["provider"]), "yours, which goes before it": _price(row["own"])}
        for row in prices.compared(listed)
    ]
    if rows:
        click.echo(tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True))
    fetched = prices.take_over(listed, by=_me())
    click.echo(f"The provider has prices of {fetched.priced:,} models, of which {len(fetched.changed):,} are new.")


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


def _show_limits(row: Team | tables.Group, as_json: bool = False) -> None:
    """Show a team or a group; outside its object, whose keys are fixed, how many of its tokens its cost leaves out."""
    view = reports.team_view(row) if isinstance(row, Team) else reports.group_views([row])[0]
    if as_json:
        click.echo(json.dumps(view, ensure_ascii=False))
        return
    rows = [
        (name, UNLIMITED if value is None and name in UNLIMITED_WHERE_NONE else _cell(value))
        for name, value in view.items()
    ]
    click.echo(tabulate(rows, tablefmt="plain", disable_numparse=True))
    if row.unpriced_tokens:
        click.echo(f"{row.unpriced_tokens:,} of the used tokens have no price; what they cost is not known.")


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


def _limited(row: Team | tables.Group) -> str:
    """Say what a new team or group may use."""
    quota = UNLIMITED if row.quota_tokens is None else f"{row.quota_tokens:,} tokens"
    again = "" if row.renewal == NEVER_RENEWS else f", renewed {teams.format_renewal(row.renewal)}"
    return f", quota {quota}{again}"


def _team_row(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(view["id"]),
        "name": view["name"],
        "group": view["group"],
        **_quota_cells(view),
        "active": view["active"],
    }


def _group_row(view: dict[str, Any]) -> dict[str, Any]:
    cells = {"id": str(view["id"]), "name": view["name"], "teams": len(view["teams"])}
    return cells | _quota_cells(view)


def _quota_cells(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "quota": UNLIMITED if view["quota_tokens"] is None else view["quota_tokens"],
        "used": view["used_tokens"],
        "held": view["held_tokens"],
        "remaining": UNLIMITED if view["remaining_tokens"] is None else view["remaining_tokens"],
    }


def _price(told: dict[str, str | None] | None) -> str:
    """Write a price in short: input, and output."""
    return "-" if told is None else f"{told['input']} / {told['output']}"


def _price_row(view: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in view.items()}


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

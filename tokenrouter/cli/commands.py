"""What the commands share: how they fail, read what people write, and print."""

import functools
import getpass
import importlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from tokenrouter import changes, config, reports, teams
from tokenrouter.changes import Actor
from tokenrouter.database import schema, tables
from tokenrouter.database.tables import Team
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.periods import NEVER_RENEWS
from tokenrouter.teams import KEEP, UNLIMITED

PACE_WORDS = {
    "requests_per_minute": "Calls that may begin in a minute, or none.",
    "tokens_per_minute": "Tokens that may be used in a minute, or none.",
    "calls_at_once": "Calls in flight at the same time, or none.",
}
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
UNLIMITED_WHERE_NONE = ("quota_tokens", "remaining_tokens")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Translate what the domain raises; exit status 1."""
    try:
        yield
    except (APIError, config.ConfigError) as error:
        raise click.ClickException(str(error)) from error
    except SQLAlchemyError as error:
        raise click.ClickException(f"The database failed: {schema.cause_of(error)}") from error
    except UnicodeEncodeError as error:
        raise click.ClickException("An argument is not UTF-8.") from error


class Command(click.Command):
    """A command of no group that says in one line, on standard error, what went wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Translate what the domain raises."""
        with in_one_line():
            return super().invoke(ctx)


class Group(AppGroup):
    """A group whose commands say in one line, on standard error, what went wrong."""

    def command(  # type: ignore[override]  # Flask's has only *args and **kwargs
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
        """Translate what the domain raises."""
        with in_one_line():
            return super().invoke(ctx)


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


def me() -> Actor:
    """Return who runs the command, for the record of changes."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number alone
        user = str(os.getuid())
    return Actor(changes.CLI, f"{user}@{socket.gethostname()}")


def confirm(question: str, yes: bool) -> None:
    """Ask, and end the command where the answer is no; with `yes` nothing is asked."""
    if not yes:
        click.confirm(question, abort=True)


def is_terminal() -> bool:
    """Tell whether there is somebody to ask."""
    return sys.stdin.isatty()


def show_limits(row: Team | tables.Group, as_json: bool = False) -> None:
    """Show a team or a group; outside its object, whose keys are fixed, how many of its tokens its cost leaves out."""
    view = reports.team_view(row) if isinstance(row, Team) else reports.group_views([row])[0]
    if as_json:
        click.echo(json.dumps(view, ensure_ascii=False))
        return
    rows = [
        (name, UNLIMITED if value is None and name in UNLIMITED_WHERE_NONE else _cell(value))
        for name, value in view.items()
    ]
    print_table(rows, tablefmt="plain")
    if row.unpriced_tokens:
        click.echo(f"{row.unpriced_tokens:,} of the used tokens have no price; what they cost is not known.")


def show_list(views: Sequence[dict[str, Any]], row: Callable[..., dict[str, Any]], as_json: bool, empty: str) -> None:
    """Print documents as JSON, or as a table of what `row` makes of each; `empty` says that there are none."""
    if as_json:
        click.echo(json.dumps(views, ensure_ascii=False))
    elif not views:
        click.echo(empty)
    else:
        rows = [{name: _cell(value) for name, value in row(view).items()} for view in views]
        print_table(rows, headers="keys", tablefmt="simple")


def print_table(rows: Sequence[Any], **format_: str) -> None:
    """Print rows with their cells below each other; workers never do, so they do not load what does it."""
    click.echo(importlib.import_module("tabulate").tabulate(rows, disable_numparse=True, **format_))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def limited_words(row: Team | tables.Group) -> str:
    """Say what a new team or group may use."""
    quota = UNLIMITED if row.quota_tokens is None else f"{row.quota_tokens:,} tokens"
    again = "" if row.renewal == NEVER_RENEWS else f", renewed {teams.format_renewal(row.renewal)}"
    return f", quota {quota}{again}"


def team_row(view: dict[str, Any]) -> dict[str, Any]:
    """Return a team's line in a list."""
    return {
        "id": str(view["id"]),
        "name": view["name"],
        "group": view["group"],
        **quota_cells(view),
        "active": view["active"],
    }


def quota_cells(view: dict[str, Any]) -> dict[str, Any]:
    """Return what a list tells of a quota."""
    return {
        "quota": UNLIMITED if view["quota_tokens"] is None else view["quota_tokens"],
        "used": view["used_tokens"],
        "held": view["held_tokens"],
        "remaining": UNLIMITED if view["remaining_tokens"] is None else view["remaining_tokens"],
    }

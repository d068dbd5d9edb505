"""The filter of the log, as its URL has it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from werkzeug.datastructures import MultiDict

from tokenrouter import reports, teams
from tokenrouter.database.tables import NAME_LENGTH, Group, Team
from tokenrouter.errors import NotFound
from tokenrouter.periods import zone_named
from tokenrouter.reports import CallFilter

TEXT_FILTERS = ("model", "status", "error_code", "endpoint", "request_id")
FILTERS = ("team", "team_id", "group", "token", "token_id", *TEXT_FILTERS, "slower", "since", "until", "zone")
FIRST_YEAR = 1000  # of those that a field for times shows
LAST_MOMENT = datetime.max - timedelta(days=2)
END_OF_DAY = time(23, 59)
DURATION = re.compile(r"(\d{1,7}(?:\.\d{1,3})?) *(ms|s)?", re.IGNORECASE | re.ASCII)


@dataclass
class LogQuery:
    """The query of a URL, and what of it is invalid."""

    shown: dict[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    team_names: tuple[str, ...] = ()
    """Of the teams that a part of a name fits, where it fits several."""

    @property
    def filter(self) -> CallFilter:
        """Return what to search for."""
        return CallFilter(**self.values)

    @property
    def is_filtered(self) -> bool:
        """Tell whether the list is filtered."""
        return any(value for name, value in self.shown.items() if name != "zone")

    def link(self, view: str, **more: int | str) -> str:
        """Return the address of a view of the same calls; `url_for` itself takes no value named `endpoint`."""
        return f"{view}?{urlencode({name: value for name, value in self.shown.items() if value} | more)}"


def read_filter(args: MultiDict[str, str]) -> LogQuery:
    """Read the filter from the URL. An unknown team is reported as a problem, not treated as no filter."""
    query = LogQuery({name: args.get(name, "").strip()[:NAME_LENGTH] for name in FILTERS})
    query.values = {name: query.shown[name] or None for name in TEXT_FILTERS}
    for read in (_read_team, _read_group, _read_token, _read_duration, _read_times):
        read(query)
    return query


def _read_team(query: LogQuery) -> None:
    """Read which team is meant: by its whole name, else all those that have the text in theirs.

    A link tells its id, which finds it under an earlier name too, until another name is typed over its own.
    """
    shown = query.shown
    if shown["team_id"]:
        team_id = _number(shown["team_id"])
        name = reports.team_name(team_id)
        if shown["team"] in ("", name):
            shown["team"] = name or ""
            query.values["team_id"] = team_id
            query.problem = None if name else "There is no such team."
            return
        shown["team_id"] = ""
    query.values["team_id"] = _id_of(shown["team"], teams.find, teams.ids_ever_named)
    if shown["team"] and query.values["team_id"] is None:
        _read_part_of_name(query)


def _read_part_of_name(query: LogQuery) -> None:
    found = reports.teams_named(query.shown["team"])
    query.values["team_ids"] = tuple(row.id for row in found)
    query.team_names = tuple(row.name for row in found)
    if not found:
        query.problem = f"No team has “{query.shown['team']}” in its name."


def _read_group(query: LogQuery) -> None:
    name = query.shown["group"]
    query.values["group_id"] = _id_of(name, teams.find_group, teams.ids_of_groups_ever_named)
    if name and query.values["group_id"] is None:
        query.problem = query.problem or f"There is no group “{name}”."


def _id_of(name: str, find: Callable[[str], Team | Group], ids_ever_named: Callable[[str], list[int]]) -> int | None:
    """Return who has this name, the living one before those that had it."""
    if not name:
        return None
    try:
        return find(name).id
    except NotFound:
        pass  # it may be one that was deleted
    try:
        return max(ids_ever_named(name))
    except NotFound:
        return None


def _read_token(query: LogQuery) -> None:
    """Read the token of a link by its id, unless other first characters were typed over its own."""
    shown = query.shown
    if shown["token_id"]:
        token_id = _number(shown["token_id"])
        prefix = reports.token_prefix(token_id)
        if shown["token"] in ("", prefix):
            shown["token"] = prefix or ""
            query.values["token_id"] = token_id
            return
        shown["token_id"] = ""
    query.values["token_prefix"] = shown["token"] or None


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _read_duration(query: LogQuery) -> None:
    """Read `2.5 s`, `800 ms`, or a number of seconds."""
    text = query.shown["slower"]
    if not text:
        return
    if (found := DURATION.fullmatch(text)) is None:
        query.problem = "A duration is written as 2.5 s, or 800 ms."
        return
    number = float(found[1])
    query.values["slower_than_ms"] = round(number if (found[2] or "s").lower() == "ms" else 1000 * number)


def _read_times(query: LogQuery) -> None:
    """Read the first and the last minute, or day, in the zone that the address names."""
    zone = zone_named(query.shown["zone"])
    for name, time_of_day, more in (("since", time.min, timedelta(0)), ("until", END_OF_DAY, timedelta(minutes=1))):
        if not query.shown[name]:
            continue
        if (moment := _minute(query.shown[name], time_of_day)) is None:
            query.problem = "A time is written as 2026-01-31T14:05, a day as 2026-01-31."
            continue
        if moment.year >= FIRST_YEAR:
            query.shown[name] = f"{moment:%Y-%m-%dT%H:%M}"
        query.values[name] = min(moment, LAST_MOMENT).replace(tzinfo=zone) + more


def _minute(text: str, time_of_day: time) -> datetime | None:
    """Read a minute, or a day and with it this time of it."""
    try:
        return datetime.combine(date.fromisoformat(text), time_of_day)
    except ValueError:
        pass  # it may have a time of its own
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None, second=0, microsecond=0)
    except ValueError:
        return None

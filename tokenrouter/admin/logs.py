"""The log of calls: filtered, paged by id, opened in full, and exported; read-only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from flask import Response, abort, request, stream_with_context
from flask.typing import ResponseReturnValue
from flask_admin import expose
from flask_admin.contrib.sqla import ModelView
from werkzeug.datastructures import MultiDict

from tokenrouter import reports, teams
from tokenrouter.admin import calls_csv
from tokenrouter.admin.access import PanelView
from tokenrouter.database.log_status import STATUSES
from tokenrouter.database.tables import NAME_LENGTH, Group, Team
from tokenrouter.errors import NotFound
from tokenrouter.reports import CallFilter

PER_PAGE = 50
TEXT_FILTERS = ("token", "model", "status", "endpoint", "request_id")
FILTERS = ("team", "team_id", "group", *TEXT_FILTERS, "since", "until", "zone")
LAST_DAY = date.max - timedelta(days=1)


@dataclass(frozen=True)
class LogQuery:
    """What was query for in the address, and what could not be understood of it."""

    filter: CallFilter
    shown: dict[str, str]
    problem: str | None = None

    @property
    def is_filtered(self) -> bool:
        """Tell whether anything narrows the list."""
        return any(value for name, value in self.shown.items() if name != "zone")

    def link(self, view: str, **more: int) -> str:
        """Return the address of a view of what was query for; `url_for` itself takes no value named `endpoint`."""
        return f"{view}?{urlencode({name: value for name, value in self.shown.items() if value} | more)}"


class RequestLogView(PanelView, ModelView):
    """Rows of the log, which only the ledger writes."""

    column_list = ("created_at", "team_name", "model", "status")
    can_create = can_edit = can_delete = False
    can_export = True

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show a page of the calls that fit, the newest first; nothing is counted and nothing skipped."""
        query = read_filter(request.args)
        before_id, after_id = (request.args.get(name, type=int) for name in ("before", "after"))
        found = None if query.problem else reports.calls_page(query.filter, before_id, after_id, PER_PAGE)

        return self.render(
            "admin/logs.html",
            query=query,
            found=found,
            groups=reports.group_names().values(),
            models=reports.model_names(),
            endpoints=reports.endpoint_names(),
            statuses=STATUSES,
        )

    @expose("/<int:call_id>/")
    def details_view(self, call_id: int) -> ResponseReturnValue:
        """Show a call in full."""
        detail = reports.call(call_id)
        if detail is None:
            abort(404, "There is no such call in the log.")
        return self.render("admin/call.html", detail=detail)

    @expose("/export/<export_type>/")
    def export(self, export_type: str) -> ResponseReturnValue:
        """Send the calls that fit as CSV, row by row, however many they are."""
        query = read_filter(request.args)
        if export_type != "csv" or query.problem:
            abort(404, query.problem or "There is only CSV to export.")
        name = f"tokenrouter-calls-{datetime.now(UTC):%Y%m%d-%H%M%S}.csv"
        rows: Iterator[str] = calls_csv.lines(reports.iterate_calls(query.filter))
        return Response(
            stream_with_context(rows),
            mimetype="text/csv",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


def read_filter(args: MultiDict[str, str]) -> LogQuery:
    """Read the filter from the address. A team that never was is a problem to tell, rather than no filter at all."""
    shown = {name: args.get(name, "").strip()[:NAME_LENGTH] for name in FILTERS}
    values: dict[str, Any] = {name: shown[name] or None for name in TEXT_FILTERS}
    values["token_prefix"] = values.pop("token")
    team_id, problem = _team(shown)
    group_id, group_problem = _id_of(shown["group"], teams.find_group, teams.ids_of_groups_ever_named)
    problem = problem or group_problem
    zone = _zone(shown["zone"])
    since, until = _day(shown["since"]), _day(shown["until"])
    if (shown["since"] and since is None) or (shown["until"] and until is None):
        problem = "A date is written as 2026-01-31."
    return LogQuery(
        CallFilter(
            team_id=team_id,
            group_id=group_id,
            since=None if since is None else datetime.combine(since, time.min, zone),
            until=None if until is None else datetime.combine(until + timedelta(days=1), time.min, zone),
            **values,
        ),
        shown,
        problem,
    )


def _team(shown: dict[str, str]) -> tuple[int | None, str | None]:
    """Return the team that is meant, and else what to say.

    A link tells its id, which finds it under an earlier name too, until another name is typed over its own.
    """
    if not shown["team_id"]:
        return _team_id(shown["team"])
    team_id = int(shown["team_id"]) if shown["team_id"].isdecimal() else -1
    name = reports.team_name(team_id)
    if shown["team"] not in ("", name):
        shown["team_id"] = ""
        return _team_id(shown["team"])
    shown["team"] = name or ""
    return (team_id, None) if name else (None, "There is no such team.")


def _team_id(name: str) -> tuple[int | None, str | None]:
    """Return the team of this name, the living one before those that had it, and else what to say."""
    return _id_of(name, teams.find, teams.ids_ever_named)


def _id_of(
    name: str, find: Callable[[str], Team | Group], ids_ever_named: Callable[[str], list[int]]
) -> tuple[int | None, str | None]:
    if not name:
        return None, None
    try:
        return find(name).id, None
    except NotFound:
        pass  # it may be one that was deleted
    try:
        return max(ids_ever_named(name)), None
    except NotFound as error:
        return None, str(error)


def _day(text: str) -> date | None:
    try:
        return min(date.fromisoformat(text), LAST_DAY)
    except ValueError:
        return None


def _zone(name: str) -> ZoneInfo:
    """Return the browser's time zone, in which its dates are meant; UTC where that is not known here."""
    try:
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, KeyError):
        return ZoneInfo("UTC")

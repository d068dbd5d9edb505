"""The report of use: who used how much of what on which days; its URL holds the whole query."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlencode

from flask import Response, request
from flask.typing import ResponseReturnValue
from flask_admin import expose
from werkzeug.datastructures import MultiDict

from tokenrouter import prices, reports
from tokenrouter.admin.access import PanelView, settings
from tokenrouter.admin.charts import use_chart
from tokenrouter.errors import InvalidRequest
from tokenrouter.reports import Days, Dimension
from tokenrouter.spreadsheet import BYTE_ORDER_MARK

SHOWN_ROWS = 100
DEFAULT_PERIOD = "this-month"
UNITS: tuple[reports.Unit, ...] = ("tokens", "money")
DIMENSION_WORDS: dict[Dimension, str] = {
    "team": "Team",
    "group": "Group",
    "model": "Model",
    "day": "Day",
    "token": "Token",
}
FIELDS = ("period", "since", "until", "by", "and", "unit", "sort", "descending", "all")


@dataclass(frozen=True)
class Wanted:
    """The query of a URL, and what of it is invalid."""

    days: Days
    by: tuple[Dimension, ...]
    unit: reports.Unit
    sort: str
    descending: bool
    period: str | None
    """Of PERIODS; None if days were typed."""
    shown: dict[str, str]
    problem: str | None = None

    def link(self, view: str, **changes: str | None) -> str:
        """Return the URL of a view with the same query, but for some changes."""
        fields = {name: value for name, value in (self.shown | changes).items() if value}
        return f"{view}?{urlencode(fields)}" if fields else view


class UsageView(PanelView):
    """Reports, which read the daily totals alone."""

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show the report that the address asks for."""
        today = reports.day_of(datetime.now(UTC))
        wanted = read_wanted(request.args, today)
        limit = None if wanted.shown["all"] else SHOWN_ROWS
        order: dict[str, Any] = {"unit": wanted.unit, "sort": wanted.sort, "descending": wanted.descending}
        table = reports.usage_table(wanted.days, wanted.by, today, **order, limit=limit)
        return self.render(
            "admin/usage.html",
            wanted=wanted,
            table=table,
            chart=use_chart(table.chart, settings().currency),
            periods=reports.PERIODS,
            dimensions=DIMENSION_WORDS,
            has_prices=bool(prices.valid().prices) or bool(table.total.cost),
            today=today,
        ), 400 if wanted.problem else 200

    @expose("/export/<export_type>/")
    def export(self, export_type: str) -> ResponseReturnValue:
        """Send all rows of the report as CSV, with a byte order mark, which Excel wants."""
        today = reports.day_of(datetime.now(UTC))
        wanted = read_wanted(request.args, today)
        if export_type != "csv" or wanted.problem:
            return Response(wanted.problem or "There is only CSV to export.", 404, mimetype="text/plain")
        report = reports.usage_report(wanted.days, wanted.by, today)
        delimiter = ";" if request.args.get("separator") == "semicolon" else ","
        lines = reports.csv_lines(report, delimiter=delimiter, begin=BYTE_ORDER_MARK)
        name = f"tokenrouter-usage-{wanted.days.since}-{wanted.days.until}-by-{'-'.join(wanted.by)}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(lines, mimetype="text/csv", headers=headers)


def read_wanted(args: MultiDict[str, str], today: date) -> Wanted:
    """Read the address; what makes no sense counts as not given, but days and dimensions that cannot be are told."""
    shown = {name: args.get(name, "").strip() for name in FIELDS}
    days, period, problem = read_days(shown, today)
    by, wrong = _by(shown)
    sort = shown["sort"] if shown["sort"] in (*reports.USAGE_SORTS, "name") else "name" if by[0] == "day" else "tokens"
    shown |= {"by": by[0], "and": by[1] if len(by) > 1 else ""}
    descending = shown["descending"] != "0" if sort != "name" else shown["descending"] == "1"
    unit: reports.Unit = "money" if shown["unit"] == "money" else "tokens"
    return Wanted(days, by, unit, sort, descending, period, shown, problem or wrong)


def read_days(shown: dict[str, str], today: date) -> tuple[Days, str | None, str | None]:
    """Return the days that `period`, or `since` and `until`, mean, the period that they are, and what is wrong.

    Of what is shown, what does not count is emptied.
    """
    chosen = shown["period"] if shown["period"] in reports.PERIODS else None
    standard = reports.period_days(chosen or DEFAULT_PERIOD, today)
    if chosen or not (shown["since"] or shown["until"]):
        shown |= {"since": "", "until": ""}
        return standard, chosen or DEFAULT_PERIOD, None
    try:
        since = date.fromisoformat(shown["since"]) if shown["since"] else standard.since
        until = date.fromisoformat(shown["until"]) if shown["until"] else max(today, since)
        days = reports.check_days(since, until)
        same = (key for key in reports.PERIODS if reports.period_days(key, today) == days)
        return days, next(same, None), None
    except InvalidRequest as error:
        problem = str(error)
    except ValueError:
        problem = "A date is written as 2026-01-31."
    shown |= {"since": "", "until": ""}
    return standard, DEFAULT_PERIOD, f"{problem} This month is shown instead."


def _by(shown: dict[str, str]) -> tuple[tuple[Dimension, ...], str | None]:
    names = [name for name in (shown["by"] or "team", shown["and"]) if name]
    if names[1:] == ["day"]:
        names.reverse()  # days stand one below the other
    if names[:1] == names[1:]:
        names.pop()
    try:
        return reports.check_dimensions(names), None
    except InvalidRequest as error:
        return ("team",), f"{error} Teams are shown instead."

"""The log of calls: filtered, paged by id, opened in full, and exported; read-only."""

from collections.abc import Iterator
from datetime import UTC, datetime

from flask import Response, abort, request, stream_with_context, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose
from flask_admin.contrib.sqla import ModelView

from tokenrouter import reports
from tokenrouter.admin import access, calls_csv, failures
from tokenrouter.admin.access import PanelView
from tokenrouter.admin.log_query import read_filter
from tokenrouter.admin.teams import here
from tokenrouter.database.log_status import ANY_FAILURE, STATUSES

PER_PAGE = 50
DELIMITERS = {"comma": ",", "semicolon": ";"}
SUMS_S, ALL_SUMS_S = 0.1, 5.0


class RequestLogView(PanelView, ModelView):
    """Rows of the log, which only the ledger writes."""

    column_list = ("created_at", "team_name", "model", "status")
    can_create = can_edit = can_delete = False
    can_export = True

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show a page of the matching calls, newest first, without counting rows."""
        query = read_filter(request.args)
        before_id, after_id = (request.args.get(name, type=int) for name in ("before", "after"))
        found = None if query.problem else reports.calls_page(query.filter, before_id, after_id, PER_PAGE)
        sums = None
        if found is not None and query.is_filtered:
            search_s = ALL_SUMS_S if request.args.get("sums") == "all" else SUMS_S
            sums = reports.call_sums(query.filter, search_s=search_s)
        return self.render(
            "admin/logs.html",
            query=query,
            found=found,
            sums=sums,
            here=here(),
            delimiters=DELIMITERS,
            team_names=reports.team_names(),
            any_failure=ANY_FAILURE,
            error_codes=failures.KINDS,
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
        row = detail.row
        return self.render(
            "admin/call.html",
            detail=detail,
            kind=failures.kind_of(row.status, row.status_code, row.error_code),
            back=_list_of_calls(request.args.get("back")),
            here=here(),
        )

    @expose("/door/")
    def door_view(self) -> ResponseReturnValue:
        """Show requests that were recently refused before they became calls."""
        found = reports.turned_away(datetime.now(UTC))
        return self.render("admin/door.html", found=found, words=failures.door_words, moment_of=reports.moment_of)

    @expose("/export/<export_type>/")
    def export(self, export_type: str) -> ResponseReturnValue:
        """Send the matching calls as CSV, row by row, however many there are."""
        query = read_filter(request.args)
        if export_type != "csv" or query.problem:
            abort(404, query.problem or "There is only CSV to export.")
        delimiter = DELIMITERS.get(request.args.get("delimiter", ""), ",")
        name = f"tokenrouter-calls-{datetime.now(UTC):%Y%m%d-%H%M%S}.csv"
        rows: Iterator[str] = calls_csv.lines(reports.iterate_calls(query.filter), delimiter)
        return Response(
            stream_with_context(rows),
            mimetype="text/csv",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


def _list_of_calls(back: str | None) -> str | None:
    """Return the address of the list of calls that one comes from, with its filter; None if it is none."""
    target = access.safe_target(back)
    return target if target.partition("?")[0] == url_for("logs.index_view") else None

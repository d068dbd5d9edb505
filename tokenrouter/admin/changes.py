"""The record of changes: who did what, and when; looked through, exported, and taken back."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from flask import Response, flash, redirect, request, stream_with_context, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose
from markupsafe import Markup
from werkzeug.datastructures import MultiDict

from tokenrouter import changes, reports, teams
from tokenrouter.admin import access, changes_csv, undo
from tokenrouter.admin.access import PanelView, actor
from tokenrouter.admin.formats import ACTION_WORDS
from tokenrouter.changes import CannotUndo, listing
from tokenrouter.changes.listing import ChangeFilter
from tokenrouter.database.tables import NAME_LENGTH
from tokenrouter.periods import zone_named

PER_PAGE = 50
FILTERS = ("name", "action", "who", "since", "until", "batch")
WHO = {changes.PANEL: "panel", changes.CLI: "command line", changes.API: "API", changes.CLOCK: "by itself"}
LAST_DAY = date.max - timedelta(days=1)


class ChangesView(PanelView):
    """List the changes that the panel, the commands and the API made."""

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show a page of them, the newest first."""
        before_id, after_id = (request.args.get(name, type=int) for name in ("before", "after"))
        wanted = _filter(request.args)
        shown: dict[str, Any] = {name: request.args.get(name) for name in (*FILTERS, "zone")}
        shown |= {"team": wanted.team_id, "group": wanted.group_id}

        def link(view: str = ".index_view", **more: Any) -> str:
            return url_for(view, **{name: value for name, value in (shown | more).items() if value not in (None, "")})

        return self.render(
            "admin/changes.html",
            found=listing.entries(wanted, before_id, after_id, PER_PAGE),
            shown=shown,
            link=link,
            is_filtered=wanted != ChangeFilter(),
            team_name=None if wanted.team_id is None else reports.team_name(wanted.team_id),
            actions=ACTION_WORDS,
            who=WHO,
            here=request.full_path.rstrip("?"),
        )

    @expose("/export/csv/")
    def export_view(self) -> ResponseReturnValue:
        """Send the matching changes as CSV, row by row."""
        rows: Iterator[str] = changes_csv.lines(listing.iterate(_filter(request.args)))
        name = f"tokenrouter-changes-{datetime.now(UTC):%Y%m%d-%H%M%S}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(stream_with_context(rows), mimetype="text/csv", headers=headers)

    @expose("/undo", methods=("POST",))
    def undo_view(self) -> ResponseReturnValue:
        """Take changes back, if all can be; ask before some are, and say why the others cannot."""
        back, by = access.safe_target(request.form.get("url")), actor()
        ids = request.form.getlist("change", type=int) or listing.ids_of_batch(request.form.get("batch", ""))
        try:
            undone = teams.undo(ids, by=by)
        except teams.NotAllUndone as refusal:
            if len(ids) > 1:
                return self.render("admin/undo.html", refusal=refusal, back=back)
            ((change, why),) = refusal.reasons
            flash(Markup("Nothing was undone for {}. {}").format(undo.name_of(change), why), "error")
        except CannotUndo as error:
            flash(str(error), "error")
        else:
            undo.say(undo.outcome(undone), by)
            back = url_for(".index_view") if undo.removes_again(undone) else back
        return redirect(back)


def _filter(args: MultiDict[str, str]) -> ChangeFilter:
    """Read the filter from the URL; invalid values count as missing."""
    texts = {name: args.get(name, "").strip()[:NAME_LENGTH] or None for name in ("name", "action", "who", "batch")}
    zone = zone_named(args.get("zone"))  # of the browser, in which its dates are meant
    since, until = (_day(args.get(name, "")) for name in ("since", "until"))
    return ChangeFilter(
        team_id=args.get("team", type=int),
        group_id=args.get("group", type=int),
        name=texts["name"],
        action=texts["action"] if texts["action"] in ACTION_WORDS else None,
        who=texts["who"] if texts["who"] in WHO else None,
        batch=texts["batch"],
        since=None if since is None else datetime.combine(since, time.min, zone),
        until=None if until is None else datetime.combine(until + timedelta(days=1), time.min, zone),
    )


def _day(text: str) -> date | None:
    try:
        return min(date.fromisoformat(text), LAST_DAY)
    except ValueError:
        return None

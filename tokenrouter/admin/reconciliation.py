"""The provider's own record beside ours, in the panel: what the gap is made of, and which calls stand in one alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlencode

from flask import Response, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose

from tokenrouter import provider_record, reconciliation, reports, runtime
from tokenrouter.admin.access import PanelView, settings
from tokenrouter.admin.usage import read_days
from tokenrouter.database.tables import db
from tokenrouter.errors import APIError
from tokenrouter.ledger.costs import DOLLARS
from tokenrouter.matching import Pair, Reason
from tokenrouter.provider.account import Kind
from tokenrouter.reconciliation import Reconciliation
from tokenrouter.reports import Days
from tokenrouter.spreadsheet import BYTE_ORDER_MARK

NAMES: dict[Kind, str] = {"poe": "Poe", "openrouter": "OpenRouter", "deepseek": "DeepSeek"}
SHOWN_LINES = 60
PAIRS_A_PAGE = 10
FIELDS = ("period", "since", "until", "key", "gaps", "all", "reason", "theirs", "ours", "both")


@dataclass(frozen=True)
class Wanted:
    """The query of a URL, and what of it is invalid."""

    days: Days
    first: date
    """The first of the days that are compared: a page compares no more than it can in a moment."""
    period: str | None
    shown: dict[str, str]
    problem: str | None

    @property
    def key(self) -> str | None:
        """The one key of the account that is meant, as the provider names it."""
        return self.shown["key"] or None

    def link(self, view: str, **changes: str) -> str:
        """Return the URL of a view with the same query, but for some changes."""
        fields = {name: value for name, value in (self.shown | changes).items() if value}
        return f"{view}?{urlencode(fields)}" if fields else view


@dataclass(frozen=True)
class PairsPage:
    """Some of the calls that differ, and the numbers of the pages beside this one."""

    rows: Sequence[Pair]
    total: int
    number: int

    @property
    def newer(self) -> str | None:
        """The number of the page before."""
        return str(self.number - 1) if self.number > 1 else None

    @property
    def older(self) -> str | None:
        """The number of the next page."""
        return str(self.number + 1) if self.number * PAIRS_A_PAGE < self.total else None


class ReconciliationViews(PanelView):
    """The pages below that of the account which compare bills."""

    @expose("/reconciliation/")
    def reconciliation_view(self) -> ResponseReturnValue:
        """Show the days that the address asks for."""
        own, wanted = runtime.current(), _wanted()
        days_alone = own.account.kind == "openrouter"
        found = None if days_alone else _found(wanted)
        return self.render(
            "admin/reconciliation_days.html" if days_alone else "admin/reconciliation.html",
            wanted=wanted,
            found=found,
            days=reconciliation.reconcile_days(db.engine, wanted.days.since, wanted.days.until) if days_alone else [],
            kept=provider_record.kept(db.engine),
            has_record=provider_record.has_record(own.account),
            provider=NAMES.get(own.account.kind, "the provider"),
            keys=provider_record.key_names(db.engine),
            periods=reports.PERIODS,
            is_in_dollars=settings().currency == DOLLARS,
            lists=[] if found is None else _lists(found, wanted),
            reason=wanted.shown["reason"],
            shown_lines=SHOWN_LINES,
        ), 400 if wanted.problem else 200

    @expose("/reconciliation/fetch", methods=("POST",))
    def fetch_view(self) -> ResponseReturnValue:
        """Ask the provider for what is new, for some seconds; what is left then is read by the clock."""
        wanted = _wanted()
        try:
            fetched = provider_record.fetch(db.engine, runtime.current().account, provider_record.PRESS_S)
        except APIError as error:
            flash(f"The record could not be fetched: {error}", "error")
        else:
            flash(_fetched_words(fetched), "success")
        return redirect(wanted.link(url_for(".reconciliation_view")))

    @expose("/reconciliation/export/<export_type>/")
    def reconciliation_export(self, export_type: str) -> ResponseReturnValue:
        """Send the lines by day and model as CSV, with a byte order mark, which Excel wants."""
        wanted = _wanted()
        if export_type != "csv" or wanted.problem:
            return Response(wanted.problem or "There is only CSV to export.", 404, mimetype="text/plain")
        delimiter = ";" if request.args.get("separator") == "semicolon" else ","
        if runtime.current().account.kind == "openrouter":
            days = reconciliation.reconcile_days(db.engine, wanted.days.since, wanted.days.until)
            lines = reconciliation.days_csv(days, delimiter=delimiter, begin=BYTE_ORDER_MARK)
        else:
            lines = reconciliation.csv_lines(_found(wanted), delimiter=delimiter, begin=BYTE_ORDER_MARK)
        name = f"tokenrouter-reconciliation-{wanted.first}-{wanted.days.until}.csv"
        return Response(lines, mimetype="text/csv", headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _wanted() -> Wanted:
    """Read the address; what makes no sense counts as not given, but days that cannot be are told."""
    shown = {name: request.args.get(name, "").strip()[:100] for name in FIELDS}
    days, period, problem = read_days(shown, reports.day_of(datetime.now(UTC)))
    first = reconciliation.first_day(db.engine, days.since, days.until, settings().timezone)
    return Wanted(days, first, period, shown, problem)


def _found(wanted: Wanted) -> Reconciliation:
    own = settings()
    return reconciliation.reconcile(
        db.engine, wanted.first, wanted.days.until, own.timezone, wanted.key, currency=own.currency
    )


def _fetched_words(fetched: provider_record.Fetched) -> str:
    new = "Nothing is new" if not fetched.entries else f"{fetched.entries:,} entries are new or changed"
    return f"{new}." if fetched.is_whole else f"{new}. There are more, which are fetched in the next minutes."


def _lists(found: Reconciliation, wanted: Wanted) -> list[dict[str, Any]]:
    """Return the calls that differ, those in one record alone first, a page of each list."""
    sides: dict[str, list[Pair]] = {"theirs": [], "ours": [], "both": []}
    for pair in found.pairs:
        sides["theirs" if pair.ours is None else "ours" if pair.theirs is None else "both"].append(pair)
    chosen = wanted.shown["reason"].upper()
    if chosen in Reason.__members__:
        sides["both"] = [pair for pair in sides["both"] if pair.reason is Reason[chosen]]
    return [{"name": name, "page": _page(pairs, wanted.shown[name])} for name, pairs in sides.items()]


def _page(pairs: Sequence[Pair], number: str) -> PairsPage:
    last = max(1, -(-len(pairs) // PAIRS_A_PAGE))
    at = min(max(1, int(number)), last) if number.isascii() and number.isdecimal() else 1
    return PairsPage(pairs[(at - 1) * PAIRS_A_PAGE : at * PAIRS_A_PAGE], len(pairs), at)

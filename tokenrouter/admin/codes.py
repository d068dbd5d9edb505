"""The codes to join with: list, one code and who joined by it, and its sheet for the wall."""

from datetime import UTC, datetime

from flask import abort, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose
from wtforms import DateTimeLocalField, StringField
from wtforms.validators import Length, Optional

from tokenrouter import reports
from tokenrouter.admin.access import PanelView, actor, settings
from tokenrouter.admin.limit_forms import PERIODS, explain
from tokenrouter.admin.password import LOCAL_HOST
from tokenrouter.admin.team_forms import MembershipForm
from tokenrouter.admin.teams import about_periods
from tokenrouter.database.tables import NAME_LENGTH, PACES, JoinCode
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.qr import qr_code
from tokenrouter.teams import codes

NO_CODE = "There is no such code."
EARLIEST, LATEST = datetime(2000, 1, 1), datetime(9999, 12, 1)  # beyond, zones leave the calendar
TONES = {"open": "good", "used up": "quiet", "expired": "quiet", "revoked": "quiet", "group deleted": "warn"}


class CodeForm(MembershipForm):
    """A new code: how often and how long it works, and what each of its teams gets."""

    name = None  # type: ignore[assignment] # each of its teams has one of its own
    label = StringField("Label", [Optional(), Length(max=NAME_LENGTH)])
    uses = StringField("Uses")
    expires = DateTimeLocalField("Works until", [Optional()])

    def uses_number(self) -> int | None:
        """Return how many teams it may make; raises InvalidRequest."""
        typed = (self.uses.data or "").strip()
        if typed and not (typed.isascii() and typed.isdecimal() and len(typed) <= len(str(codes.MOST_USES))):
            raise InvalidRequest(f"Type a number from 1 to {codes.MOST_USES:,}, or nothing.", param="uses")
        return int(typed) if typed else None

    def expires_at(self) -> datetime | None:
        """Return the moment that was typed, in the service's time zone."""
        typed: datetime | None = self.expires.data
        if typed is None:
            return None
        return min(max(typed, EARLIEST), LATEST).replace(tzinfo=settings().timezone).astimezone(UTC)


class CodeView(PanelView):
    """Codes, which the page of teams leads to."""

    def is_visible(self) -> bool:
        """Leave the menu as it is: codes belong to the teams."""
        return False

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """List the codes."""
        now = datetime.now(UTC)
        return self.render("admin/codes.html", codes=reports.codes(now), now=now, tones=TONES)

    @expose("/new/", methods=("GET", "POST"))
    def create_view(self) -> ResponseReturnValue:
        """Make a code."""
        form = CodeForm(request.form)
        if request.method == "POST" and form.validate() and (code := self._create(form)):
            flash(f"Created the code {code.code}.", "success")
            return redirect(url_for(".details_view", code_id=code.id))
        words = {"allowed": settings().allowed_models, "groups": reports.group_names()}
        return self.render("admin/code_form.html", form=form, now=_local_now(), **words, **about_periods(None))

    def _create(self, form: CodeForm) -> JoinCode | None:
        """Have the domain make the code; explain in the form what it refuses."""
        try:
            return codes.create(form.label.data, form.uses_number(), form.expires_at(), **form.values(), by=actor())
        except APIError as error:
            explain(form, error)
            return None

    @expose("/<int:code_id>/")
    def details_view(self, code_id: int) -> ResponseReturnValue:
        """Show a code, and who joined by it."""
        detail = reports.code_detail(code_id)
        if detail is None:
            abort(404, NO_CODE)
        team = detail.code.team_to_be
        return self.render(
            "admin/code.html",
            code=detail.code,
            joined=detail.teams,
            team=team,
            pace={name: getattr(team, name) for name in PACES},
            state=detail.code.state_at(datetime.now(UTC)),
            tones=TONES,
            address=_address(detail.code),
            periods=PERIODS,
        )

    @expose("/<int:code_id>/sheet")
    def sheet_view(self, code_id: int) -> ResponseReturnValue:
        """Show how to join, to be projected on a wall or printed."""
        code = _found(code_id)
        if (state := code.state_at(datetime.now(UTC))) != "open":
            flash(f"Nobody can join with this code: {state}.", "error")
            return redirect(url_for(".details_view", code_id=code_id))
        address = _address(code)
        return self.render(
            "admin/code_sheet.html",
            code=code,
            drawn=qr_code(address, f"QR code of {address}"),
            is_local=LOCAL_HOST.fullmatch(request.host) is not None,
        )

    @expose("/<int:code_id>/revoke", methods=("POST",))
    def revoke_view(self, code_id: int) -> ResponseReturnValue:
        """Revoke a code; its teams stay."""
        _found(code_id)
        try:
            code = codes.revoke(code_id, by=actor())
        except APIError as error:
            flash(str(error), "error")
        else:
            flash(f"Revoked the code {code.code}: nobody joins with it any more. Its teams stay.", "success")
        return redirect(url_for(".details_view", code_id=code_id))


def _found(code_id: int) -> JoinCode:
    try:
        return codes.get(code_id)
    except APIError:
        abort(404, NO_CODE)


def _address(code: JoinCode) -> str:
    """Return the page to join on, with the code in its field already."""
    return url_for("site.join", code=code.code, _external=True)


def _local_now() -> str:
    """Write this minute as the field of a moment does."""
    return datetime.now(settings().timezone).strftime("%Y-%m-%dT%H:%M")

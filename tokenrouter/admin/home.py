"""The panel's first page, and the way in and out."""

from datetime import UTC, datetime, timedelta

from flask import flash, redirect, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_admin import AdminIndexView, expose
from flask_login import current_user

from tokenrouter import account, account_pace, attempts, prices, reports, runtime
from tokenrouter.admin import access, kept_forms, password
from tokenrouter.admin.access import PanelView, settings
from tokenrouter.admin.account import banner, warnings
from tokenrouter.admin.charts import use_chart
from tokenrouter.admin.failures import by_side
from tokenrouter.database.tables import db

CHART_DAYS = 30
NEXT = 8
MOST_REST = 0.5
UNITS = ("tokens", "money")
REFUSED_DEFAULT = (
    "The admin password is still the default, admin123, which opens the panel only on the machine that TokenRouter "
    "runs on, for the same user, and without a proxy between. Set ADMIN_PASSWORD there, or run `flask setup`, and "
    "restart."
)


class HomeView(PanelView, AdminIndexView):
    """The dashboard, and sign-in and sign-out, which are the blueprint "admin"."""

    @expose("/")
    def index(self) -> ResponseReturnValue:
        """Show whether all is well, who is about to run out, and what failed."""
        if request.args.get("in") in UNITS:
            session["unit"] = request.args["in"]
            return redirect(url_for(".index"))
        unit: reports.Unit = session.get("unit", UNITS[0])
        now = datetime.now(UTC)
        daily = reports.use_per_day(CHART_DAYS, now, unit=unit)
        rest_share = daily.rest_share
        if rest_share > MOST_REST:
            daily = reports.use_by_model(CHART_DAYS, now, unit)
        return self.render(
            "admin/dashboard.html",
            running_out=reports.running_out(NEXT, now),
            exhausted_groups=reports.groups_near("exhausted"),
            near_groups=reports.groups_near("over80"),
            near=reports.teams_page(near_quota="over80", state="active", per_page=1).total,
            overview=reports.overview(now),
            unit=unit,
            has_prices=bool(prices.valid().prices),
            failed=(failed := reports.recent_failures(now)),
            failures=by_side(failed.groups),
            turned_away=reports.count_turned_away(now),
            zone=settings().timezone,
            day_ago=f"{(now - timedelta(days=1)).astimezone(settings().timezone):%Y-%m-%dT%H:%M}",
            chart=use_chart(daily, settings().currency),
            teams_share=1 - rest_share if rest_share > MOST_REST else None,
            stands=account.standing(db.engine, now),
            checked_at=account.checked_at(db.engine),
            queue=account_pace.queue(db.engine, settings().provider_requests_per_minute),
            account_warnings=warnings(now),
            now=now,
        )

    @expose("/provider")
    def provider_view(self) -> ResponseReturnValue:
        """Return the state of the provider's account; the dashboard requests it once it is shown.

        The provider is asked where no worker did so lately.
        """
        checked_at = account.checked_at(db.engine)
        if checked_at is None or datetime.now(UTC) - checked_at > timedelta(seconds=account.REFRESH_S):
            checked_at = account.refresh(db.engine, runtime.current().account).at
        return self.render("admin/provider.html", stands=account.standing(db.engine), checked_at=checked_at)

    @expose("/banner")
    def banner_view(self) -> ResponseReturnValue:
        """Return the notices above every page; an open page requests them once a minute."""
        return self.render("admin/banner.html", trouble=banner())

    @expose("/login", methods=("GET", "POST"))
    def login_view(self) -> ResponseReturnValue:
        """Ask for the password, and let the administrator in."""
        target = access.safe_target(request.values.get("next"))
        if current_user.is_authenticated:
            return redirect(target)
        kept = kept_forms.carried()
        problem, status = self._try_password() if request.method == "POST" else (None, 200)
        if request.method != "POST" or problem is not None:
            return access.show_sign_in(problem, kept), status
        if kept is None:
            return access.sign_in(lambda: redirect(target))
        return access.sign_in(lambda: access.show_unsaved(kept, access.SIGNED_OUT))

    def _try_password(self) -> tuple[str | None, int]:
        """Return the message and the status for a failed sign-in."""
        if password.has_default_password(settings()) and not access.may_use_default_password():
            return REFUSED_DEFAULT, 403
        try:
            is_right = password.try_password(settings(), request.form.get("password", ""), access.guesser())
        except attempts.TooManyGuesses as error:
            return f"Too many wrong passwords: try again in {error.wait_s} seconds.", 429
        if not is_right:
            return "This is not the admin password.", 401
        return None, 200

    @expose("/logout", methods=("POST",))
    def logout_view(self) -> ResponseReturnValue:
        """End the session."""
        access.sign_out()
        flash("You are signed out.", "success")
        return redirect(url_for("admin.login_view"))

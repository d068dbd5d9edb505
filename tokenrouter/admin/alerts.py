"""The alerts: what was sent to whom, what did not arrive, and a test of whether any would."""

from uuid import uuid4

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose

from tokenrouter import alerts, runtime
from tokenrouter.admin.access import PanelView, safe_target, settings
from tokenrouter.database.tables import db


class AlertsView(PanelView):
    """Show the alerts, newest first; mark them as seen; test the ways of delivery."""

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show a page of them, all or those that were not seen."""
        unseen = request.args.get("show") == "unseen"
        speaker = alerts.Speaker(settings().timezone, settings().currency, isolated)
        before_id = request.args.get("before", type=int)
        receivers = runtime.current().sender.receivers
        return self.render(
            "admin/alerts.html",
            page=alerts.alerts_page(speaker, unseen=unseen, before_id=before_id),
            is_first=before_id is None,
            unseen=unseen,
            webhook=receivers.webhook,
            mail=receivers.mail,
            mail_to=receivers.mail_to,
        )

    @expose("/seen", methods=("POST",))
    def seen_view(self) -> ResponseReturnValue:
        """Mark alerts as seen: those with these ids, or all up to the newest shown."""
        alerts.see(db.engine, request.form.getlist("id", type=int), up_to=request.form.get("up_to", 0, type=int))
        return redirect(safe_target(request.form.get("url")))

    @expose("/test", methods=("POST",))
    def test_view(self) -> ResponseReturnValue:
        """Send a test by one way, and show what was answered."""
        for _, answer in alerts.send_test(runtime.current().sender.receivers, uuid4().hex, request.form.get("channel")):
            flash(f"{'Delivered' if answer.is_taken else 'Not delivered'}: {answer.words}.", _category(answer))
        return redirect(url_for(".index_view"))


def isolated(name: str) -> str:
    """Return a name as it stands in a sentence: if it is written the other way, nothing else is turned by it."""
    return f"\u2068{name}\u2069"


def _category(answer: alerts.Answer) -> str:
    return "success" if answer.is_taken else "error"

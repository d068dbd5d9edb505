"""The paid account: its state, what is left of it, and how long that lasts."""

from datetime import UTC, datetime

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose

from tokenrouter import account, account_pace, commitments, provider_record, runtime, runway
from tokenrouter.admin.access import actor, settings
from tokenrouter.admin.reconciliation import NAMES, ReconciliationViews
from tokenrouter.config import without_password
from tokenrouter.database.tables import db
from tokenrouter.errors import InvalidRequest
from tokenrouter.provider.account import State
from tokenrouter.teams import parse_budget

ADVICE = {
    State.EMPTY: "Top up the account at the provider. Calls go through again by themselves then.",
    State.KEY_REFUSED: "Run `flask setup` where TokenRouter is installed to set the key anew, and restart it.",
    State.UNREACHABLE: "Check PROVIDER_BASE_URL, and whether this machine reaches it.",
    State.BROKEN: "PROVIDER_BASE_URL should be the root of an OpenAI-compatible API, and often ends in /v1.",
    State.LIMITED: "With PROVIDER_REQUESTS_PER_MINUTE calls wait here for their turn instead of being refused.",
    State.SLOW: "See the provider’s status page; calls wait for PROVIDER_READ_TIMEOUT at most.",
}


class AccountView(ReconciliationViews):
    """Show the account; check it; store the typed balance if the provider has no API for it."""

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show the page with what is known so far."""
        own, stands, now = runtime.current(), account.standing(db.engine), datetime.now(UTC)
        left = runway.runway(db.engine, now)
        limits = account_pace.reported_limits(db.engine)
        return self.render(
            "admin/account.html",
            stands=stands,
            words=stands.words(settings().timezone),
            advice=ADVICE.get(stands.state),
            checked_at=account.checked_at(db.engine),
            provider=NAMES.get(own.account.kind),
            provider_url=without_password(settings().provider_base_url),
            runway=left,
            now=now,
            pace_days=runway.PACE_DAYS,
            queue=account_pace.queue(db.engine, settings().provider_requests_per_minute),
            told=account_pace.limits_words(limits, settings().timezone),
            told_at=max((limit.at for limit in limits), default=None),
            commitments=commitments.commitments(db.engine, left, settings().currency, now),
            has_record=provider_record.has_record(own.account),
        )

    @expose("/check", methods=("POST",))
    def check_view(self) -> ResponseReturnValue:
        """Ask the provider now."""
        found = account.refresh(db.engine, runtime.current().account)
        flash(found.words, "success" if found.state.is_good else "error")
        return redirect(url_for(".index_view"))

    @expose("/balance", methods=("POST",))
    def balance_view(self) -> ResponseReturnValue:
        """Store the balance that the administrator read at the provider."""
        try:
            amount = parse_budget(request.form.get("balance", ""))
            if amount is None:
                raise InvalidRequest("Type what is left, such as 12.50.")
        except InvalidRequest as error:
            flash(str(error), "error")
        else:
            runway.set_balance(db.engine, amount, settings().currency, by=actor())
            flash("Noted. What calls cost is counted down from it.", "success")
        return redirect(url_for(".index_view"))


def warnings(now: datetime) -> list[str]:
    """Return the dashboard's warnings: that the balance will not last, or that teams may spend more than it."""
    left = runway.runway(db.engine, now)
    if left is None:
        return []
    warnings = [left.words(settings().timezone, now)] if left.ends_soon(now) else []
    more = commitments.commitments(db.engine, left, settings().currency, now).warning
    return warnings if more is None else [*warnings, more]


def banner() -> account.Standing | None:
    """Return the account's trouble that every page has to show; None if calls are answered."""
    stands = account.standing(db.engine)
    return None if stands.state.is_good else stands

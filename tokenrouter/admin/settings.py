"""The Settings page: what is configured and where it came from, never a secret; the provider; management tokens."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose
from sqlalchemy.engine import make_url

from tokenrouter import account, runtime
from tokenrouter.admin.access import PanelView, actor, settings
from tokenrouter.config import (
    DEFAULT_ADMIN_PASSWORD,
    SETTINGS,
    ConfigError,
    Settings,
    SmtpServer,
    slips,
    without_password,
)
from tokenrouter.database.tables import db
from tokenrouter.errors import APIError
from tokenrouter.provider.catalogue import Check, lacking
from tokenrouter.teams import management_tokens

SHOWN_CHARACTERS = 4
RECENT_S = 5.0  # the check of the account may just have read the models
ADVICE = {
    "provider_auth_failed": "Check PROVIDER_API_KEY: run `flask setup` where TokenRouter is installed, and restart it.",
    "provider_unreachable": "Check PROVIDER_BASE_URL, and whether this machine reaches it.",
    "provider_timeout": "Check PROVIDER_BASE_URL; if it is right, the provider has a fault: see its status page.",
    "provider_quota_exhausted": "Top up the account at the provider.",
    "provider_bad_response": "PROVIDER_BASE_URL should be the root of an OpenAI-compatible API, and often ends in /v1.",
    "provider_error": "PROVIDER_BASE_URL should be the root of an OpenAI-compatible API, and often ends in /v1.",
}
ORIGINS = {"override": "set by the program", "environment": "environment", ".env": ".env"}


@dataclass(frozen=True)
class Row:
    """A setting on the page: its value, or words in place of one."""

    name: str
    value: str
    words: str
    origin: str


class SettingsView(PanelView):
    """Show the settings, keep the management tokens, and ask the provider for its models."""

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show the page, with what is known of the provider."""
        return self._page(runtime.current().catalogue.last_check)

    @expose("/management-tokens", methods=("POST",))
    def create_token_view(self) -> ResponseReturnValue:
        """Make a management token, and show it this once."""
        label = request.form.get("label", "").strip()
        try:
            token, bearer_token = management_tokens.create(label or None, by=actor())
        except APIError as error:
            return self._page(runtime.current().catalogue.last_check, label, str(error))
        return self.render("admin/management_token.html", token=token, bearer_token=bearer_token)

    @expose("/management-tokens/<int:token_id>/revoke", methods=("POST",))
    def revoke_token_view(self, token_id: int) -> ResponseReturnValue:
        """Revoke a management token."""
        try:
            token = management_tokens.revoke(token_id, by=actor())
        except APIError as error:
            flash(str(error), "error")
        else:
            flash(f"Revoked the management token {token.prefix}…: it is refused from its next request on.", "success")
        return redirect(url_for(".index_view"))

    @expose("/provider", methods=("POST",))
    def check_view(self) -> ResponseReturnValue:
        """Ask the provider now."""
        own = runtime.current()
        account.refresh(db.engine, own.account)
        return self._page(own.catalogue.check(within_s=RECENT_S))

    def _page(self, check: Check | None, label: str = "", label_problem: str | None = None) -> ResponseReturnValue:
        own = settings()
        return self.render(
            "admin/settings.html",
            rows=rows(own),
            faults=faults_of_env_file(),
            tokens=management_tokens.living(),
            label=label,
            label_problem=label_problem,
            provider_url=without_password(own.provider_base_url),
            check=check,
            advice=ADVICE.get(check.code or "") if check else None,
            lacking=lacking(own.allowed_models, check.models) if check and check.models is not None else [],
        )


def faults_of_env_file() -> list[str]:
    """Return what is wrong in `.env` as it is now: names that resemble a setting's and are none, above all."""
    try:
        return list(slips())
    except ConfigError as error:
        return [str(error)]


def rows(own: Settings) -> list[Row]:
    """Return every setting as it may be shown."""
    return [_row(name, getattr(own, name.lower()), own.origins[name]) for name in SETTINGS]


def _row(name: str, value: Any, origin: str) -> Row:
    shown, words = SHOWN.get(name, _plain)(value)
    return Row(name, shown, words, ORIGINS.get(origin, origin))


def _plain(value: Any) -> tuple[str, str]:
    if isinstance(value, tuple):
        return ", ".join(value), ""
    if isinstance(value, bool):
        return "yes" if value else "no", ""
    return ("", "not set") if value in (None, "") else (f"{value:g}" if isinstance(value, float) else str(value), "")


def _key(value: str) -> tuple[str, str]:
    if not value:
        return "", "not set"
    # of a short key the last characters would be too much of it
    return (
        (f"…{value[-SHOWN_CHARACTERS:]}", "") if len(value) >= 4 * SHOWN_CHARACTERS else ("", "set, too short to show")
    )


def _password(value: str) -> tuple[str, str]:
    return "", "still the default: choose your own" if value == DEFAULT_ADMIN_PASSWORD else "set"


def _secret(value: str) -> tuple[str, str]:
    return "", "set" if value else "generated, kept in instance/"


def _database(value: str) -> tuple[str, str]:
    return make_url(value).set(query={}).render_as_string(hide_password=True), ""


def _webhook(value: str | None) -> tuple[str, str]:
    """Show where it goes, without what is a secret of some services."""
    if value is None:
        return "", "not set"
    return f"{urlsplit(value).scheme}://{urlsplit(value).hostname}/…", ""


def _smtp(value: SmtpServer | None) -> tuple[str, str]:
    if value is None:
        return "", "not set"
    return f"{value.host}:{value.port}", f"mails are from {value.sender}"


SHOWN = {
    "PROVIDER_API_KEY": _key,
    "PROVIDER_BASE_URL": lambda value: (without_password(value), ""),
    "ADMIN_PASSWORD": _password,
    "SECRET_KEY": _secret,
    "DATABASE_URL": _database,
    "ALERT_WEBHOOK_URL": _webhook,
    "SMTP_URL": _smtp,
}

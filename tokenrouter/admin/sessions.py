"""Sessions for the pages alone, and the record of those in which an administrator is signed in."""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta

from flask import Flask, Request, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from sqlalchemy import delete, insert, select

from tokenrouter.database.engine import writing
from tokenrouter.database.tables import PanelSession, db
from tokenrouter.errors import is_api_path

IDLE_LIFETIME = timedelta(hours=12)
LIFETIME = timedelta(days=7)


class PanelSessions(SecureCookieSessionInterface):
    """Flask's own sessions, in signed cookies, of which callers of the API have none."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the session of a page; an API call would pay 15 µs for one that it never uses."""
        is_for_pages = not is_api_path(request.path) and not request.path.startswith(("/static/", "/admin/static/"))
        return super().open_session(app, request) if is_for_pages else None

    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        """Tell whether the cookie begins anew to be valid: not for a page that renews itself with nobody before it."""
        renews_itself = request.headers.get("X-Requested-With") == "fetch"
        return session.modified or (not renews_itself and super().should_set_cookie(app, session))

    def get_cookie_secure(self, app: Flask) -> bool:
        """Tell whether the browser is to send the cookie over https alone: where it came by https."""
        return request.is_secure


def init_app(app: Flask) -> None:
    """Give the app its sessions."""
    app.session_interface = PanelSessions()
    app.config.update(
        SESSION_COOKIE_NAME="tokenrouter_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=IDLE_LIFETIME,
    )


def begin(password_print: str) -> str:
    """Record a sign-in, and return the content of its cookie; old sessions are deleted."""
    session_id = secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    with writing(db.engine) as connection:
        connection.execute(delete(PanelSession).where(PanelSession.signed_in_at < now - LIFETIME))
        connection.execute(
            insert(PanelSession).values(id_hash=_hash(session_id), password_print=password_print, signed_in_at=now)
        )
    return session_id


def is_open(session_id: str, password_print: str) -> bool:
    """Tell whether the session has not ended, is not too old, and began with the current password."""
    query = select(PanelSession.password_print).where(
        PanelSession.id_hash == _hash(session_id), PanelSession.signed_in_at >= datetime.now(UTC) - LIFETIME
    )
    with db.engine.connect() as connection:
        began_with = connection.execute(query).scalar()
    return began_with is not None and hmac.compare_digest(began_with, password_print)


def end(session_id: str) -> None:
    """End the session for all holders of its cookie."""
    with writing(db.engine) as connection:
        connection.execute(delete(PanelSession).where(PanelSession.id_hash == _hash(session_id)))


def _hash(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()

"""Who may enter: the administrator's session, CSRF tokens, and the hooks that every view of the panel shares."""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    g,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_admin import Admin, BaseView
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_wtf.csrf import validate_csrf
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, NotFound
from wtforms import ValidationError

from tokenrouter import addresses, attempts, changes, errors, runtime
from tokenrouter.admin import browsers, kept_forms, own_pages, password, sessions, sockets
from tokenrouter.admin.kept_forms import KeptForm
from tokenrouter.changes import Actor
from tokenrouter.config import Settings
from tokenrouter.database import schema

logger = logging.getLogger(__name__)

OPEN_ENDPOINTS = ("admin.login_view", "admin.static")
FORM_ENDED = "This form is no longer valid. Its page is older than your session."
SIGNED_OUT = "You were signed out when it was sent."


class Administrator(UserMixin):
    """The one administrator, in one of the sessions that are written down."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id


def init_app(app: Flask) -> None:
    """Let Flask-Login know the administrator.

    Its own init_app would add a hook to every response, those of the API too, for remember-me cookies, which nobody
    gets here.
    """
    manager = LoginManager()
    manager.user_loader(_administrator)
    app.login_manager = manager  # type: ignore[attr-defined]  # where Flask-Login looks for it
    app.config["WTF_CSRF_TIME_LIMIT"] = None  # as long as the session: pages stay open all day
    errors.show_below(app, "/admin", _show_outside_views)


def settings() -> Settings:
    """Return the current app's settings."""
    return runtime.current().settings


def _administrator(session_id: str) -> Administrator | None:
    is_open = sessions.is_open(session_id, password.password_fingerprint(settings()))
    return Administrator(session_id) if is_open else None


def sign_in(answer: Callable[[], ResponseReturnValue]) -> Response:
    """Start a new session for the administrator, keeping nothing of an older one, and remember the browser.

    The answer is made in the new session.
    """
    password_print = password.password_fingerprint(settings())
    session.clear()
    session.permanent = True
    login_user(Administrator(sessions.begin(password_print)))
    response = make_response(answer())
    browsers.remember(response, request, password_print)
    return response


def guesser() -> str:
    """Return by what wrong passwords are counted: a browser that has signed in before, otherwise the address."""
    browser_id = browsers.known(request, password.password_fingerprint(settings()))
    return addresses.counted(request.remote_addr or "") if browser_id is None else attempts.BROWSER + browser_id


def sign_out() -> None:
    """End the session, also for copies of its cookie."""
    sessions.end(current_user.get_id())
    session.clear()


def may_use_default_password() -> bool:
    """Tell whether the request was made on this machine by the user as whom the service runs, without a proxy."""
    if settings().trusted_proxies:
        return False
    return password.comes_from_here(
        request.environ.get("REMOTE_ADDR"),
        request.environ.get("HTTP_HOST", ""),
        request.headers.keys(),
        request.environ.get("SERVER_PROTOCOL", ""),
    ) and _is_own_users(request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket"))


def _is_own_users(connection: socket.socket | None) -> bool:
    """Tell whether our own user owns the other end; assumed if the system does not report owners at all."""
    if not sockets.tells_owners():
        return True
    return connection is not None and sockets.peer_owner(connection) == os.geteuid()


def actor() -> Actor:
    """Return the actor of the current request for the record of changes; its changes are taken back together."""
    return Actor(changes.PANEL, request.remote_addr or "unknown").at_once()


def safe_target(target: str | None) -> str:
    """Return the path of the panel to redirect to; the dashboard instead of any other address."""
    return target if target and own_pages.is_own(target) else url_for("admin.index")


class PanelView(BaseView):
    """A view behind the sign-in, with a CSRF token in each POST and the panel's own pages for errors.

    The hooks of its blueprint guard it, before Flask-Admin's `is_accessible` would be called, and everything on it.
    """

    largest_forms: Mapping[str, int] = {}
    """The maximum size in bytes of a view's form, by name of the view, if it is larger than usual."""

    def create_blueprint(self, admin: Admin) -> Blueprint:
        """Make the blueprint with the hooks on it, so that no other request pays for them."""
        blueprint = super().create_blueprint(admin)
        blueprint.before_request(_turn_strangers_away)
        blueprint.before_request(self._let_form_be_larger)
        blueprint.before_request(_check_csrf)
        blueprint.after_request(_keep_private)
        blueprint.register_error_handler(HTTPException, _show_error)
        blueprint.register_error_handler(NotFound, _show_error)  # that of the app comes before a blueprint's for all
        blueprint.register_error_handler(SQLAlchemyError, _show_database_error)
        return blueprint

    def _let_form_be_larger(self) -> None:
        most = self.largest_forms.get((request.endpoint or "").rpartition(".")[2])
        if most is None:
            return
        if (request.content_length or 0) > most:
            abort(413, f"What you sent is larger than {most:,} bytes, the most that is taken here.")
        request.max_content_length = request.max_form_memory_size = most

    def _run_view(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # Flask-Admin's own takes any TypeError for a sign of an old signature, and runs the view again
        return fn(self, *args, **kwargs)


def _turn_strangers_away() -> ResponseReturnValue | None:
    if request.endpoint in OPEN_ENDPOINTS or current_user.is_authenticated:
        return None
    if (kept := kept_forms.sent_now()) and request.endpoint != "admin.logout_view":
        return show_sign_in(kept=kept.to_be_carried()), 401
    target = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("admin.login_view", next=target if target != url_for("admin.index") else None))


def show_sign_in(problem: str | None = None, kept: KeptForm | None = None) -> str:
    """Return the sign-in page; the fields of another, refused form are carried through it."""
    target = kept.page if kept else safe_target(request.values.get("next"))
    return render_template("admin/login.html", target=target, problem=problem, kept=kept)


def show_unsaved(kept: KeptForm | None, reason: str) -> str:
    """Return the page that says that nothing was saved, with what was typed, and a button that sends it again."""
    return render_template("admin/unsaved.html", kept=kept, reason=reason)


def _check_csrf() -> ResponseReturnValue | None:
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    try:
        validate_csrf(request.form.get("csrf_token"))
    except ValidationError:
        return _show_invalid_form(), 400
    return None


def _show_invalid_form() -> str:
    if request.endpoint != "admin.login_view":
        return show_unsaved(kept_forms.sent_now(), FORM_ENDED)
    kept = kept_forms.carried()
    if current_user.is_authenticated:
        return show_unsaved(kept, FORM_ENDED)
    return show_sign_in("This page was open for too long. Type the password again.", kept)


def _keep_private(response: Response) -> Response:
    if request.endpoint != "admin.static":
        response.headers["Cache-Control"] = "no-store"
    return response


def _show_error(error: HTTPException) -> ResponseReturnValue:
    if error.response is not None:
        return error.response
    heading, message, status = errors.page_words(error)
    return render_template("admin/error.html", heading=heading, message=message), status


def _show_database_error(error: SQLAlchemyError) -> ResponseReturnValue:
    logger.error("%s %s: the database failed: %s", request.method, request.path, schema.cause_of(error))
    reason = f"The database failed: {schema.cause_of(error)}."
    is_known = "_login_user" in g  # else the database, which fails, would be asked who is there
    looks = {"signed_in": is_known, "database_fails": True}
    if is_known and (kept := kept_forms.sent_now()) and request.endpoint != "admin.login_view":
        return render_template("admin/unsaved.html", kept=kept, reason=reason, **looks), 503
    words = {"heading": "The database does not answer", "message": f"{reason} Nothing was changed by this request."}
    again = request.full_path.rstrip("?") if request.method == "GET" else None
    return render_template("admin/error.html", **words, again=again, **looks), 503


def _show_outside_views(error: HTTPException) -> Response:
    """Answer requests that reach no view of the panel; strangers get the sign-in page, as everywhere."""
    try:
        answer = _turn_strangers_away() or _show_error(error)
    except SQLAlchemyError as failure:
        answer = _show_database_error(failure)
    return _keep_private(make_response(answer))

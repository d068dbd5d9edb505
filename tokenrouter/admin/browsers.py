"""Browsers in which the administrator has signed in before: known by a signed cookie, whatever strangers do."""

import re
import secrets

from flask import Request, current_app
from itsdangerous import BadSignature, URLSafeTimedSerializer
from werkzeug.wrappers import Response

COOKIE = "tokenrouter_browser"
LIFETIME_S = 365 * 24 * 3600
BROWSER_ID = re.compile(r"[\w-]{22}", re.ASCII)


def known(request: Request, password_print: str) -> str | None:
    """Return the id of a browser that signed in by the password that still holds; None for any other."""
    try:
        browser_id = _signer(password_print).loads(request.cookies.get(COOKIE, ""), max_age=LIFETIME_S)
    except BadSignature:
        return None
    return browser_id if isinstance(browser_id, str) and BROWSER_ID.fullmatch(browser_id) else None


def remember(response: Response, request: Request, password_print: str) -> None:
    """Remember the browser for a year; a known one keeps its id."""
    browser_id = known(request, password_print) or secrets.token_urlsafe(16)
    response.set_cookie(
        COOKIE,
        _signer(password_print).dumps(browser_id),
        max_age=LIFETIME_S,
        path="/admin",
        secure=request.is_secure,
        httponly=True,
        samesite="Lax",
    )


def _signer(password_print: str) -> URLSafeTimedSerializer:
    """Return the signer, which depends on the password but reveals nothing of it in the cookie."""
    return URLSafeTimedSerializer(current_app.secret_key or "", salt=f"tokenrouter.browser.{password_print}")

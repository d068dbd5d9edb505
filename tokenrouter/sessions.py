"""Sessions for the pages alone."""

from flask import Flask, Request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface

from tokenrouter.errors import is_api_path


class PanelSessions(SecureCookieSessionInterface):
    """Flask's own sessions, in signed cookies, of which callers of the API have none."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the session of a page; an API call would pay 15 µs for one that it never uses."""
        return None if is_api_path(request.path) else super().open_session(app, request)

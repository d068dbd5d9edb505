"""The panel as an administrator's browser would use it, for tests without one."""

import re
from contextvars import Context
from dataclasses import dataclass

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

PASSWORD = "admin-password-for-tests"
LOGIN = "/admin/login"
PAGES = (
    "/admin/",
    "/admin/teams/",
    "/admin/teams/new/",
    "/admin/codes/",
    "/admin/codes/new/",
    "/admin/teams/import",
    "/admin/groups/",
    "/admin/groups/new/",
    "/admin/usage/",
    "/admin/logs/",
    "/admin/logs/door/",
    "/admin/prices/",
    "/admin/account/",
    "/admin/account/reconciliation/",
    "/admin/alerts/",
    "/admin/changes/",
    "/admin/settings/",
)
NASTY_NAMES = (
    "<img src=x onerror=alert(1)>",
    "\"double\" 'single' & more",
    "فريق الأبحاث والتطوير",
    "e\u200f\u05d0 \u200d\u0301",  # marks of direction and joiners, which some scripts need
    "x" * 200,
    "=HYPERLINK(1)",
    "{{ 7 * 7 }}",
)


@dataclass
class Panel:
    """A client, and what it needs to send forms."""

    client: FlaskClient

    def open(self, path: str, **options: object) -> TestResponse:
        """Send a request, out of the test's application context, whose `g` it would share with all others."""
        return Context().run(self.client.open, path, buffered=True, **options)

    def get(self, path: str, **options: object) -> TestResponse:
        """Open a page."""
        return self.open(path, **options)

    def csrf_token(self, **options: object) -> str:
        """Return the token of the session's forms."""
        page = self.get("/admin/settings/", follow_redirects=True, **options)
        return re.search(r'name="csrf_token" value="([^"]+)"', page.text)[1]

    def post(self, path: str, fields: dict[str, object] | None = None, **options: object) -> TestResponse:
        """Send a form with its CSRF token."""
        data = {"csrf_token": self.csrf_token(**options), **(fields or {})}
        return self.open(path, method="POST", data=data, **options)

    def messages(self, path: str = "/admin/teams/") -> str:
        """Return what the next page tells of the change before."""
        found = re.findall(r'class="note note-\w+" role="\w+">(.*?)</div>', self.get(path).text)
        return re.sub("</?bdi>", "", " ".join(found))

    def sign_in(self, password: str = PASSWORD, **options: object) -> TestResponse:
        """Send the sign-in form."""
        return self.post(LOGIN, {"password": password}, **options)


def panel_rules(app: Flask) -> list[Rule]:
    """Return every address of the panel but its assets."""
    rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/admin")]
    return [rule for rule in rules if rule.endpoint != "admin.static"]


def address(rule: Rule, *, number: int = 1) -> str:
    """Return an address that the rule fits."""
    return re.sub(r"<export_type>", "csv", re.sub(r"<int:\w+>", str(number), rule.rule))


def team_path(team_id: int, rest: str = "") -> str:
    """Return the address of a team's page, or of what is below it."""
    return f"/admin/teams/{team_id}/{rest}"

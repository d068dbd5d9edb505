"""The admin panel: Flask-Admin with the panel's own pages, for the one administrator."""

from flask import Flask
from flask_admin import Admin
from flask_admin.theme import Bootstrap4Theme
from flask_login import current_user

from tokenrouter.admin import access, formats, password
from tokenrouter.admin.account import AccountView, banner
from tokenrouter.admin.alerts import AlertsView
from tokenrouter.admin.changes import ChangesView
from tokenrouter.admin.codes import CodeView
from tokenrouter.admin.groups import GroupView
from tokenrouter.admin.home import HomeView
from tokenrouter.admin.logs import RequestLogView
from tokenrouter.admin.prices import PriceView
from tokenrouter.admin.settings import SettingsView
from tokenrouter.admin.teams import TeamView
from tokenrouter.admin.usage import UsageView
from tokenrouter.alerts import count_unseen
from tokenrouter.database.tables import Group, RequestLog, Team, db


def init_app(app: Flask) -> None:
    """Build the panel for this app: one `Admin` shared by two apps would register its views once."""
    for part in (access, formats):
        part.init_app(app)
    panel = Admin(
        app,
        name="TokenRouter",
        index_view=HomeView(name="Dashboard"),
        theme=Bootstrap4Theme(base_template="admin/layout.html"),
    )
    panel.add_view(TeamView(Team, db, name="Teams", endpoint="teams"))
    panel.add_view(CodeView(name="Codes to join", endpoint="codes"))
    panel.add_view(GroupView(Group, db, name="Groups", endpoint="groups"))
    panel.add_view(UsageView(name="Usage", endpoint="usage"))
    panel.add_view(RequestLogView(RequestLog, db, name="Logs", endpoint="logs"))
    panel.add_view(PriceView(name="Prices", endpoint="prices"))
    panel.add_view(AccountView(name="Account", endpoint="account"))
    panel.add_view(AlertsView(name="Alerts", endpoint="alerts"))
    panel.add_view(ChangesView(name="Changes", endpoint="changes"))
    panel.add_view(SettingsView(name="Settings", endpoint="settings"))
    app.jinja_env.globals.update(
        panel=panel,
        current_user=current_user,
        account_banner=banner,
        alerts_unseen=count_unseen,
        has_default_password=lambda: password.has_default_password(access.settings()),
    )

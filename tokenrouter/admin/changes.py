"""The record of changes: who did what, and when; read-only."""

from flask import request
from flask.typing import ResponseReturnValue
from flask_admin import expose

from tokenrouter import changes
from tokenrouter.admin.access import PanelView

PER_PAGE = 50


class ChangesView(PanelView):
    """List the changes that the panel, the commands and the API made."""

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """Show a page of them, the newest first."""
        before_id, after_id = (request.args.get(name, type=int) for name in ("before", "after"))
        whose = {name: request.args.get(name, type=int) for name in ("team", "group")}
        found = changes.page(before_id, after_id, PER_PAGE, team_id=whose["team"], group_id=whose["group"])
        return self.render("admin/changes.html", found=found, whose=whose)

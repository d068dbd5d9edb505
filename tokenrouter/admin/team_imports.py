"""Many teams at once: a list is checked line by line, its teams are created together, and all tokens shown once."""

import hashlib
from base64 import b64encode
from collections.abc import Sequence

from flask import request
from flask.typing import ResponseReturnValue
from flask_admin import expose

from tokenrouter import spreadsheet
from tokenrouter.admin import slips
from tokenrouter.admin.access import PanelView, actor
from tokenrouter.admin.bulk import count
from tokenrouter.admin.slips import Slip
from tokenrouter.errors import InvalidRequest
from tokenrouter.request_body import MOST_PAGE_BYTES
from tokenrouter.teams import imports
from tokenrouter.teams.imports import TeamList


class TeamImportView(PanelView):
    """The pages below those of the teams that add many of them."""

    largest_forms = {"import_view": 2 * imports.MOST_BYTES + MOST_PAGE_BYTES}  # a list typed, and one in a file

    @expose("/import", methods=("GET", "POST"))
    def import_view(self) -> ResponseReturnValue:
        """Take a list, say what is wrong with it, and create its teams once that is confirmed."""
        text = ""
        if request.method == "GET":
            return self._list_page(text)
        try:
            text = _sent()
            checked = imports.check(text)
            if checked.faults or request.form.get("create") != _fingerprint(text):
                return self._list_page(text, checked)
            return self._tokens_page([slips.slip(*created) for created in imports.create(checked, by=actor())])
        except InvalidRequest as error:
            return self._list_page(text, wrong=str(error))
        except imports.NotImported as error:
            return self._list_page(text, error.checked)

    def _list_page(self, text: str, checked: TeamList | None = None, wrong: str = "") -> ResponseReturnValue:
        has_changed = "create" in request.form and checked is not None and not checked.faults
        return self.render(
            "admin/team_import.html",
            text=text,
            fingerprint=_fingerprint(text),
            checked=checked,
            rows=list(zip(checked.rows, checked.new, strict=True)) if checked else [],
            wrong=wrong,
            has_changed=has_changed,
            columns=imports.COLUMNS,
            count=count,
        )

    def _tokens_page(self, created: Sequence[Slip]) -> ResponseReturnValue:
        files = {"commas": _csv_address(created, ","), "semicolons": _csv_address(created, ";")}
        return self.render("admin/tokens.html", slips=created, files=files, count=count, **slips.addresses())


def _sent() -> str:
    """Return the list that was chosen as a file, or else the one that was typed; raises InvalidRequest."""
    file = request.files.get("file")
    return imports.decode(file.read()) if file and file.filename else request.form.get("list", "")


def _fingerprint(text: str) -> str:
    """Return by what it is known that a list is still the one that was checked; browsers write its lines' ends anew."""
    return hashlib.sha256("\n".join(text.splitlines()).encode("utf-8", "replace")).hexdigest()


def _csv_address(created: Sequence[Slip], delimiter: str) -> str:
    """Return a file as an address that holds it, so that no token is kept here to be fetched later."""
    rows = [(spreadsheet.cell(each.team.name), each.bearer_token) for each in created]
    lines = spreadsheet.lines(("name", "token"), rows, delimiter=delimiter, begin=spreadsheet.BYTE_ORDER_MARK)
    return f"data:text/csv;charset=utf-8;base64,{b64encode(''.join(lines).encode()).decode()}"

"""A quota typed into a list, or onto a page: `2.5M`, `+100k`, `x2`."""

from collections.abc import Callable
from typing import Any

from flask import abort, flash, redirect, render_template, request
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from tokenrouter import teams
from tokenrouter.admin import access, undo
from tokenrouter.admin.access import actor
from tokenrouter.admin.formats import quoted
from tokenrouter.admin.team_forms import parse_typed_quota
from tokenrouter.database.tables import Group, Team
from tokenrouter.errors import APIError, NotFound


def save_quota(row: Team | Group, find: Callable[[int], Any], update: Callable[..., Any]) -> ResponseReturnValue:
    """Set the quota that was typed; ask first where another changed it since it was shown, as the form tells.

    `find` and `update` are those of the row's kind; who presses Enter without typing changes nothing.
    """
    typed, was = request.form.get("quota", "").strip(), request.form.get("was")
    now, back = teams.format_quota(row.quota_tokens), access.safe_target(request.form.get("url"))
    if typed == was:
        flash(Markup("The quota of {} stays {}.").format(quoted(row.name), now), "success")
        return redirect(back)
    by = actor()
    try:
        change = parse_typed_quota(typed)
        wanted = teams.change_of_quota(change, row.quota_tokens)
        if was not in (None, now) and (change.is_relative or wanted != row.quota_tokens):
            return _ask(row, was)
        update(row.id, quota_tokens=wanted, expected={"quota_tokens": row.quota_tokens}, by=by)
    except teams.ChangedMeanwhile:
        return _ask(find(row.id), now)
    except NotFound as error:
        abort(404, str(error))
    except APIError as error:
        flash(Markup("The quota of {} stays as it is. {}").format(quoted(row.name), error), "error")
    else:
        undo.say(Markup("The quota of {} is now {}.").format(quoted(row.name), teams.format_quota(wanted)), by)
    return redirect(back)


def _ask(row: Team | Group, was: str | None) -> ResponseReturnValue:
    back = access.safe_target(request.form.get("url"))
    return render_template("admin/quota_again.html", row=row, was=was, typed=request.form["quota"], back=back)

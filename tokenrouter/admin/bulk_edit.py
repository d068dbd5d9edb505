"""Change several teams at once: the form, and the page that shows what it will do, old and new."""

from collections.abc import Sequence
from typing import Any

from flask import abort, flash, redirect, request
from flask.typing import ResponseReturnValue
from flask_admin import expose
from markupsafe import Markup
from werkzeug.datastructures import MultiDict
from wtforms import Form, StringField

from tokenrouter import reports, teams
from tokenrouter.admin import access, undo
from tokenrouter.admin.access import actor, settings
from tokenrouter.admin.bulk import count
from tokenrouter.admin.limit_forms import PERIODS, explain
from tokenrouter.database.tables import PACES
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.natural_order import by_name
from tokenrouter.periods import MONTHLY, Renewal

DEFAULT_MODELS = "default"
NO_GROUP = "none"


class BulkForm(Form):
    """What is to change; an empty field stays as it is."""

    quota = StringField("Quota in tokens")
    budget = StringField("Budget")
    extra_tokens = StringField("Extra tokens")
    extra_budget = StringField("Extra budget")
    group = StringField("Group")
    models = StringField("Models")
    renews = StringField("Renews")
    renews_on = StringField("on day")
    requests_per_minute = StringField("Requests a minute")
    tokens_per_minute = StringField("Tokens a minute")
    calls_at_once = StringField("Calls at once")

    def edit(self) -> teams.Edit:
        """Return what was typed as the domain takes it.

        Raises InvalidRequest, also if nothing was typed.
        """
        typed = {name: text for name in self.data if (text := (self[name].data or "").strip())}
        if not typed.keys() - {"renews_on"}:
            raise InvalidRequest("Type what is to change.")
        values: dict[str, Any] = {
            "paces": {name: teams.parse_pace(name, typed[name]) for name in PACES if name in typed}
        }
        for name, parse in PARSERS.items():
            if name in typed:
                values[name] = parse(typed[name])
        if "renews" in typed:
            values["renewal"] = _renewal(typed["renews"], typed.get("renews_on", ""))
        return teams.Edit(**values)


def _group(text: str) -> int | None:
    if text == NO_GROUP:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise InvalidRequest("There is no such group.", param="group")
    return int(text)


def _models(text: str) -> str | None:
    return None if text.lower() == DEFAULT_MODELS else teams.check_models(text)


def _renewal(every: str, day: str) -> Renewal:
    return teams.parse_renewal(f"{every}:{day}" if every == MONTHLY and day else every)


PARSERS: dict[str, Any] = {
    "quota": teams.parse_quota_change,
    "budget": teams.parse_budget_change,
    "extra_tokens": teams.parse_extra,
    "extra_budget": teams.parse_extra_budget,
    "group": _group,
    "models": _models,
}


class BulkEditing:
    """The pages of it, for the view of teams."""

    render: Any

    def edit_several(self, team_ids: Sequence[int], back: str) -> ResponseReturnValue:
        """Ask what is to change; where a quota was typed beside the selection, show at once what that does."""
        form = BulkForm(MultiDict({"quota": request.form.get("quota", "")}))
        return self._shown(form, team_ids, back) if form.quota.data else self._choices(form, team_ids, back)

    @expose("/change/", methods=("POST",))
    def change_view(self) -> ResponseReturnValue:
        """Show what an edit does to the chosen teams; once that is confirmed, do exactly that."""
        form, back = BulkForm(request.form), access.safe_target(request.form.get("url"))
        team_ids = request.form.getlist("rowid", type=int)
        if not team_ids:
            abort(400, "Select at least one team first.")
        if "confirmed" not in request.form:
            return self._shown(form, team_ids, back)
        by, prints = actor(), request.form.getlist("shown")
        try:
            done = teams.change_several(dict(zip(team_ids, prints, strict=False)), form.edit(), by=by)
        except teams.PlanChanged as refusal:
            return self._shown(form, team_ids, back, refusal.team_ids)
        except APIError as error:
            flash(str(error), "error")
            return redirect(back)
        undo.say(Markup("Changed {}.").format(count(len(done))), by)
        return redirect(back)

    def _shown(
        self, form: BulkForm, team_ids: Sequence[int], back: str, overtaken: Sequence[int] = ()
    ) -> ResponseReturnValue:
        try:
            steps = sorted(teams.plan(team_ids, form.edit()), key=by_name)
        except APIError as error:
            explain(form, error)
            return self._choices(form, team_ids, back)
        parts = {
            "changed": [step for step in steps if step.does_something],
            "impossible": [step for step in steps if step.problem],
            "same": [step for step in steps if not step.problem and not step.after],
        }
        return self.render("admin/bulk_confirm.html", form=form, back=back, overtaken=overtaken, count=count, **parts)

    def _choices(self, form: BulkForm, team_ids: Sequence[int], back: str) -> ResponseReturnValue:
        return self.render(
            "admin/bulk_form.html",
            form=form,
            team_ids=team_ids,
            back=back,
            count=count,
            groups=reports.group_names(),
            allowed=settings().allowed_models,
            periods=PERIODS,
        )

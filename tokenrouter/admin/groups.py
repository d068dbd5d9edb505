"""The groups: list, one group in large, its teams, and what may be done to it."""

from datetime import UTC, datetime

from flask import abort, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose
from flask_admin.contrib.sqla import ModelView
from markupsafe import Markup

from tokenrouter import changes, ledger, reports, teams
from tokenrouter.admin import access, inline, undo
from tokenrouter.admin.access import PanelView, actor, settings
from tokenrouter.admin.charts import use_chart
from tokenrouter.admin.formats import quoted
from tokenrouter.admin.limit_forms import PERIODS, GroupEditForm, LimitsForm, explain, extras_given, typed_extras
from tokenrouter.admin.teams import CHART_DAYS, LAST_CALLS, LAST_CHANGES, about_periods, here
from tokenrouter.database.tables import Group, db
from tokenrouter.errors import APIError, NotFound

NO_GROUP = "There is no such group, or it was deleted. The log still has its calls."


class GroupView(PanelView, ModelView):
    """Groups, changed by the domain alone, as teams are."""

    form = LimitsForm
    column_list = ("name", "quota_tokens")
    can_delete = False  # by delete_view, which says first what it will do
    can_export = False

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """List the groups."""
        return self.render("admin/groups.html", groups=reports.groups(), here=here())

    def get_one(self, id: str) -> Group:
        """Return a living group; 404 where there is none."""
        return _found(int(id))

    @expose("/new/", methods=("GET", "POST"))
    def create_view(self) -> ResponseReturnValue:
        """Create a group."""
        form = self.create_form()
        if self.validate_form(form) and (group := self.create_model(form)):
            flash(Markup("Created the group {}. Put teams into it here.").format(quoted(group.name)), "success")
            return redirect(url_for(".details_view", group_id=group.id))
        return self.render("admin/group_form.html", form=form, group=None, **about_periods(None))

    def create_model(self, form: LimitsForm) -> Group | None:
        """Have the domain create the group; explain in the form what it refuses."""
        try:
            return teams.create_group(form.name.data or "", **form.values(), by=actor())
        except APIError as error:
            explain(form, error)
            return None

    @expose("/<int:group_id>/edit/", methods=("GET", "POST"))
    def edit_view(self, group_id: int) -> ResponseReturnValue:
        """Change a group's name and limits."""
        group = _found(group_id)
        form = GroupEditForm(group, request.form if request.method == "POST" else None)
        if self.validate_form(form) and self.update_model(form, group):
            return redirect(url_for(".details_view", group_id=group_id))
        return self.render("admin/group_form.html", form=form, group=group, **about_periods(group))

    def update_model(self, form: GroupEditForm, model: Group) -> Group | None:
        """Have the domain change the group; explain in the form what it refuses."""
        by, expected = actor(), form.expected(teams.described(model))
        try:
            saved = teams.update_group(model.id, **form.changes(), expected=expected, by=by)
        except APIError as error:
            explain(form, error)
            return None
        undo.say(Markup("Saved the group {}.").format(quoted(saved.name)), by)
        return saved

    @expose("/<int:group_id>/")
    def details_view(self, group_id: int) -> ResponseReturnValue:
        """Show one group in large."""
        now = datetime.now(UTC)
        detail = reports.group_detail(group_id, now)
        if detail is None:
            abort(404, NO_GROUP)
        return self.render(
            "admin/group.html",
            detail=detail,
            chart=use_chart(reports.use_per_day(CHART_DAYS, now, group_id=group_id)),
            calls=reports.calls_page(reports.CallFilter(group_id=group_id), limit=LAST_CALLS).rows,
            changes=changes.page(limit=LAST_CHANGES, group_id=group_id),
            others=[team for team in teams.living() if team.group_id != group_id],
            here=here(),
            periods=PERIODS,
            zone=settings().timezone.key,
        )

    @expose("/<int:group_id>/quota", methods=("POST",))
    def quota_view(self, group_id: int) -> ResponseReturnValue:
        """Set a quota typed into the list or the group's page."""
        return inline.save_quota(_found(group_id), _found, teams.update_group)

    @expose("/<int:group_id>/extra", methods=("POST",))
    def extra_view(self, group_id: int) -> ResponseReturnValue:
        """Add to what a group may use until its quota renews."""
        group, by = _found(group_id), actor()
        try:
            extras = typed_extras(request.form)
            ledger.add_extra(db.engine, group, zone=settings().timezone, by=by, **extras)
        except APIError as error:
            flash(Markup("The extra of {} stays as it is. {}").format(quoted(group.name), error), "error")
        else:
            given = extras_given(_found(group_id))
            undo.say(Markup("The extra of {} is now {}.").format(quoted(group.name), given), by)
        return redirect(access.safe_target(request.form.get("url")))

    @expose("/<int:group_id>/teams", methods=("POST",))
    def member_view(self, group_id: int) -> ResponseReturnValue:
        """Put a team into the group, or take one out of it."""
        group, by = _found(group_id), actor()
        leaves = request.form.get("leaves", "")
        try:
            if leaves.isdecimal():
                team = teams.update(int(leaves), group=None, by=by)
                done = Markup("{} is in no group now.")
            else:
                team = teams.update(request.form.get("team", "").strip(), group=group_id, by=by)
                done = Markup("{} is in this group now; its next call counts here too.")
        except APIError as error:
            flash(str(error), "error")
        else:
            undo.say(done.format(quoted(team.name)), by)
        return redirect(url_for(".details_view", group_id=group.id))

    @expose("/<int:group_id>/reset", methods=("POST",))
    def reset_view(self, group_id: int) -> ResponseReturnValue:
        """Say what a reset will do; once that is confirmed, do it."""
        group, back = _found(group_id), access.safe_target(request.form.get("url"))
        if "confirmed" not in request.form:
            return self.render("admin/confirm_group.html", action="reset", group=group, back=back)
        by = actor()
        ledger.reset(db.engine, (), [group_id], by=by)
        undo.say(Markup("Usage reset: {}.").format(quoted(group.name)), by)
        return redirect(back)

    @expose("/<int:group_id>/delete", methods=("POST",))
    def delete_view(self, group_id: int) -> ResponseReturnValue:
        """Say what a deletion will do; once that is confirmed, do it."""
        group = _found(group_id)
        if "confirmed" not in request.form:
            back = url_for(".details_view", group_id=group_id)
            return self.render("admin/confirm_group.html", action="delete", group=group, back=back)
        by = actor()
        teams.delete_group(group_id, by=by)
        undo.say(Markup("Deleted the group {}; its teams are in no group now.").format(quoted(group.name)), by)
        return redirect(url_for(".index_view"))


def _found(group_id: int) -> Group:
    try:
        return teams.find_group(group_id)
    except NotFound:
        abort(404, NO_GROUP)

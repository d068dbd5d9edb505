"""The teams: list, one team in large, its tokens, and what may be done to several at once."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from flask import abort, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_admin import expose
from flask_admin.contrib.sqla import ModelView
from markupsafe import Markup
from werkzeug.datastructures import MultiDict

from tokenrouter import changes, ledger, reports, runtime
from tokenrouter import teams as team_store
from tokenrouter.admin import access, bulk, inline, slips, undo
from tokenrouter.admin.access import actor, settings
from tokenrouter.admin.bulk_edit import BulkEditing
from tokenrouter.admin.charts import use_chart
from tokenrouter.admin.formats import quoted
from tokenrouter.admin.limit_forms import PERIODS, explain, extras_given, typed_extras
from tokenrouter.admin.team_forms import GRACES, TeamEditForm, TeamForm, TokenEditForm, TokenForm, last_day_text
from tokenrouter.admin.team_imports import TeamImportView
from tokenrouter.database.tables import Group, Team, db
from tokenrouter.errors import APIError, NotFound
from tokenrouter.periods import DAILY, MONTHLY, WEEKLY, Renewal, day_in_words

NO_TEAM = "There is no such team, or it was deleted. The log still has its calls."
PER_PAGE = 50
CHART_DAYS = 30
LAST_CALLS = 10
LAST_CHANGES = 10
LAST_PAGE = 10**9
STATES = ("active", "disabled")
NEARNESS = ("exhausted", "over80")
LASTING = ("used-up", "soon")
FILTERS = ("search", "state", "near_quota", "lasts", "group_id")


class TeamView(BulkEditing, TeamImportView, ModelView):
    """Teams, changed by the domain alone: no form here saves a row by itself, so none can undo a counter."""

    form = TeamForm
    column_list = ("name", "quota_tokens")
    can_delete = False  # by action_view, which says first what it will do
    can_export = False

    @expose("/")
    def index_view(self) -> ResponseReturnValue:
        """List the teams: searched, filtered, sorted and paged by the database."""
        query = _list_query(request.args)
        found = reports.teams_page(**query, per_page=PER_PAGE)

        def link(**changes: Any) -> str:
            wanted = query | changes
            wanted["group"] = wanted.pop("group_id")
            wanted["descending"] = 1 if wanted["descending"] else None
            return url_for(".index_view", **{name: None if v == "" else v for name, v in wanted.items()})

        return self.render(
            "admin/teams.html",
            found=found,
            query=query,
            is_filtered=any(query[name] not in (None, "") for name in FILTERS),
            groups=reports.group_names(),
            first=(query["page"] - 1) * PER_PAGE + 1,
            link=link,
            actions=bulk.ACTIONS,
            count=bulk.count,
            filter={"group" if name == "group_id" else name: query[name] for name in FILTERS},
            here=here(),
        )

    def get_one(self, id: str) -> Team:
        """Return a living team; 404 where there is none."""
        return _found(int(id))

    @expose("/new/", methods=("GET", "POST"))
    def create_view(self) -> ResponseReturnValue:
        """Create a team, and show its first token this once."""
        form = self.create_form()
        if self.validate_form(form) and (created := self.create_model(form)):
            team, bearer_token = created
            return self._show_token(team, bearer_token, Markup("Created the team {}."))
        return self._form_page(form, None)

    def create_model(self, form: TeamForm) -> tuple[Team, str] | None:
        """Have the domain create the team; explain in the form what it refuses."""
        try:
            return team_store.create(form.name.data or "", **form.values(), by=actor())
        except APIError as error:
            explain(form, error)
            return None

    @expose("/<int:team_id>/edit/", methods=("GET", "POST"))
    def edit_view(self, team_id: int) -> ResponseReturnValue:
        """Change a team's name, quota, models and state."""
        team = _found(team_id)
        form = TeamEditForm(team, request.form if request.method == "POST" else None)
        if self.validate_form(form) and self.update_model(form, team):
            return redirect(url_for(".details_view", team_id=team_id))
        return self._form_page(form, team)

    def _form_page(self, form: TeamForm, team: Team | None) -> ResponseReturnValue:
        words = {"allowed": settings().allowed_models, "groups": reports.group_names()}
        return self.render("admin/team_form.html", form=form, team=team, **words, **about_periods(team))

    def update_model(self, form: TeamEditForm, model: Team) -> Team | None:
        """Have the domain change the team; explain in the form what it refuses."""
        by, expected = actor(), form.expected(team_store.fields_of(model))
        try:
            saved = team_store.update(model.id, **form.changes(), expected=expected, by=by)
        except APIError as error:
            explain(form, error)
            return None
        undo.say(Markup("Saved the team {}.").format(quoted(saved.name)), by)
        return saved

    @expose("/<int:team_id>/quota", methods=("POST",))
    def quota_view(self, team_id: int) -> ResponseReturnValue:
        """Set a quota typed into the list or the team's page."""
        return inline.save_quota(_found(team_id), _found, team_store.update)

    @expose("/<int:team_id>/extra", methods=("POST",))
    def extra_view(self, team_id: int) -> ResponseReturnValue:
        """Add to what a team may use until its quota renews."""
        team = _found(team_id)
        by = actor()
        try:
            extras = typed_extras(request.form)
            ledger.add_extra(db.engine, team, zone=settings().timezone, by=by, **extras)
        except NotFound as error:
            abort(404, str(error))
        except APIError as error:
            flash(Markup("The extra of {} stays as it is. {}").format(quoted(team.name), error), "error")
        else:
            given = extras_given(_found(team_id))
            undo.say(Markup("The extra of {} is now {}.").format(quoted(team.name), given), by)
        return redirect(access.safe_target(request.form.get("url")))

    @expose("/<int:team_id>/")
    def details_view(self, team_id: int) -> ResponseReturnValue:
        """Show one team in large."""
        return self._team_page(team_id, TokenForm())

    def _team_page(
        self, team_id: int, token_form: TokenForm, edited: TokenEditForm | None = None
    ) -> ResponseReturnValue:
        now, team = datetime.now(UTC), _found(team_id)
        detail = reports.team_detail(team_id, now)
        if detail is None:
            abort(404, NO_TEAM)
        return self.render(
            "admin/team.html",
            detail=detail,
            code=reports.code_of(team_id),
            chart=use_chart(reports.use_per_day(CHART_DAYS, now, team_id=team_id)),
            calls=reports.calls_page(reports.CallFilter(team_id=team_id), limit=LAST_CALLS).rows,
            changes=changes.page(limit=LAST_CHANGES, team_id=team_id),
            actions=bulk.ACTIONS,
            here=here(),
            token_form=token_form,
            edited=edited,
            last_day_text=last_day_text,
            graces=GRACES,
            periods=PERIODS,
            zone=settings().timezone.key,
            now=now,
            allowed=settings().allowed_models,
            base_url=slips.base_url(),
            model=runtime.current().example_model(team.model_patterns),
        )

    @expose("/<int:team_id>/tokens", methods=("POST",))
    def create_token_view(self, team_id: int) -> ResponseReturnValue:
        """Give a team a further token, and show it this once."""
        form = TokenForm(request.form)
        if form.validate():
            try:
                _, bearer_token = team_store.create_token(team_id, form.label.data, form.expires_at(), by=actor())
            except NotFound as error:
                abort(404, str(error))
            except APIError as error:
                explain(form, error)
            else:
                team = _found(team_id)
                return self._show_token(team, bearer_token, Markup("Created a token for the team {}."))
        return self._team_page(team_id, form)

    @expose("/<int:team_id>/tokens/<int:token_id>/edit", methods=("POST",))
    def edit_token_view(self, team_id: int, token_id: int) -> ResponseReturnValue:
        """Change a token's label, or its last day."""
        _found(team_id)
        token = next((each for each in team_store.tokens(team_id) if each.id == token_id), None)
        if token is None:
            flash("The token was revoked meanwhile; nothing was changed.", "error")
            return redirect(url_for(".details_view", team_id=team_id))
        form = TokenEditForm(token, request.form)
        if form.validate():
            try:
                saved = team_store.update_token(team_id, token_id, **form.changes(), by=actor())
            except APIError as error:
                explain(form, error)
            else:
                flash(f"Saved the token {saved.prefix}….", "success")
                return redirect(url_for(".details_view", team_id=team_id))
        return self._team_page(team_id, TokenForm(), form)

    @expose("/<int:team_id>/tokens/<int:token_id>/rotate", methods=("POST",))
    def rotate_token_view(self, team_id: int, token_id: int) -> ResponseReturnValue:
        """Put a new token in the place of one, and show it this once."""
        team = _found(team_id)
        if request.form.get("grace") not in GRACES:
            abort(400, "Choose how long the old token still works.")
        words, grace = GRACES[request.form["grace"]]
        try:
            _, bearer_token = team_store.rotate_token(team_id, token_id, grace, by=actor())
        except APIError as error:
            flash(str(error), "error")
            return redirect(url_for(".details_view", team_id=team_id))
        then = f"still works {words}" if grace else "is refused from now on"
        return self._show_token(team, bearer_token, Markup("Replaced a token of {}. The old one ") + f"{then}.")

    @expose("/<int:team_id>/tokens/<int:token_id>/revoke", methods=("POST",))
    def revoke_token_view(self, team_id: int, token_id: int) -> ResponseReturnValue:
        """Revoke a token."""
        by = actor()
        try:
            token = team_store.revoke_token(team_id, token_id, by=by)
        except APIError as error:
            flash(str(error), "error")
        else:
            undo.say(f"Revoked the token {token.prefix}…: it is refused from its next call on.", by)
        return redirect(url_for(".details_view", team_id=team_id))

    def _show_token(self, team: Team, bearer_token: str, done: Markup) -> ResponseReturnValue:
        return self.render(
            "admin/token.html",
            slip=slips.slip(team, bearer_token),
            done=done.format(quoted(team.name)),
            **slips.addresses(),
        )

    @expose("/action/", methods=("POST",))
    def action_view(self) -> ResponseReturnValue:
        """Say what an action will do to the chosen teams; once that is confirmed, do it."""
        wanted = request.form.get("action", "")
        action = bulk.ACTIONS.get(wanted)
        if action is None and wanted not in bulk.EDITS:
            abort(400, "There is no such action.")
        chosen = _chosen(request.form)
        back = access.safe_target(request.form.get("url"))
        if not chosen:
            gone = "What you selected was deleted meanwhile." if "rowid" in request.form else None
            flash(gone or "Select at least one team first.", "error")
            return redirect(back)
        if action is None:
            return self.edit_several([team.id for team in chosen], back)
        if "confirmed" not in request.form:
            return self.render("admin/confirm.html", action=action, chosen=chosen, back=back, count=bulk.count)
        by = actor()
        changed = action.perform([team.id for team in chosen], by)
        undo.say(bulk.outcome(action, chosen, changed), by)
        return redirect(url_for(".index_view") if wanted == "delete" else back)


def about_periods(row: Team | Group | None) -> dict[str, Any]:
    """Return what the forms of limits say of periods: what each would mean today."""
    zone, now = settings().timezone, datetime.now(UTC).timestamp()
    day = (row.renewal.day if row is not None else None) or 1
    renewals = Renewal(DAILY), Renewal(WEEKLY), Renewal(MONTHLY, day)
    upcoming = {each.every: day_in_words(each.next_after(now, zone) or now, zone) for each in renewals}
    return {"upcoming": upcoming, "day": day, "zone": zone.key, "periods": PERIODS}


def _found(team_id: int) -> Team:
    try:
        return team_store.get(team_id)
    except NotFound:
        abort(404, NO_TEAM)


def _chosen(form: MultiDict[str, str]) -> Sequence[Team]:
    """Return the living teams that are meant: those with a box ticked, or all that fit the list's filter."""
    if form.get("all"):
        query = _list_query(form)
        ids = set(reports.ids_of_teams(**{name: query[name] for name in FILTERS}))
    else:
        ids = set(form.getlist("rowid", type=int))
    return [team for team in team_store.living() if team.id in ids]


def _list_query(args: MultiDict[str, str]) -> dict[str, Any]:
    """Read what list is query for; what makes no sense counts as not given."""

    def one_of(name: str, choices: Iterable[str]) -> str | None:
        value = args.get(name)
        return value if value is not None and value in choices else None

    return {
        "search": args.get("search", "").strip(),
        "state": one_of("state", STATES),
        "near_quota": one_of("near_quota", NEARNESS),
        "lasts": one_of("lasts", LASTING),
        "group_id": args.get("group", type=int),
        "sort": one_of("sort", (*reports.SORTS, reports.LASTS)) or "name",
        "descending": args.get("descending") == "1",
        "page": min(max(1, args.get("page", 1, type=int)), LAST_PAGE),
    }


def here() -> str:
    """Return the address of this page, to come back to."""
    return request.full_path.rstrip("?") if request.method == "GET" else request.path

"""Change several teams at once: first shown, old and new, then done exactly as shown, in one transaction."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import current_app
from sqlalchemy import select
from sqlalchemy.orm import Session

from tokenrouter import changes, ledger
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.tables import Group, Team, db
from tokenrouter.errors import InvalidRequest
from tokenrouter.money import decimal_string
from tokenrouter.periods import Renewal
from tokenrouter.teams.amounts import AmountChange, change_of_budget, change_of_quota
from tokenrouter.teams.limits import KEEP, Keep, change_limits
from tokenrouter.teams.lookup import changing, find_several_in, group_id_in
from tokenrouter.teams.renewals import format_renewal
from tokenrouter.teams.teams import fields_of

EXTRAS = ("extra_tokens", "extra_budget")
PRINT_LENGTH = 16


@dataclass(frozen=True)
class Edit:
    """A change of each of several teams; fields with their default stay as they are.

    `group` is an id, `models` a list that was checked, `paces` has those of PACES that change; money is in billionths.
    """

    quota: AmountChange | None = None
    budget: AmountChange | None = None
    extra_tokens: int = 0
    extra_budget: int = 0
    group: int | Keep | None = KEEP
    models: str | Keep | None = KEEP
    renewal: Renewal | Keep = KEEP
    paces: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The effect of an edit on a team: the changed fields, before and after, or why it is impossible."""

    team_id: int
    name: str
    before: dict[str, Any]
    after: dict[str, Any]
    problem: str | None = None

    @property
    def does_something(self) -> bool:
        """Tell whether the team is changed."""
        return self.problem is None and bool(self.after)

    @property
    def print(self) -> str:
        """Return a short hash of the step, by which a confirmation is tied to what was shown."""
        content = json.dumps([self.name, self.before, self.after, self.problem], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:PRINT_LENGTH]


class PlanChanged(InvalidRequest):
    """Teams were changed after the edit was shown, so nothing was done; `team_ids` are those."""

    def __init__(self, team_ids: list[int]) -> None:
        super().__init__("Some of the teams were changed meanwhile.")
        self.team_ids = team_ids


def plan(team_ids: Iterable[int], edit: Edit) -> list[Step]:
    """Return what an edit would do to the living teams among these, by id."""
    with Session(db.engine) as session:
        query = select(Team).where(Team.id.in_(list(team_ids)), Team.deleted_at.is_(None)).order_by(Team.id)
        group_name = _group_name(session, edit)
        return [_step(team, edit, group_name) for team in session.scalars(query)]


def change_several(shown: Mapping[int, str], edit: Edit, *, by: Actor) -> list[Step]:
    """Do what was shown, all or nothing, and return it; `shown` has the print of each step by team id.

    Raises PlanChanged if it would be something else by now, and InvalidRequest where the group is gone.
    """
    with changing() as session:
        group_id_in(session, None if isinstance(edit.group, Keep) else edit.group)  # groups are locked before teams
        if edit.extra_tokens or edit.extra_budget:
            ledger.begin_due_periods(session.connection(), Team, shown, current_app.config["TIMEZONE"])
        teams = {team.id: team for team in find_several_in(session, shown)}
        group_name = _group_name(session, edit)
        steps = {id_: _step(team, edit, group_name) for id_, team in teams.items()}
        if other := [id_ for id_, shown_print in shown.items() if id_ not in steps or steps[id_].print != shown_print]:
            raise PlanChanged(other)
        done = [step for step in steps.values() if step.does_something]
        for step in done:
            _apply(session, teams[step.team_id], edit)
        session.flush()
        session.expunge_all()  # nobody reads these rows again
        _record(session, done, by.at_once())
    return done


def _group_name(session: Session, edit: Edit) -> str | None:
    if isinstance(edit.group, Keep) or edit.group is None:
        return None
    return session.scalars(select(Group.name).where(Group.id == edit.group)).one_or_none()


def _step(team: Team, edit: Edit, group_name: str | None) -> Step:
    now = fields_of(team) | {
        "extra_tokens": team.current_extra_tokens,
        "extra_budget": decimal_string(team.current_extra_budget),
    }
    try:
        wanted = _wanted(team, edit)
    except InvalidRequest as error:
        return Step(team.id, team.name, {}, {}, str(error))
    fields = _described(wanted, group_name)
    changed = [name for name, value in fields.items() if now.get(name) != value]
    before = {name: now.get(name) for name in changed}
    return Step(team.id, team.name, before, {name: fields[name] for name in changed})


def _wanted(team: Team, edit: Edit) -> dict[str, Any]:
    """Return the fields that an edit is about as they will be, by the names of the columns; raises InvalidRequest."""
    wanted: dict[str, Any] = dict(edit.paces)
    if edit.quota is not None:
        wanted["quota_tokens"] = change_of_quota(edit.quota, team.quota_tokens)
    if edit.budget is not None:
        wanted["budget"] = change_of_budget(edit.budget, team.budget)
    if edit.extra_tokens or edit.extra_budget:
        wanted |= _extras(team, edit, wanted)
    for name in ("group", "models", "renewal"):
        if (value := getattr(edit, name)) is not Keep.KEEP:
            wanted[name] = value
    return wanted


def _extras(team: Team, edit: Edit, wanted: Mapping[str, Any]) -> dict[str, int]:
    if edit.extra_tokens and wanted.get("quota_tokens", team.quota_tokens) is None:
        raise InvalidRequest("It has no quota, so it needs no extra tokens.")
    if edit.extra_budget and wanted.get("budget", team.budget) is None:
        raise InvalidRequest("It has no budget, so it needs no extra.")
    extras = {
        "extra_tokens": team.current_extra_tokens + edit.extra_tokens,
        "extra_budget": team.current_extra_budget + edit.extra_budget,
    }
    ledger.check_extras(**extras)
    return extras


def _described(wanted: Mapping[str, Any], group_name: str | None) -> dict[str, Any]:
    """Return fields in the form of the record of changes."""
    recorded = {name: value for name, value in wanted.items() if name not in ("group", "renewal")}
    for name in {"budget", "extra_budget"} & recorded.keys():
        recorded[name] = decimal_string(recorded[name])
    if "renewal" in wanted:
        recorded["renews"] = format_renewal(wanted["renewal"])
    if "group" in wanted:
        recorded |= {"group": group_name, "group_id": wanted["group"]}
    return recorded


def _apply(session: Session, team: Team, edit: Edit) -> None:
    wanted = _wanted(team, edit)
    if "group" in wanted:
        team.group_id = wanted.pop("group")
    for name in {"models", *EXTRAS} & wanted.keys():
        setattr(team, name, wanted.pop(name))
    change_limits(session, team, wanted.pop("quota_tokens", KEEP), **wanted)


def _record(session: Session, done: Sequence[Step], by: Actor) -> None:
    """Record the changes; extras are separate ones, since they are given and taken back on their own."""
    for action, is_extra in ((changes.TEAM_UPDATE, False), (changes.TEAM_EXTRA, True)):
        changed = [
            Changed(step.team_id, step.name, _part(step.before, is_extra=is_extra), after)
            for step in done
            if (after := _part(step.after, is_extra=is_extra))
        ]
        changes.record(session, by, action, *changed)


def _part(fields: Mapping[str, Any], *, is_extra: bool) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if (name in EXTRAS) == is_extra}

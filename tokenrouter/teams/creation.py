"""Create teams, one or hundreds, each with its first token: all of them or none, in one transaction."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.tables import ApiToken, Team, db
from tokenrouter.errors import APIError, InvalidRequest, NameTaken
from tokenrouter.periods import NEVER, NEVER_RENEWS, Renewal
from tokenrouter.teams.api_tokens import new_token
from tokenrouter.teams.limits import change_limits
from tokenrouter.teams.lookup import changing, group_ids_in
from tokenrouter.teams.names import check_label, check_name
from tokenrouter.teams.quotas import check_budget, check_pace, check_quota
from tokenrouter.teams.teams import check_mail, check_models, fields_of


@dataclass(frozen=True)
class NewTeam:
    """A team to be created: `group` is the name or id of one; `limits` has those of PACES, and `budget`.

    `label` is that of its first token; `place` is where its list has it, as its writer would say. `join_code_id` is the
    code that it is made by, whose models may be some that ALLOWED_MODELS lost since; `recorded` goes into the record of
    changes too.
    """

    name: str
    quota_tokens: int | None = None
    models: str | None = None
    active: bool = True
    renewal: Renewal = NEVER_RENEWS
    group: str | int | None = None
    label: str | None = None
    mail: str | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    place: str = ""
    join_code_id: int | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """Why a team of a list cannot be created; `position` counts from 0."""

    position: int
    error: APIError


class NotCreated(Exception):
    """None of several teams was created; `refusals` has each reason, in the order of the teams."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__(str(refusals[0].error))
        self.refusals = refusals


def create(
    name: str,
    quota_tokens: int | None = None,
    models: str | None = None,
    *,
    active: bool = True,
    renewal: Renewal = NEVER_RENEWS,
    group: str | int | None = None,
    mail: str | None = None,
    by: Actor,
    **limits: int | None,
) -> tuple[Team, str]:
    """Create a team with its first token; return both, the token for the only time.

    `group` is the name or id of one; `mail` gets its alerts; `limits` has those of PACES, and `budget`.
    Raises InvalidRequest and NameTaken.
    """
    new = NewTeam(name, quota_tokens, models, active, renewal, group, mail=mail, limits=limits)
    try:
        (created,) = create_several([new], by=by)
    except NotCreated as refused:
        raise refused.refusals[0].error from refused
    return created


def create_several(new: Sequence[NewTeam], *, by: Actor) -> list[tuple[Team, str]]:
    """Create teams, all or none, as one change; return each with its first token, for the only time.

    Raises NotCreated.
    """
    try:
        with changing() as session:
            return add_teams(session, new, by)
    except IntegrityError:  # a name was taken after the check: checking again finds it
        with changing() as session:
            return add_teams(session, new, by)


def why_not(new: Sequence[NewTeam]) -> list[Refusal]:
    """Return why these teams cannot be created, in their order, without writing anything."""
    with Session(db.engine) as session:
        return _refusals(session, new, group_ids_in(session, _groups(new)))


def add_teams(session: Session, new: Sequence[NewTeam], by: Actor) -> list[tuple[Team, str]]:
    """Create teams within a session, which hardly takes longer for hundreds than for one.

    Raises NotCreated, and IntegrityError if another takes one of the names at the same time.
    """
    group_ids = group_ids_in(session, _groups(new), locked=True)
    if refusals := _refusals(session, new, group_ids):
        raise NotCreated(refusals)
    teams = [_team(session, each, group_ids) for each in new]
    session.add_all(sorted(teams, key=attrgetter("name")))  # in one order, so that no two transactions deadlock
    session.flush()
    tokens = [new_token(team, each.label, None) for team, each in zip(teams, new, strict=True)]
    session.add_all([token for token, _ in tokens])
    ids = [team.id for team in teams]
    session.scalars(select(Team).where(Team.id.in_(ids)).execution_options(populate_existing=True)).all()
    created = [_changed(*each) for each in zip(new, teams, (token for token, _ in tokens), strict=True)]
    changes.record(session, by, changes.TEAM_CREATE, *created)
    return [(team, bearer_token) for team, (_, bearer_token) in zip(teams, tokens, strict=True)]


def _groups(new: Sequence[NewTeam]) -> set[str | int]:
    return {each.group for each in new if each.group is not None}


def _team(session: Session, new: NewTeam, group_ids: Mapping[str | int, int]) -> Team:
    team = Team(
        name=check_name(new.name),
        group_id=None if new.group is None else group_ids[new.group],
        models=_models(new),
        mail=check_mail(new.mail),
        join_code_id=new.join_code_id,
        active=new.active,
        renews=NEVER,
        created_at=datetime.now(UTC),
    )
    change_limits(session, team, new.quota_tokens, new.renewal, **new.limits)
    return team


def _models(new: NewTeam) -> str | None:
    return check_models(new.models) if new.join_code_id is None else new.models


def _changed(new: NewTeam, team: Team, token: ApiToken) -> Changed:
    label = {"label": token.label} if token.label else {}
    after = fields_of(team) | dict(new.recorded) | {"token": token.prefix} | label
    return Changed(team.id, team.name, after=after)


def _refusals(session: Session, new: Sequence[NewTeam], group_ids: Mapping[str | int, int]) -> list[Refusal]:
    """Find every reason: invalid fields, unknown groups, and names that are taken or used twice."""
    names = [_name(each) for each in new]
    taken = _taken(session, filter(None, names))
    first: dict[str, NewTeam] = {}
    refusals: list[Refusal] = []
    for position, (each, name) in enumerate(zip(new, names, strict=True)):
        refusals += [Refusal(position, error) for error in _wrong_in(each)]
        if each.group is not None and each.group not in group_ids:
            refusals.append(Refusal(position, _no_group(each.group)))
        if name in taken:
            refusals.append(Refusal(position, NameTaken(f"There is a team {name!r} already.", param="name")))
        elif name and (before := first.setdefault(name, each)) is not each:
            refusals.append(Refusal(position, NameTaken(f"{before.place} has the name {name!r} too.", param="name")))
    return refusals


def _no_group(group: str | int) -> InvalidRequest:
    words = "There is no such group." if isinstance(group, int) else f"There is no group {group!r}."
    return InvalidRequest(words, param="group")


def _wrong_in(new: NewTeam) -> Iterator[InvalidRequest]:
    checks: list[Callable[[], Any]] = [
        partial(check_name, new.name),
        partial(_models, new),
        partial(check_label, new.label),
        partial(check_quota, new.quota_tokens),
    ]
    for name, value in new.limits.items():
        checks.append(partial(check_budget, value) if name == "budget" else partial(check_pace, name, value))
    for check in checks:
        try:
            check()
        except InvalidRequest as error:
            yield error


def _name(new: NewTeam) -> str | None:
    try:
        return check_name(new.name)
    except InvalidRequest:
        return None


def _taken(session: Session, names: Iterable[str]) -> set[str]:
    return set(session.scalars(select(Team.name).where(Team.name.in_(set(names)), Team.deleted_at.is_(None))))

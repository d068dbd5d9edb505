"""Change and delete teams.

Every function is one transaction, which records who made the change, and commits. A team is identified by its name,
or by its id, which is an int.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from flask import current_app
from sqlalchemy import update as update_rows
from sqlalchemy.orm import Session

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.config import mail_address, parse_models
from tokenrouter.database.columns import is_yes
from tokenrouter.database.tables import ApiToken, Team
from tokenrouter.errors import InvalidRequest
from tokenrouter.payload import narrowed
from tokenrouter.periods import Renewal
from tokenrouter.teams.limits import (
    KEEP,
    NOTHING_EXPECTED,
    Keep,
    change_limits,
    changed_between,
    check_expected,
    described,
)
from tokenrouter.teams.lookup import changing, find_in, find_several_in, group_id_in
from tokenrouter.teams.names import check_name, unique_name


def check_models(text: str | None) -> str | None:
    """Return a team's own list of models as it is kept; None leaves the choice to ALLOWED_MODELS.

    Raises InvalidRequest, also if a name fits nothing in ALLOWED_MODELS.
    """
    if text is None:
        return None
    try:
        names = parse_models(text)
    except ValueError:
        message = "models are names separated by commas, each with at most a trailing *."
        raise InvalidRequest(message, param="models") from None
    allowed = current_app.config["ALLOWED_MODELS"]
    if strange := [name for name in names if not narrowed(allowed, (name,))]:
        raise InvalidRequest(f"ALLOWED_MODELS has nothing that fits {', '.join(strange)}.", param="models")
    return ",".join(names)


def check_mail(text: str | None) -> str | None:
    """Return the mail address that gets a team's alerts, as it is kept; None for none.

    Raises InvalidRequest.
    """
    try:
        return mail_address(text) if text and text.strip() else None
    except ValueError:
        raise InvalidRequest(f"{text!r} is not a mail address such as team@example.org.", param="mail") from None


def fields_of(team: Team) -> dict[str, Any]:
    """Return what people set of a team; None for a state that cannot be read.

    A group that it is in is told by its id too, since names change.
    """
    fields = described(team) | {"group": team.group_name, "active": is_yes(team.active), "models": team.models}
    fields |= {} if team.mail is None else {"mail": team.mail}
    return fields if team.group_id is None else fields | {"group_id": team.group_id}


def update(
    which: str | int,
    *,
    by: Actor,
    rename: str | None = None,
    active: bool | None = None,
    quota_tokens: int | Keep | None = KEEP,
    models: str | Keep | None = KEEP,
    renewal: Renewal | Keep = KEEP,
    group: str | int | Keep | None = KEEP,
    mail: str | Keep | None = KEEP,
    expected: Mapping[str, Any] = NOTHING_EXPECTED,
    **limits: int | None,
) -> Team:
    """Change what is given and nothing else, the counters least of all.

    Calls in flight are booked in the group in which they are held. `group` is the name or id of one; `mail` gets the
    team's alerts; `limits` has those of PACES, and `budget`; `expected` is what the fields are taken to be, by their
    names in the record of changes.
    Raises InvalidRequest, NotFound, NameTaken, and ChangedMeanwhile if they are something else.
    """
    with unique_name("team", rename or str(which)), changing() as session:
        group_id = KEEP if group is Keep.KEEP else group_id_in(session, group)  # before the team: in the order of locks
        team = find_in(session, which, locked=True)
        before = fields_of(team)
        check_expected(before, expected)
        if rename is not None:
            team.name = check_name(rename)
        if active is not None:
            team.active = active
        if group_id is not Keep.KEEP:
            team.group_id = group_id
        if models is not Keep.KEEP and models != team.models:  # what ALLOWED_MODELS lost since may stay
            team.models = check_models(models)
        if mail is not Keep.KEEP:
            team.mail = check_mail(mail)
        change_limits(session, team, quota_tokens, renewal, **limits)
        session.flush()
        session.refresh(team, ["group_name"])
        if changed := changed_between(before, fields_of(team)):
            changes.record(session, by, changes.TEAM_UPDATE, Changed(team.id, before["name"], *changed))
    return team


def set_active(team_ids: Iterable[int], active: bool, *, by: Actor) -> list[Team]:
    """Let the calls of teams through, or refuse them, all or none; return those that this changed.

    Teams that are gone, and those that are so already, are passed over.
    """
    with changing() as session:
        teams = [team for team in find_several_in(session, team_ids) if team.active != active]
        session.execute(update_rows(Team).where(Team.id.in_([team.id for team in teams])).values(active=active))
        changed = [Changed(team.id, team.name, {"active": not active}, {"active": active}) for team in teams]
        changes.record(session, by, changes.TEAM_UPDATE, *changed)
    return teams


def delete(which: str | int, *, by: Actor) -> Team:
    """Delete a team and revoke its tokens. Its running calls are booked as they end, and its log keeps its name.

    Raises NotFound.
    """
    with changing() as session:
        team = find_in(session, which, locked=True)
        changes.record(session, by, changes.TEAM_DELETE, *mark_deleted(session, [team]))
    return team


def delete_several(team_ids: Iterable[int], *, by: Actor) -> list[Team]:
    """Delete teams like `delete`, all or none; return those deleted. Teams that are gone already are passed over."""
    with changing() as session:
        teams = find_several_in(session, team_ids)
        changes.record(session, by, changes.TEAM_DELETE, *mark_deleted(session, teams))
    return teams


def mark_deleted(session: Session, teams: list[Team]) -> list[Changed]:
    """Delete locked teams and revoke their tokens, both at one moment, by which they are known when it is undone."""
    ids, now = [team.id for team in teams], datetime.now(UTC)
    session.execute(update_rows(Team).where(Team.id.in_(ids)).values(deleted_at=now))
    is_theirs = ApiToken.team_id.in_(ids), ApiToken.revoked_at.is_(None)
    session.execute(update_rows(ApiToken).where(*is_theirs).values(revoked_at=now))
    return [lost_with(team) for team in teams]


def lost_with(team: Team) -> Changed:
    """Return what is recorded of a team's deletion."""
    return Changed(team.id, team.name, fields_of(team) | {"used_tokens": team.used_tokens})

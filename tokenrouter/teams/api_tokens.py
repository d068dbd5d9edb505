"""Create, list, rotate and revoke a team's tokens; each function is one committed transaction."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from tokenrouter import changes
from tokenrouter.auth import SHOWN_CHARACTERS, new_bearer_token, token_hash
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.tables import ApiToken, Team, db
from tokenrouter.errors import InvalidRequest, NotFound
from tokenrouter.periods import rfc3339
from tokenrouter.teams.limits import KEEP, Keep
from tokenrouter.teams.lookup import changing, find_in
from tokenrouter.teams.names import check_label

LONGEST_GRACE = timedelta(days=90)
LAST_DAY = date.max - timedelta(days=1)


class NotUsable(InvalidRequest):
    """The token has expired, or has been replaced by another."""


def end_of_day(day: date) -> datetime:
    """Return when a token ends that is valid through a day in UTC."""
    return datetime.combine(min(day, LAST_DAY), time.min, UTC) + timedelta(days=1)


def create_token(
    which: str | int, label: str | None = None, expires_at: datetime | None = None, *, by: Actor
) -> tuple[ApiToken, str]:
    """Give a team one more token; return its record and, for the only time, the token itself.

    Raises InvalidRequest and NotFound.
    """
    label = check_label(label)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidRequest("A token cannot expire in the past.", param="expires_at")
    with changing() as session:
        team = find_in(session, which, locked=True)
        token, bearer_token = add_token(session, team, label, expires_at)
        changes.record(session, by, changes.TOKEN_CREATE, Changed(team.id, team.name, after=token_fields(token)))
    return token, bearer_token


def update_token(
    which: str | int,
    token_id: int,
    *,
    label: str | Keep | None = KEEP,
    expires_at: datetime | Keep | None = KEEP,
    by: Actor,
) -> ApiToken:
    """Change the label of a team's token, or when it expires, which is not before now; what is not named stays.

    A token that has expired works again until then. Raises InvalidRequest and NotFound.
    """
    if isinstance(expires_at, datetime) and expires_at <= datetime.now(UTC):
        raise InvalidRequest("A token cannot expire in the past; revoke it to end it now.", param="expires_at")
    with changing() as session:
        team = find_in(session, which, locked=True)
        token = _find_token(session, team, token_id)
        before = token_fields(token)
        if not isinstance(label, Keep):
            token.label = check_label(label)
        if not isinstance(expires_at, Keep):
            token.expires_at = expires_at
        after = token_fields(token)
        changed = [name for name in before if before[name] != after[name]]
        if changed:
            fields = {"token": token.prefix} | {name: before[name] for name in changed}
            change = Changed(team.id, team.name, fields, {name: after[name] for name in changed})
            changes.record(session, by, changes.TOKEN_UPDATE, change)
        return token


def add_token(session: Session, team: Team, label: str | None, expires_at: datetime | None) -> tuple[ApiToken, str]:
    """Add a token within a session; return its record and the token itself."""
    token, bearer_token = new_token(team, label, expires_at)
    session.add(token)
    session.flush()
    return token, bearer_token


def new_token(team: Team, label: str | None, expires_at: datetime | None) -> tuple[ApiToken, str]:
    """Make a token for a team that is stored; return its record, which is not yet, and the token itself."""
    bearer_token = new_bearer_token()
    token = ApiToken(
        team_id=team.id,
        label=label,
        prefix=bearer_token[:SHOWN_CHARACTERS],
        token_hash=token_hash(bearer_token),
        created_at=datetime.now(UTC),
        expires_at=expires_at,
    )
    return token, bearer_token


def token_fields(token: ApiToken) -> dict[str, Any]:
    """Return what the record of changes may hold of a token."""
    expires_at = token.expires_at and rfc3339(token.expires_at, "seconds")
    return {"token": token.prefix, "label": token.label, "expires_at": expires_at}


def tokens(which: str | int) -> list[ApiToken]:
    """Return a team's tokens that are not revoked, oldest first, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return list(session.scalars(_living_tokens(find_in(session, which))))


def _living_tokens(team: Team) -> Select[ApiToken]:
    return select(ApiToken).where(ApiToken.team_id == team.id, ApiToken.revoked_at.is_(None)).order_by(ApiToken.id)


def revoke_token(which: str | int, token: str | int, *, by: Actor) -> ApiToken:
    """Revoke the team's token that has this id, or that begins with this text, its shown characters or all of it.

    Raises NotFound, also if several tokens begin like that.
    """
    with changing() as session:
        team = find_in(session, which, locked=True)
        found = _find_token(session, team, token)
        found.revoked_at = datetime.now(UTC)
        fields = token_fields(found) | {"token_id": found.id}
        changes.record(session, by, changes.TOKEN_REVOKE, Changed(team.id, team.name, fields))
        return found


def rotate_token(which: str | int, token_id: int, grace: timedelta, *, by: Actor) -> tuple[ApiToken, str]:
    """Make a token in place of another, with its label and its expiry; return it as `create_token` does.

    The old one still works for `grace`, or until it expires if that is sooner; without any it is refused from now on.
    Raises InvalidRequest, NotFound, and NotUsable for a token that has expired or is in its grace already.
    """
    if not timedelta(0) <= grace <= LONGEST_GRACE:
        raise InvalidRequest(f"A replaced token works for 0 to {LONGEST_GRACE.days} days more.", param="grace")
    with changing() as session:
        team = find_in(session, which, locked=True)
        old = _find_token(session, team, token_id)
        if old.replaced_by_id is not None or (old.expires_at and old.expires_at <= datetime.now(UTC)):
            why = "expired" if old.replaced_by_id is None else "been replaced"
            raise NotUsable(f"The token {old.prefix}… of the team {team.name!r} has {why} already.")
        new, bearer_token = add_token(session, team, old.label, old.expires_at)
        before = token_fields(old)
        _retire(old, new, grace)
        after = {"token": new.prefix, "old_token_until": token_fields(old)["expires_at"]}
        changes.record(session, by, changes.TOKEN_ROTATE, Changed(team.id, team.name, before, after))
    return new, bearer_token


def _retire(old: ApiToken, new: ApiToken, grace: timedelta) -> None:
    old.replaced_by_id = new.id
    end = new.created_at + grace
    old.expires_at = min(old.expires_at or end, end)
    if not grace:
        old.revoked_at = new.created_at


def _find_token(session: Session, team: Team, which: str | int) -> ApiToken:
    fitting = [token for token in session.scalars(_living_tokens(team)) if _is_meant(token, which)]
    if len(fitting) != 1:
        many = "several tokens that begin" if fitting else "no token that begins"
        what = "no such token" if isinstance(which, int) else f"{many} with {which[:SHOWN_CHARACTERS]!r}"
        raise NotFound(f"The team {team.name!r} has {what}.")
    return fitting[0]


def _is_meant(token: ApiToken, which: str | int) -> bool:
    if isinstance(which, int):
        return token.id == which
    if len(which) > SHOWN_CHARACTERS:
        return token.token_hash == token_hash(which)
    return bool(which) and token.prefix.startswith(which)

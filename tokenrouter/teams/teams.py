"""Create, change and delete a team and its tokens.

Every function is one transaction, which records who made the change, and commits. A team is identified by its name,
or by its id, which is an int.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Select, false, select
from sqlalchemy import update as update_rows
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tokenrouter import changes
from tokenrouter.auth import SHOWN_CHARACTERS, new_bearer_token, token_hash
from tokenrouter.changes import Actor, Changed
from tokenrouter.config import parse_models
from tokenrouter.database.tables import NAME_LENGTH, ApiToken, Team, clamp_id, db, writing

MOST_QUOTA_TOKENS = 10**15
SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
# A comma parts thousands, the last of them three digits: `2,5M`, which may mean 2.5M, is none, nor is `250.000`.
WHOLE = r"-?(?:[0-9]{1,3}(?:[,_ ][0-9]{2,3}){0,8}[,_ ][0-9]{3}|[0-9]{1,30})"
QUOTA = re.compile(rf"(?P<number>{WHOLE}(?:\.[0-9]{{1,9}}(?= ?[kmb]))?) ?(?P<suffix>[kmb]?)")
SHORT_FORMS = (("B", 10**9), ("M", 10**6), ("k", 10**3))
UNLIMITED = "unlimited"
LONGEST_GRACE = timedelta(days=90)
KEEP = object()


class TeamError(Exception):
    """Say in one line why a change of a team was refused."""


class NotFound(TeamError):
    """No such team or token."""


class NameTaken(TeamError):
    """Another team has the name."""


class NotUsable(TeamError):
    """The token has expired, or has been replaced by another."""


class InvalidValue(TeamError):
    """A value that a team cannot have; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NotANumber(InvalidValue):
    """What should be a number of tokens is not one."""


@contextmanager
def _changing() -> Iterator[Session]:
    with writing(db.engine) as connection, Session(connection, expire_on_commit=False) as session:
        yield session
        session.flush()


def check_name(name: str) -> str:
    """Return a team's name as it is kept.

    Raises InvalidValue unless it has 1 to 200 characters and no control character.
    """
    name = name.strip()
    if not 1 <= len(name) <= NAME_LENGTH or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise InvalidValue("name", f"A team's name has 1 to {NAME_LENGTH} characters and no control characters.")
    return name


def check_label(label: str | None) -> str | None:
    """Return a token's label as it is kept, None where it is empty.

    Raises InvalidValue.
    """
    label = (label or "").strip()
    if len(label) > NAME_LENGTH or any(unicodedata.category(character) in ("Cc", "Cs") for character in label):
        raise InvalidValue("label", f"A label has at most {NAME_LENGTH} characters and no control characters.")
    return label or None


def check_quota(quota_tokens: int | None) -> int | None:
    """Return a quota that can be kept; None is unlimited.

    Raises InvalidValue.
    """
    if quota_tokens is not None and not 0 <= quota_tokens <= MOST_QUOTA_TOKENS:
        raise InvalidValue("quota_tokens", f"A quota is a whole number of tokens from 0 to {MOST_QUOTA_TOKENS:,}.")
    return quota_tokens


def parse_quota(text: str) -> int | None:
    """Read a quota as people write it: `2500000`, `2,500,000`, `2_500_000`, `2.5M`; `unlimited` is None.

    Raises InvalidValue.
    """
    spelling = text.strip().lower()
    if spelling == UNLIMITED:
        return None
    match = QUOTA.fullmatch(spelling)
    if match is None:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise NotANumber("quota_tokens", f"{shown!r} is not a number of tokens such as 250000, 250k or 2.5M.")
    number = Decimal(re.sub("[,_ ]", "", match["number"])) * SUFFIXES[match["suffix"]]
    if number != int(number):
        raise NotANumber("quota_tokens", f"{text!r} is not a whole number of tokens.")
    return check_quota(int(number))


def format_quota(quota_tokens: int | None) -> str:
    """Write a quota as `parse_quota` reads it: `2.5M` where two decimals tell all of it, else `2,500,001`."""
    if quota_tokens is None:
        return UNLIMITED
    for suffix, size in SHORT_FORMS:
        if quota_tokens >= size:
            number = Decimal(quota_tokens) / size
            return f"{number.normalize():,f}{suffix}" if number == round(number, 2) else f"{quota_tokens:,}"
    return f"{quota_tokens:,}"


def check_models(text: str | None) -> str | None:
    """Return a team's own list of models as it is kept; None leaves the choice to ALLOWED_MODELS.

    Raises InvalidValue.
    """
    if text is None:
        return None
    try:
        return ",".join(parse_models(text))
    except ValueError:
        message = "models are names separated by commas, each with at most a trailing *."
        raise InvalidValue("models", message) from None


def find(name: str) -> Team:
    """Return the living team of this name, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return _find(session, name)


def get(team_id: int) -> Team:
    """Return the living team of this id, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return _find(session, team_id)


def _find(session: Session, which: str | int, *, locked: bool = False) -> Team:
    is_meant = Team.id == clamp_id(which) if isinstance(which, int) else _is_named(which)
    query = select(Team).where(is_meant, Team.deleted_at.is_(None))
    if locked:
        query = query.with_for_update(key_share=True)
    if (team := session.scalars(query).one_or_none()) is None:
        raise NotFound("There is no such team." if isinstance(which, int) else f"There is no team {which!r}.")
    return team


def _is_named(name: str) -> ColumnElement[bool]:
    return Team.name == name if "\0" not in name else false()  # PostgreSQL refuses such a text


def _those(session: Session, team_ids: Iterable[int]) -> list[Team]:
    """Lock and return the living teams among these, in the order in which all lock them."""
    query = select(Team).where(Team.id.in_(list(team_ids)), Team.deleted_at.is_(None)).order_by(Team.id)
    return list(session.scalars(query.with_for_update(key_share=True)))


def ids_ever_named(name: str) -> list[int]:
    """Return the teams that have or, deleted, had this name.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        ids = list(session.scalars(select(Team.id).where(_is_named(name))))
    if not ids:
        raise NotFound(f"There is no team {name!r}.")
    return ids


def living() -> list[Team]:
    """Return all living teams by name, detached."""
    with Session(db.engine) as session:
        return list(session.scalars(select(Team).where(Team.deleted_at.is_(None)).order_by(Team.name)))


def create(
    name: str, quota_tokens: int | None = None, models: str | None = None, *, active: bool = True, by: Actor
) -> tuple[Team, str]:
    """Create a team with its first token; return both, the token for the only time.

    Raises InvalidValue and NameTaken.
    """
    team = Team(
        name=check_name(name),
        quota_tokens=check_quota(quota_tokens),
        models=check_models(models),
        active=active,
        created_at=datetime.now(UTC),
    )
    with _unique_name(team.name), _changing() as session:
        session.add(team)
        session.flush()
        token, bearer_token = _add_token(session, team, None, None)
        after = _fields(team) | {"token": token.prefix}
        changes.record(session, by, changes.TEAM_CREATE, Changed(team.id, team.name, after=after))
    return team, bearer_token


@contextmanager
def _unique_name(name: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise NameTaken(f"There is a team {name!r} already.") from error


def _fields(team: Team) -> dict[str, Any]:
    """Return what people set of a team."""
    return {"name": team.name, "quota_tokens": team.quota_tokens, "active": team.active, "models": team.models}


def update(
    which: str | int,
    *,
    by: Actor,
    rename: str | None = None,
    active: bool | None = None,
    quota_tokens: int | object | None = KEEP,
    models: str | object | None = KEEP,
) -> Team:
    """Change what is given and nothing else, the counters least of all.

    Raises InvalidValue, NotFound and NameTaken.
    """
    with _unique_name(rename or str(which)), _changing() as session:
        team = _find(session, which, locked=True)
        before = _fields(team)
        if rename is not None:
            team.name = check_name(rename)
        if active is not None:
            team.active = active
        if quota_tokens is not KEEP:
            team.quota_tokens = check_quota(quota_tokens)
        if models is not KEEP:
            team.models = check_models(models)
        changed = {name: value for name, value in _fields(team).items() if value != before[name]}
        if changed:
            old = {name: before[name] for name in changed}
            changes.record(session, by, changes.TEAM_UPDATE, Changed(team.id, before["name"], old, changed))
    return team


def set_active(team_ids: Iterable[int], active: bool, *, by: Actor) -> list[Team]:
    """Let the calls of teams through, or refuse them, all or none; return those that this changed.

    Teams that are gone, and those that are so already, are passed over.
    """
    with _changing() as session:
        teams = [team for team in _those(session, team_ids) if team.active != active]
        session.execute(update_rows(Team).where(Team.id.in_([team.id for team in teams])).values(active=active))
        changed = [Changed(team.id, team.name, {"active": not active}, {"active": active}) for team in teams]
        changes.record(session, by, changes.TEAM_UPDATE, *changed)
    return teams


def delete(which: str | int, *, by: Actor) -> Team:
    """Delete a team and revoke its tokens. Its running calls are booked as they end, and its log keeps its name.

    Raises NotFound.
    """
    with _changing() as session:
        team = _find(session, which, locked=True)
        _delete(session, [team], by)
    return team


def delete_several(team_ids: Iterable[int], *, by: Actor) -> list[Team]:
    """Delete teams like `delete`, all or none; return those deleted. Teams that are gone already are passed over."""
    with _changing() as session:
        teams = _those(session, team_ids)
        _delete(session, teams, by)
    return teams


def _delete(session: Session, teams: list[Team], by: Actor) -> None:
    ids, now = [team.id for team in teams], datetime.now(UTC)
    session.execute(update_rows(Team).where(Team.id.in_(ids)).values(deleted_at=now))
    is_theirs = ApiToken.team_id.in_(ids), ApiToken.revoked_at.is_(None)
    session.execute(update_rows(ApiToken).where(*is_theirs).values(revoked_at=now))
    lost = [Changed(team.id, team.name, _fields(team) | {"used_tokens": team.used_tokens}) for team in teams]
    changes.record(session, by, changes.TEAM_DELETE, *lost)


def create_token(
    which: str | int, label: str | None = None, expires_at: datetime | None = None, *, by: Actor
) -> tuple[ApiToken, str]:
    """Give a team one more token; return its record and, for the only time, the token itself.

    Raises InvalidValue and NotFound.
    """
    label = check_label(label)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidValue("expires_at", "A token cannot expire in the past.")
    with _changing() as session:
        team = _find(session, which, locked=True)
        token, bearer_token = _add_token(session, team, label, expires_at)
        changes.record(session, by, changes.TOKEN_CREATE, Changed(team.id, team.name, after=_token_fields(token)))
    return token, bearer_token


def _add_token(session: Session, team: Team, label: str | None, expires_at: datetime | None) -> tuple[ApiToken, str]:
    bearer_token = new_bearer_token()
    token = ApiToken(
        team_id=team.id,
        label=label,
        prefix=bearer_token[:SHOWN_CHARACTERS],
        token_hash=token_hash(bearer_token),
        created_at=datetime.now(UTC),
        expires_at=expires_at,
    )
    session.add(token)
    session.flush()
    return token, bearer_token


def _token_fields(token: ApiToken) -> dict[str, Any]:
    """Return what the record of changes may tell of a token."""
    expires_at = token.expires_at and token.expires_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"token": token.prefix, "label": token.label, "expires_at": expires_at}


def tokens(which: str | int) -> list[ApiToken]:
    """Return a team's tokens that are not revoked, oldest first, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return list(session.scalars(_living_tokens(_find(session, which))))


def _living_tokens(team: Team) -> Select[tuple[ApiToken]]:
    return select(ApiToken).where(ApiToken.team_id == team.id, ApiToken.revoked_at.is_(None)).order_by(ApiToken.id)


def revoke_token(which: str | int, token: str | int, *, by: Actor) -> ApiToken:
    """Revoke the team's token that has this id, or that begins with this text, its shown characters or all of it.

    Raises NotFound, also where several tokens begin like that.
    """
    with _changing() as session:
        team = _find(session, which, locked=True)
        found = _find_token(session, team, token)
        found.revoked_at = datetime.now(UTC)
        changes.record(session, by, changes.TOKEN_REVOKE, Changed(team.id, team.name, _token_fields(found)))
        return found


def rotate_token(which: str | int, token_id: int, grace: timedelta, *, by: Actor) -> tuple[ApiToken, str]:
    """Make a token in place of another, with its label and its expiry; return it as `create_token` does.

    The old one still works for `grace`, or until it expires if that is sooner; without any it is refused from now on.
    Raises InvalidValue, NotFound, and NotUsable for a token that has expired or is in its grace already.
    """
    if not timedelta(0) <= grace <= LONGEST_GRACE:
        raise InvalidValue("grace", f"A replaced token works for 0 to {LONGEST_GRACE.days} days more.")
    with _changing() as session:
        team = _find(session, which, locked=True)
        old = _find_token(session, team, token_id)
        if old.replaced_by_id is not None or (old.expires_at and old.expires_at <= datetime.now(UTC)):
            why = "expired" if old.replaced_by_id is None else "been replaced"
            raise NotUsable(f"The token {old.prefix}… of the team {team.name!r} has {why} already.")
        new, bearer_token = _add_token(session, team, old.label, old.expires_at)
        before = _token_fields(old)
        _retire(old, new, grace)
        after = {"token": new.prefix, "old_token_until": _token_fields(old)["expires_at"]}
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

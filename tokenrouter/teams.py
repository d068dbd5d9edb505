"""Create, change and delete a team and its tokens. Every function is one transaction and commits."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tokenrouter.auth import SHOWN_CHARACTERS, new_bearer_token, token_hash
from tokenrouter.config import parse_models
from tokenrouter.models import NAME_LENGTH, ApiToken, Team, db, writing

MOST_QUOTA_TOKENS = 10**15
SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
QUOTA = re.compile(r"(?P<number>-?[0-9][0-9,_ ]{0,30}(\.[0-9]{1,9})?) ?(?P<suffix>[kmb]?)")
KEEP = object()


class TeamError(Exception):
    """Say in one line why a change of a team was refused."""


class NotFound(TeamError):
    """No such team or token."""


class NameTaken(TeamError):
    """Another team has the name."""


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
    if spelling == "unlimited":
        return None
    match = QUOTA.fullmatch(spelling)
    if match is None:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise NotANumber("quota_tokens", f"{shown!r} is not a number of tokens such as 250000, 250k or 2.5M.")
    number = Decimal(re.sub("[,_ ]", "", match["number"])) * SUFFIXES[match["suffix"]]
    if number != int(number):
        raise NotANumber("quota_tokens", f"{text!r} is not a whole number of tokens.")
    return check_quota(int(number))


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


def _find(session: Session, name: str) -> Team:
    query = select(Team).where(Team.name == name, Team.deleted_at.is_(None)).with_for_update(key_share=True)
    if (team := session.scalars(query).one_or_none()) is None:
        raise NotFound(f"There is no team {name!r}.")
    return team


def ids_ever_named(name: str) -> list[int]:
    """Return the teams that have or, deleted, had this name.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        ids = list(session.scalars(select(Team.id).where(Team.name == name)))
    if not ids:
        raise NotFound(f"There is no team {name!r}.")
    return ids


def living() -> list[Team]:
    """Return all living teams by name, detached."""
    with Session(db.engine) as session:
        return list(session.scalars(select(Team).where(Team.deleted_at.is_(None)).order_by(Team.name)))


def create(name: str, quota_tokens: int | None = None, models: str | None = None) -> tuple[Team, str]:
    """Create a team with its first token; return both, the token for the only time.

    Raises InvalidValue and NameTaken.
    """
    team = Team(
        name=check_name(name),
        quota_tokens=check_quota(quota_tokens),
        models=check_models(models),
        created_at=datetime.now(UTC),
    )
    with _unique_name(team.name), _changing() as session:
        session.add(team)
        session.flush()
        _, bearer_token = _add_token(session, team, None, None)
    return team, bearer_token


@contextmanager
def _unique_name(name: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise NameTaken(f"There is a team {name!r} already.") from error


def update(
    name: str,
    *,
    rename: str | None = None,
    active: bool | None = None,
    quota_tokens: int | object | None = KEEP,
    models: str | object | None = KEEP,
) -> Team:
    """Change what is given and nothing else, the counters least of all.

    Raises InvalidValue, NotFound and NameTaken.
    """
    with _unique_name(rename or name), _changing() as session:
        team = _find(session, name)
        if rename is not None:
            team.name = check_name(rename)
        if active is not None:
            team.active = active
        if quota_tokens is not KEEP:
            team.quota_tokens = check_quota(quota_tokens)
        if models is not KEEP:
            team.models = check_models(models)
    return team


def delete(name: str) -> None:
    """Delete a team and revoke its tokens. Its running calls are booked as they end, and its log keeps its name.

    Raises NotFound.
    """
    with _changing() as session:
        team = _find(session, name)
        team.deleted_at = datetime.now(UTC)
        for token in session.scalars(
            select(ApiToken).where(ApiToken.team_id == team.id, ApiToken.revoked_at.is_(None))
        ):
            token.revoked_at = team.deleted_at


def create_token(team_name: str, label: str | None = None, expires_at: datetime | None = None) -> tuple[ApiToken, str]:
    """Give a team one more token; return its record and, for the only time, the token itself.

    Raises InvalidValue and NotFound.
    """
    label = check_label(label)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidValue("expires_at", "A token cannot expire in the past.")
    with _changing() as session:
        return _add_token(session, _find(session, team_name), label, expires_at)


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


def tokens(team_name: str) -> list[ApiToken]:
    """Return a team's tokens that are not revoked, oldest first, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return list(session.scalars(_living_tokens(_find(session, team_name))))


def _living_tokens(team: Team) -> Select[tuple[ApiToken]]:
    return select(ApiToken).where(ApiToken.team_id == team.id, ApiToken.revoked_at.is_(None)).order_by(ApiToken.id)


def revoke_token(team_name: str, prefix: str) -> ApiToken:
    """Revoke the team's token that begins with `prefix`, its shown characters or all of it.

    Raises NotFound, also where several tokens begin like that.
    """
    with _changing() as session:
        living_tokens = session.scalars(_living_tokens(_find(session, team_name))).all()
        fitting = [token for token in living_tokens if _is_meant(token, prefix)]
        if len(fitting) != 1:
            many = "several tokens that begin" if fitting else "no token that begins"
            raise NotFound(f"The team {team_name!r} has {many} with {prefix[:SHOWN_CHARACTERS]!r}.")
        fitting[0].revoked_at = datetime.now(UTC)
        return fitting[0]


def _is_meant(token: ApiToken, prefix: str) -> bool:
    if len(prefix) > SHOWN_CHARACTERS:
        return token.token_hash == token_hash(prefix)
    return bool(prefix) and token.prefix.startswith(prefix)

"""Tokens of the management API: made, listed and revoked by people, and looked up at each of its requests."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from tokenrouter import changes
from tokenrouter.auth import SHOWN_CHARACTERS, bearer_token_from, token_hash
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ManagementToken, db
from tokenrouter.errors import InvalidManagementToken, NotFound
from tokenrouter.teams import check_label

TOKEN_PREFIX = "trm-"
USE_NOTED_EVERY = timedelta(minutes=1)


def create(label: str | None = None, *, by: Actor) -> tuple[ManagementToken, str]:
    """Make a management token and commit; return its record and, for the only time, the token itself.

    Raises InvalidRequest.
    """
    bearer_token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ManagementToken(
        label=check_label(label),
        prefix=bearer_token[:SHOWN_CHARACTERS],
        token_hash=token_hash(bearer_token),
        created_at=datetime.now(UTC),
    )
    with writing(db.engine) as connection, Session(connection, expire_on_commit=False) as session:
        session.add(token)
        session.flush()
        changes.record(session, by, changes.MANAGEMENT_TOKEN_CREATE, Changed(None, None, after=_fields(token)))
    return token, bearer_token


def living() -> list[ManagementToken]:
    """Return the tokens that are not revoked, oldest first, detached."""
    with Session(db.engine) as session:
        return _living(session)


def revoke(which: str | int, *, by: Actor) -> ManagementToken:
    """Revoke the token of this id, or that begins with this text, its shown characters or all of it, and commit.

    Raises NotFound, also if several tokens begin like that.
    """
    with writing(db.engine) as connection, Session(connection, expire_on_commit=False) as session:
        token = _find(session, which)
        token.revoked_at = datetime.now(UTC)
        session.flush()
        changes.record(session, by, changes.MANAGEMENT_TOKEN_REVOKE, Changed(None, None, _fields(token)))
    return token


def authenticate(authorization: str | None) -> ManagementToken:
    """Return the management token that an Authorization header bears, detached, and note its use.

    The database is read at each request, so that a revoked token is refused from then on.
    Raises InvalidManagementToken.
    """
    bearer_token = bearer_token_from(authorization)
    if bearer_token is None:
        raise InvalidManagementToken
    is_meant = ManagementToken.token_hash == token_hash(bearer_token), ManagementToken.revoked_at.is_(None)
    with Session(db.engine) as session:
        token = session.scalars(select(ManagementToken).where(*is_meant)).one_or_none()
    if token is None:
        raise InvalidManagementToken
    _note_use(token)
    return token


def _note_use(token: ManagementToken) -> None:
    now = datetime.now(UTC)
    if token.last_used_at is not None and token.last_used_at > now - USE_NOTED_EVERY:
        return
    is_older = or_(ManagementToken.last_used_at.is_(None), ManagementToken.last_used_at < now)
    with writing(db.engine, durable=False) as connection:
        connection.execute(
            update(ManagementToken).where(ManagementToken.id == token.id, is_older).values(last_used_at=now)
        )


def _living(session: Session) -> list[ManagementToken]:
    query = select(ManagementToken).where(ManagementToken.revoked_at.is_(None)).order_by(ManagementToken.id)
    return list(session.scalars(query))


def _find(session: Session, which: str | int) -> ManagementToken:
    fitting = [token for token in _living(session) if which == token.id or _begins(token, str(which))]
    if len(fitting) == 1:
        return fitting[0]
    if isinstance(which, int):
        raise NotFound("There is no such management token, or it was revoked.")
    many = "are several management tokens that begin" if fitting else "is no management token that begins"
    raise NotFound(f"There {many} with {which[:SHOWN_CHARACTERS]!r}.")


def _begins(token: ManagementToken, beginning: str) -> bool:
    if len(beginning) > SHOWN_CHARACTERS:
        return token.token_hash == token_hash(beginning)
    return bool(beginning) and token.prefix.startswith(beginning)


def _fields(token: ManagementToken) -> dict[str, Any]:
    return {"token": token.prefix, "label": token.label}

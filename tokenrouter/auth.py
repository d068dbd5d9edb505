"""Everything that makes or compares a secret: a bearer token leads to its team."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Engine, Row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tokenrouter.errors import InvalidAPIKey, StorageUnavailable
from tokenrouter.models import ApiToken, Team, split_models

TOKEN_PREFIX = "tr-"
SHOWN_CHARACTERS = 8


@dataclass(frozen=True)
class Caller:
    """The team that a call is for, and the token that it came with."""

    team_id: int
    team_name: str
    token_id: int
    token_prefix: str
    active: bool
    models: tuple[str, ...] | None


FIND_CALLER = (
    select(
        Team.id,
        Team.name,
        ApiToken.id.label("token_id"),
        ApiToken.prefix,
        ApiToken.expires_at,
        Team.active,
        Team.models,
    )
    .join(Team, Team.id == ApiToken.team_id)
    .where(ApiToken.token_hash == bindparam("token_hash"), ApiToken.revoked_at.is_(None), Team.deleted_at.is_(None))
)


def new_bearer_token() -> str:
    """Make a token with 256 bits of chance: `tr-` and 43 URL-safe characters."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_hash(bearer_token: str) -> str:
    """Return the SHA-256 that is kept in place of the token; its 256 random bits need neither salt nor slowness."""
    return hashlib.sha256(bearer_token.encode()).hexdigest()


def authenticate(engine: Engine, authorization: str | None) -> Caller:
    """Return whose token an Authorization header bears. Source: RFC 6750, 2.1.

    The database is asked on every call, so that a revoked token is refused by every worker from then on.
    Raises InvalidAPIKey and StorageUnavailable.
    """
    scheme, _, bearer_token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not bearer_token.strip():
        raise InvalidAPIKey
    row = _find(engine, token_hash(bearer_token.strip()))
    if row is None or (row.expires_at is not None and row.expires_at <= datetime.now(UTC)):
        raise InvalidAPIKey
    return Caller(row.id, row.name, row.token_id, row.prefix, row.active, split_models(row.models))


def _find(engine: Engine, digest: str) -> Row[Any] | None:
    for last_try in (False, True):
        try:
            with engine.connect() as connection:
                return connection.execute(FIND_CALLER, {"token_hash": digest}).one_or_none()
        except DBAPIError as error:
            # a pooled connection that the server closed meanwhile: the whole pool is fresh after the first such error
            if last_try or not error.connection_invalidated:
                raise StorageUnavailable from error
        except SQLAlchemyError as error:
            raise StorageUnavailable from error
    return None

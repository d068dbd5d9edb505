"""Bearer tokens: made, hashed, and looked up at every call."""

import hashlib
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, bindparam, case, literal_column, or_, select

from tokenrouter.database.columns import UtcDateTime, is_yes
from tokenrouter.database.connections import Readers
from tokenrouter.database.statements import Statement
from tokenrouter.database.tables import LIMITS, ApiToken, Group, Team, split_models, unreadable_limits
from tokenrouter.errors import InvalidAPIKey, TeamDisabled

TOKEN_PREFIX = "tr-"
SHOWN_CHARACTERS = 8


@dataclass
class Caller:
    """The team that calls, and the token that it used."""

    team_id: int
    team_name: str
    token_id: int
    token_prefix: str
    active: bool
    models: tuple[str, ...] | None
    group_id: int | None = None
    row: tuple[Any, ...] = ()
    """The database row from which all that was read."""
    is_remembered: bool = False
    """Whether it is from memory: then the ledger checks it in the transaction that reserves."""


CALLER_COLUMNS = (Team.id, Team.name, ApiToken.id, ApiToken.prefix, Team.active, Team.models, Team.group_id)
LIMIT_COLUMNS = tuple(getattr(Team, name) for name in LIMITS)
GROUP_LIMIT_COLUMNS = tuple(getattr(Group, name) for name in LIMITS)
IS_VALID = and_(
    Team.id == ApiToken.team_id,
    ApiToken.revoked_at.is_(None),
    or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > bindparam("now", type_=UtcDateTime)),
    Team.deleted_at.is_(None),
)
WHAT_IT_WAS = case(
    (Team.deleted_at.is_not(None), literal_column("'token_of_deleted_team'")),
    (ApiToken.revoked_at.is_not(None), literal_column("'revoked_token'")),
    (ApiToken.expires_at <= bindparam("now", type_=UtcDateTime), literal_column("'expired_token'")),
)
"""Why a token is no longer valid, as refusals at the door are counted; NULL while it is valid."""
FIND_CALLER = Statement(
    select(WHAT_IT_WAS, *CALLER_COLUMNS, *LIMIT_COLUMNS, *GROUP_LIMIT_COLUMNS)
    .select_from(Team)
    .join(ApiToken, ApiToken.team_id == Team.id)
    .outerjoin(Group, Group.id == Team.group_id)
    .where(ApiToken.token_hash == bindparam("token_hash"))
)
MOST_KNOWN = 10_000


class KnownCallers:
    """The callers of this process, by the hash of their token; each call checks them against the database later."""

    def __init__(self) -> None:
        self._by_hash: dict[str, Caller] = {}

    def find(self, authorization: str | None) -> Caller | None:
        """Return the caller of an Authorization header, if it called before."""
        bearer_token = bearer_token_from(authorization)
        return self._by_hash.get(token_hash(bearer_token)) if bearer_token else None

    def remember(self, authorization: str | None, caller: Caller) -> None:
        """Remember a caller."""
        if len(self._by_hash) >= MOST_KNOWN:
            self._by_hash.clear()
        if bearer_token := bearer_token_from(authorization):
            self._by_hash[token_hash(bearer_token)] = replace(caller, is_remembered=True)


def new_bearer_token() -> str:
    """Make a token of 256 random bits: `tr-` and 43 URL-safe characters."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_hash(bearer_token: str) -> str:
    """Return the SHA-256 that is stored in place of the token, whose 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(bearer_token.encode()).hexdigest()


def bearer_token_from(authorization: str | None) -> str | None:
    """Return the token in an Authorization header; None if it has none. Source: RFC 6750, 2.1."""
    scheme, _, bearer_token = (authorization or "").partition(" ")
    return (bearer_token.strip() or None) if scheme.lower() == "bearer" else None


def authenticate(readers: Readers, authorization: str | None) -> Caller:
    """Return the caller of an Authorization header, as the database has it now.

    So a revoked token is refused by every worker at once.
    Raises InvalidAPIKey, StorageUnavailable, and TeamDisabled if the team's row cannot be read.
    """
    bearer_token = bearer_token_from(authorization)
    if bearer_token is None:
        raise InvalidAPIKey
    row = readers.one(FIND_CALLER, {"token_hash": token_hash(bearer_token), "now": datetime.now(UTC)})
    if row is None:
        raise InvalidAPIKey("unknown_token")
    what_it_was, *columns = row
    known, limits = tuple(columns[: len(CALLER_COLUMNS)]), columns[len(CALLER_COLUMNS) :]
    team_id, team_name, token_id, prefix, active, models, group_id = known
    if what_it_was is not None:
        raise InvalidAPIKey(what_it_was, token_id)
    unreadable = ["active"] if is_yes(active) is None else unreadable_limits(*limits[: len(LIMITS)])
    if unreadable:
        raise _unreadable("This team's", unreadable[0], "teams")
    if group_id is not None and (unreadable := unreadable_limits(*limits[len(LIMITS) :])):
        raise _unreadable("Of this team's group the", unreadable[0], "groups")
    return Caller(team_id, str(team_name), token_id, prefix, bool(active), split_models(models), group_id, known)


def _unreadable(whose: str, field: str, command: str) -> TeamDisabled:
    return TeamDisabled(
        f"{whose} {field} cannot be read: somebody edited it in the database. Who administers this service can set it "
        f"again, by the panel or by `flask {command} update`."
    )

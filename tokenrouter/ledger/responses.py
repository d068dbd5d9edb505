"""The responses that a team was given: only those may its later calls name, and their tokens count to its prompts."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, select

from tokenrouter.database.connections import Readers
from tokenrouter.database.statements import DriverConnection, Inserter, Statement
from tokenrouter.database.tables import GivenResponse

COLUMNS = ("team_id", "response_hash", "total_tokens", "created_at")
FIND_RESPONSE = Statement(
    select(GivenResponse.total_tokens).where(
        GivenResponse.team_id == bindparam("team"), GivenResponse.response_hash == bindparam("response_hash")
    )
)


def _remember(insert_or_update: Inserter) -> Any:
    adding = insert_or_update(GivenResponse)
    changes = {name: adding.excluded[name] for name in ("total_tokens", "created_at")}
    values: dict[str, Any] = {name: bindparam(name) for name in COLUMNS}
    return adding.values(values).on_conflict_do_update(index_elements=["team_id", "response_hash"], set_=changes)


REMEMBER_RESPONSE = Statement(_remember)


def remember(connection: DriverConnection, team_id: int, response_id: str, total_tokens: int) -> None:
    """Write that a team was given a response that cost so many tokens; the last figure for an id counts."""
    values = {"team_id": team_id, "response_hash": _hash(response_id), "total_tokens": total_tokens}
    REMEMBER_RESPONSE.execute(connection, {**values, "created_at": datetime.now(UTC)})


def tokens_of_response(readers: Readers, team_id: int, response_id: str) -> int | None:
    """Return the total tokens of a response that the team was given; None where it was given no such one.

    Raises StorageUnavailable.
    """
    row = readers.one(FIND_RESPONSE, {"team": team_id, "response_hash": _hash(response_id)})
    return row[0] if row else None


def _hash(response_id: str) -> str:
    """Return a key of one length, whatever the provider takes for an id."""
    return hashlib.sha256(response_id.encode(errors="surrogatepass")).hexdigest()

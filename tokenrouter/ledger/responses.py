"""The responses and items that a team was given, and may name: a named response counts to the prompt."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, select

from tokenrouter.database.connections import Readers
from tokenrouter.database.statements import DriverConnection, Inserter, Statement
from tokenrouter.database.tables import GivenItem, GivenResponse


@dataclass(frozen=True)
class Given:
    """The ids by which a later call may name an answer, or parts of it."""

    response_id: str | None = None
    item_ids: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return self.response_id is not None or bool(self.item_ids)


COLUMNS = ("team_id", "response_hash", "total_tokens", "created_at")
FIND_RESPONSE = Statement(
    select(GivenResponse.total_tokens).where(
        GivenResponse.team_id == bindparam("team"), GivenResponse.response_hash == bindparam("response_hash")
    )
)
FIND_ITEM = Statement(
    select(GivenItem.team_id).where(GivenItem.team_id == bindparam("team"), GivenItem.item_hash == bindparam("hash"))
)


def _remember(insert_or_update: Inserter) -> Any:
    adding = insert_or_update(GivenResponse)
    changes = {name: adding.excluded[name] for name in ("total_tokens", "created_at")}
    values: dict[str, Any] = {name: bindparam(name) for name in COLUMNS}
    return adding.values(values).on_conflict_do_update(index_elements=["team_id", "response_hash"], set_=changes)


def _remember_item(insert_or_update: Inserter) -> Any:
    values: dict[str, Any] = {name: bindparam(name) for name in ("team_id", "item_hash", "created_at")}
    return insert_or_update(GivenItem).values(values).on_conflict_do_nothing()


REMEMBER_RESPONSE = Statement(_remember)
REMEMBER_ITEM = Statement(_remember_item)


def remember(connection: DriverConnection, team_id: int, given: Given, total_tokens: int) -> None:
    """Write what an answer of so many tokens gave to a team; a response that is given again gets the new figure."""
    of_team = {"team_id": team_id, "created_at": datetime.now(UTC)}
    if given.response_id is not None:
        response = {"response_hash": _hash(given.response_id), "total_tokens": total_tokens}
        REMEMBER_RESPONSE.execute(connection, of_team | response)
    for item_id in given.item_ids:
        REMEMBER_ITEM.execute(connection, of_team | {"item_hash": _hash(item_id)})


def tokens_of_response(readers: Readers, team_id: int, response_id: str) -> int | None:
    """Return the total tokens of a response that the team was given; None if it was not given one of this id.

    Raises StorageUnavailable.
    """
    row = readers.one(FIND_RESPONSE, {"team": team_id, "response_hash": _hash(response_id)})
    return row[0] if row else None


def first_unknown_item(readers: Readers, team_id: int, item_ids: Iterable[str]) -> str | None:
    """Return the first of these ids that is of no item the team was given; None if all are.

    Raises StorageUnavailable.
    """
    unknown = (id_ for id_ in item_ids if readers.one(FIND_ITEM, {"team": team_id, "hash": _hash(id_)}) is None)
    return next(unknown, None)


def _hash(given_id: str) -> str:
    """Return a key of fixed length, whatever the length of the provider's id."""
    return hashlib.sha256(given_id.encode(errors="surrogatepass")).hexdigest()

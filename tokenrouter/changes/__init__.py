"""The record of who changed what: written in the transaction of the change itself, and never edited."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Select, insert, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from tokenrouter.database.tables import NAME_LENGTH, Change, Group, Team, clamp_id, db
from tokenrouter.errors import InvalidRequest

PANEL = "panel"
CLI = "cli"
API = "api"
JOIN = "join"
CLOCK = "clock"

TEAM_CREATE = "team.create"
TEAM_UPDATE = "team.update"
TEAM_EXTRA = "team.extra"
TEAM_DELETE = "team.delete"
TEAM_RESTORE = "team.restore"
GROUP_CREATE = "group.create"
GROUP_UPDATE = "group.update"
GROUP_EXTRA = "group.extra"
GROUP_DELETE = "group.delete"
GROUP_RESTORE = "group.restore"
USAGE_RESET = "usage.reset"
USAGE_RESTORE = "usage.restore"
USAGE_REPAIR = "usage.repair"
LOG_PRUNE = "log.prune"
PRICE_SET = "price.set"
PRICE_CORRECT = "price.correct"
PRICE_UNSET = "price.unset"
PRICES_FETCH = "prices.fetch"
ACCOUNT_BALANCE = "account.balance"
TOKEN_CREATE = "token.create"
TOKEN_UPDATE = "token.update"
TOKEN_REVOKE = "token.revoke"
TOKEN_RESTORE = "token.restore"
TOKEN_ROTATE = "token.rotate"
MANAGEMENT_TOKEN_CREATE = "management_token.create"
MANAGEMENT_TOKEN_REVOKE = "management_token.revoke"
CODE_CREATE = "code.create"
CODE_REVOKE = "code.revoke"


class CannotUndo(InvalidRequest):
    """A change cannot be taken back, since what it changed has been changed again."""


@dataclass(frozen=True)
class Actor:
    """Who makes a change: `kind` is panel, cli, api, join, or clock for what the service does on its own.

    `detail` is an address, `user@host`, a token's label, or the setting that says so.

    All that is recorded of an actor with a `batch` was done at once.
    """

    kind: str
    detail: str
    batch: str | None = None

    def at_once(self) -> "Actor":
        """Return the same actor with a batch, a new one if it has none."""
        return self if self.batch else replace(self, batch=uuid4().hex)


@dataclass(frozen=True)
class ChangesPage:
    """A page of changes, newest first, and where the next ones begin."""

    rows: list[Change]
    before_id: int | None
    """The `before_id` of the next page; None if there is no older change."""
    after_id: int | None
    """The `after_id` of the page before; None on the newest page."""
    undone: frozenset[int] = frozenset()
    """Those of them that were taken back."""


@dataclass(frozen=True)
class Changed:
    """What changed about a team, a group, or neither.

    `before` and `after` hold the changed fields alone, as JSON can tell them; the name is the one before the change.
    """

    team_id: int | None
    team_name: str | None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    group_id: int | None = None
    group_name: str | None = None
    undoes_id: int | None = None
    """The change that this one takes back."""

    @classmethod
    def of(
        cls,
        kind: type[Team | Group],
        id_: int,
        name: str,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> "Changed":
        """Return what changed of a row of this kind."""
        if kind is Group:
            return cls(None, None, before, after, id_, name)
        return cls(id_, name, before, after)


def record(connection: Session | Connection, by: Actor, action: str, *changed: Changed) -> None:
    """Record a change of one or several teams or groups, in the transaction that makes it.

    What is done to several at once has one `batch`. No secret may be in it.
    """
    who = {"at": datetime.now(UTC), "actor_kind": by.kind, "actor_detail": by.detail[:NAME_LENGTH], "action": action}
    who["batch"] = by.at_once().batch if len(changed) > 1 else by.batch
    if changed:
        connection.execute(insert(Change), [who | vars(each) for each in changed])


def page(
    before_id: int | None = None,
    after_id: int | None = None,
    limit: int = 50,
    team_id: int | None = None,
    group_id: int | None = None,
) -> ChangesPage:
    """Return the changes next older than `before_id`, or next newer than `after_id`, or the newest, detached.

    They are those of a team or of a group, or all.
    """
    query = select(Change)
    if team_id is not None:
        query = query.where(Change.team_id == clamp_id(team_id))
    if group_id is not None:
        query = query.where(Change.group_id == clamp_id(group_id))
    return paged(query, before_id, after_id, limit)


def paged(query: Select[Change], before_id: int | None, after_id: int | None, limit: int) -> ChangesPage:
    """Return a page of the changes that a query selects, likewise."""
    query = query.limit(limit + 1)
    with Session(db.engine) as session:
        if after_id is not None:
            above = list(session.scalars(query.where(Change.id > clamp_id(after_id)).order_by(Change.id)))
            if len(above) > limit:
                rows = above[:limit][::-1]
                return ChangesPage(rows, rows[-1].id, rows[0].id, undone_of(session, rows))
            before_id = None  # what is above does not fill a page: the newest page has it
        if before_id is not None:
            query = query.where(Change.id < clamp_id(before_id))
        rows = list(session.scalars(query.order_by(Change.id.desc())))
        older = rows[limit - 1].id if len(rows) > limit else None
        newer = None if before_id is None else before_id - 1
        return ChangesPage(rows[:limit], older, newer, undone_of(session, rows))


def undone_of(session: Session, rows: list[Change]) -> frozenset[int]:
    """Return the ids of those that were taken back."""
    undoing = select(Change.undoes_id).where(Change.undoes_id.in_([row.id for row in rows]))
    return frozenset(undone_id for undone_id in session.scalars(undoing) if undone_id is not None)

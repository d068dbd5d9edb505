"""Create, change and delete groups, whose teams share limits.

Every function is one transaction, which records who made the change, and commits. A group is identified by its name,
or by its id, which is an int.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy import update as update_rows
from sqlalchemy.orm import Session

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.tables import Group, Team
from tokenrouter.errors import InvalidRequest
from tokenrouter.periods import NEVER_RENEWS, Renewal
from tokenrouter.teams.limits import (
    KEEP,
    NOTHING_EXPECTED,
    Keep,
    change_limits,
    changed_between,
    check_expected,
    described,
)
from tokenrouter.teams.lookup import changing, find_group_in
from tokenrouter.teams.names import check_name, unique_name

NO_GROUP = "none"


def create(
    name: str,
    quota_tokens: int | None = None,
    *,
    renewal: Renewal = NEVER_RENEWS,
    by: Actor,
    **limits: int | None,
) -> Group:
    """Create a group without teams; `limits` has those of PACES, and `budget`.

    Raises InvalidRequest and NameTaken.
    """
    group = Group(name=_check_name(name), created_at=datetime.now(UTC))
    with unique_name("group", group.name), changing() as session:
        session.add(group)
        session.flush()
        change_limits(session, group, quota_tokens, renewal, **limits)
        changes.record(
            session, by, changes.GROUP_CREATE, Changed.of(Group, group.id, group.name, after=described(group))
        )
    return group


def _check_name(name: str) -> str:
    name = check_name(name, "group")
    if name.lower() == NO_GROUP:
        raise InvalidRequest(f"A group is not called {name!r}, which stands for no group.", param="name")
    return name


def update(
    which: str | int,
    *,
    by: Actor,
    rename: str | None = None,
    quota_tokens: int | Keep | None = KEEP,
    renewal: Renewal | Keep = KEEP,
    expected: Mapping[str, Any] = NOTHING_EXPECTED,
    **limits: int | None,
) -> Group:
    """Change what is given and nothing else; `limits` has those of PACES, and `budget`; `expected` is as of teams.

    Raises InvalidRequest, NotFound, NameTaken and ChangedMeanwhile.
    """
    with unique_name("group", rename or str(which)), changing() as session:
        group = find_group_in(session, which, locked=True)
        before = described(group)
        check_expected(before, expected)
        if rename is not None:
            group.name = _check_name(rename)
        change_limits(session, group, quota_tokens, renewal, **limits)
        if changed := changed_between(before, described(group)):
            changes.record(session, by, changes.GROUP_UPDATE, Changed.of(Group, group.id, before["name"], *changed))
    return group


def delete(which: str | int, *, by: Actor) -> Group:
    """Delete a group; its teams stay, without a group. Calls that are held in it are booked in it as they end.

    Raises NotFound.
    """
    with changing() as session:
        group = find_group_in(session, which, locked=True)
        changes.record(session, by, changes.GROUP_DELETE, mark_deleted(session, group))
    return group


def mark_deleted(session: Session, group: Group) -> Changed:
    """Delete a locked group, and take its teams out; they are recorded, since undoing puts them back."""
    theirs = select(Team.id, Team.name).where(Team.group_id == group.id, Team.deleted_at.is_(None))
    members = session.execute(theirs.order_by(Team.id).with_for_update(key_share=True)).all()
    ids = [member.id for member in members]
    session.execute(update_rows(Team).where(Team.id.in_(ids)).values(group_id=None))
    group.deleted_at = datetime.now(UTC)
    lost = {"used_tokens": group.used_tokens, "teams": [member.name for member in members], "team_ids": ids}
    return Changed.of(Group, group.id, group.name, described(group) | lost)

"""Take changes of teams, groups and tokens back, for a while: each at most once, and never over a later change.

What takes a change back is a change of its own, which can be taken back likewise.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from flask import current_app
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tokenrouter import changes, ledger
from tokenrouter.changes import Actor, CannotUndo, Changed
from tokenrouter.database.tables import PACES, ApiToken, Change, Group, Team, clamp_id
from tokenrouter.money import parse_amount
from tokenrouter.teams import groups as group_store
from tokenrouter.teams import teams as team_store
from tokenrouter.teams.api_tokens import token_fields
from tokenrouter.teams.limits import KEEP, change_limits, described
from tokenrouter.teams.lookup import changing
from tokenrouter.teams.renewals import parse_renewal

UNDO_DAYS = 30
DELETED = "It was deleted since."
RESETS = changes.USAGE_RESET, changes.USAGE_RESTORE
Row = TypeVar("Row", Team, Group)
WORDS = {"quota_tokens": "quota", "active": "state", "renews": "renewal"}


class NotAllUndone(CannotUndo):
    """Some changes cannot be taken back, so none was; it says which, why, and which others could be."""

    def __init__(self, reasons: list[tuple[Change, str]], possible: list[int]) -> None:
        super().__init__(reasons[0][1])
        self.reasons = reasons
        self.possible = possible


@dataclass
class _Rows:
    """The rows that the changes are about, locked."""

    session: Session
    teams: dict[int, Team]
    groups: dict[int, Group]
    named: dict[tuple[type[Team | Group], str], int]
    """The present owners of the names to be restored."""
    resets: dict[int, Changed | CannotUndo] = field(default_factory=dict)
    """The results of taking back resets, which is done first."""
    restored: dict[datetime, list[int]] = field(default_factory=dict)
    """The teams that come back, by the moment at which they were deleted."""
    removed: list[Team] = field(default_factory=list)
    """Those that are deleted again."""

    def team(self, change: Change) -> Team:
        """Return the living team that was changed."""
        return _living(self.teams[change.team_id or 0])

    def group(self, change: Change) -> Group:
        """Return the living group that was changed."""
        return _living(self.groups[change.group_id or 0])

    def fields(self, row: Team | Group) -> dict[str, Any]:
        """Return what people set of a row, as the record of changes has it."""
        if not isinstance(row, Team):
            return described(row)
        if "group_name" not in vars(row):  # a write expires it
            self.session.refresh(row, ["group_name"])
        return team_store.fields_of(row)

    def has_group(self, group_id: int | None) -> bool:
        """Tell whether a team may be put into this group."""
        return group_id in self.groups and self.groups[group_id].deleted_at is None


def _living(row: Row) -> Row:
    if row.deleted_at is not None:
        raise CannotUndo(DELETED)
    return row


def can_undo(change: Change) -> bool:
    """Tell whether a change is of a kind and an age that can be taken back, if nothing else came after."""
    before, after = change.before or {}, change.after or {}
    is_complete = {  # records from before changes could be taken back lack ids
        changes.TOKEN_REVOKE: "token_id" in before,
        changes.GROUP_DELETE: "team_ids" in before,
        changes.TEAM_UPDATE: all(fields.get("group") is None or "group_id" in fields for fields in (before, after)),
    }
    is_young = change.at >= datetime.now(UTC) - timedelta(days=UNDO_DAYS)
    return is_young and change.action in UNDOING and is_complete.get(change.action, True)


def undo(change_ids: Sequence[int], *, by: Actor) -> list[Change]:
    """Take changes back, all or none, and return them, the newest first; those that were taken back are passed over.

    Raises NotAllUndone if one cannot be, and CannotUndo where there is none to take back.
    """
    try:
        with changing() as session:
            return _undo(session, [clamp_id(id_) for id_ in change_ids], by.at_once())
    except IntegrityError as error:
        raise CannotUndo("Somebody else changed the same at this very moment. Try again.") from error


def _undo(session: Session, change_ids: Sequence[int], by: Actor) -> list[Change]:
    found = list(session.scalars(select(Change).where(Change.id.in_(change_ids)).order_by(Change.id.desc())))
    rows = _lock(session, found)
    undone = set(session.scalars(select(Change.undoes_id).where(Change.undoes_id.in_(change_ids))))
    found = [change for change in found if change.id not in undone]
    if not found:
        raise CannotUndo("This was taken back already." if undone else "There is no such change.")
    resets = [change for change in found if change.action in RESETS and can_undo(change)]
    rows.resets.update(ledger.undo_resets(session.connection(), resets))
    made: defaultdict[str, list[Changed]] = defaultdict(list)
    reasons, possible = [], []
    for change in found:
        try:
            action, changed = _take_back(rows, change)
        except CannotUndo as error:
            reasons.append((change, str(error)))
        else:
            made[action].append(changed)
            possible.append(change.id)
    if reasons:
        raise NotAllUndone(reasons, possible)
    _restore_tokens(rows)
    team_store.mark_deleted(session, rows.removed)
    session.flush()
    session.expunge_all()  # nobody reads these rows again
    for action, several in made.items():
        changes.record(session, by, action, *several)
    return found


def _take_back(rows: _Rows, change: Change) -> tuple[str, Changed]:
    """Undo one change; return what is recorded of it."""
    if change.action not in UNDOING:
        raise CannotUndo("Changes of this kind cannot be taken back.")
    if not can_undo(change):
        raise CannotUndo(f"Changes can be taken back for {UNDO_DAYS} days.")
    action, take_back = UNDOING[change.action]
    changed = take_back(rows, change)
    return action, Changed(**vars(changed) | {"undoes_id": change.id})


def _lock(session: Session, found: Sequence[Change]) -> _Rows:
    """Lock whatever the changes are about: groups first, each kind in the order of ids, as all do."""
    if any(change.action in RESETS for change in found):
        ledger.keep_corrections_out(session.connection())
    team_ids = {change.team_id for change in found if change.team_id is not None}
    group_ids = {change.group_id for change in found if change.group_id is not None}
    for change in found:
        before = change.before or {}
        group_ids |= {before["group_id"]} if before.get("group_id") is not None else set()
        team_ids |= set(before.get("team_ids", ()))
    restored = [change.team_id for change in found if change.action == changes.TEAM_DELETE]
    group_ids |= set(session.scalars(select(Team.group_id).where(Team.id.in_(restored), Team.group_id.is_not(None))))
    groups = select(Group).where(Group.id.in_(group_ids)).order_by(Group.id).with_for_update(key_share=True)
    teams = select(Team).where(Team.id.in_(team_ids)).order_by(Team.id).with_for_update(key_share=True)
    by_id = {group.id: group for group in session.scalars(groups)}
    return _Rows(
        session,
        {team.id: team for team in session.scalars(teams)},
        by_id,
        _named(session, Team, found) | _named(session, Group, found),
    )


def _named(
    session: Session, kind: type[Team | Group], found: Sequence[Change]
) -> dict[tuple[type[Team | Group], str], int]:
    """Return the living owners of the names in the changes."""
    names = {name for change in found if (name := (change.before or {}).get("name")) is not None}
    query = select(kind.name, kind.id).where(kind.name.in_(names), kind.deleted_at.is_(None))
    return {(kind, name): id_ for name, id_ in session.execute(query)}


# what sets fields back


def _set_back(rows: _Rows, change: Change) -> Changed:
    row = rows.team(change) if change.team_id is not None else rows.group(change)
    fields = rows.fields(row)
    before, after = change.before or {}, change.after or {}
    for name in after:
        key = "group_id" if name == "group" else name  # a group may have another name by now
        if fields.get(key) != after.get(key):
            raise CannotUndo(f"Its {WORDS.get(name, name.replace('_', ' '))} was changed since.")
    if "name" in before:
        _take_name(rows, row, before["name"])
        row.name = before["name"]
    if isinstance(row, Team):
        _set_back_team(rows, row, ({"mail": None} if "mail" in after else {}) | before)
    others = {name: before[name] for name in PACES if name in before}
    if "budget" in before:
        others["budget"] = None if before["budget"] is None else parse_amount(before["budget"])
    renewal = parse_renewal(before["renews"]) if "renews" in before else KEEP
    change_limits(rows.session, row, before.get("quota_tokens", KEEP), renewal, **others)
    extra = {"group": rows.groups[before["group_id"]].name} if before.get("group_id") else {}
    return Changed.of(type(row), row.id, fields["name"], {name: fields.get(name) for name in after}, before | extra)


def _set_back_team(rows: _Rows, team: Team, before: dict[str, Any]) -> None:
    if "group" in before:
        if before["group"] is not None and not rows.has_group(before.get("group_id")):
            raise CannotUndo(f"The group {before['group']!r} is not there any more.")
        team.group_id = before.get("group_id")
    if "active" in before:
        team.active = bool(before["active"])
    if "models" in before:
        team.models = before["models"]
    if "mail" in before:
        team.mail = before["mail"]


def _take_name(rows: _Rows, row: Team | Group, name: str) -> None:
    kind = type(row)
    if rows.named.setdefault((kind, name), row.id) != row.id:
        raise CannotUndo(f"Another {kind.__name__.lower()} is called {name!r} by now.")


# what brings back, and removes again


def _restore_team(rows: _Rows, change: Change) -> Changed:
    """Bring back a team, in its group if that lives, with the tokens that its deletion revoked."""
    team = rows.teams[change.team_id or 0]
    if team.deleted_at is None:
        raise CannotUndo("It is there already.")
    _take_name(rows, team, team.name)
    fields = rows.fields(team)
    if not rows.has_group(team.group_id):
        team.group_id = None
        fields = {name: value for name, value in fields.items() if name != "group_id"} | {"group": None}
    rows.restored.setdefault(team.deleted_at, []).append(team.id)
    team.deleted_at = None
    return Changed(team.id, team.name, after=fields)


def _restore_tokens(rows: _Rows) -> None:
    """Restore the tokens that were revoked with their teams."""
    for deleted_at, team_ids in rows.restored.items():
        were_revoked = ApiToken.team_id.in_(team_ids), ApiToken.revoked_at == deleted_at
        tokens = update(ApiToken).where(*were_revoked).values(revoked_at=None)
        rows.session.execute(tokens.execution_options(synchronize_session=False))


def _delete_team(rows: _Rows, change: Change) -> Changed:
    rows.removed.append(team := rows.team(change))
    return team_store.lost_with(team)


def _restore_group(rows: _Rows, change: Change) -> Changed:
    """Bring back a group, with those of its teams that are in no group since."""
    group = rows.groups[change.group_id or 0]
    if group.deleted_at is None:
        raise CannotUndo("It is there already.")
    _take_name(rows, group, group.name)
    group.deleted_at = None
    team_ids = (change.before or {})["team_ids"]
    members = [team for id_ in team_ids if (team := rows.teams[id_]).deleted_at is None and team.group_id is None]
    for team in members:
        team.group_id = group.id
    theirs = {"teams": [team.name for team in members], "team_ids": [team.id for team in members]}
    return Changed.of(Group, group.id, group.name, after=described(group) | theirs)


def _delete_group(rows: _Rows, change: Change) -> Changed:
    return group_store.mark_deleted(rows.session, rows.group(change))


def _restore_token(rows: _Rows, change: Change) -> Changed:
    team, token = _token(rows, change, (change.before or {})["token_id"])
    if token.revoked_at is None:
        raise CannotUndo("It is valid already.")
    if token.expires_at is not None and token.expires_at <= datetime.now(UTC):
        raise CannotUndo("It has expired.")
    token.revoked_at = None
    return Changed(team.id, team.name, after=token_fields(token) | {"token_id": token.id})


def _revoke_token(rows: _Rows, change: Change) -> Changed:
    team, token = _token(rows, change, (change.after or {})["token_id"])
    if token.revoked_at is not None:
        raise CannotUndo("It was revoked since.")
    token.revoked_at = datetime.now(UTC)
    return Changed(team.id, team.name, token_fields(token) | {"token_id": token.id})


def _token(rows: _Rows, change: Change, token_id: int) -> tuple[Team, ApiToken]:
    return rows.team(change), rows.session.get_one(ApiToken, token_id)


# what the ledger moved


def _move_marks(rows: _Rows, change: Change) -> Changed:
    outcome = rows.resets[change.id]
    if isinstance(outcome, CannotUndo):
        raise outcome
    return outcome


def _set_extra_back(rows: _Rows, change: Change) -> Changed:
    rows.session.flush()
    return ledger.undo_extra(rows.session.connection(), change, current_app.config["TIMEZONE"])


UNDOING: dict[str, tuple[str, Callable[[_Rows, Change], Changed]]] = {
    changes.TEAM_UPDATE: (changes.TEAM_UPDATE, _set_back),
    changes.GROUP_UPDATE: (changes.GROUP_UPDATE, _set_back),
    changes.TEAM_EXTRA: (changes.TEAM_EXTRA, _set_extra_back),
    changes.GROUP_EXTRA: (changes.GROUP_EXTRA, _set_extra_back),
    changes.TEAM_DELETE: (changes.TEAM_RESTORE, _restore_team),
    changes.TEAM_RESTORE: (changes.TEAM_DELETE, _delete_team),
    changes.GROUP_DELETE: (changes.GROUP_RESTORE, _restore_group),
    changes.GROUP_RESTORE: (changes.GROUP_DELETE, _delete_group),
    changes.TOKEN_REVOKE: (changes.TOKEN_RESTORE, _restore_token),
    changes.TOKEN_RESTORE: (changes.TOKEN_REVOKE, _revoke_token),
    changes.USAGE_RESET: (changes.USAGE_RESTORE, _move_marks),
    changes.USAGE_RESTORE: (changes.USAGE_RESET, _move_marks),
}
"""By kind of change: the kind recorded for taking it back, and the function that does it."""

"""Say what was done, with a button that takes it back."""

from collections.abc import Sequence

from flask import flash
from markupsafe import Markup

from tokenrouter import changes
from tokenrouter.admin.formats import action_words, quoted
from tokenrouter.changes import Actor, listing
from tokenrouter.database.tables import Change

UNDO = "undo"
"""The category of what follows a message: the batch that its button takes back."""


def say(message: str, by: Actor) -> None:
    """Have the next page say what somebody did just now; where it changed anything, it can be taken back there."""
    flash(message, "success")
    if by.batch and listing.ids_of_batch(by.batch):
        flash(by.batch, UNDO)


def name_of(change: Change) -> Markup:
    """Name what a change was about, as it was called."""
    return quoted(change.team_name or change.group_name or "")


def outcome(undone: Sequence[Change]) -> Markup:
    """Say what was taken back."""
    owners = {(change.team_id, change.group_id) for change in undone}
    kind = "teams" if all(change.group_id is None for change in undone) else "teams and groups"
    whom = name_of(undone[0]) if len(owners) == 1 else f"{len(owners):,} {kind}"
    what = {action_words(change.action) for change in undone}
    return Markup("Undone for {}: {}.").format(whom, ", ".join(sorted(what)))


def removes_again(undone: Sequence[Change]) -> bool:
    """Tell whether what was taken back had brought a team or a group back."""
    return any(change.action in (changes.TEAM_RESTORE, changes.GROUP_RESTORE) for change in undone)

"""Actions on several teams at once: confirmed first, and done by the domain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tokenrouter import ledger, teams
from tokenrouter.admin.formats import quoted
from tokenrouter.changes import Actor
from tokenrouter.database.tables import Team, db
from tokenrouter.figures import counted


@dataclass(frozen=True)
class BulkAction:
    """A button: what it says, alone and before whom it is about, what it will do in words, and what does it.

    `perform` returns how many teams it changed.
    """

    label: str
    verb: str
    will_do: str
    done: str
    perform: Callable[[Sequence[int], Actor], int]
    is_dangerous: bool = False


def _reset(team_ids: Sequence[int], by: Actor) -> int:
    return ledger.reset(db.engine, team_ids, by=by)


def _enable(team_ids: Sequence[int], by: Actor) -> int:
    return len(teams.set_active(team_ids, True, by=by))


def _disable(team_ids: Sequence[int], by: Actor) -> int:
    return len(teams.set_active(team_ids, False, by=by))


def _delete(team_ids: Sequence[int], by: Actor) -> int:
    return len(teams.delete_several(team_ids, by=by))


ACTIONS = {
    "reset": BulkAction(
        "Reset usage",
        "Reset usage of",
        "What is used counts from zero again, so the whole quota is free. The log and the charts stay as they are; "
        "calls in flight are charged to the new count.",
        "Usage reset",
        _reset,
    ),
    "enable": BulkAction("Enable", "Enable", "Calls are let through again from the next one on.", "Enabled", _enable),
    "disable": BulkAction(
        "Disable",
        "Disable",
        "Calls are refused with status 403 from the next one on; calls in flight finish. Tokens and usage stay.",
        "Disabled",
        _disable,
        is_dangerous=True,
    ),
    "delete": BulkAction(
        "Delete",
        "Delete",
        "All tokens stop working with the next call. Calls in flight finish and are booked; the log keeps its rows and "
        "the name, and the name becomes free. For 30 days this can be undone, as long as nobody takes the name.",
        "Deleted",
        _delete,
        is_dangerous=True,
    ),
}

EDITS = ("quota", "edit")
"""What leads to the pages that change several teams: what is typed for their quotas, or more."""


def count(number: int) -> str:
    """Write a number of teams."""
    return counted(number, "team")


def outcome(action: BulkAction, chosen: Sequence[Team], changed: int) -> Markup:
    """Say what was done, naming the team where it is one."""
    same = len(chosen) - changed
    if same and changed:
        return Markup("{}: {}; {:,} were so already.").format(action.done, count(changed), same)
    whom = quoted(chosen[0].name) if len(chosen) == 1 else count(len(chosen))
    return Markup("{}: {}.").format(action.done if changed else "Nothing to change", whom)

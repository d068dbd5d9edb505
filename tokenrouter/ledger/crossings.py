"""Write an alert when a settlement crosses a share of a quota or budget, in the same transaction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from sqlalchemy import bindparam, select

from tokenrouter.database.statements import DriverConnection, Inserter, Statement
from tokenrouter.database.tables import Alert, Group, Team

PERCENTS = (80, 95, 100)
BEGUN = "begun"

Kind = type[Team | Group]
What = Literal["quota", "budget"]


class Counted(NamedTuple):
    """What the UPDATE of a row's counters returns, so that no other statement is needed to see a crossing."""

    settled_tokens: int
    reset_mark_tokens: int
    quota_tokens: int | None
    extra_tokens: int
    settled_cost: int
    reset_mark_cost: int
    budget: int | None
    extra_budget: int


@dataclass(frozen=True)
class Share:
    """How much of a quota, or of a budget in billionths, is used, and the reset mark from which that counts."""

    what: What
    used: int
    allowance: int
    mark: int

    @property
    def percent(self) -> int:
        """The highest of PERCENTS that is reached; 0 if none is."""
        return _reached(self.used, self.allowance)

    def crossed_by(self, change: int) -> int:
        """Return the highest of PERCENTS that the last `change` of use crossed; 0 if none."""
        percent = self.percent
        return percent if percent > _reached(self.used - change, self.allowance) else 0

    def once(self, kind: Kind, id_: int, percent: int) -> str:
        """Return the key by which a crossing alerts once; a renewal, a reset or another quota gives another key."""
        return f"{kind.__tablename__}:{id_}:{self.what}:{percent}:{self.mark}:{self.allowance}"


def _reached(used: int, allowance: int) -> int:
    """Return the highest of PERCENTS that `used` is of a quota or budget above 0; 0 if none."""
    return max((percent for percent in PERCENTS if used * 100 >= allowance * percent), default=0)


def shares(counted: Counted) -> Iterator[Share]:
    """Yield the shares of quota and budget that are used, for limits above zero.

    Values that somebody edited and cannot be read are skipped: calls are settled all the same.
    """
    limits: tuple[tuple[What, tuple[Any, ...]], ...] = ("quota", counted[:4]), ("budget", counted[4:])
    for what, (settled, mark, limit, extra) in limits:
        if type(limit) is type(extra) is type(settled) is type(mark) is int and limit + extra > 0:
            yield Share(what, settled - mark, limit + extra, mark)


def counted_columns(table: Kind) -> list[Any]:
    """Return the columns of `Counted`."""
    return [getattr(table, name) for name in Counted._fields]


def note_crossings(
    connection: DriverConnection, kind: Kind, id_: int, counted: tuple[Any, ...], changes: Mapping[str, int]
) -> None:
    """Write an alert if these changes crossed a share of the quota, and one for the budget; of several the highest.

    `counted` has the fields of `Counted`. Every settlement comes here, and nearly all return at once.
    """
    if _is_far(*counted[:4]) and _is_far(*counted[4:]):
        return
    for share in shares(Counted(*counted)):
        change = changes["settled_change" if share.what == "quota" else "cost_change"]
        if change and (percent := share.crossed_by(change)):
            add_crossing(connection, kind, id_, share, percent)


def _is_far(settled: Any, mark: Any, limit: Any, extra: Any) -> bool:
    """Tell that no share is reached; False if one is, or if a value cannot be read."""
    if limit is None:
        return True
    are_read = type(limit) is int and type(extra) is int and type(settled) is int and type(mark) is int
    return are_read and (settled - mark) * 100 < (limit + extra) * PERCENTS[0]


def add_crossing(connection: DriverConnection, kind: Kind, id_: int, share: Share, percent: int) -> None:
    """Write the alert of a crossing, unless it was written before, or its owner was deleted."""
    owner = DESCRIBE[kind].execute(connection, {"owner": id_}).fetchone()
    if owner is None:
        return
    name, renews_at = owner
    values = {
        "uid": uuid4().hex,
        "kind": share.what,
        "once": share.once(kind, id_, percent),
        "at": datetime.now(UTC),
        "team_id": id_ if kind is Team else None,
        "group_id": id_ if kind is Group else None,
        "percent": percent,
        "details": {"name": name, "used": share.used, "allowance": share.allowance, "renews_at": renews_at},
        "to_hand_out": BEGUN,
    }
    ADD_ALERT.execute(connection, values)


def _adding(insert: Inserter) -> Any:
    names = "uid", "kind", "once", "at", "team_id", "group_id", "percent", "details", "to_hand_out"
    return insert(Alert).values({name: bindparam(name) for name in names}).on_conflict_do_nothing()


ADD_ALERT = Statement(_adding)
DESCRIBE = {
    kind: Statement(select(kind.name, kind.renews_at).where(kind.id == bindparam("owner"), kind.deleted_at.is_(None)))
    for kind in (Team, Group)
}

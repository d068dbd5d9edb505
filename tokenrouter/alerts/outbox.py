"""Write down what is to be told: once for as long as it lasts, and that it is over."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, case, delete, or_, select, update
from sqlalchemy.engine import Engine

from tokenrouter.alerts.kinds import OVER, TELLS_END, Kind
from tokenrouter.database.engine import writing
from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import Alert, AnyRow, Delivery, clamp_id
from tokenrouter.ledger.crossings import BEGUN

BOTH = "both"
KEPT = timedelta(days=366)


def begin(
    engine: Engine,
    kind: Kind,
    once: str,
    details: dict[str, Any],
    *,
    team_id: int | None = None,
    group_id: int | None = None,
) -> bool:
    """Write an alert, unless one of this name stands already; return whether it was written.

    One that ended by this name lasts again, untold.
    """
    with engine.connect() as connection:  # mostly it stands, and nothing has to be written
        known = connection.execute(select(Alert.ended_at).where(Alert.once == once)).first()
    if known is not None:
        if known.ended_at is not None:
            reopen(engine, [once])
        return False
    values = {"team_id": team_id, "group_id": group_id, "details": details, "at": datetime.now(UTC)}
    insert = inserter(engine)
    adding = insert(Alert).values(uid=uuid4().hex, kind=kind, once=once, to_hand_out=BEGUN, **values)
    with writing(engine) as connection:
        return connection.execute(adding.on_conflict_do_nothing().returning(Alert.id)).first() is not None


def end(engine: Engine, kind: Kind, *, but: Collection[str] = (), keep: bool = False) -> None:
    """End the alerts of a kind that last, but for those of these names, and tell it where that is of use.

    What ended is told again once it begins anew, unless its name is kept.
    """
    ending = [row.id for row in open_alerts(engine, Alert.kind == kind) if row.once not in but]
    if ending:
        _end(engine, ending, {} if keep else {"once": None}, tells=kind in TELLS_END)


def reopen(engine: Engine, names: Collection[str]) -> None:
    """Let alerts last again that ended, by their names, without telling anybody."""
    with writing(engine) as connection:
        connection.execute(update(Alert).where(Alert.once.in_(names)).values(ended_at=None))


def open_alerts(engine: Engine, *conditions: ColumnElement[bool]) -> Sequence[AnyRow]:
    """Return the alerts that last, and that fit."""
    with engine.connect() as connection:
        return connection.execute(select(Alert.__table__).where(Alert.ended_at.is_(None), *conditions)).all()


def end_quietly(engine: Engine, ids: Collection[int]) -> None:
    """End alerts, without telling anybody; they are not told again by the same name."""
    if ids:
        _end(engine, ids, {}, tells=False)


def _end(engine: Engine, ids: Collection[int], values: dict[str, Any], *, tells: bool) -> None:
    if tells:  # also where nobody has been told yet that it began
        values["to_hand_out"] = case((Alert.to_hand_out == BEGUN, BOTH), else_=OVER)
    with writing(engine) as connection:
        still_open = Alert.id.in_(ids), Alert.ended_at.is_(None)
        connection.execute(update(Alert).where(*still_open).values(ended_at=datetime.now(UTC), **values))


def prune(engine: Engine) -> None:
    """Forget alerts that ended more than a year ago, and how they were delivered."""
    is_old = Alert.ended_at < datetime.now(UTC) - KEPT
    with writing(engine, durable=False) as connection:
        connection.execute(delete(Delivery).where(Delivery.alert_id.in_(select(Alert.id).where(is_old))))
        connection.execute(delete(Alert).where(is_old))


def see(engine: Engine, ids: Collection[int] = (), *, up_to: int = 0) -> None:
    """Note that alerts were seen: some, or all that are no newer than one."""
    chosen = or_(Alert.id.in_(map(clamp_id, ids)), Alert.id <= clamp_id(up_to))
    with writing(engine) as connection:
        connection.execute(update(Alert).where(Alert.seen_at.is_(None), chosen).values(seen_at=datetime.now(UTC)))

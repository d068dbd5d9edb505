"""Store alerts to be sent: once for as long as the trouble lasts, and once when it is over."""

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
    """Store an alert, unless one of this name exists; return whether it was stored.

    One of this name that has ended is reopened, without reporting it.
    """
    with engine.connect() as connection:  # mostly it exists, and nothing has to be written
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
    """End the open alerts of a kind except those of these names, and report the end if the kind asks for that.

    If it begins again it is reported again, unless `keep` keeps its name.
    """
    ending = [row.id for row in open_alerts(engine, Alert.kind == kind) if row.once not in but]
    if ending:
        _end(engine, ending, {} if keep else {"once": None}, tells=kind in TELLS_END)


def reopen(engine: Engine, names: Collection[str]) -> None:
    """Reopen ended alerts by their names, without reporting it."""
    with writing(engine) as connection:
        connection.execute(update(Alert).where(Alert.once.in_(names)).values(ended_at=None))


def open_alerts(engine: Engine, *conditions: ColumnElement[bool]) -> Sequence[AnyRow]:
    """Return the open alerts that meet the conditions."""
    with engine.connect() as connection:
        return connection.execute(select(Alert.__table__).where(Alert.ended_at.is_(None), *conditions)).all()


def end_quietly(engine: Engine, ids: Collection[int]) -> None:
    """End alerts without reporting it; the same names are not reported again."""
    if ids:
        _end(engine, ids, {}, tells=False)


def _end(engine: Engine, ids: Collection[int], values: dict[str, Any], *, tells: bool) -> None:
    if tells:  # even if its beginning was not sent yet
        values["to_hand_out"] = case((Alert.to_hand_out == BEGUN, BOTH), else_=OVER)
    with writing(engine) as connection:
        still_open = Alert.id.in_(ids), Alert.ended_at.is_(None)
        connection.execute(update(Alert).where(*still_open).values(ended_at=datetime.now(UTC), **values))


def prune(engine: Engine) -> None:
    """Delete alerts that ended more than a year ago, and their deliveries."""
    is_old = Alert.ended_at < datetime.now(UTC) - KEPT
    with writing(engine, durable=False) as connection:
        connection.execute(delete(Delivery).where(Delivery.alert_id.in_(select(Alert.id).where(is_old))))
        connection.execute(delete(Alert).where(is_old))


def see(engine: Engine, ids: Collection[int] = (), *, up_to: int = 0) -> None:
    """Mark alerts as seen: some, or all up to one."""
    chosen = or_(Alert.id.in_(map(clamp_id, ids)), Alert.id <= clamp_id(up_to))
    with writing(engine) as connection:
        connection.execute(update(Alert).where(Alert.seen_at.is_(None), chosen).values(seen_at=datetime.now(UTC)))

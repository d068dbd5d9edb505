"""Recover calls of dead workers, give extras, and reset usage: for workers, commands, API and panel alike."""

import logging
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    exists,
    false,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Connection, Engine

from tokenrouter import changes, troubles
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.engine import writing
from tokenrouter.database.log_status import INTERRUPTED
from tokenrouter.database.tables import ESTIMATED, MOST_QUOTA_TOKENS, AnyRow, Group, RequestLog, Team, Worker, clamp_id
from tokenrouter.errors import InvalidRequest, NotFound
from tokenrouter.ledger.costs import DOLLARS, KnownPrices
from tokenrouter.ledger.counters import IS_PENDING, marks_of
from tokenrouter.ledger.endings import Ending, Endings
from tokenrouter.ledger.log_rows import IS_ORPHAN, PENDING_CALLS, reservation_of
from tokenrouter.ledger.operations import Settle
from tokenrouter.ledger.rules import Outcome
from tokenrouter.ledger.transaction import Transaction
from tokenrouter.money import MOST_AMOUNT, decimal_string
from tokenrouter.periods import UTC_ZONE
from tokenrouter.troubles import one_line

logger = logging.getLogger(__name__)

RECOVERY_PROMISE_S = 60.0
WORKER_DIED = "the worker that answered it ended before the answer did"
RECOVERY_S = 5.0  # at a time, since this worker has its own lease to renew


def recover(
    engine: Engine,
    dead: Mapping[int, float],
    zone: ZoneInfo = UTC_ZONE,
    currency: str = DOLLARS,
    endings: Endings | None = None,
) -> int:
    """Settle, at the estimate of the prompt and what was saved of the answer, the calls whose workers died.

    `dead` has their leases by worker; a worker that renewed its lease meanwhile is left alone. Calls of workers that
    are no longer in the table are settled too. Each team has its own transaction: one that fails does not stop the
    others, and is tried again. The endings are added to `endings`. Return how many calls were settled.
    """
    with engine.connect() as connection:
        teams = list(connection.execute(select(RequestLog.team_id).where(_is_abandoned(dead)).distinct()).scalars())
    random.shuffle(teams)  # one that cannot be settled must not keep the same others waiting each time
    deadline = time.monotonic() + RECOVERY_S
    settled = 0
    for team_id in teams:
        if time.monotonic() > deadline:
            break
        try:
            ended = _recover_team(engine, team_id, dead, zone, KnownPrices(currency))
        except Exception as error:  # of whatever kind: the other teams' calls still have to be settled
            message = "Calls of team %d that a dead worker left cannot be settled (%s); this is tried again"
            troubles.warn("recovery", message, team_id, one_line(error), traceback_of=error)
            continue
        settled += len(ended)
        if endings is not None:
            endings.add(each._replace(is_recovered=True) for each in ended)
    if dead:
        with writing(engine) as connection:
            is_needed = exists().where(RequestLog.worker_id == Worker.id, IS_PENDING)
            connection.execute(delete(Worker).where(_is_one_of(dead), ~is_needed))
    if settled:
        logger.warning("Settled %d calls of workers that died, at their estimates", settled)
    return settled


def _recover_team(
    engine: Engine, team_id: int, dead: Mapping[int, float], zone: ZoneInfo, prices: KnownPrices
) -> list[Ending]:
    with writing(engine) as connection:
        # a worker that renews its lease at this moment waits, and then finds its calls settled
        connection.execute(select(Worker.id).where(_is_one_of(dead)).order_by(Worker.id).with_for_update())
        calls = connection.execute(PENDING_CALLS.where(RequestLog.team_id == team_id, _is_abandoned(dead))).all()
        tx = Transaction(driver_connection(connection), 0, output_reserve_tokens=0, zone=zone, prices=prices)
        for call in calls:
            _interrupt(call, tx)
        tx.close()
    return tx.endings


def _is_one_of(dead: Mapping[int, float]) -> ColumnElement[bool]:
    """Select the dead workers whose leases have not changed since."""
    return or_(false(), *(and_(Worker.id == id_, Worker.lease_expires_at == lease) for id_, lease in dead.items()))


def _is_abandoned(dead: Mapping[int, float]) -> ColumnElement[bool]:
    is_dead = RequestLog.worker_id.in_(select(Worker.id).where(_is_one_of(dead)))
    return and_(IS_PENDING, or_(IS_ORPHAN, is_dead))


def _interrupt(call: AnyRow, tx: Transaction) -> None:
    total = call.prompt_tokens + call.completion_tokens
    outcome = Outcome(
        status=INTERRUPTED,
        reason=WORKER_DIED,
        charged_tokens=total,
        usage_source=ESTIMATED,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        total_tokens=total,
    )
    Settle(reservation_of(call), outcome).apply(tx)


def add_extra(
    engine: Engine, to: Team | Group, tokens: int = 0, zone: ZoneInfo = UTC_ZONE, *, budget: int = 0, by: Actor
) -> None:
    """Add tokens or money to what a team or group may use until it renews; a negative amount takes some back.

    `budget` is in billionths of the currency.
    Raises NotFound, and InvalidRequest if the extra would become negative or too large.
    """
    kind = type(to)
    with writing(engine) as connection:
        tx = Transaction(driver_connection(connection), worker_id=0, output_reserve_tokens=0, zone=zone)
        is_meant = kind.id == clamp_id(to.id), kind.deleted_at.is_(None)
        name = connection.execute(select(kind.name).where(*is_meant).with_for_update(key_share=True)).scalar()
        if name is None:
            raise NotFound(f"There is no such {kind.__name__.lower()}.")
        counters = tx.groups if kind is Group else tx.teams
        counters.lock(to.id)  # which renews the quota first if it is due
        if (balance := counters.balances.get(to.id)) is None:
            raise InvalidRequest("Its limits cannot be read: somebody edited them in the database. Set them again.")
        before = {"extra_tokens": balance.extra_tokens, "extra_budget": balance.extra_budget}
        after = {"extra_tokens": balance.extra_tokens + tokens, "extra_budget": balance.extra_budget + budget}
        check_extras(**after)
        connection.execute(update(kind).where(kind.id == to.id).values(after))
        action = changes.GROUP_EXTRA if kind is Group else changes.TEAM_EXTRA
        changed = [name for name in before if before[name] != after[name]]
        described = [{name: _described(name, values[name]) for name in changed} for values in (before, after)]
        changes.record(connection, by, action, Changed.of(kind, to.id, name, *described))


def check_extras(extra_tokens: int, extra_budget: int) -> None:
    """Raise InvalidRequest if a period cannot have these extras, the budget in billionths of the currency."""
    if not 0 <= extra_tokens <= MOST_QUOTA_TOKENS:
        most = f"from 0 to {MOST_QUOTA_TOKENS:,} tokens; it would be {extra_tokens:,}."
        raise InvalidRequest(f"The extra of a period is {most}", param="tokens")
    if not 0 <= extra_budget <= MOST_AMOUNT:
        most = f"from 0 to {decimal_string(MOST_AMOUNT)}; it would be {decimal_string(extra_budget)}."
        raise InvalidRequest(f"The extra budget of a period is {most}", param="budget")


def begin_due_periods(connection: Connection, kind: type[Team | Group], ids: Iterable[int], zone: ZoneInfo) -> None:
    """Lock teams or groups, and renew their quotas if due, so that extras are those of the running period."""
    tx = Transaction(driver_connection(connection), worker_id=0, output_reserve_tokens=0, zone=zone)
    for id_ in sorted(ids):
        (tx.groups if kind is Group else tx.teams).lock(id_)


def _described(name: str, value: int) -> int | str | None:
    return decimal_string(value) if name == "extra_budget" else value


def reset(engine: Engine, team_ids: Iterable[int], group_ids: Iterable[int] = (), *, by: Actor) -> int:
    """Start the count of what teams and groups use from zero; calls in flight will be charged to the new count.

    Return how many of them had used anything. Those that had not, and deleted ones, are left alone.
    """
    chosen: list[tuple[type[Team | Group], list[int]]] = [(Group, list(group_ids)), (Team, list(team_ids))]
    with writing(engine) as connection:
        return sum(_reset(connection, kind, ids, by) for kind, ids in chosen if ids)


def _reset(connection: Connection, kind: type[Team | Group], ids: list[int], by: Actor) -> int:
    used = {
        "used_tokens": kind.used_tokens,
        "used_cost": kind.settled_cost - kind.reset_mark_cost,
        "priced_tokens": kind.settled_priced_tokens - kind.reset_mark_priced_tokens,
    }
    columns: list[Any] = [column.label(name) for name, column in used.items()]
    is_meant = kind.id.in_(ids), kind.deleted_at.is_(None), kind.used_tokens != 0
    chosen = select(kind.id, kind.name, *columns).where(*is_meant)
    rows = connection.execute(chosen.order_by(kind.id).with_for_update(key_share=True)).all()
    is_one = kind.id.in_([row.id for row in rows])
    connection.execute(update(kind).where(is_one).values(marks_of(kind)))
    changed = []
    for row in rows:
        before = {name: value for name in used if (value := getattr(row, name))}
        changed.append(Changed.of(kind, row.id, row.name, before, dict.fromkeys(before, 0)))
    changes.record(connection, by, changes.USAGE_RESET, *changed)
    return len(rows)

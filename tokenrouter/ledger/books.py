"""Recover, reset and verify: what a worker, the commands and the panel do alike."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import bindparam, case, delete, func, literal_column, or_, select, update
from sqlalchemy.engine import Engine

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.log_status import INTERRUPTED
from tokenrouter.database.tables import ESTIMATED, AnyRow, RequestLog, Team, UsageDaily, Worker, writing
from tokenrouter.ledger.operations import (
    ABANDONED_CALLS,
    DEAD_WORKERS,
    IS_PENDING,
    NOW,
    WITH_WORKERS,
    Settle,
    Transaction,
    has_abandoned,
    lock_balances,
    reservation_of,
)
from tokenrouter.ledger.rules import Outcome

logger = logging.getLogger(__name__)

LEASE_S = 20.0
RECOVERY_PROMISE_S = 60.0

# not at once: whoever recovers may be at it just now
LOST_CALLS = WITH_WORKERS.where(or_(Worker.id.is_(None), Worker.lease_expires_at < NOW - RECOVERY_PROMISE_S + LEASE_S))


def recover(engine: Engine) -> int:
    """Settle, at the estimate of the prompt and what was saved of the answer, the calls whose workers died.

    Return how many. A worker whose lease ran out is struck off in the same transaction.
    """
    with engine.connect() as connection:
        if not has_abandoned(driver_connection(connection)):
            return 0
    with writing(engine) as connection:
        worker_ids = connection.execute(DEAD_WORKERS.with_for_update(skip_locked=True)).scalars().all()
        calls = connection.execute(ABANDONED_CALLS).all()
        raw = driver_connection(connection)
        balances = lock_balances(raw, {call.team_id for call in calls})
        tx = Transaction(raw, balances, worker_id=0, output_reserve_tokens=0)
        settled = sum(_interrupt(call, tx) for call in calls)
        tx.close()
        connection.execute(delete(Worker).where(Worker.id.in_(worker_ids)))
    if settled:
        logger.warning("Settled %d calls of workers that died, at their estimates", settled)
    return settled


def _interrupt(call: AnyRow, tx: Transaction) -> bool:
    total = call.prompt_tokens + call.completion_tokens
    outcome = Outcome(
        status=INTERRUPTED,
        charged_tokens=total,
        usage_source=ESTIMATED,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        total_tokens=total,
    )
    return Settle(reservation_of(call), outcome).apply(tx)


def reset(engine: Engine, team_ids: Iterable[int], *, by: Actor) -> int:
    """Count the teams' use from now on; calls in flight will be charged to the new count.

    Return how many teams had used anything. Those that had not, and deleted ones, stay as they are.
    """
    chosen = select(Team.id, Team.name, Team.used_tokens.label("used_tokens")).where(
        Team.id.in_(list(team_ids)), Team.deleted_at.is_(None), Team.used_tokens != 0
    )
    with writing(engine) as connection:
        teams = connection.execute(chosen.order_by(Team.id).with_for_update(key_share=True)).all()
        ids = [team.id for team in teams]
        connection.execute(update(Team).where(Team.id.in_(ids)).values(reset_mark_tokens=Team.settled_tokens))
        changed = [Changed(each.id, each.name, {"used_tokens": each.used_tokens}, {"used_tokens": 0}) for each in teams]
        changes.record(connection, by, changes.USAGE_RESET, *changed)
    return len(teams)


@dataclass
class Verification:
    """What `verify` found: a line for each difference, and how much it read."""

    problems: list[str] = field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0


def verify(engine: Engine) -> Verification:
    """Compare every team's counters with the log and with the sums of its days, on one snapshot, while calls go on."""
    started = time.perf_counter()
    found = Verification()
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's transactions are snapshots by themselves
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        logged = {row.team: row for row in connection.execute(LOGGED)}
        held = {team_id: int(tokens) for team_id, tokens in connection.execute(HELD)}
        first_day = min((row.first.date() for row in logged.values()), default=date.min)
        days = {row.team_id: row for row in connection.execute(DAYS, {"first_day": first_day})}
        teams = connection.execute(select(Team.__table__).order_by(Team.id)).all()
        for team in teams:
            differences = _differences(team, logged.get(team.id), held.get(team.id, 0), days.get(team.id))
            if differences:
                found.problems.append(f"{team.name}: {'; '.join(differences)}")
        found.problems += [
            f"{call.team_name}: call {call.request_id} is pending, and its worker has been dead for too long"
            for call in connection.execute(LOST_CALLS)
        ]
    found.rows = sum(row.rows for row in logged.values())
    found.seconds = time.perf_counter() - started
    return found


# Grouped by a sum, so that SQLite reads what it needs once from end to end; led by the teams' index it would jump
# through all of the table.
# What is pending was charged nothing yet.
TEAM = (RequestLog.team_id + literal_column("0")).label("team")
LOGGED = select(
    TEAM,
    func.count().label("rows"),
    func.sum(RequestLog.charged_tokens).label("charged"),
    func.min(RequestLog.charged_tokens).label("least"),
    func.min(RequestLog.created_at).label("first"),
).group_by(TEAM)
HELD = select(TEAM, func.sum(RequestLog.held_tokens)).where(IS_PENDING).group_by(TEAM)
BEFORE_LOG = UsageDaily.day < bindparam("first_day")
DAYS = select(
    UsageDaily.team_id,
    func.sum(case((BEFORE_LOG, UsageDaily.total_tokens), else_=0)).label("before_log"),
    func.sum(case((BEFORE_LOG, 0), else_=UsageDaily.total_tokens)).label("within_log"),
).group_by(UsageDaily.team_id)


def _differences(team: AnyRow, log: AnyRow | None, held: int, days: AnyRow | None) -> list[str]:
    """Return a clause for each claim that does not hold; what is older than the log is in the daily sums alone."""
    charged, least = (int(log.charged), log.least) if log else (0, 0)
    before_log, within_log = (int(days.before_log), int(days.within_log)) if days else (0, 0)
    logged = charged + before_log
    checks = (
        (team.settled_tokens == logged, f"{team.settled_tokens} settled, and {logged} charged in the log"),
        (within_log == charged, f"{within_log} in the daily totals, and {charged} charged in the log"),
        (team.held_tokens == held, f"{team.held_tokens} held, and {held} held by pending calls"),
        (team.held_tokens >= 0, f"{team.held_tokens} held, below zero"),
        (0 <= team.reset_mark_tokens <= team.settled_tokens, f"reset at {team.reset_mark_tokens}, more than settled"),
        (least >= 0, f"a call was charged {least}, below zero"),
    )
    return [problem for holds, problem in checks if not holds]

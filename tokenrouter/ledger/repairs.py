"""Set counters and daily totals to what the log says."""

from collections import Counter
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.engine import Connection, Engine

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.connections import without_time_limit
from tokenrouter.database.engine import writing
from tokenrouter.database.rollups import forget_all
from tokenrouter.database.tables import ApiToken, CostCorrection, Team
from tokenrouter.ledger.comparison import OF_GROUPS, OF_TEAMS, OF_TOKENS, Books, compare, rewrite_days
from tokenrouter.ledger.expected import MARKS, expected_counters
from tokenrouter.ledger.past_totals import wrong_totals
from tokenrouter.ledger.pruning import keep_pruning_out


def repair(engine: Engine, *, by: Actor) -> list[str]:
    """Set counters and daily totals to what the log says; return what changed, a line for each team.

    It is one transaction, during which no call is booked, and is recorded as a change.
    """
    with writing(engine) as connection:
        without_time_limit(connection)
        keep_pruning_out(connection)
        changed = [each for books in (OF_GROUPS, OF_TEAMS) for each in _repair_books(connection, books)]
        changes.record(connection, by, changes.USAGE_REPAIR, *changed)
        wrong = [f"reports: sums of {kind} from {day}" for kind, day in wrong_totals(connection)]
        forget_all(connection)
    return [*map(_describe_change, changed), *wrong]


def _repair_books(connection: Connection, books: Books) -> list[Changed]:
    table: Any = books.kind.__table__
    locked = select(table).order_by(table.c.id).with_for_update(key_share=True)
    rows = {row.id: row for row in connection.execute(locked)}
    compared = compare(connection, books)
    expected = expected_counters(connection, books)
    last_renewal = connection.execute(select(func.max(books.renewals.id))).scalar() or 0
    last_correction = connection.execute(select(func.max(CostCorrection.id))).scalar() or 0
    rewritten = rewrite_days(connection, books, compared)
    if books.kind is Team:
        rewritten += _repair_tokens(connection)
    changed = []
    for id_, row in rows.items():
        own = expected[id_]
        right = {name: getattr(own, name) for name in ("held_tokens", "held_cost", "calls_in_flight")}
        for mark in MARKS:
            settled = getattr(compared.settled[id_], mark.summed)
            reset = own.moved[mark.recorded] if own.is_proven else getattr(row, mark.reset)
            right |= {mark.settled: settled, mark.reset: min(max(reset, 0), settled)}
        before = {name: getattr(row, name) for name in right}
        if before != right or rewritten[id_]:
            connection.execute(update(table).where(table.c.id == id_).values(right))
            after = right | {"daily_totals_rewritten": rewritten[id_], "last_renewal": last_renewal}
            after |= {"last_correction": last_correction}
            changed.append(Changed.of(books.kind, id_, row.name, before, after))
    return changed


def _repair_tokens(connection: Connection) -> Counter[int]:
    """Set the daily totals of tokens to what the log says; return how many by team."""
    teams = dict(connection.execute(select(ApiToken.id, ApiToken.team_id)).all())
    rewritten: Counter[int] = Counter()
    for token_id, days in rewrite_days(connection, OF_TOKENS, compare(connection, OF_TOKENS)).items():
        rewritten[teams.get(token_id, 0)] += days
    return rewritten


def _describe_change(changed: Changed) -> str:
    before, after = changed.before or {}, changed.after or {}
    words = [f"{name} {before[name]:,} → {after[name]:,}" for name in before if before[name] != after[name]]
    if after["daily_totals_rewritten"]:
        words.append(f"{after['daily_totals_rewritten']:,} daily totals")
    whose = changed.team_name or f"group {changed.group_name}"
    return f"{whose}: {', '.join(words)}"

"""Correct what calls cost since a day, because their price was wrong: the log stays, each call gets an entry.

An entry moves daily totals and counters by the difference. If the call belongs to a period that is over, the entry
moves the reset mark as well, so that the running period only pays for its own calls.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import String, cast, func, insert, select, update
from sqlalchemy.engine import Connection, Engine

from tokenrouter import changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.engine import lock_table, writing
from tokenrouter.database.log_status import OK, PENDING
from tokenrouter.database.rollups import forget
from tokenrouter.database.tables import (
    BY_PROVIDER,
    AnyRow,
    Change,
    CostCorrection,
    Group,
    GroupRenewal,
    GroupUsageDaily,
    QuotaRenewal,
    RequestLog,
    Team,
    TokenUsageDaily,
    UsageDaily,
)
from tokenrouter.errors import NotFound
from tokenrouter.ledger.comparison import COUNTED_MODEL, DAY, OF_GROUPS, OF_TEAMS, Books, streamed
from tokenrouter.ledger.costs import KnownPrices
from tokenrouter.ledger.undoing import EPOCH, beginnings, resets_of
from tokenrouter.metering.prices import Price
from tokenrouter.money import decimal_string

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Corrected:
    """How many calls were corrected, and by how much in all, in billionths of the currency."""

    calls: int
    cost: int


def correct_costs(engine: Engine, model: str, since: date, *, by: Actor) -> Corrected:
    """Apply the present price of this name to the calls since a day, whatever they cost so far.

    Costs that the provider itself reported stay. Repeating it changes nothing. Raises NotFound.
    """
    while True:
        with engine.connect() as connection:
            state, prices = _state(connection), _prices(connection)
            entries = list(_entries(connection, prices, _named(prices, model), since))
            _keep_periods_above_zero(connection, entries, Team, "team_id", "is_past")
            _keep_periods_above_zero(connection, entries, Group, "group_id", "is_past_of_group")
        with writing(engine) as connection:
            lock_table(connection, CostCorrection)
            if _state(connection) != state or _is_any_gone(connection, entries):
                continue  # a reset, a renewal, a price, another correction came between, or calls were pruned
            _apply(connection, entries)
            corrected = Corrected(len(entries), sum(entry["cost"] for entry in entries))
            recorded = {"model": model, "since": since.isoformat(), "calls": corrected.calls}
            recorded["cost"] = decimal_string(corrected.cost) or "0"
            changes.record(connection, by, changes.PRICE_CORRECT, Changed(None, None, None, recorded))
            return corrected


def _prices(connection: Connection) -> KnownPrices:
    known = KnownPrices()
    known.read(driver_connection(connection))
    return known


def _named(known: KnownPrices, model: str) -> Price:
    price = next((price for price in known.prices.prices if price.model.casefold() == model.casefold()), None)
    if price is None:
        raise NotFound(f"There is no price of {model!r}.")
    return price


def _state(connection: Connection) -> tuple[Any, ...]:
    """Return a fingerprint of all that entries depend on besides the calls."""
    newest = CostCorrection.id, QuotaRenewal.id, GroupRenewal.id, Change.id
    last = [connection.execute(select(func.max(column))).scalar() for column in newest]
    return (_prices(connection).version, *last)


def _is_any_gone(connection: Connection, entries: list[dict[str, Any]]) -> bool:
    """Tell whether some of the calls to correct have left the log."""
    for at in range(0, len(entries), ROWS_AT_ONCE):
        ids = [entry["call_id"] for entry in entries[at : at + ROWS_AT_ONCE]]
        there = select(func.count()).select_from(RequestLog).where(RequestLog.id.in_(ids))
        if connection.execute(there).scalar_one() < len(ids):
            return True
    return False


def _entries(connection: Connection, known: KnownPrices, price: Price, since: date) -> Iterator[dict[str, Any]]:
    """Yield an entry for each call of this price whose cost differs by it."""
    begins, group_begins = _beginnings(connection, OF_TEAMS), _beginnings(connection, OF_GROUPS)
    for call in _calls(connection, since):
        if known.prices.find(call.model) != price:
            continue
        answer_tokens = max(call.completion_tokens, call.total_tokens - call.prompt_tokens)
        cost = price.cost(call.prompt_tokens, call.cached_tokens, answer_tokens)
        is_new = call.cost is None and call.corrections == 0
        more = cost - (call.cost or 0) - int(call.corrected)
        if not more and not is_new:
            continue
        ended = call.created_at + timedelta(milliseconds=call.latency_ms or 0)
        yield {
            "call_id": call.id,
            "team_id": call.team_id,
            "group_id": call.group_id,
            "token_id": call.token_id,
            "day": date.fromisoformat(call.day),
            "model": call.counted_model,
            "cost": more,
            "priced_tokens": call.charged_tokens if is_new else 0,
            "is_past": ended < begins[call.team_id],
            "is_past_of_group": call.group_id is not None and ended < group_begins[call.group_id],
        }


def _calls(connection: Connection, since: date) -> Iterable[AnyRow]:
    """Select the calls since a day whose cost can be above zero or unknown, with their corrections so far."""
    earlier = (
        select(CostCorrection.call_id, func.sum(CostCorrection.cost).label("cost"), func.count().label("entries"))
        .where(CostCorrection.token_id.is_(None))  # set once the call has left the log
        .group_by(CostCorrection.call_id)
        .subquery()
    )
    is_costly = (RequestLog.charged_tokens > 0) | (RequestLog.status == OK)
    query = (
        select(
            RequestLog.id,
            RequestLog.team_id,
            RequestLog.group_id,
            RequestLog.token_id,
            RequestLog.model,
            RequestLog.created_at,
            RequestLog.latency_ms,
            RequestLog.prompt_tokens,
            RequestLog.cached_tokens,
            RequestLog.completion_tokens,
            RequestLog.total_tokens,
            RequestLog.charged_tokens,
            RequestLog.cost,
            DAY,
            COUNTED_MODEL,
            func.coalesce(earlier.c.cost, 0).label("corrected"),
            func.coalesce(earlier.c.entries, 0).label("corrections"),
        )
        .outerjoin(earlier, earlier.c.call_id == RequestLog.id)
        .where(since.isoformat() <= DAY, RequestLog.status != PENDING, RequestLog.cost_source != BY_PROVIDER, is_costly)
    )
    return streamed(connection, query)


def _beginnings(connection: Connection, books: Books) -> defaultdict[int, datetime]:
    """Return when the running period of each began: at its last reset that was not undone, or its last renewal."""
    begins = defaultdict(lambda: EPOCH)
    for owner_id, resets in groupby(resets_of(connection, books), attrgetter("owner_id")):
        begins[owner_id] = beginnings(resets).running
    renewals = select(books.of_renewals, func.max(books.renewals.due_at)).group_by(books.of_renewals)
    for owner_id, at in connection.execute(renewals):
        begins[owner_id] = max(begins[owner_id], datetime.fromtimestamp(at, UTC))
    return begins


def _keep_periods_above_zero(
    connection: Connection, entries: list[dict[str, Any]], kind: type[Team | Group], owner: str, past: str
) -> None:
    """Treat entries as past where they would lower a period below zero: clocks may disagree on when it began."""
    used = dict(connection.execute(select(kind.id, kind.settled_cost - kind.reset_mark_cost)).all())
    changed: defaultdict[int, int] = defaultdict(int)
    for entry in entries:
        changed[entry[owner]] += entry["cost"] * (not entry[past])
    for entry in entries:
        owner_id = entry[owner]
        if owner_id is not None and used.get(owner_id, 0) + changed[owner_id] < 0:
            entry[past] = True


def _apply(connection: Connection, entries: list[dict[str, Any]]) -> None:
    now = datetime.now(UTC)
    for at in range(0, len(entries), ROWS_AT_ONCE):
        some = entries[at : at + ROWS_AT_ONCE]
        rows = [{name: value for name, value in entry.items() if name != "token_id"} | {"at": now} for entry in some]
        connection.execute(insert(CostCorrection), rows)
    _move(connection, Group, "group_id", "is_past_of_group", entries)  # groups before teams: in the order of locks
    _move(connection, Team, "team_id", "is_past", entries)
    _add_to_days(connection, UsageDaily, ("team_id",), entries)
    grouped = [entry for entry in entries if entry["group_id"] is not None]
    _add_to_days(connection, GroupUsageDaily, ("group_id", "team_id"), grouped)
    _add_to_days(connection, TokenUsageDaily, ("token_id",), entries)
    forget(driver_connection(connection), (entry["day"] for entry in entries))


def _move(
    connection: Connection, kind: type[Team | Group], owner: str, past: str, entries: list[dict[str, Any]]
) -> None:
    moves: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for entry in entries:
        if entry[owner] is not None:
            is_past = entry[past]
            values = entry["cost"], entry["priced_tokens"], entry["cost"] * is_past, entry["priced_tokens"] * is_past
            moves[entry[owner]] = [sum(pair) for pair in zip(moves[entry[owner]], values, strict=True)]
    for owner_id, (cost, priced, past_cost, past_priced) in sorted(moves.items()):
        moved = {
            "settled_cost": kind.settled_cost + cost,
            "settled_priced_tokens": kind.settled_priced_tokens + priced,
            "reset_mark_cost": kind.reset_mark_cost + past_cost,
            "reset_mark_priced_tokens": kind.reset_mark_priced_tokens + past_priced,
        }
        connection.execute(update(kind).where(kind.id == owner_id).values(moved))


def _add_to_days(
    connection: Connection,
    table: type[UsageDaily | GroupUsageDaily | TokenUsageDaily],
    owners: tuple[str, ...],
    entries: list[dict[str, Any]],
) -> None:
    sums: defaultdict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        key = (*(entry[name] for name in owners), entry["day"], entry["model"])
        sums[key][0] += entry["cost"]
        sums[key][1] += entry["priced_tokens"]
    for (*ids, day, model), (cost, priced) in sorted(sums.items()):
        is_theirs = [getattr(table, name) == id_ for name, id_ in zip(owners, ids, strict=True)]
        is_meant = *is_theirs, cast(table.day, String) == day.isoformat(), table.model == model
        values = {"cost": table.cost + cost, "priced_tokens": table.priced_tokens + priced}
        connection.execute(update(table).where(*is_meant).values(values))

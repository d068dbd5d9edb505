"""The counters of teams and of groups, as one transaction locks, renews and moves them."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import (
    BigInteger,
    Double,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

from tokenrouter.database.columns import epoch_now
from tokenrouter.database.log_status import PENDING
from tokenrouter.database.statements import DriverConnection, Statement
from tokenrouter.database.tables import (
    LIMITS,
    Group,
    GroupRenewal,
    QuotaRenewal,
    RequestLog,
    Team,
    unreadable_limits,
)
from tokenrouter.ledger.costs import PRICES_VERSION
from tokenrouter.ledger.crossings import counted_columns, note_crossings
from tokenrouter.ledger.pace import MINUTE_NS, Bucket
from tokenrouter.ledger.rules import Balance
from tokenrouter.periods import read_renewal

NO_MOVE = {
    "held_change": 0,
    "settled_change": 0,
    "calls_change": 0,
    "cost_change": 0,
    "priced_change": 0,
    "held_cost_change": 0,
}
NOW = epoch_now()
# literals, not parameters: every call would have to bind them again
NOW_NS = cast(NOW * literal_column("1e9"), BigInteger)
NOTHING = literal_column("0", BigInteger)
MINUTE = literal_column(str(MINUTE_NS), BigInteger)
# a literal, not a parameter: only then can the partial index of pending rows be used
IS_PENDING = RequestLog.status == literal_column(f"'{PENDING}'")
MOST = literal_column(str(10**18), BigInteger)  # keeps a large hold under a lowered limit within the column's range


class Locked(NamedTuple):
    """What is read of a locked row: its limits, as LIMITS has them, and its counters."""

    quota_tokens: int | None
    extra_tokens: int
    renews: str
    renews_on: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    calls_at_once: int | None
    budget: int | None
    extra_budget: int
    name: str
    renews_at: int | None
    renewal_basis: str | None
    used_tokens: int
    """As the row has them, whether the renewal is due or not."""
    used_cost: int
    priced_tokens: int
    held_tokens: int
    held_cost: int
    requests_full_at: int
    tokens_full_at: int
    calls_in_flight: int
    now: float
    prices_version: int | None

    @property
    def is_readable(self) -> bool:
        """Whether its limits are usable: somebody may have edited them in the database."""
        return not unreadable_limits(*self[: len(LIMITS)])


def marks_of(table: type[Team | Group]) -> dict[str, Any]:
    """Return the marks that make use count from zero."""
    return {
        "reset_mark_tokens": table.settled_tokens,
        "reset_mark_cost": table.settled_cost,
        "reset_mark_priced_tokens": table.settled_priced_tokens,
    }


class CounterStatements:
    """The statements for one of the two tables that have counters."""

    def __init__(
        self, table: type[Team | Group], renewals: type[QuotaRenewal | GroupRenewal], owner: InstrumentedAttribute[Any]
    ) -> None:
        """`owner` is the column of the log with the id of a call's team, or group."""
        self.table = table
        self.columns = (
            *(getattr(table, name) for name in LIMITS),
            table.name,
            table.renews_at,
            table.renewal_basis,
            table.settled_tokens - table.reset_mark_tokens,
            table.settled_cost - table.reset_mark_cost,
            table.settled_priced_tokens - table.reset_mark_priced_tokens,
            table.held_tokens,
            table.held_cost,
            table.requests_full_at,
            table.tokens_full_at,
            table.calls_in_flight,
            NOW,
            PRICES_VERSION,
        )
        is_meant = table.id == bindparam("owner")
        self.lock = Statement(select(*self.columns).where(is_meant).with_for_update(key_share=True))
        moves: dict[str, Any] = {
            "held_tokens": table.held_tokens + bindparam("held_change"),
            "settled_tokens": table.settled_tokens + bindparam("settled_change"),
            "calls_in_flight": table.calls_in_flight + bindparam("calls_change"),
            "held_cost": table.held_cost + bindparam("held_cost_change"),
            "settled_cost": table.settled_cost + bindparam("cost_change"),
            "settled_priced_tokens": table.settled_priced_tokens + bindparam("priced_change"),
        }
        is_running = is_meant, or_(table.renews_at.is_(None), table.renews_at > NOW)
        filled = {"tokens_full_at": _tokens_full_at(table)}
        known: dict[str, Any] = {name: bindparam(name) for name in ("requests_full_at", "tokens_full_at")}
        moving, counted = update(table).where(*is_running), counted_columns(table)
        self.move = Statement(moving.values(moves | filled))
        self.move_with_pace = Statement(moving.values(moves | known))
        self.settle = Statement(moving.values(moves | filled).returning(*counted))
        self.settle_with_pace = Statement(moving.values(moves | known).returning(*counted))
        count = select(func.count()).select_from(RequestLog)
        self.count_pending = Statement(count.where(owner == bindparam("owner"), IS_PENDING))
        ended = "due_at", "used_tokens", "used_cost", "priced_tokens", "extra_tokens", "extra_budget"
        recorded: dict[str, Any] = {name: bindparam(name) for name in ended}
        whose: dict[str, Any] = {owner.key: bindparam("owner")}
        self.record_renewal = Statement(insert(renewals).values(**whose, **recorded, renewed_at=bindparam("now")))
        following: dict[str, Any] = {name: bindparam(name) for name in ("renews_at", "renewal_basis")}
        self.set_renewal = Statement(update(table).where(is_meant).values(following))
        anew: dict[str, Any] = {**marks_of(table), "extra_tokens": NOTHING, "extra_budget": NOTHING}
        self.renew = Statement(update(table).where(is_meant).values(following | anew))


def _tokens_full_at(table: type[Team | Group]) -> Any:
    """Return in SQL what `Bucket.correct` makes of `full_at`, for a row that was not locked."""
    taken = bindparam("held_change", type_=BigInteger) + bindparam("settled_change", type_=BigInteger)
    taken_ns = cast(taken, Double) * MINUTE / func.nullif(table.tokens_per_minute, NOTHING)
    flow_ns = cast(case((taken_ns > MOST, MOST), (taken_ns < -MOST, -MOST), else_=taken_ns), BigInteger)
    begin = case((and_(taken > NOTHING, table.tokens_full_at < NOW_NS), NOW_NS), else_=table.tokens_full_at)
    return case(
        (func.coalesce(table.tokens_per_minute, NOTHING) == NOTHING, table.tokens_full_at),
        (begin + flow_ns < NOTHING, NOTHING),
        else_=begin + flow_ns,
    )


OF_TEAMS = CounterStatements(Team, QuotaRenewal, RequestLog.team_id)
OF_GROUPS = CounterStatements(Group, GroupRenewal, RequestLog.group_id)


class Counters:
    """The rows of one table that a transaction locks and moves."""

    def __init__(self, connection: DriverConnection, zone: ZoneInfo, statements: CounterStatements, whose: str) -> None:
        """`zone` is that of the days of renewals; `whose` names a row in refusals, with `{}` for its name."""
        self.balances: dict[int, Balance] = {}
        """By id, of the rows that are locked and whose limits can be read."""
        self._connection = connection
        self._zone = zone
        self._run = statements
        self._whose = whose
        self._moves: defaultdict[int, dict[str, int]] = defaultdict(NO_MOVE.copy)

    def lock(self, id_: int) -> None:
        """Lock a row, and read its limits and counters."""
        if (read := self._locked(id_)) is not None and read.is_readable:
            self.take(id_, read)

    def _locked(self, id_: int) -> Locked | None:
        row = self._run.lock.execute(self._connection, {"owner": id_}).fetchone()
        return row and Locked(*row)

    def take(self, id_: int, read: Locked) -> None:
        """Keep what was read of a locked row, renewed if due, with the moves that are still to be written."""
        read = self._renewed(id_, read)
        balance = self.balances[id_] = Balance(
            self._whose.format(read.name),
            read.quota_tokens,
            read.extra_tokens,
            read.used_tokens,
            read.held_tokens,
            read.renews_at,
            None if read.requests_per_minute is None else Bucket(read.requests_per_minute, read.requests_full_at),
            None if read.tokens_per_minute is None else Bucket(read.tokens_per_minute, read.tokens_full_at),
            read.calls_at_once,
            read.calls_in_flight,
            int(read.now * 10**9),
            read.budget,
            read.extra_budget,
            read.used_cost,
            read.held_cost,
            read.prices_version,
        )
        if (move := self._moves.get(id_)) is not None:
            balance.move(**{name.removesuffix("_change"): change for name, change in move.items()})

    def _renewed(self, id_: int, read: Locked) -> Locked:
        """Renew the quota of a locked row if it is due, and return the row as it is then.

        If the renewal was edited by hand, or the time zone changed, the next renewal is computed again.
        """
        renewal = read_renewal(read.renews, read.renews_on)
        basis, is_due = renewal.basis(self._zone), read.renews_at is not None and read.renews_at <= read.now
        if not is_due and read.renewal_basis == basis:
            return read
        renews_at = renewal.next_after(read.now, self._zone)
        following = {"owner": id_, "renews_at": renews_at, "renewal_basis": basis}
        if not is_due:
            self._run.set_renewal.execute(self._connection, following)
            return read._replace(renews_at=renews_at)
        names = "used_tokens", "used_cost", "priced_tokens", "extra_tokens", "extra_budget"
        ended: dict[str, Any] = {name: getattr(read, name) for name in names}
        ended |= {"owner": id_, "due_at": read.renews_at, "now": read.now}
        self._run.record_renewal.execute(self._connection, ended)
        self._run.renew.execute(self._connection, following)
        anew: dict[str, Any] = {"used_tokens": 0, "used_cost": 0, "extra_tokens": 0, "extra_budget": 0}
        return read._replace(renews_at=renews_at, **anew)

    def move(
        self, id_: int, *, held: int, settled: int = 0, calls: int, cost: int = 0, priced: int = 0, held_cost: int = 0
    ) -> None:
        """Move a row's counters by so much; `priced` are the settled tokens whose cost is known."""
        move = self._moves[id_]
        move["held_cost_change"] += held_cost
        move["cost_change"] += cost
        move["priced_change"] += priced
        move["held_change"] += held
        move["settled_change"] += settled
        move["calls_change"] += calls
        if (balance := self.balances.get(id_)) is not None:
            balance.move(held=held, settled=settled, calls=calls, cost=cost, held_cost=held_cost)

    def recount_calls(self, id_: int) -> None:
        """Correct the number of calls in flight, so that no call is refused for others that have ended."""
        balance = self.balances[id_]
        if balance.is_full:
            (pending,) = self._run.count_pending.execute(self._connection, {"owner": id_}).fetchone()
            self.move(id_, held=0, calls=pending - balance.calls_in_flight)

    def write(self) -> None:
        """Write all moves, in the order that all workers keep to."""
        for id_, changes in sorted(self._moves.items()):
            while not self._move(id_, changes) and (read := self._locked(id_)) is not None:
                # the time to renew has come, also if the clock was set back just now
                self._renewed(id_, read._replace(now=max(read.now, read.renews_at or 0)))

    def _move(self, id_: int, changes: Mapping[str, int]) -> bool:
        """Write a row's counters; return False if the row is gone, or has to be renewed first.

        Of a locked row the new state of the buckets is known. The UPDATE of a settlement returns what crossings need.
        """
        run, values = self._run, {"owner": id_, **changes}
        moving, settling = run.move, run.settle
        if (balance := self.balances.get(id_)) is not None and balance.has_buckets:
            moving, settling = run.move_with_pace, run.settle_with_pace
            values["requests_full_at"] = balance.requests.full_at if balance.requests else 0
            values["tokens_full_at"] = balance.tokens.full_at if balance.tokens else 0
        if not (changes["settled_change"] or changes["cost_change"]):
            return bool(moving.execute(self._connection, values).rowcount)
        counted = settling.execute(self._connection, values).fetchone()
        if counted is not None:
            note_crossings(self._connection, run.table, id_, counted, changes)
        return counted is not None

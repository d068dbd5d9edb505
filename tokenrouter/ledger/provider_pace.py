"""The pace of the whole service at the provider: how many calls a minute all teams may make together, and who is next.

A call needs a place. If one is free and nobody waits, the call takes it; otherwise it waits in a queue that all workers
and machines share. Any process that has locked the row of the pace gives out the places that are free by then.
"""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Integer,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from tokenrouter.database.log_status import REJECTED
from tokenrouter.database.statements import DriverConnection, Inserter, Statement
from tokenrouter.database.tables import ProviderPace, RequestLog, WaitingCall
from tokenrouter.ledger.counters import IS_PENDING, NOW_NS
from tokenrouter.ledger.pace import MINUTE_NS, Bucket

PATIENCE_S = 10.0
SECOND_NS = 10**9
UNSEEN_NS = 5 * SECOND_NS  # a process that has not renewed its waiting calls for so long counts as gone
LATEST_PLACE_NS = 15 * SECOND_NS  # longer than any call waits
MINUTE = timedelta(minutes=1)
MORE_ROWS = 1000  # of refusals among the newest calls


class Waiting(NamedTuple):
    """A call that waits for a place, or was granted one that it has not taken yet."""

    id: int
    worker: str
    team_id: int
    tokens: int
    since: int
    granted_at: int | None = None


class PlacesSeen(NamedTuple):
    """What a process learns about the queue: which of its calls have a place, and when to look again."""

    granted: list[int]
    next_place_ns: int
    """How long until the next place gets free."""


def serving_order(waiting: Iterable[Waiting], used_tokens: Mapping[int, int]) -> Iterator[Waiting]:
    """Yield calls in the order in which they are served: always the oldest call of the team that used fewest tokens.

    `used_tokens` has those of the last minute. What a call holds counts at once, as one token at least: so a team that
    sends many calls waits after each for all teams that used less. Between equal teams the oldest call decides.
    """
    queues: defaultdict[int, deque[Waiting]] = defaultdict(deque)
    for call in sorted(waiting, key=lambda call: (call.since, call.id)):
        queues[call.team_id].append(call)
    turns = [(used_tokens.get(team_id, 0), calls[0].since, calls[0].id, team_id) for team_id, calls in queues.items()]
    heapq.heapify(turns)
    while turns:
        tokens, _, _, team_id = heapq.heappop(turns)
        call = queues[team_id].popleft()
        yield call
        if queues[team_id]:
            following = queues[team_id][0]
            heapq.heappush(turns, (tokens + max(1, call.tokens), following.since, following.id, team_id))


class Places:
    """The places at the provider, as one transaction of the ledger sees them."""

    def __init__(self, connection: DriverConnection, requests_per_minute: int, worker: str) -> None:
        """`worker` names this process among those that have calls waiting."""
        self.requests_per_minute = requests_per_minute
        self._connection = connection
        self._worker = worker
        self._bucket: Bucket | None = None
        self._blocked_until = self._now = 0
        self.waiting = 0
        """How many calls have no place yet, once the pace is locked."""

    def take(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        bucket = self._lock()
        if self.waiting or self.wait_ns() > 0:
            return False
        bucket.take(1, self._now)
        return True

    def wait_ns(self, number: int = 1) -> int:
        """Return how long it takes until so many places, one after the other, have become free."""
        return max(self._blocked_until - self._now, self._lock().wait_one_by_one_ns(number, self._now), 0)

    def enter(self, team_id: int, tokens: int) -> int:
        """Put a call of a team into the queue; return its id there."""
        self._lock()
        values = {"worker": self._worker, "team_id": team_id, "tokens": tokens, "since": self._now}
        row = ENTER.execute(self._connection, values | {"seen_at": self._now}).fetchone()
        self.waiting += 1
        return int(row[0])

    def leave(self, waiting_id: int, *, gives_back: bool) -> None:
        """Remove a call from the queue; it keeps its place if it has one, unless it `gives_back` that."""
        bucket = self._lock()
        row = LEAVE.execute(self._connection, {"waiting_id": waiting_id}).fetchone()
        if row is None:
            return
        if row[0] is None:
            self.waiting = max(0, self.waiting - 1)
        elif gives_back:
            bucket.give_back(1)

    def is_granted(self, waiting_id: int) -> bool:
        """Tell whether a call has a place by now."""
        self._lock()
        row = FIND.execute(self._connection, {"waiting_id": waiting_id}).fetchone()
        return row is not None and row[0] is not None

    def turn_of(self, waiting_id: int) -> int:
        """Return the position of a call in the queue, from 1; behind all others if it no longer waits."""
        order = [call.id for call in self._order(self._read())]
        return order.index(waiting_id) + 1 if waiting_id in order else len(order) + 1

    def give_out(self) -> PlacesSeen:
        """Give free places to the calls whose turn it is, and forget calls whose process is gone."""
        bucket = self._lock()
        SEE.execute(self._connection, {"worker": self._worker, "now": self._now})
        gone = {"unseen_since": self._now - UNSEEN_NS, "entered_by": self._now - LATEST_PLACE_NS}
        FORGET.execute(self._connection, gone)
        calls = self._read()
        self.waiting = sum(call.granted_at is None for call in calls)
        granted = [call for call in calls if call.granted_at is not None]
        if self.waiting and self.wait_ns() == 0:
            for call in self._order(calls):
                if self.wait_ns() > 0:
                    break
                bucket.take(1, self._now)
                GRANT.execute(self._connection, {"waiting_id": call.id, "now": self._now})
                self.waiting -= 1
                granted.append(call)
        return PlacesSeen([call.id for call in granted if call.worker == self._worker], self.wait_ns())

    def block(self, nanoseconds: int) -> None:
        """Send no call to the provider for so long."""
        self._lock()
        self._blocked_until = max(self._blocked_until, self._now + nanoseconds)

    def count_request(self) -> None:
        """Take a place, whether one is free or not, for a request to the provider that is not a call."""
        self._lock().take(1, self._now)

    def close(self) -> None:
        """Write the state of the pace back."""
        if self._bucket is not None:
            values = {"new_full_at": self._bucket.full_at, "until": self._blocked_until, "calls": self.waiting}
            WRITE.execute(self._connection, values)

    def _lock(self) -> Bucket:
        """Lock the pace, so that all that was committed is seen from then on; make its row if there is none."""
        if self._bucket is None:
            row = LOCK.execute(self._connection, {}).fetchone()
            if row is None:
                MAKE.execute(self._connection, {})
                row = LOCK.execute(self._connection, {}).fetchone()
            full_at, blocked_until, self.waiting, self._now = row
            # a moment that lies further ahead was written before the clock was set back
            self._bucket = Bucket(self.requests_per_minute, min(full_at, self._now + 2 * MINUTE_NS))
            self._blocked_until = min(blocked_until, self._now + MINUTE_NS)
        return self._bucket

    def _read(self) -> list[Waiting]:
        return [Waiting(*row) for row in READ.execute(self._connection, {}).fetchall()]

    def _order(self, calls: Iterable[Waiting]) -> Iterator[Waiting]:
        """Yield those without a place in the order of their turns, by what the calls of the last minute cost or hold.

        Calls that were granted a place and have not taken it hold nothing yet, but count as if they did.
        """
        values = {"newest": 2 * self.requests_per_minute + MORE_ROWS, "since": datetime.now(UTC) - MINUTE}
        used = Counter({team_id: int(tokens) for team_id, tokens in USED.execute(self._connection, values).fetchall()})
        waiting = []
        for call in calls:
            if call.granted_at is None:
                waiting.append(call)
            else:
                used[call.team_id] += max(1, call.tokens)
        return serving_order(waiting, used)


THE_ROW = literal_column("1", Integer)
LOCK = Statement(
    select(ProviderPace.full_at, ProviderPace.blocked_until, ProviderPace.waiting, NOW_NS)
    .where(ProviderPace.id == THE_ROW)
    .with_for_update()
)


def _make(insert_or_nothing: Inserter) -> Any:
    zero = literal_column("0", BigInteger)
    making = insert_or_nothing(ProviderPace).values(id=THE_ROW, full_at=zero, blocked_until=zero, waiting=zero)
    return making.on_conflict_do_nothing()


MAKE = Statement(_make)
WRITE = Statement(
    update(ProviderPace)
    .where(ProviderPace.id == THE_ROW)
    .values(full_at=bindparam("new_full_at"), blocked_until=bindparam("until"), waiting=bindparam("calls"))
)
ENTERED = ("worker", "team_id", "tokens", "since", "seen_at")
ENTER = Statement(insert(WaitingCall).values({name: bindparam(name) for name in ENTERED}).returning(WaitingCall.id))
IS_IT = WaitingCall.id == bindparam("waiting_id")
FIND = Statement(select(WaitingCall.granted_at).where(IS_IT))
LEAVE = Statement(delete(WaitingCall).where(IS_IT).returning(WaitingCall.granted_at))
GRANT = Statement(update(WaitingCall).where(IS_IT).values(granted_at=bindparam("now")))
SEE = Statement(
    update(WaitingCall)
    .where(WaitingCall.worker == bindparam("worker"), WaitingCall.granted_at.is_(None))
    .values(seen_at=bindparam("now"))
)
FORGET = Statement(
    delete(WaitingCall).where(
        or_(
            WaitingCall.since < bindparam("entered_by"),
            and_(WaitingCall.seen_at < bindparam("unseen_since"), WaitingCall.granted_at.is_(None)),
        )
    )
)
READ = Statement(select(*(getattr(WaitingCall, name) for name in Waiting._fields)))
# the calls of the last minute are among the newest ids, since the pace lets no more through: no index on time is needed
_tokens = case((IS_PENDING, RequestLog.held_tokens), else_=RequestLog.charged_tokens)
USED = Statement(
    select(RequestLog.team_id, func.sum(case((_tokens > literal_column("1"), _tokens), else_=literal_column("1"))))
    .where(
        RequestLog.id > select(func.coalesce(func.max(RequestLog.id), 0)).scalar_subquery() - bindparam("newest"),
        RequestLog.created_at > bindparam("since"),
        RequestLog.status != literal_column(f"'{REJECTED}'"),
    )
    .group_by(RequestLog.team_id)
)

"""The pace of the paid account: the rate limits that the provider reports, what is free of ours, and who waits."""

from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.engine import Connection, Engine

from tokenrouter.database.engine import writing
from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import ProviderLimit, ProviderPace, WaitingCall
from tokenrouter.ledger.counters import NOW_NS
from tokenrouter.ledger.pace import Bucket
from tokenrouter.ledger.provider_pace import LATEST_PLACE_NS, SECOND_NS, UNSEEN_NS
from tokenrouter.provider.rate_limits import RateLimit, RateLimits

MINUTE = timedelta(minutes=1)


class Keeper:
    """Stores the rate limits that the provider reported to this process, for all processes to see."""

    def __init__(self, engine: Engine, limits: RateLimits) -> None:
        self._engine = engine
        self._limits = limits
        self._kept: list[RateLimit] = []

    def keep(self) -> None:
        """Write what was reported since the last time, unless another process got a later report."""
        newest = self._limits.newest()
        if newest == self._kept:
            return
        with writing(self._engine, durable=False) as connection:
            for limit in newest:
                _keep(connection, limit)
        self._kept = newest


def _keep(connection: Connection, limit: RateLimit) -> None:
    insert = inserter(connection)
    values = {name: value for name, value in vars(limit).items() if name != "kind"}
    adding = insert(ProviderLimit).values(kind=limit.kind, **values)
    is_newer = ProviderLimit.at < adding.excluded.at
    connection.execute(adding.on_conflict_do_update(index_elements=["kind"], set_=values, where=is_newer))


def reported_limits(engine: Engine) -> list[RateLimit]:
    """Return the limits that the provider last reported to any process, of requests and of tokens."""
    with engine.connect() as connection:
        rows = connection.execute(select(ProviderLimit.__table__).order_by(ProviderLimit.kind)).all()
    return [RateLimit(row.kind, row.most, row.remaining, row.resets_at, row.at) for row in rows]


def limits_words(limits: list[RateLimit], zone: ZoneInfo) -> str | None:
    """Say what is left of these limits, with times in a zone; None if there are none."""
    return " and ".join(_left(limit, zone) for limit in limits) or None


def _left(limit: RateLimit, zone: ZoneInfo) -> str:
    of = "" if limit.most is None else f" of {limit.most:,}"
    text = f"{limit.remaining:,}{of} {limit.kind} left"
    if limit.resets_at is None:
        return text
    if limit.resets_at - limit.at <= MINUTE:
        return f"{text} this minute"
    resets_at = limit.resets_at.astimezone(zone)
    return f"{text} until {resets_at.day} {resets_at:%b}, {resets_at:%H:%M}"


@dataclass(frozen=True)
class Queue:
    """The pace of the whole service: what is free now, and how many calls of how many teams wait."""

    requests_per_minute: int
    free: int
    calls: int = 0
    teams: int = 0
    longest_s: float = 0.0
    """How long the first of them has waited."""
    blocked_s: float = 0.0
    """How long the provider still demands a pause."""

    def waiting_words(self) -> str:
        """Say who waits."""
        if not self.calls:
            return "No call waits for the provider’s pace"
        calls = "1 call" if self.calls == 1 else f"{self.calls:,} calls"
        teams = "1 team" if self.teams == 1 else f"{self.teams:,} teams"
        return f"{calls} of {teams} {'waits' if self.calls == 1 else 'wait'} for the provider’s pace"


def queue(engine: Engine, requests_per_minute: int | None) -> Queue | None:
    """Return the present state of the pace; None if no pace is set."""
    if requests_per_minute is None:
        return None
    with engine.connect() as connection:
        pace = connection.execute(select(ProviderPace.__table__, NOW_NS.label("now"))).first()
        if pace is None:
            return Queue(requests_per_minute, requests_per_minute)
        waiting = connection.execute(
            WAITING.where(
                WaitingCall.seen_at > pace.now - UNSEEN_NS,
                WaitingCall.since > pace.now - LATEST_PLACE_NS,
            )
        ).one()
    blocked_s = max(0, pace.blocked_until - pace.now) / SECOND_NS
    return Queue(
        requests_per_minute,
        free=0 if blocked_s else Bucket(requests_per_minute, pace.full_at).remaining(pace.now),
        calls=waiting.calls,
        teams=waiting.teams,
        longest_s=0.0 if waiting.first is None else max(0, pace.now - waiting.first) / SECOND_NS,
        blocked_s=blocked_s,
    )


WAITING = select(
    func.count().label("calls"),
    func.count(WaitingCall.team_id.distinct()).label("teams"),
    func.min(WaitingCall.since).label("first"),
).where(WaitingCall.granted_at.is_(None))

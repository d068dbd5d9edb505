"""All metrics for Prometheus: totals of all processes, the present state of the database, and the account.

Each answer covers the whole service, whichever worker or machine gives it. The log is only read by indices of the few
rows that are in flight or failed recently.
"""

import platform
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import orjson
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from sqlalchemy import case, func, select
from sqlalchemy.engine import Connection, Engine

from tokenrouter import account, account_pace
from tokenrouter.account import NEWEST_CHECK
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.tables import AccountCheck, Group, Job, MetricTotal, RequestLog, Team, Worker
from tokenrouter.ledger.counters import IS_PENDING
from tokenrouter.money import BILLION
from tokenrouter.monitoring.tally import (
    DURATIONS,
    FIRST_BYTES,
    INFINITY,
    MICROSECONDS,
    OVERHEADS,
    Buckets,
)
from tokenrouter.provider.account import State
from tokenrouter.version import VERSION

PREFIX = "tokenrouter_"
MOST_OWNERS = 100
"""Teams, and groups, that have series of their own: those that used most since their last renewal or reset."""

Totals = Mapping[str, Mapping[tuple[str, ...], int]]


@dataclass(frozen=True)
class Counted:
    """A counter: its name, its help text, its labels, and how many stored units make one of its own."""

    name: str
    tells: str
    labels: tuple[str, ...] = ()
    unit: int = 1
    currency: bool = False


COUNTERS = (
    Counted("calls", "Calls that ended, refused ones too, by how they are logged.", ("model", "endpoint", "status")),
    Counted("failed_calls", "Calls that ended with an error code; others' codes are other.", ("status", "code")),
    Counted(
        "tokens",
        "Tokens of calls that were charged; those of a prompt that the provider had cached are not in prompt.",
        ("model", "kind"),
    ),
    Counted("charged_tokens", "Tokens that were charged to quotas.", ("model",)),
    Counted("unpriced_tokens", "Tokens charged of which nobody knows the cost.", ("model",)),
    Counted(
        "cost",
        "What calls cost when they ended, in currency units; later corrections are not in it.",
        ("model",),
        BILLION,
        currency=True,
    ),
    Counted("turned_away_requests", "Requests that were turned away before they were calls.", ("reason",)),
    Counted("recovered_calls", "Calls of workers that died, settled by others."),
    Counted("settlement_retries", "Settlements that failed and were tried again."),
)
STORED_AS = {"turned_away_requests": "turned_away"}
"""The name under which a counter is stored, if not its own."""


@dataclass(frozen=True)
class Observed:
    """A histogram: the name under which it is stored, its own name, its help text, its label and its buckets."""

    stored: str
    name: str
    tells: str
    label: str
    buckets: Buckets


HISTOGRAMS = (
    Observed("duration", "call_duration_seconds", "From a call's arrival to its end.", "model", DURATIONS),
    Observed(
        "first_byte",
        "call_first_byte_seconds",
        "From a call's arrival to the first byte of the provider's answer.",
        "model",
        FIRST_BYTES,
    ),
    Observed(
        "overhead",
        "call_overhead_seconds",
        "What a call took here: from its whole body until the provider was asked, and for its settlement.",
        "stage",
        OVERHEADS,
    ),
)


class Families:
    """The collector that a prometheus_client registry calls for metrics."""

    def __init__(self, engine: Engine, currency: str, requests_per_minute: int | None) -> None:
        """`requests_per_minute` is the pace of the whole service at the provider."""
        self._engine = engine
        self._currency = currency
        self._requests_per_minute = requests_per_minute

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics from the present state of the database."""
        with self._engine.connect() as connection:
            totals = _read_totals(connection)
            metrics = [
                InfoMetricFamily(f"{PREFIX}build", "The version that answers.", value=_build(self._engine)),
                *(self._counter(counted, totals) for counted in COUNTERS),
                *(_histogram(observed, totals) for observed in HISTOGRAMS),
                *_in_flight(connection),
                *_of_owners(connection, Team, "team"),
                *_of_owners(connection, Group, "group"),
                *_workers_and_jobs(connection),
                *_balance(connection),
            ]
        yield from metrics
        yield from self._provider()

    def _counter(self, counted: Counted, totals: Totals) -> CounterMetricFamily:
        more = ("currency",) if counted.currency else ()
        family = CounterMetricFamily(f"{PREFIX}{counted.name}", counted.tells, labels=(*counted.labels, *more))
        found = totals.get(STORED_AS.get(counted.name, counted.name), {})
        for labels, value in sorted(found.items()) or ([] if counted.labels else [((), 0)]):
            amount = value if counted.unit == 1 else value / counted.unit
            family.add_metric((*labels, *((self._currency,) if counted.currency else ())), amount)
        return family

    def _provider(self) -> Iterator[Metric]:
        standing = account.standing(self._engine)
        states = GaugeMetricFamily(
            f"{PREFIX}provider_state", "1 for how the provider's account stands, 0 for all else.", labels=("state",)
        )
        for state in State:
            states.add_metric((state.value,), state is standing.state)
        yield states
        queue = account_pace.queue(self._engine, self._requests_per_minute)
        if queue is not None:
            yield _gauge("provider_free_requests", "Requests that may go to the provider at once.", queue.free)
            yield _gauge("provider_waiting_calls", "Calls that wait for the provider's pace.", queue.calls)


def _build(engine: Engine) -> dict[str, str]:
    return {"version": VERSION, "python": platform.python_version(), "database": engine.dialect.name}


def _gauge(name: str, tells: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", tells, value=value)


def _read_totals(connection: Connection) -> Totals:
    totals: defaultdict[str, dict[tuple[str, ...], int]] = defaultdict(dict)
    for name, labels, value in connection.execute(select(MetricTotal.name, MetricTotal.labels, MetricTotal.value)):
        totals[name][tuple(orjson.loads(labels))] = value
    return totals


def _histogram(observed: Observed, totals: Totals) -> HistogramMetricFamily:
    """Return a histogram; counts at bounds of another version go to the next existing bound."""
    labels = observed.buckets.labels
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(labels))
    for (label, bound), count in totals.get(observed.stored, {}).items():
        at = len(labels) - 1 if bound == INFINITY else bisect_left(observed.buckets.bounds, float(bound))
        counts[label][at] += count
    sums = totals.get(f"{observed.stored}_sum", {})
    family = HistogramMetricFamily(f"{PREFIX}{observed.name}", observed.tells, labels=(observed.label,))
    for label, each in sorted(counts.items()):
        buckets = list(zip(labels, accumulate(each), strict=True))
        family.add_metric((label,), buckets, sums.get((label,), 0) / MICROSECONDS)
    return family


def _in_flight(connection: Connection) -> Iterator[Metric]:
    pending = connection.execute(select(func.count()).select_from(RequestLog).where(IS_PENDING)).scalar_one()
    yield _gauge("calls_in_flight", "Calls that are being answered.", pending)
    held = func.sum(Team.held_tokens), func.sum(Team.held_cost)
    tokens, cost = connection.execute(select(*held)).one()
    yield _gauge("held_tokens", "Tokens that calls in flight hold of quotas.", int(tokens or 0))
    yield _gauge("held_cost", "Money that they hold of budgets, in currency units.", int(cost or 0) / BILLION)


def _of_owners(connection: Connection, table: type[Team | Group], kind: str) -> Iterator[Metric]:
    """Yield what quotas and budgets leave, for those that used most, and for all others together."""
    columns = _standing_columns(table)
    is_living = table.deleted_at.is_(None)
    query = select(table.id, table.name, *(column.label(name) for name, column in columns.items()))
    largest = connection.execute(query.where(is_living).order_by(table.used_tokens.desc(), table.id).limit(MOST_OWNERS))
    owners = [(str(row.id), row.name, {name: getattr(row, name) for name in columns}) for row in largest]
    sums = select(func.count(), *(func.sum(column) for column in columns.values())).where(is_living)
    count, *everything = connection.execute(sums).one()
    if count > len(owners):
        rest = {
            name: _less(whole, [of[name] for *_, of in owners]) for name, whole in zip(columns, everything, strict=True)
        }
        owners.append(("", OTHERS, rest))
    yield _gauge(f"{kind}s", f"How many {kind}s there are.", count)
    for name, tells in OWNED.items():
        family = GaugeMetricFamily(f"{PREFIX}{kind}_{name}", tells.format(kind=kind), labels=(f"{kind}_id", kind))
        for id_, owner, values in owners:
            if (value := values[name]) is not None:
                family.add_metric((id_, owner), int(value) / BILLION if name in MONEY else int(value))
        yield family


OTHERS = "(others)"
OWNED = {
    "quota_tokens": "Tokens that a {kind} may use until it renews, extras included; unlimited ones have none.",
    "used_tokens": "Tokens that it used since its last renewal or reset.",
    "held_tokens": "Tokens that its calls in flight hold.",
    "remaining_tokens": "Tokens that are left of the quota.",
    "budget": "Money that it may spend until it renews, in currency units; without a budget there is none.",
    "cost": "Money that it spent since its last renewal or reset, as far as that is known.",
}
MONEY = ("budget", "cost")


def _standing_columns(table: type[Team | Group]) -> dict[str, Any]:
    allowance = table.allowance_tokens
    left = allowance - table.used_tokens - table.held_tokens
    return {
        "quota_tokens": allowance,
        "used_tokens": table.used_tokens,
        "held_tokens": table.held_tokens,
        "remaining_tokens": case((allowance.is_(None), None), (left < 0, 0), else_=left),
        "budget": table.allowance_budget,
        "cost": table.used_cost,
    }


def _less(whole: Any, parts: list[Any]) -> int | None:
    return None if whole is None else int(whole) - sum(int(part) for part in parts if part is not None)


def _workers_and_jobs(connection: Connection) -> Iterator[Metric]:
    alive = select(func.count()).select_from(Worker).where(Worker.lease_expires_at > epoch_now())
    yield _gauge("workers", "Workers that are alive, of all machines.", connection.execute(alive).scalar_one())
    ended = GaugeMetricFamily(
        f"{PREFIX}job_end_timestamp_seconds", "When what is done by the clock ended last.", labels=("job",)
    )
    failed = GaugeMetricFamily(f"{PREFIX}job_failed", "Whether it failed that time.", labels=("job",))
    for job in connection.execute(select(Job.name, Job.ended_at, Job.error).order_by(Job.name)):
        if job.ended_at is not None:
            ended.add_metric((job.name,), job.ended_at)
            failed.add_metric((job.name,), job.error is not None)
    yield from (ended, failed)


def _balance(connection: Connection) -> Iterator[Metric]:
    """Yield the balance last reported by the provider, and the time of the last check."""
    check = connection.execute(NEWEST_CHECK).first()
    checked_at = None if check is None else check.at.timestamp()
    yield _gauge("provider_check_timestamp_seconds", "When the account was asked last.", checked_at)
    balances = select(AccountCheck.points, AccountCheck.money, AccountCheck.currency).order_by(AccountCheck.id.desc())
    is_known = AccountCheck.points.is_not(None) | AccountCheck.money.is_not(None)
    balance = connection.execute(balances.where(is_known).limit(1)).first()
    family = GaugeMetricFamily(f"{PREFIX}provider_balance", "What is left of the account.", labels=("unit",))
    if balance is not None and balance.points is not None:
        family.add_metric(("points",), balance.points)
    if balance is not None and balance.money is not None:
        family.add_metric((balance.currency,), balance.money / BILLION)
    yield family

"""Counts calls for Prometheus in each process, and adds them to totals shared by all processes and machines.

Why not prometheus_client's multiprocess mode: its files belong to one machine, so several machines would each need a
scrape, and a rule to sum them up; files of ended workers must be kept, or counters go down, and pile up with restarts;
and each observation would write to a mapped file under a lock, four times a call. Here a call costs a few additions in
memory, and a heartbeat a few rows in one transaction, whatever the load; and every process reports the same. The
price: a killed worker's counts since its last heartbeat, up to five seconds, are missing from the metrics. The log and
the daily totals have them.
"""

import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tokenrouter import troubles
from tokenrouter.database.engine import lock_table, writing
from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import MetricTotal
from tokenrouter.errors import APIError
from tokenrouter.ledger.endings import Ending
from tokenrouter.troubles import one_line

OTHER = "other"
MOST_MODELS, MOST_REASONS = 100, 50
MODEL_LABEL = "models"
"""The name under which the models used as labels are stored."""
MICROSECONDS = 10**6
COUNTED_AT_ONCE = 50
INFINITY = "+Inf"

Key = tuple[str, ...]
"""The name of a counter, and the values of its labels."""


class Buckets:
    """The upper bounds of a histogram, in seconds, as numbers and as labels."""

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.labels = (*(f"{bound:g}" for bound in bounds), INFINITY)

    def label(self, seconds: float) -> str:
        """Return the label of the bucket that a value falls into."""
        return self.labels[bisect_left(self.bounds, seconds)]


DURATIONS = Buckets(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
FIRST_BYTES = Buckets(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
OVERHEADS = Buckets(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


class ModelNames:
    """Which models are labels: callers write what they like.

    Those that ALLOWED_MODELS spells out, and of the others those that the provider has answered by, at most a hundred.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = {name.casefold(): name for name in allowed if not name.endswith("*")}
        self._known = dict(self._allowed)

    def label(self, model: str, *, is_answered: bool) -> str:
        """Return the label of a model, in the spelling that came first."""
        known = self._known.get(model.casefold())
        if known is None and is_answered and len(self._known) < len(self._allowed) + MOST_MODELS:
            known = self._known[model.casefold()] = model
        return known or OTHER

    def settle(self, connection: Connection, labels: Iterable[str]) -> dict[str, str]:
        """Keep labels that are new, in a transaction that no other process has at once; return what may be written.

        That is by small letters: another process may have kept another spelling, or the last of the hundred.
        """
        kept = dict(self._allowed)
        for name in connection.execute(select(MetricTotal.labels).where(MetricTotal.name == MODEL_LABEL)).scalars():
            (model,) = orjson.loads(name)
            kept[model.casefold()] = model
        for label in labels:
            if label.casefold() not in kept and len(kept) < len(self._allowed) + MOST_MODELS and label != OTHER:
                kept[label.casefold()] = label
                new = {"name": MODEL_LABEL, "labels": _labels((label,)), "value": 1}
                connection.execute(insert(MetricTotal).values(new))
        return kept

    def learn(self, kept: dict[str, str]) -> None:
        """Take over the labels known to all processes, after the commit."""
        self._known = kept


class Overhead(NamedTuple):
    """The time a call took here besides the provider's: before the request to it, and for settling."""

    admission_s: float
    settlement_s: float


class Tally:
    """The counts of one process that are not written yet."""

    def __init__(self, engine: Engine, allowed_models: Iterable[str]) -> None:
        self._engine = engine
        self._models = ModelNames(allowed_models)
        self._codes = _own_codes()
        self._reasons = {OTHER}
        self._counts: defaultdict[Key, int] = defaultdict(int)
        self._lock = threading.Lock()  # of this process, for as long as the additions of a group take
        self._noted: deque[Ending | Overhead] = deque()

    def take(self, endings: Sequence[Ending]) -> None:
        """Count calls that ended, soon: the ledger's one writer waits for this."""
        self._noted.extend(endings)

    def note_overhead(self, admission_s: float, settlement_s: float) -> None:
        """Count the time that a call took here, and some together with what ended: that takes half the time."""
        self._noted.append(Overhead(admission_s, settlement_s))
        if len(self._noted) >= COUNTED_AT_ONCE:
            self._count_noted()

    def _count_noted(self) -> None:
        with self._lock:
            while self._noted:
                each = self._noted.popleft()
                if isinstance(each, Ending):
                    self._count(each)
                else:
                    _observe(self._counts, "overhead", OVERHEADS, each.admission_s, "admission")
                    _observe(self._counts, "overhead", OVERHEADS, each.settlement_s, "settlement")

    def _count(self, ending: Ending) -> None:
        request, outcome, cost, times, retries, is_recovered = ending
        counts = self._counts
        model = self._models.label(request.model, is_answered=outcome.status == "ok")
        counts["calls", model, request.endpoint, outcome.status] += times
        if outcome.error_code is not None:
            code = outcome.error_code if outcome.error_code in self._codes else OTHER
            counts["failed_calls", outcome.status, code] += times
        if outcome.charged_tokens:
            self._count_use(model, ending)
        if cost is not None and cost > 0:
            counts["cost", model] += cost
        if retries:
            counts["settlement_retries",] += retries
        if is_recovered:
            counts["recovered_calls",] += 1
        if outcome.latency_ms is not None:
            _observe(counts, "duration", DURATIONS, outcome.latency_ms / 1000, model)
        if outcome.first_byte_ms is not None:
            _observe(counts, "first_byte", FIRST_BYTES, outcome.first_byte_ms / 1000, model)

    def _count_use(self, model: str, ending: Ending) -> None:
        outcome, counts = ending.outcome, self._counts
        counts["charged_tokens", model] += outcome.charged_tokens
        cached_tokens = min(outcome.cached_tokens, outcome.prompt_tokens)  # nothing goes down
        counts["tokens", model, "prompt"] += outcome.prompt_tokens - cached_tokens
        counts["tokens", model, "completion"] += outcome.completion_tokens
        if cached_tokens:
            counts["tokens", model, "cached_prompt"] += cached_tokens
        if ending.cost is None:
            counts["unpriced_tokens", model] += outcome.charged_tokens

    def note_turned_away(self, reason: str) -> None:
        """Count a request that was refused before it became a call."""
        with self._lock:
            if reason not in self._reasons and len(self._reasons) >= MOST_REASONS:
                reason = OTHER  # a provider's own code, of which there may be any number
            self._reasons.add(reason)
            self._counts["turned_away", reason] += 1

    def keep(self) -> None:
        """Add what was counted since the last time to the totals of all processes.

        Raises SQLAlchemyError; it is then added the next time.
        """
        self._count_noted()
        with self._lock:
            counts, self._counts = self._counts, defaultdict(int)
        if not counts:
            return
        try:
            with writing(self._engine, durable=False) as connection:
                kept = self._write(connection, counts)
        except BaseException:
            with self._lock:
                for key, value in counts.items():
                    self._counts[key] += value
            raise
        self._models.learn(kept)

    def close(self, timeout_s: float) -> None:
        """Do the same for the last time; if the database cannot be written, log it."""
        try:
            self.keep()
        except SQLAlchemyError as error:
            troubles.warn("metrics", "What was counted last for the metrics is lost (%s)", one_line(error))

    def _write(self, connection: Connection, counts: Mapping[Key, int]) -> dict[str, str]:
        lock_table(connection, MetricTotal)
        kept = self._models.settle(connection, [key[1] for key in counts if key[0] in OF_MODELS])
        adding = inserter(connection)(MetricTotal)
        total = MetricTotal.value + adding.excluded.value
        rows = [{"name": name, "labels": labels, "value": value} for name, labels, value in _rows(counts, kept)]
        connection.execute(adding.on_conflict_do_update(index_elements=["name", "labels"], set_={"value": total}), rows)
        return kept


def _observe(counts: defaultdict[Key, int], name: str, buckets: Buckets, seconds: float, label: str) -> None:
    counts[name, label, buckets.label(seconds)] += 1
    counts[f"{name}_sum", label] += max(0, round(seconds * MICROSECONDS))


def _rows(counts: Mapping[Key, int], kept: Mapping[str, str]) -> Iterator[tuple[str, str, int]]:
    for (name, *labels), value in counts.items():
        if name in OF_MODELS:
            labels[0] = kept.get(labels[0].casefold(), OTHER)
        yield name, _labels(labels), value


OF_MODELS = frozenset(
    f"{name}{of}"
    for name in ("calls", "charged_tokens", "tokens", "unpriced_tokens", "cost", "duration", "first_byte")
    for of in ("", "_sum")
)
"""Counters whose first label is a model."""


def _labels(values: Iterable[str]) -> str:
    return orjson.dumps(list(values)).decode()


def _own_codes() -> frozenset[str]:
    """Return the codes of our own errors, and the provider's that are known: others may be anything."""
    kinds, codes = [APIError], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        codes |= {kind.code, kind.type}
    return frozenset(code for code in codes if code)

"""Scheduled jobs: each run is claimed in the database, so that only one worker does it."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from sqlalchemy import case, or_, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from tokenrouter import troubles
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.engine import writing
from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import REASON_LENGTH, Job, Worker
from tokenrouter.periods import UTC_ZONE
from tokenrouter.troubles import one_line

logger = logging.getLogger(__name__)

LOOK_S = 60.0
RETRY_S = 900.0  # after a failure, unless the next run is sooner
NOW = epoch_now()

IS_LIVE = select(Worker.id).where(Worker.id == Job.worker_id, Worker.lease_expires_at > NOW).exists()
IS_DUE = or_(Job.worker_id.is_(None) & (Job.due_at <= NOW), Job.worker_id.is_not(None) & ~IS_LIVE)
"""Its time has come and nobody runs it, or the worker that ran it died. A running one is not started again."""


class Schedule(Protocol):
    """When a task is due. Instants are seconds since 1970."""

    def first(self, now: float, zone: ZoneInfo) -> float:
        """Return when a task that never ran is due."""

    def next_after(self, now: float, zone: ZoneInfo) -> float:
        """Return when it is due again that is run now."""


@dataclass(frozen=True)
class Every:
    """At once, and again so many seconds after each start."""

    seconds: float

    def first(self, now: float, zone: ZoneInfo) -> float:
        """Return now."""
        return now

    def next_after(self, now: float, zone: ZoneInfo) -> float:
        """Return when it is due again that is run now."""
        return now + self.seconds


@dataclass(frozen=True)
class Nightly:
    """Once a day, at an hour in the time zone; a missed run is due at the next check."""

    hour: int = 3

    def first(self, now: float, zone: ZoneInfo) -> float:
        """Return the next night's hour."""
        return self.next_after(now, zone)

    def next_after(self, now: float, zone: ZoneInfo) -> float:
        """Return the next instant at which clocks show the hour, or would if they were not put forward."""
        today = datetime.fromtimestamp(now, zone).replace(hour=self.hour, minute=0, second=0, microsecond=0, fold=0)
        nights = (today + timedelta(days=days) for days in range(3))
        return next(night.timestamp() for night in nights if night.timestamp() > now)


@dataclass(frozen=True)
class Task:
    """What to run, its name, and its schedule."""

    name: str
    schedule: Schedule
    run: Callable[[], object]


class Jobs:
    """Runs the scheduled tasks in one process; of all workers, the first to claim a task runs it.

    A task that fails, or whose worker dies, is soon run again. Each kind of schedule has a thread of its own, so that
    long nightly tasks do not delay those due every minute.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: Sequence[Task],
        zone: ZoneInfo = UTC_ZONE,
        worker_id: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`worker_id` returns this process's current id among the workers."""
        self._engine = engine
        self._tasks = tasks
        self._zone = zone
        self._worker_id = worker_id
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def names(self) -> list[str]:
        """The names of the tasks, in the order in which they are checked."""
        return [task.name for task in self._tasks]

    def start(self) -> None:
        """Start the threads, in the process that serves: threads do not survive a fork."""
        for kind in {type(task.schedule) for task in self._tasks}:
            tasks = [task for task in self._tasks if type(task.schedule) is kind]
            name = f"jobs-{kind.__name__.lower()}"
            self._threads.append(threading.Thread(target=self._look, args=(tasks,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, without waiting for a running task: it ends with the process."""
        self._stop.set()

    def _look(self, tasks: Sequence[Task]) -> None:
        while not self._stop.wait(LOOK_S):
            self._run_due(tasks)

    def run_due(self) -> None:
        """Run what is due and not claimed by another process."""
        self._run_due(self._tasks)

    def _run_due(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            try:
                if self._is_due(task) and claim(self._engine, task, self._zone, self._worker_id()):
                    finish(self._engine, task, self._failure_of(task))
            except SQLAlchemyError as error:
                troubles.warn("jobs", "What is due by the clock cannot be looked up (%s)", one_line(error))

    def _is_due(self, task: Task) -> bool:
        """Tell whether to try a claim, which is a transaction that writes: mostly not."""
        with self._engine.connect() as connection:
            is_due = connection.execute(select(IS_DUE).where(Job.name == task.name)).scalar()
        return is_due is None or bool(is_due)

    def _failure_of(self, task: Task) -> str | None:
        try:
            task.run()
        except Exception as error:  # whatever it is, the other tasks have to run, and this one again later
            logger.exception("%s failed; it is tried again when it is due next", task.name)
            return one_line(error)[:REASON_LENGTH]
        return None


def claim(engine: Engine, task: Task, zone: ZoneInfo = UTC_ZONE, worker_id: int | None = None) -> bool:
    """Claim a task for this process if it is due, and set when it is due next; return whether it was due."""
    insert = inserter(engine)
    with writing(engine, durable=False) as connection:
        now = connection.execute(select(NOW)).scalar_one()
        adding = insert(Job).values(name=task.name, due_at=task.schedule.first(now, zone))
        connection.execute(adding.on_conflict_do_nothing())
        following = task.schedule.next_after(now, zone)
        claiming = update(Job).where(Job.name == task.name, IS_DUE)
        claimed = claiming.values(due_at=following, began_at=NOW, worker_id=worker_id).returning(Job.name)
        return connection.execute(claimed).first() is not None


def finish(engine: Engine, task: Task, error: str | None) -> None:
    """Record that a task ran, and its error if it failed; then it is due again within RETRY_S."""
    values: dict[str, object] = {"ended_at": NOW, "error": error, "worker_id": None}
    if error is not None:
        values["due_at"] = case((Job.due_at > NOW + RETRY_S, NOW + RETRY_S), else_=Job.due_at)
    with writing(engine, durable=False) as connection:
        connection.execute(update(Job).where(Job.name == task.name).values(**values))

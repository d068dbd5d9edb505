"""What one worker of all does by the clock: claimed in the database, so that no other does it too."""

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
RETRY_S = 900.0  # after a failure, where the next run is further away
NOW = epoch_now()

IS_LIVE = select(Worker.id).where(Worker.id == Job.worker_id, Worker.lease_expires_at > NOW).exists()
IS_DUE = or_(Job.worker_id.is_(None) & (Job.due_at <= NOW), Job.worker_id.is_not(None) & ~IS_LIVE)
"""Nobody runs it and its time has come, or whoever ran it died. One that is being run is not begun once more."""


class Schedule(Protocol):
    """When something is due. Instants are seconds since 1970."""

    def first(self, now: float, zone: ZoneInfo) -> float:
        """Return when it is due that was never run."""

    def next_after(self, now: float, zone: ZoneInfo) -> float:
        """Return when it is due again that is run now."""


@dataclass(frozen=True)
class Every:
    """At once, and so many seconds after each run began."""

    seconds: float

    def first(self, now: float, zone: ZoneInfo) -> float:
        """Return now."""
        return now

    def next_after(self, now: float, zone: ZoneInfo) -> float:
        """Return when it is due again that is run now."""
        return now + self.seconds


@dataclass(frozen=True)
class Nightly:
    """Once a day, at an hour of the time zone; one that was missed is due as soon as somebody looks."""

    hour: int = 3

    def first(self, now: float, zone: ZoneInfo) -> float:
        """Return the begin of the first night."""
        return self.next_after(now, zone)

    def next_after(self, now: float, zone: ZoneInfo) -> float:
        """Return the next instant at which the clocks show the hour, or would but for being put forward."""
        today = datetime.fromtimestamp(now, zone).replace(hour=self.hour, minute=0, second=0, microsecond=0, fold=0)
        nights = (today + timedelta(days=days) for days in range(3))
        return next(night.timestamp() for night in nights if night.timestamp() > now)


@dataclass(frozen=True)
class Task:
    """What is done, under which name, and when."""

    name: str
    schedule: Schedule
    run: Callable[[], object]


class Jobs:
    """The tasks of one process; whoever of all workers claims one first runs it.

    One that fails is run again before long, and so is one whose worker dies. Those of a kind are looked at in a thread
    of their own: what takes its time at night does not keep what is due every minute waiting.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: Sequence[Task],
        zone: ZoneInfo = UTC_ZONE,
        worker_id: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`worker_id` tells under which number this process is among the workers by now."""
        self._engine = engine
        self._tasks = tasks
        self._zone = zone
        self._worker_id = worker_id
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def names(self) -> list[str]:
        """What the tasks are called, in the order in which they are looked at."""
        return [task.name for task in self._tasks]

    def start(self) -> None:
        """Begin to look, in the process that serves: none of it survives a fork."""
        for kind in {type(task.schedule) for task in self._tasks}:
            tasks = [task for task in self._tasks if type(task.schedule) is kind]
            name = f"jobs-{kind.__name__.lower()}"
            self._threads.append(threading.Thread(target=self._look, args=(tasks,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Look no more. A task that is being run is not waited for: it ends with the process."""
        self._stop.set()

    def _look(self, tasks: Sequence[Task]) -> None:
        while not self._stop.wait(LOOK_S):
            self._run_due(tasks)

    def run_due(self) -> None:
        """Run what is due and nobody else has claimed."""
        self._run_due(self._tasks)

    def _run_due(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            try:
                if self._is_due(task) and claim(self._engine, task, self._zone, self._worker_id()):
                    finish(self._engine, task, self._failure_of(task))
            except SQLAlchemyError as error:
                troubles.warn("jobs", "What is due by the clock cannot be looked up (%s)", one_line(error))

    def _is_due(self, task: Task) -> bool:
        """Tell whether it is worth a transaction that writes: mostly it is not."""
        with self._engine.connect() as connection:
            is_due = connection.execute(select(IS_DUE).where(Job.name == task.name)).scalar()
        return is_due is None or bool(is_due)

    def _failure_of(self, task: Task) -> str | None:
        try:
            task.run()
        except Exception as error:  # whatever it is, the other tasks have to be run, and this one again
            logger.exception("%s failed; it is tried again when it is due next", task.name)
            return one_line(error)[:REASON_LENGTH]
        return None


def claim(engine: Engine, task: Task, zone: ZoneInfo = UTC_ZONE, worker_id: int | None = None) -> bool:
    """Take a task for this process if it is due, which it is not again before its time; return whether it was."""
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
    """Write down that a task was run, and how it failed if it did; then it is due again before long."""
    values: dict[str, object] = {"ended_at": NOW, "error": error, "worker_id": None}
    if error is not None:
        values["due_at"] = case((Job.due_at > NOW + RETRY_S, NOW + RETRY_S), else_=Job.due_at)
    with writing(engine, durable=False) as connection:
        connection.execute(update(Job).where(Job.name == task.name).values(**values))

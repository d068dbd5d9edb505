"""What one worker of all does by the clock: claimed in the database, so that no other does it too."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from tokenrouter import troubles
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.tables import REASON_LENGTH, Job, writing
from tokenrouter.troubles import one_line

logger = logging.getLogger(__name__)

LOOK_S = 60.0
NOW = epoch_now()


@dataclass(frozen=True)
class Task:
    """What is done, under which name, and how long after a run began it is due again."""

    name: str
    every_s: float
    run: Callable[[], object]


class Jobs:
    """The tasks of one process, looked at in a thread of its own; whoever of all workers claims one first runs it.

    One that fails, or whose worker dies, is run again when it is due next.
    """

    def __init__(self, engine: Engine, tasks: Sequence[Task]) -> None:
        self._engine = engine
        self._tasks = tasks
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, in the process that serves: none of it survives a fork."""
        self._thread = threading.Thread(target=self._look, name="jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more. A task that is being run is not waited for: it ends with the process."""
        self._stop.set()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.run_due()

    def run_due(self) -> None:
        """Run what is due and nobody else has claimed."""
        for task in self._tasks:
            try:
                if claim(self._engine, task):
                    finish(self._engine, task, self._failure_of(task))
            except SQLAlchemyError as error:
                troubles.warn("jobs", "What is due by the clock cannot be looked up (%s)", one_line(error))

    def _failure_of(self, task: Task) -> str | None:
        try:
            task.run()
        except Exception as error:  # whatever it is, the other tasks have to be run, and this one again
            logger.exception("%s failed; it is tried again when it is due next", task.name)
            return one_line(error)[:REASON_LENGTH]
        return None


def claim(engine: Engine, task: Task) -> bool:
    """Take a task for this process if it is due, which it is not again before its time; return whether it was."""
    with writing(engine, durable=False) as connection:
        insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        following = NOW + bindparam("every_s", task.every_s)
        adding = insert(Job).values(name=task.name, due_at=following, began_at=NOW)
        claimed = adding.on_conflict_do_update(
            index_elements=["name"], set_={"due_at": following, "began_at": NOW}, where=Job.due_at <= NOW
        )
        return connection.execute(claimed.returning(Job.name)).first() is not None


def finish(engine: Engine, task: Task, error: str | None) -> None:
    """Write down that a task was run, and how it failed if it did."""
    with writing(engine, durable=False) as connection:
        connection.execute(update(Job).where(Job.name == task.name).values(ended_at=NOW, error=error))

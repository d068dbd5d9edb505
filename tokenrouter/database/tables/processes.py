"""What processes share: who is alive, jobs by the clock, and totals of metrics."""

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from tokenrouter.database.columns import RowId
from tokenrouter.database.tables.base import REASON_LENGTH, Base


class Worker(Base):
    """A process that makes calls, and until when it counts as alive."""

    __tablename__ = "workers"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str]  # host and process, for people
    lease_expires_at: Mapped[float]  # seconds since 1970 by the database's clock, since machines' clocks differ
    running_calls: Mapped[str | None]  # at its last heartbeat: ids of the log, separated by commas
    running_upto: Mapped[int | None] = mapped_column(BigInteger)  # the last id that it had reserved by then

    __table_args__ = ({"sqlite_autoincrement": True},)  # a reused id would revive a dead worker's calls


class Job(Base):
    """A scheduled task that one of all workers runs, and when it is due next, by the database's clock."""

    __tablename__ = "jobs"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    due_at: Mapped[float]  # seconds since 1970
    began_at: Mapped[float | None]  # likewise, as all that follow
    ended_at: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(String(REASON_LENGTH))  # of the last run, if it failed
    worker_id: Mapped[int | None] = mapped_column(BigInteger)  # who runs it


class MetricTotal(Base):
    """The total that all processes have ever counted of something: for Prometheus, whose counters only grow."""

    __tablename__ = "metric_totals"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(primary_key=True)  # their values, as a JSON array
    value: Mapped[int] = mapped_column(BigInteger)  # of times in microseconds, of money in billionths

"""A connection to PostgreSQL that does not wait for ever: libpq has no limit for a server that is silent.

It is loaded only if the database is PostgreSQL.
"""

import time
from typing import Any

import psycopg


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that is closed, and raises OperationalError, where the server does not answer in time.

    A server that is stopped or cut off keeps its connections open, and its kernel acknowledges what is sent.
    """

    answers_within_s: float | None = 10.0
    """How long each statement may take; None is no limit."""

    def wait(self, generator: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server, as psycopg does for each statement."""
        limit_s = self.answers_within_s if timeout is None else timeout
        if limit_s is None:
            return super().wait(generator, interval)
        return super().wait(_within(generator, limit_s, self), interval)


def _within(generator: Any, limit_s: float, connection: ImpatientConnection) -> Any:
    """Pass on what psycopg's generator waits for, until the time is over; psycopg resumes it at every interval."""
    deadline = time.monotonic() + limit_s
    try:
        wanted = next(generator)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                connection.close()
                raise psycopg.OperationalError(f"the server did not answer in {limit_s:g} s")
            wanted = generator.send(ready)
    except StopIteration as end:
        return end.value

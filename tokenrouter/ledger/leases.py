"""Find out which workers died, by how their leases change."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LEASE_S = 20.0
HEARTBEAT_S = 5.0
LONGEST_LOOK_S = HEARTBEAT_S + 1.0  # a longer gap was an outage or a pause here, and counts only for so much
CLOCK_STEP_S = 1.0


@dataclass(frozen=True)
class Lease:
    """A worker's lease, by the database's clock, and what that clock said when it was read."""

    worker_id: int
    expires_at: float
    read_at: float

    @property
    def is_odd(self) -> bool:
        """Whether it has expired, or lies further ahead than a renewal by this clock can be."""
        return not self.read_at <= self.expires_at <= self.read_at + LEASE_S + CLOCK_STEP_S


class Watch:
    """What one process sees of the leases of all workers, look by look.

    A clock that is set forward makes all leases expire at once; one that is set back keeps those of dead workers valid.
    So a worker counts as dead only if its lease did not change for as long as a lease lasts, by this process's
    monotonic clock, and if the lease is not valid by the database's clock either.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}  # the lease, and for how many seconds it was seen unchanged
        self._looked_at = time.monotonic()

    def look(self, leases: Iterable[Lease]) -> Mapping[int, float]:
        """Note the leases as they are now; return those of dead workers, by worker."""
        now = time.monotonic()
        passed_s, self._looked_at = min(now - self._looked_at, LONGEST_LOOK_S), now
        before, self._seen = self._seen, {}
        dead = {}
        for lease in leases:
            old_lease, unchanged_s = before.get(lease.worker_id, (None, 0.0))
            unchanged_s = unchanged_s + passed_s if old_lease == lease.expires_at else 0.0
            self._seen[lease.worker_id] = lease.expires_at, unchanged_s
            if unchanged_s >= LEASE_S and lease.is_odd:
                dead[lease.worker_id] = lease.expires_at
        return dead

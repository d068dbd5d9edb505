"""Who is taken for dead, whatever the clocks do."""

import time
from collections.abc import Callable

import pytest

from tokenrouter.ledger import leases
from tokenrouter.ledger.leases import HEARTBEAT_S, LEASE_S, Lease, Watch

LIVING, DEAD = 1, 2
HOUR = 3600.0


class World:
    """A database's clock, which can be set, and time as it passes."""

    def __init__(self) -> None:
        self.passed = 1000.0
        self.clock_is_ahead = 0.0
        self.ends = {LIVING: 0.0, DEAD: 0.0}
        self.watch: Watch | None = None

    @property
    def now(self) -> float:
        return 1_700_000_000 + self.passed + self.clock_is_ahead

    def renew(self, worker: int) -> None:
        self.ends[worker] = self.now + LEASE_S

    def look(self) -> set[int]:
        return set(self.watch.look([Lease(worker, end, self.now) for worker, end in self.ends.items()]))

    def beat(self, seconds: float = HEARTBEAT_S) -> set[int]:
        """Let a heartbeat pass, in which the living renews, and look."""
        self.passed += seconds
        self.renew(LIVING)
        return self.look()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Both have renewed, and the other dies right now."""
    world = World()
    monkeypatch.setattr(time, "monotonic", lambda: world.passed)
    world.watch = Watch()
    world.renew(LIVING)
    world.renew(DEAD)
    assert world.look() == set()
    return world


def beats_until(claim: Callable[[], bool]) -> int:
    return next(number for number in range(1, 100) if claim())


def test_dead_worker_is_found_once_its_lease_has_run_out(world: World):
    assert beats_until(lambda: world.beat() == {DEAD}) * HEARTBEAT_S in (LEASE_S, LEASE_S + HEARTBEAT_S)


@pytest.mark.parametrize("hours", [1, -1, 24, -24])
def test_set_clock_kills_nobody_and_hides_no_dead(world: World, hours: int):
    world.clock_is_ahead = hours * HOUR
    assert world.look() == set()  # all leases are odd now, and nobody has had the time to renew
    found = beats_until(lambda: world.beat() == {DEAD})
    assert found * HEARTBEAT_S <= LEASE_S + HEARTBEAT_S


def test_new_process_finds_its_dead_predecessor_within_the_promised_minute(world: World):
    world.passed += 7200
    world.watch = Watch()
    assert world.look() == set()
    assert beats_until(lambda: world.beat() == {DEAD}) * HEARTBEAT_S < 60


def test_outage_in_which_nobody_renews_kills_nobody(world: World):
    for _ in range(2):
        world.beat()
    world.passed += 10 * LEASE_S
    assert LIVING not in world.look()


def test_pause_of_the_observer_counts_little(world: World):
    world.passed += 10 * LEASE_S
    world.renew(LIVING)
    assert world.look() == set()
    assert leases.LONGEST_LOOK_S < LEASE_S

"""The writer of the ledger: what it carries out together, in which order, and what becomes of what fails."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import eventually

from tokenrouter.errors import StorageUnavailable
from tokenrouter.ledger import writer as module
from tokenrouter.ledger.writer import Ticket, Writer

NAME = "writer under test"
AWAY = sqlite3.OperationalError("the database is away")
BROKEN = ValueError("this operation never succeeds")


@dataclass
class Step:
    """An operation that is nothing but its name."""

    name: str
    must_happen: bool = False
    undone_by: "Step | None" = None
    team_id: int | None = 1

    def undo(self) -> "Step | None":
        return self.undone_by


class Database:
    """Carry out groups: note each, let it wait at the gate while that is closed, and fail as it is told."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.threads: list[threading.Thread] = []
        self.failures: list[Exception | None] = []
        """What comes of the next groups, one each."""
        self.broken: set[str] = set()
        """Operations that break whatever group they are in."""
        self._is_open = True
        self._passes = threading.Semaphore(0)

    def __call__(self, operations: Sequence[Step]) -> list[str]:
        names = [operation.name for operation in operations]
        self.groups.append(names)
        self.threads.append(threading.current_thread())
        if not self._is_open:
            assert self._passes.acquire(timeout=20)
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        if not self.broken.isdisjoint(names):
            raise BROKEN
        return [f"{name} done" for name in names]

    def close(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        self._passes.release()

    def let_one_pass(self) -> None:
        """Let the group at the gate pass, and wait for the next."""
        count = len(self.groups)
        self._passes.release()
        assert eventually(lambda: len(self.groups) > count)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.02)


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def new_writer(database: Database) -> Iterator[Callable[..., Writer]]:
    writers = []

    def make(**options: Any) -> Writer:
        writers.append(Writer(database, NAME, **options))
        return writers[-1]

    yield make
    database.open()
    for writer in writers:
        writer.close(5)


@pytest.fixture
def writer(new_writer: Callable[..., Writer]) -> Writer:
    return new_writer()


@pytest.fixture
def busy(database: Database, writer: Writer) -> Writer:
    """A writer whose first group, of an operation named "first", waits at the gate."""
    database.close()
    submit(writer, "first")
    assert eventually(lambda: database.groups == [["first"]])
    return writer


def submit(writer: Writer, *operations: Step | str) -> list[Ticket]:
    return [writer.submit(Step(each) if isinstance(each, str) else each) for each in operations]


def sleep_by(sleep: Callable[[float], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writer make its pauses otherwise."""
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))


def outcomes(tickets: list[Ticket]) -> list[Any]:
    """Wait for all, and return what came of each: its result, or the class of its error."""
    assert all(ticket.wait(20) for ticket in tickets)
    return [type(ticket.error) if ticket.error else ticket.result for ticket in tickets]


# Groups and their order


def test_what_comes_meanwhile_is_the_next_group_in_its_order(busy: Writer, database: Database):
    tickets = submit(busy, "a", "b", "c")
    database.open()
    assert outcomes(tickets) == ["a done", "b done", "c done"]
    assert database.groups == [["first"], ["a", "b", "c"]]


def test_group_has_its_size_at_most(busy: Writer, database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "GROUP_SIZE", 2)
    tickets = submit(busy, "a", "b", "c", "d", "e")
    database.open()
    outcomes(tickets)
    assert database.groups == [["first"], ["a", "b"], ["c", "d"], ["e"]]


def test_operations_of_one_thread_are_carried_out_in_their_order(writer: Writer, database: Database):
    names = [f"{number}" for number in range(1000)]
    outcomes(submit(writer, *names))
    assert [name for group in database.groups for name in group] == names


def test_each_of_many_threads_gets_its_own_result(writer: Writer):
    names = [f"{number}" for number in range(200)]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda name: writer.run(Step(name)), names)) == [f"{name} done" for name in names]


def test_one_thread_does_all_the_work_and_rests_in_between(writer: Writer, database: Database):
    for name in ("a", "b"):
        assert writer.run(Step(name)) == f"{name} done"
        assert eventually(lambda: writer._rests)
    assert [thread.name for thread in database.threads] == [NAME, NAME]
    assert len(set(database.threads)) == 1


# While the database is away


def test_what_must_happen_is_tried_again_before_all_that_came_later(busy: Writer, database: Database):
    tickets = submit(busy, Step("a", must_happen=True), Step("b", must_happen=True))
    database.failures = [None, AWAY]
    database.let_one_pass()
    tickets += submit(busy, "c", Step("d", must_happen=True))
    database.open()
    assert outcomes(tickets) == ["a done", "b done", "c done", "d done"]
    assert database.groups == [["first"], ["a", "b"], ["a", "b", "c", "d"]]


def test_what_must_happen_is_tried_until_it_has_happened(writer: Writer, database: Database):
    database.failures = [AWAY] * 8
    assert writer.run(Step("a", must_happen=True)) == "a done"
    tries = [
        group for group in database.groups if group
    ]  # from time to time it is asked for nothing, to see if it writes
    assert len(tries) > 3 and set(map(tuple, tries)) == {("a",)}


def test_what_need_not_happen_fails_at_once_and_leaves_the_order_of_the_rest(busy: Writer, database: Database):
    tickets = submit(busy, Step("a", must_happen=True), "b", Step("c", must_happen=True), "d")
    database.failures = [None, AWAY]
    database.open()
    assert outcomes(tickets) == ["a done", StorageUnavailable, "c done", StorageUnavailable]
    assert database.groups == [["first"], ["a", "b", "c", "d"], ["a", "c"]]


def test_what_may_have_been_committed_unseen_is_undone_before_all_that_came_later(busy: Writer, database: Database):
    undo = Step("undo of a", must_happen=True)
    (refused,) = submit(busy, Step("a", undone_by=undo))
    database.failures = [None, AWAY, AWAY]
    database.let_one_pass()
    later = submit(busy, Step("b", must_happen=True))
    database.open()
    assert outcomes([refused, *later]) == [StorageUnavailable, "b done"]
    assert database.groups == [["first"], ["a"], ["undo of a", "b"], ["undo of a", "b"]]


def test_run_raises_what_the_operation_failed_with(writer: Writer, database: Database):
    database.failures = [AWAY]
    with pytest.raises(StorageUnavailable):
        writer.run(Step("a"))
    database.broken = {"b"}
    with pytest.raises(ValueError, match="never succeeds"):
        writer.run(Step("b"))


def test_pauses_between_tries_double_up_to_the_longest(
    writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 1.0)
    sleep_by(pauses.append, monkeypatch)
    database.failures = [AWAY] * 7  # one of them meets the question whether it writes
    (ticket,) = submit(writer, Step("a", must_happen=True))
    assert outcomes([ticket]) == ["a done"]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


# An operation that breaks its group


def test_broken_operation_fails_alone_and_its_group_is_carried_out_one_by_one(busy: Writer, database: Database):
    database.broken = {"b"}
    tickets = submit(busy, "a", "b", Step("c", must_happen=True))
    database.open()
    assert outcomes(tickets) == ["a done", ValueError, "c done"]
    assert database.groups == [["first"], ["a", "b", "c"], ["a"], ["b"], ["c"]]


def test_what_comes_while_a_broken_group_is_taken_apart_waits_and_is_a_group_again(busy: Writer, database: Database):
    database.broken = {"b"}
    submit(busy, "a", "b")
    database.let_one_pass()
    later = submit(busy, "c", "d")
    database.open()
    assert outcomes(later) == ["c done", "d done"]
    assert database.groups == [["first"], ["a", "b"], ["a"], ["b"], ["c", "d"]]


def test_broken_operation_is_found_though_the_database_goes_away_meanwhile(busy: Writer, database: Database):
    database.broken = {"b"}
    tickets = submit(busy, Step("a", must_happen=True), "b", Step("c", must_happen=True))
    database.failures = [None, None, AWAY]
    database.open()
    assert outcomes(tickets) == ["a done", ValueError, "c done"]
    tries = [group for group in database.groups if group]
    assert tries[:3] == [["first"], ["a", "b", "c"], ["a"]] and sorted(tries[3:]) == [["a"], ["b"], ["c"]]


# Who waits too long


def test_operation_that_waited_too_long_is_given_up_and_never_happens(
    busy: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "RESULT_TIMEOUT_S", 0.05)
    with pytest.raises(StorageUnavailable):
        busy.run(Step("a"))
    later = submit(busy, "b")
    database.open()
    outcomes(later)
    assert database.groups == [["first"], ["b"]]


def test_operation_that_began_and_took_too_long_is_given_up_and_undone(
    writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "RESULT_TIMEOUT_S", 0.05)
    database.close()
    undo = Step("undo of a", must_happen=True)
    with pytest.raises(StorageUnavailable):
        writer.run(Step("a", undone_by=undo))
    database.open()
    assert eventually(lambda: database.groups == [["a"], ["undo of a"]])


def test_of_giving_a_ticket_up_and_finishing_it_at_once_one_succeeds():
    for _ in range(50):
        ticket, together = Ticket(Step("a"), None), threading.Barrier(2)

        def at_once(act: Callable[[], bool], together: threading.Barrier = together) -> bool:
            together.wait(20)
            return act()

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(at_once, [ticket.give_up, ticket.finish])) == [False, True]


# Work in the caller's thread


@pytest.fixture
def direct(new_writer: Callable[..., Writer]) -> Writer:
    """A writer whose callers may do the work."""
    return new_writer(in_callers_thread=True)


def test_caller_does_the_work_himself_while_the_writer_rests(direct: Writer, database: Database):
    (ticket,) = submit(direct, "a")
    assert outcomes([ticket]) == ["a done"]
    assert database.threads == [threading.current_thread()]


def test_caller_who_finds_another_at_work_leaves_his_to_the_writers_thread(direct: Writer, database: Database):
    database.close()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(submit, direct, "first")
        assert eventually(lambda: database.groups == [["first"]])
        own = submit(direct, "a", "b")  # returns though nothing of it is done
        database.open()
        assert outcomes(other.result(20) + own) == ["first done", "a done", "b done"]
    assert threading.current_thread() not in database.threads
    assert database.groups == [["first"], ["a", "b"]]


def test_caller_leaves_the_work_to_the_writers_thread_while_the_database_is_away(
    direct: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
):
    pause_is_over = threading.Event()
    sleep_by(lambda _: pause_is_over.wait(20), monkeypatch)
    database.failures = [AWAY]
    tickets = submit(direct, Step("a", must_happen=True))
    tickets += submit(direct, "b")
    assert database.groups == [["a"]]
    pause_is_over.set()
    assert outcomes(tickets) == ["a done", "b done"]
    assert [thread.name for thread in database.threads] == [threading.current_thread().name, NAME]


# Who is told


@pytest.mark.parametrize("in_callers_thread", [True, False])
def test_then_is_called_once_the_outcome_is_there(
    new_writer: Callable[..., Writer], database: Database, in_callers_thread: bool
):
    told: list[tuple[Any, type | None]] = []
    writer = new_writer(in_callers_thread=in_callers_thread)
    database.broken = {"b"}
    for name in ("a", "b"):
        writer.submit(Step(name), then=lambda ticket: told.append((ticket.result, type(ticket.error))))
    assert eventually(lambda: told == [("a done", type(None)), (None, ValueError)])


def test_then_that_fails_in_the_callers_thread_fails_there_and_the_writer_goes_on(direct: Writer):
    def fail(ticket: Ticket) -> None:
        raise ArithmeticError(ticket.result)

    with pytest.raises(ArithmeticError, match="a done"):
        direct.submit(Step("a"), then=fail)
    assert direct.run(Step("b")) == "b done"


# The end


def test_close_carries_out_what_waits_and_ends_the_thread(busy: Writer, database: Database):
    tickets = submit(busy, "a", Step("b", must_happen=True))
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(busy.close, 20)
        assert eventually(lambda: busy._closing)
        database.open()
        closed.result(20)
    assert outcomes(tickets) == ["a done", "b done"]
    assert NAME not in {thread.name for thread in threading.enumerate()}


def test_close_goes_on_trying_what_must_happen(writer: Writer, database: Database):
    database.failures = [AWAY] * 3
    (ticket,) = submit(writer, Step("a", must_happen=True))
    writer.close(20)
    assert ticket.wait(0) and ticket.result == "a done"


def test_close_waits_no_longer_than_it_may(busy: Writer, database: Database):
    (ticket,) = submit(busy, "a")
    busy.close(0.05)
    assert not ticket.wait(0)
    database.open()
    assert outcomes([ticket]) == ["a done"]


def test_writer_that_never_had_work_closes_at_once(writer: Writer, database: Database):
    writer.close(20)
    assert database.groups == []

"""What is gathered: worked on once, in its order, behind the backs of who hands it over, and never lost unsaid."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pytest
from conftest import eventually

from tokenrouter.worker import gathering
from tokenrouter.worker.gathering import Gatherer


class Reader:
    """Takes groups, unless it is kept from it."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.may_read = threading.Event()
        self.may_read.set()
        self.gatherer = Gatherer(self.read, "numbers")

    def read(self, group: list[int]) -> None:
        assert self.may_read.wait(30)
        if group == [-1]:
            raise ValueError("minus one")
        self.groups.append(list(group))

    @property
    def numbers(self) -> list[int]:
        return [number for group in self.groups for number in group]


@pytest.fixture
def reader() -> Iterator[Reader]:
    own = Reader()
    yield own
    own.may_read.set()
    own.gatherer.close(10)


def test_all_is_worked_on_once_in_groups_and_each_ones_in_its_order(reader: Reader):
    def hand_over(of: int) -> None:
        for number in range(of * 1000, of * 1000 + 1000):
            reader.gatherer.take([number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hand_over, range(4)))
    assert eventually(lambda: len(reader.numbers) == 4000)
    in_order = {of: list(numbers) for of, numbers in groupby(sorted(reader.numbers), lambda number: number // 1000)}
    assert {of: [each for each in reader.numbers if each // 1000 == of] for of in range(4)} == in_order
    assert len(reader.groups) < 1000


def test_end_waits_for_what_was_taken(reader: Reader):
    reader.gatherer.take([1, 2])
    reader.gatherer.close(10)
    reader.gatherer.take([3])  # too late for the thread
    reader.gatherer.close(10)
    assert reader.numbers == [1, 2, 3]


def test_nobody_waits_for_the_work_and_what_is_left_out_of_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reader: Reader
):
    monkeypatch.setattr(gathering, "MOST_WAITING", 10)
    reader.may_read.clear()
    for number in range(20):
        reader.gatherer.take([number])
    assert reader.groups == []
    reader.may_read.set()
    reader.gatherer.close(10)
    assert reader.numbers == list(range(10))
    assert "10 numbers were left out" in caplog.text


def test_end_that_comes_before_the_work_is_done_tells_what_is_lost(caplog: pytest.LogCaptureFixture, reader: Reader):
    reader.may_read.clear()
    reader.gatherer.take([1])
    assert eventually(lambda: not reader.gatherer._waiting)
    reader.gatherer.take([2, 3])
    reader.gatherer.close(0.1)
    assert "2 numbers and more are lost" in caplog.text


def test_work_that_fails_is_told_and_the_next_is_done(caplog: pytest.LogCaptureFixture, reader: Reader):
    reader.gatherer.take([-1])
    assert eventually(lambda: "Some numbers are lost" in caplog.text)
    reader.gatherer.take([1])
    assert eventually(lambda: reader.numbers == [1])

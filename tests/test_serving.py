"""The threads that answer connections: how many there are, which of them works, and how they end."""

import socket
import threading
from collections.abc import Iterator

import pytest
from conftest import Server, eventually
from rawhttp import connect, read_answer, read_until

from tokenrouter.worker.threads import ThreadPool


class Work:
    """Jobs that last until they are let go; each notes its thread."""

    def __init__(self) -> None:
        self.threads: dict[str, threading.Thread] = {}
        self.gates: dict[str, threading.Event] = {}

    def add(self, *names: str) -> None:
        self.gates |= {name: threading.Event() for name in names}

    def __call__(self, name: str) -> None:
        self.threads[name] = threading.current_thread()
        self.gates[name].wait(10)

    def runs(self, *names: str) -> bool:
        return eventually(lambda: set(names) <= set(self.threads))

    def end(self, *names: str) -> None:
        for name in names:
            self.gates[name].set()


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def pool(work: Work) -> Iterator[ThreadPool]:
    pool = ThreadPool(work, 2)
    yield pool
    work.end(*work.gates)
    pool.shutdown()
    assert all(ended(thread) for thread in work.threads.values())


def ended(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()


def submit(pool: ThreadPool, work: Work, *names: str) -> None:
    work.add(*names)
    for name in names:
        pool.submit(name)


def test_jobs_run_side_by_side_up_to_the_size_and_the_rest_wait(pool: ThreadPool, work: Work):
    submit(pool, work, "a", "b", "c")
    assert work.runs("a", "b")
    assert "c" not in work.threads
    work.end("a")
    assert work.runs("c")
    assert work.threads["c"] is work.threads["a"]


def test_thread_that_was_idle_last_works_first(pool: ThreadPool, work: Work):
    submit(pool, work, "a", "b")
    assert work.runs("a", "b")
    work.end("b")
    assert eventually(lambda: len(pool._idle) == 1)
    work.end("a")
    assert eventually(lambda: len(pool._idle) == 2)
    submit(pool, work, "c")
    assert work.runs("c")
    assert work.threads["c"] is work.threads["a"]


def test_no_thread_starts_while_one_is_idle(pool: ThreadPool, work: Work):
    for name in "abc":
        submit(pool, work, name)
        assert work.runs(name)
        work.end(name)
        assert eventually(lambda: len(pool._idle) == 1)
    assert len(set(work.threads.values())) == 1


def test_shutdown_ends_idle_threads_at_once_and_busy_ones_after_all_that_waits(pool: ThreadPool, work: Work):
    submit(pool, work, "a", "b", "c")
    assert work.runs("a", "b")
    pool.shutdown()
    work.end("a", "b", "c")
    assert work.runs("c")
    assert all(ended(thread) for thread in work.threads.values())


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with connect(server, 5) as connection:
        yield connection


REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


def test_connection_is_kept_for_many_requests(connection: socket.socket):
    for _ in range(20):
        connection.sendall(REQUEST)
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 401")


def test_requests_sent_ahead_are_answered_one_after_the_other(connection: socket.socket):
    connection.sendall(REQUEST * 3)
    read_until(connection, b"HTTP/1.1 401", times=3)

"""What is done by the clock: by one worker of all, again when it is due, and whatever else fails."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import select, update

from tokenrouter.database.tables import Job, db, writing
from tokenrouter.worker.jobs import Jobs, Task, claim

pytestmark = pytest.mark.both_databases


def make_due(name: str) -> None:
    with writing(db.engine) as connection:
        connection.execute(update(Job).where(Job.name == name).values(due_at=Job.due_at - 3600))


def stored(name: str) -> Job:
    with db.engine.connect() as connection:
        return connection.execute(select(Job.__table__).where(Job.name == name)).one()


def test_of_many_that_look_at_once_one_claims_it(app: Flask):
    task, engine = Task("count", 600, print), db.engine
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda _: claim(engine, task), range(8)))
        assert sorted(claims) == [False] * 7 + [True]
        make_due("count")


def test_it_is_run_again_when_it_is_due(app: Flask):
    runs: list[int] = []
    jobs = Jobs(db.engine, [Task("count", 600, lambda: runs.append(1))])
    for _ in range(3):
        jobs.run_due()
    assert len(runs) == 1
    make_due("count")
    jobs.run_due()
    assert len(runs) == 2
    assert stored("count").ended_at >= stored("count").began_at


def test_one_that_fails_says_so_and_lets_the_others_run(app: Flask, caplog: pytest.LogCaptureFixture):
    runs: list[int] = []
    jobs = Jobs(db.engine, [Task("divide", 600, lambda: 1 / 0), Task("count", 600, lambda: runs.append(1))])
    jobs.run_due()
    assert runs == [1]
    assert stored("divide").error == "ZeroDivisionError: division by zero"
    assert "divide failed" in caplog.text
    make_due("divide")
    Jobs(db.engine, [Task("divide", 600, print)]).run_due()
    assert stored("divide").error is None


def test_thread_that_looks_ends_when_it_is_closed(app: Flask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenrouter.worker.jobs.LOOK_S", 0.01)
    jobs = Jobs(db.engine, [Task("count", 600, print)])
    jobs.start()
    jobs.close()
    jobs._thread.join(5)
    assert not jobs._thread.is_alive()

"""What is done by the clock: by one worker of all, again when it is due, and whatever else fails."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from sqlalchemy import insert, select, update

from tokenrouter.database.columns import epoch_now
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Job, Worker, db
from tokenrouter.worker.jobs import RETRY_S, Every, Jobs, Nightly, Task, claim

pytestmark = pytest.mark.both_databases


def make_due(name: str, hours: int = 1) -> None:
    with writing(db.engine) as connection:
        connection.execute(update(Job).where(Job.name == name).values(due_at=Job.due_at - hours * 3600))


def stored(name: str) -> Job:
    with db.engine.connect() as connection:
        return connection.execute(select(Job.__table__).where(Job.name == name)).one()


def test_of_many_that_look_at_once_one_claims_it(app: Flask):
    task, engine = Task("count", Every(600), print), db.engine
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda _: claim(engine, task), range(8)))
        assert sorted(claims) == [False] * 7 + [True]
        make_due("count")


def test_it_is_run_again_when_it_is_due(app: Flask):
    runs: list[int] = []
    jobs = Jobs(db.engine, [Task("count", Every(600), lambda: runs.append(1))])
    for _ in range(3):
        jobs.run_due()
    assert len(runs) == 1
    make_due("count")
    jobs.run_due()
    assert len(runs) == 2
    assert stored("count").ended_at >= stored("count").began_at


def test_one_that_fails_says_so_and_lets_the_others_run(app: Flask, caplog: pytest.LogCaptureFixture):
    runs: list[int] = []
    jobs = Jobs(
        db.engine, [Task("divide", Every(600), lambda: 1 / 0), Task("count", Every(600), lambda: runs.append(1))]
    )
    jobs.run_due()
    assert runs == [1]
    assert stored("divide").error == "ZeroDivisionError: division by zero"
    assert "divide failed" in caplog.text
    assert stored("divide").due_at - stored("divide").began_at == pytest.approx(600, abs=30)
    make_due("divide")
    Jobs(db.engine, [Task("divide", Every(600), print)]).run_due()
    assert stored("divide").error is None


def test_thread_that_looks_ends_when_it_is_closed(app: Flask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenrouter.worker.jobs.LOOK_S", 0.01)
    jobs = Jobs(db.engine, [Task("count", Every(600), print)])
    jobs.start()
    jobs.close()
    for thread in jobs._threads:
        thread.join(5)
        assert not thread.is_alive()


def test_nightly_one_is_not_run_before_its_first_night(app: Flask):
    runs: list[int] = []
    jobs = Jobs(db.engine, [Task("count", Nightly(), lambda: runs.append(1))])
    jobs.run_due()
    assert runs == []
    make_due("count", hours=25)
    jobs.run_due()
    jobs.run_due()
    assert runs == [1]


def test_nightly_one_that_fails_is_tried_again_before_the_next_night(app: Flask):
    jobs = Jobs(db.engine, [Task("divide", Nightly(), lambda: 1 / 0)])
    jobs.run_due()
    make_due("divide", hours=25)
    jobs.run_due()
    assert 0 < stored("divide").due_at - stored("divide").ended_at <= RETRY_S


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-28T01:00:00", "2026-11-28T03:00:00"),
        ("2026-11-28T03:00:00", "2026-11-29T03:00:00"),
        ("2026-11-28T22:00:00", "2026-11-29T03:00:00"),
        ("2026-03-28T12:00:00", "2026-03-29T03:00:00"),  # the clocks go from 2 to 3
        ("2026-10-25T00:30:00", "2026-10-25T03:00:00"),  # and here from 3 to 2
    ],
)
def test_nights_begin_by_the_clocks_of_the_time_zone(app: Flask, now: str, expected: str):
    at = datetime.fromisoformat(now).replace(tzinfo=BERLIN).timestamp()
    assert datetime.fromtimestamp(Nightly().next_after(at, BERLIN), BERLIN).isoformat()[:19] == expected


def test_hour_that_is_skipped_begins_when_it_would(app: Flask):
    at = datetime(2026, 3, 29, 1, 0, tzinfo=BERLIN).timestamp()
    assert datetime.fromtimestamp(Nightly(2).next_after(at, BERLIN), BERLIN).isoformat()[:19] == "2026-03-29T03:00:00"


def test_one_that_is_being_run_is_not_begun_once_more_until_its_worker_died(app: Flask):
    """However long it takes."""
    engine, task = db.engine, Task("count", Every(600), print)
    with writing(engine) as connection:
        worker_id = connection.execute(
            insert(Worker).values(name="other", lease_expires_at=epoch_now() + 20).returning(Worker.id)
        ).scalar_one()
    assert claim(engine, task, worker_id=worker_id)
    make_due("count")
    assert not claim(engine, task)
    with writing(engine) as connection:
        connection.execute(update(Worker).where(Worker.id == worker_id).values(lease_expires_at=epoch_now() - 1))
    assert claim(engine, task)


def test_one_whose_worker_died_is_run_at_once(app: Flask):
    assert claim(db.engine, Task("count", Every(600), print), worker_id=12345)
    runs: list[int] = []
    Jobs(db.engine, [Task("count", Every(600), lambda: runs.append(1))]).run_due()
    assert runs == [1]
    assert stored("count").worker_id is None


def test_look_that_finds_nothing_due_writes_nothing(app: Flask):
    jobs = Jobs(db.engine, [Task("count", Every(600), print)])
    jobs.run_due()
    with patch("tokenrouter.worker.jobs.writing", side_effect=AssertionError):
        jobs.run_due()

"""Pruning: calls leave the log by whole days, and the books stay as provable as they were."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import func, select, text, update
from test_prices import ok, request, settle

from tokenrouter import changes, ledger, prices, reports, runtime, teams
from tokenrouter.database import tables
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import CostCorrection, GivenItem, GivenResponse, PrunedUsage, RequestLog, db
from tokenrouter.ledger import pruning
from tokenrouter.periods import UTC_ZONE

pytestmark = pytest.mark.both_databases

OLD = datetime.now(UTC) - timedelta(days=40)
KEPT_DAYS = 30
WRONG, RIGHT = 10**9, 3 * 10**9


def make_old(at: datetime = OLD) -> None:
    """Let all that was called today have been called long ago."""
    with writing(db.engine) as connection:
        connection.execute(update(tables.Team).values(created_at=OLD - timedelta(days=5)))
        is_new = RequestLog.day > OLD.date()
        connection.execute(update(RequestLog).where(is_new).values(created_at=at, day=at.date()))
        for table in (GivenResponse, GivenItem):
            connection.execute(update(table).values(created_at=at))
        for daily in (tables.UsageDaily, tables.GroupUsageDaily, tables.TokenUsageDaily, CostCorrection):
            connection.execute(update(daily).where(daily.day > OLD.date()).values(day=at.date()))


def in_batches_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_ROWS", "LEAST_ROWS", "MOST_ROWS"):
        monkeypatch.setattr(pruning, name, 1)


def prune() -> ledger.Pruned:
    return ledger.prune(db.engine, ledger.first_day_kept(KEPT_DAYS, UTC_ZONE), UTC_ZONE, by=TESTER)


def count(table: Any) -> int:
    with db.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def problems() -> list[str]:
    return ledger.verify(db.engine).problems


@pytest.fixture
def member(app: Flask, new_team: Callable[..., Member]) -> Member:
    """A team in a group."""
    teams.create_group("year 9", by=TESTER)
    return new_team(group="year 9")


@pytest.fixture
def used(client: FlaskClient, member: Member) -> Member:
    """It has old calls, that ended in all ways, and new ones."""
    for directives in ("words=5", "usage=none words=5", "status=500"):
        chat(client, member, directives)
    chat(client, member, model="no-such-model")
    client.post("/v1/responses", json={"model": "GPT-5-nano", "input": "Hello!"}, headers=member.headers, buffered=True)
    ledger.reset(db.engine, [member.team.id], by=TESTER)
    make_old()
    chat(client, member, "words=4")
    assert problems() == []
    return member


def test_old_days_leave_the_log_and_everything_else_stays(used: Member):
    team, usage = reports.team_view(teams.find("team")), reports.usage("day")[0]
    pruned = prune()
    assert (pruned.calls, pruned.responses, count(RequestLog)) == (5, 1, 1)
    assert (count(GivenResponse), count(GivenItem)) == (0, 0)
    assert (reports.team_view(teams.find("team")), reports.usage("day")[0]) == (team, usage)
    assert problems() == []
    assert (prune().calls, problems()) == (0, [])
    assert [row.after for row in changes.page().rows if row.action == "log.prune"] == [
        {"log_before": str(pruned.before)}
    ]


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE usage_daily SET total_tokens = total_tokens + 1",
        "UPDATE group_usage_daily SET requests = requests + 1",
        "UPDATE token_usage_daily SET total_tokens = total_tokens + 1",
        "UPDATE teams SET settled_tokens = settled_tokens + 1",
        "UPDATE groups SET settled_tokens = 0",
    ],
)
def test_what_is_wrong_is_found_and_mended_once_the_calls_are_gone(used: Member, tamper: str):
    prune()
    with writing(db.engine) as connection:
        connection.execute(text(tamper))
    assert problems() != []
    ledger.repair(db.engine, by=TESTER)
    assert problems() == []


def test_prune_that_ends_in_the_middle_goes_on_where_it_was(used: Member, monkeypatch: pytest.MonkeyPatch):
    steps = iter(range(3))
    in_batches_of_one(monkeypatch)

    def end(_: Any) -> None:
        if next(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pruning.time, "sleep", end)
    with pytest.raises(KeyboardInterrupt):
        prune()
    assert (count(RequestLog), problems()) == (3, [])
    monkeypatch.undo()
    assert (prune().calls, problems()) == (2, [])


def test_a_call_in_flight_stays_however_old_and_is_pruned_after_its_end(app: Flask, member: Member):
    books = runtime.of(app).ledger
    reservation = books.reserve(replace(request(member), created_at=OLD))
    settle(books, member, ok(1000, 0))
    make_old()
    assert (prune().calls, count(RequestLog), problems()) == (1, 1, [])
    books.settle(reservation, ok(10, 0))
    assert problems() == []
    assert (prune().calls, count(RequestLog), problems()) == (1, 0, [])


def test_corrected_costs_stay_proven_and_count_once(app: Flask, client: FlaskClient, member: Member):
    books = runtime.of(app).ledger
    prices.set_price("GPT-5-nano", WRONG, WRONG, by=TESTER)
    settle(books, member, ok(1000, 0))
    prices.set_price("GPT-5-nano", RIGHT, RIGHT, by=TESTER)
    assert ledger.correct_costs(db.engine, "GPT-5-nano", OLD.date(), by=TESTER).calls == 1
    make_old()
    assert (prune().calls, problems()) == (1, [])
    settle(books, member, ok(1000, 0))  # on SQLite it has the id of the one that was pruned
    assert ledger.correct_costs(db.engine, "GPT-5-nano", OLD.date(), by=TESTER).calls == 0
    assert teams.find("team").cost == 6_000_000
    make_old(OLD - timedelta(days=1))
    assert (prune().calls, problems()) == (1, [])


def test_reset_is_taken_back_with_the_corrections_of_pruned_calls(app: Flask, member: Member):
    books = runtime.of(app).ledger
    prices.set_price("GPT-5-nano", WRONG, WRONG, by=TESTER)
    settle(books, member, ok(1000, 0))
    make_old()
    ledger.reset(db.engine, [member.team.id], by=TESTER)
    (reset,) = (row for row in changes.page().rows if row.action == "usage.reset")
    prices.set_price("GPT-5-nano", RIGHT, RIGHT, by=TESTER)
    ledger.correct_costs(db.engine, "GPT-5-nano", OLD.date(), by=TESTER)
    assert (prune().calls, teams.find("team").cost) == (1, 0)
    teams.undo([reset.id], by=TESTER)
    assert (teams.find("team").cost, problems()) == (3_000_000, [])


def test_batches_of_the_same_day_add_up(app: Flask, member: Member, monkeypatch: pytest.MonkeyPatch):
    for _ in range(2):
        settle(runtime.of(app).ledger, member, ok(1000, 0))
    make_old()
    in_batches_of_one(monkeypatch)
    prune()
    with db.engine.connect() as connection:
        (kept,) = connection.execute(select(PrunedUsage.requests, PrunedUsage.total_tokens)).all()
    assert tuple(kept) == (2, 2000)


def test_prunes_and_repairs_at_once_count_each_call_once(app: Flask, member: Member, monkeypatch: pytest.MonkeyPatch):
    for _ in range(30):
        settle(runtime.of(app).ledger, member, ok(1000, 0))
    make_old()
    in_batches_of_one(monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        prunes = [pool.submit(in_app(app, prune)) for _ in range(2)]
        repairs = pool.submit(in_app(app, lambda: [ledger.repair(db.engine, by=TESTER) for _ in range(5)]))
        assert sum(done.result().calls for done in prunes) == 30
        assert repairs.result() == [[]] * 5
    assert (count(RequestLog), problems()) == (0, [])


def in_app(app: Flask, run: Callable[[], Any]) -> Callable[[], Any]:
    def run_in_app() -> Any:
        with app.app_context():
            return run()

    return run_in_app


def test_command_says_what_it_does_and_needs_to_know_how_old(runner: FlaskCliRunner, used: Member):
    assert runner.invoke(args=["logs", "prune", "--yes"]).exit_code == 2
    assert "Delete the calls of all days before" in runner.invoke(args=["logs", "prune", "--older-than", "7"]).output
    assert count(RequestLog) == 6
    done = runner.invoke(args=["logs", "prune", "--older-than", "7", "--yes"])
    assert "Deleted 5 calls" in done.output
    assert (done.exit_code, count(RequestLog)) == (0, 1)


def leave_free_pages() -> int:
    """Leave a thousand free pages in the file; return how many it has in all."""
    with writing(db.engine) as connection:
        connection.execute(text("CREATE TABLE ballast (bytes BLOB)"))
        connection.execute(text("INSERT INTO ballast VALUES (zeroblob(4000000))"))
        connection.execute(text("DROP TABLE ballast"))
        return connection.execute(text("PRAGMA page_count")).scalar_one()


@pytest.mark.sqlite_only
def test_file_shrinks(app: Flask, used: Member, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pruning, "SPARE_PAGES", 0)
    leave_free_pages()
    assert prune().keeps_size is False
    with db.engine.connect() as connection:
        assert connection.execute(text("PRAGMA freelist_count")).scalar() == 0
        assert connection.execute(text("PRAGMA page_count")).scalar() < 200


@pytest.mark.sqlite_only
def test_space_is_given_back_many_pages_at_once(app: Flask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pruning, "SPARE_PAGES", 0)
    before = leave_free_pages()
    batches = pruning.Batches(db.engine, datetime.now(UTC).date(), TESTER)
    with writing(db.engine) as connection:
        given_back = batches._give_back_pages(connection)
    with db.engine.connect() as connection:
        assert before - connection.execute(text("PRAGMA page_count")).scalar_one() >= given_back == pruning.FIRST_ROWS

"""Costs corrected since a day: by entries of their own, proven, once, and paid by the period that the call was of."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
from adminclient import Panel
from conftest import TESTER, Member, eventually
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import select, text, update
from test_prices import ok, settle

from tokenrouter import changes, ledger, prices, reports, runtime, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import CostCorrection, RequestLog, Team, db
from tokenrouter.errors import NotFound
from tokenrouter.ledger import Ledger
from tokenrouter.periods import Renewal

pytestmark = pytest.mark.both_databases

WRONG, RIGHT = 10**9, 3 * 10**9  # a million tokens each
CALL = ok(1000, 0)
TODAY = datetime.now(UTC).date()
LONG_AGO = TODAY - timedelta(days=30)


@pytest.fixture
def books(app: Flask) -> Ledger:
    prices.set_price("GPT-5-nano", WRONG, WRONG, by=TESTER)
    return runtime.of(app).ledger


def correct(since: date = LONG_AGO, model: str = "GPT-5-nano") -> tuple[int, int]:
    done = ledger.correct_costs(db.engine, model, since, by=TESTER)
    return done.calls, done.cost


def problems() -> list[str]:
    return ledger.verify(db.engine).problems


def logged() -> list[int | None]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(RequestLog.cost).order_by(RequestLog.id)).scalars())


def test_calls_are_corrected_once_and_the_log_stays(books: Ledger, team: Member):
    for _ in range(2):
        settle(books, team, CALL)
    prices.set_price("GPT-5-nano", RIGHT, RIGHT, by=TESTER)
    settle(books, team, CALL)  # at the right price already
    assert correct() == (2, 4_000_000)
    assert logged() == [1_000_000, 1_000_000, 3_000_000]
    assert teams.find("team").cost == 9_000_000
    assert reports.usage("model")[0][0]["cost"] == "0.009"
    assert correct() == (0, 0)
    assert problems() == []
    prices.set_price("GPT-5-nano", WRONG, WRONG, by=TESTER)  # it was right after all
    assert correct() == (3, -6_000_000)
    assert teams.find("team").cost == 3_000_000
    assert problems() == []
    told = [row.after for row in changes.page().rows if row.action == "price.correct"]
    assert [(row["calls"], row["cost"]) for row in told] == [(3, "-0.006"), (0, "0"), (2, "0.004")]


def test_what_had_no_price_has_one_and_what_the_provider_told_stays(books: Ledger, team: Member):
    settle(books, team, CALL, "unknown")
    settle(books, team, ok(1000, 0, reported_cost=7), "unknown")
    settle(books, team, CALL)
    prices.set_price("unknown", RIGHT, RIGHT, by=TESTER)
    assert correct(model="UNKNOWN") == (1, 3_000_000)
    assert (teams.find("team").cost, teams.find("team").unpriced_tokens) == (4_000_007, 0)
    assert problems() == []


def test_only_calls_since_the_day_and_of_that_price_are_corrected(books: Ledger, team: Member):
    settle(books, team, CALL)
    settle(books, team, CALL, "GPT-5-mini")
    prices.set_price("GPT-5*", RIGHT, RIGHT, by=TESTER)
    prices.set_price("GPT-5-nano", RIGHT, RIGHT, by=TESTER)
    assert correct(TODAY + timedelta(days=2)) == (0, 0)  # the next day may have come since
    assert correct(model="gpt-5*") == (1, 3_000_000)  # nano has a price of its own
    assert correct(TODAY - timedelta(days=1)) == (1, 2_000_000)
    assert problems() == []


@pytest.mark.parametrize("price", [RIGHT, 0])
def test_running_period_pays_for_its_own_calls_alone(books: Ledger, new_team: Callable[..., Member], price: int):
    teams.create_group("year 9", by=TESTER)
    member = new_team("9a", group="year 9", renewal=Renewal("daily"))
    settle_in_group(books, member)
    ledger.reset(db.engine, [member.team.id], by=TESTER)
    settle_in_group(books, member)
    due_at = int(time.time()) + 1
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(renews_at=due_at))
    assert eventually(lambda: time.time() > due_at + 0.1)
    settle_in_group(books, member)
    prices.set_price("GPT-5-nano", price, price, by=TESTER)
    assert correct() == (3, 3 * (price - WRONG) // 1000)
    assert teams.find("9a").cost == price // 1000
    assert teams.find_group("year 9").cost == 3 * price // 1000
    assert reports.usage("group")[0][0]["cost"] == ("0.009" if price else "0")
    assert problems() == []
    ledger.reset(db.engine, [member.team.id], by=TESTER)
    assert problems() == []


def test_no_period_pays_less_than_nothing_where_clocks_disagree(books: Ledger, team: Member):
    """A call that was settled before a reset may seem to be of the period after it."""
    settle(books, team, CALL)
    ledger.reset(db.engine, [team.team.id], by=TESTER)
    with writing(db.engine) as connection:
        connection.execute(update(RequestLog).values(latency_ms=60_000))
    prices.set_price("GPT-5-nano", 0, 0, by=TESTER)
    assert correct() == (1, -1_000_000)
    assert teams.find("team").cost == 0
    assert problems() == []


def settle_in_group(books: Ledger, member: Member) -> None:
    from test_prices import request

    call_request = request(member)
    call_request.group_id = member.team.group_id
    books.settle(books.reserve(call_request), CALL)


def test_correction_is_proven_and_mended(books: Ledger, team: Member):
    settle(books, team, CALL)
    ledger.reset(db.engine, [team.team.id], by=TESTER)
    prices.set_price("GPT-5-nano", RIGHT, RIGHT, by=TESTER)
    correct()
    with writing(db.engine) as connection:
        connection.execute(text("UPDATE cost_corrections SET cost = cost + 1"))
    assert len(problems()) == 2  # of the counters, and of the day
    ledger.repair(db.engine, by=TESTER)
    assert problems() == []
    prices.set_price("GPT-5-nano", WRONG, WRONG, by=TESTER)
    correct()
    assert problems() == []


def test_reset_that_comes_between_is_seen(books: Ledger, team: Member, monkeypatch: pytest.MonkeyPatch):
    settle(books, team, CALL)
    prices.set_price("GPT-5-nano", RIGHT, RIGHT, by=TESTER)
    entries, times = ledger.corrections._entries, []

    def reset_meanwhile(*arguments: object) -> object:
        found = list(entries(*arguments))
        if not times:
            ledger.reset(db.engine, [team.team.id], by=TESTER)
        times.append(len(found))
        return found

    monkeypatch.setattr(ledger.corrections, "_entries", reset_meanwhile)
    assert correct() == (1, 2_000_000)
    assert times == [1, 1]
    assert teams.find("team").cost == 0
    assert problems() == []


def test_command_and_panel(runner: FlaskCliRunner, books: Ledger, team: Member, panel: Panel, client: FlaskClient):
    settle(books, team, CALL)
    assert runner.invoke(args=["prices", "correct", "nothing", "--since", "2026-01-01"]).exit_code == 1
    with pytest.raises(NotFound):
        correct(model="nothing")
    runner.invoke(args=["prices", "set", "GPT-5-nano", "--input", "3000", "--output", "3000"])
    done = runner.invoke(args=["prices", "correct", "GPT-5-nano", "--since", "2026-01-01"])
    assert done.output == "Corrected the cost of 1 call: 2.999 USD more in all.\n"
    with db.engine.connect() as connection:
        (call_id,) = connection.execute(select(CostCorrection.call_id)).scalars()
    page = panel.get(f"/admin/logs/{call_id}/").text
    assert "$3.00" in page and "corrected since, from" in page


def test_two_at_once_correct_each_call_once(app: Flask, books: Ledger, team: Member):
    for _ in range(20):
        settle(books, team, CALL)
    prices.set_price("GPT-5-nano", RIGHT, RIGHT, by=TESTER)

    def run(_: int) -> tuple[int, int]:
        with app.app_context():
            return correct()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(run, range(4))) == [(0, 0)] * 3 + [(20, 40_000_000)]
    assert teams.find("team").cost == 60_000_000
    assert problems() == []

"""Sums of past days for reports: they say what the days say, whoever changes these, and are proven."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import delete, insert, select, text, update
from test_prices import ok, request
from test_pruning import make_old
from test_usage_report import add_use

from tokenrouter import ledger, prices, reports, runtime, teams
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.engine import writing
from tokenrouter.database.rollups import ROLLUPS, first_of, forget, last_of
from tokenrouter.database.tables import (
    CostCorrection,
    GroupUsageDaily,
    RequestLog,
    TokenUsageDaily,
    UsageDaily,
    UsageTotalsKept,
    db,
)
from tokenrouter.ledger import past_totals
from tokenrouter.periods import UTC_ZONE
from tokenrouter.reports import daily_sums
from tokenrouter.reports.daily_sums import Scope, read_sums

pytestmark = pytest.mark.both_databases

TODAY = datetime.now(UTC).date()
OLD = TODAY - timedelta(days=70)
DRAWN_DAYS = 130


def sum_up() -> int:
    return ledger.sum_up(db.engine, UTC_ZONE)


def kept() -> list[tuple[str, date]]:
    with db.engine.connect() as connection:
        query = select(UsageTotalsKept.kind, UsageTotalsKept.day).where(UsageTotalsKept.complete)
        return sorted(tuple(row) for row in connection.execute(query))


def read(by: tuple[daily_sums.Dimension, ...] = ("team",), scope: Scope | None = None) -> dict[Any, Any]:
    with db.engine.connect() as connection:
        return read_sums(connection, by, scope or Scope())


def tokens_of_old_day() -> int:
    days = reports.Days(OLD, OLD)
    return reports.usage_report(days, ("day",), TODAY).total.total_tokens


@pytest.fixture
def drawn(app: Flask) -> random.Random:
    """Use of some days by chance, by groups and tokens and by none, of three teams and models."""
    chance = random.Random(18)
    group = teams.create_group("year", by=TESTER).id
    members = [(*teams.create(f"team {at}", by=TESTER), at) for at in range(3)]
    tokens = {team.id: token.id for team, _, _ in members for token in teams.tokens(team.name)}
    rows: dict[Any, list[dict[str, Any]]] = {UsageDaily: [], GroupUsageDaily: [], TokenUsageDaily: []}
    for at in chance.sample(range(DRAWN_DAYS), DRAWN_DAYS // 2):
        for team, _, number in members:
            for model in chance.sample(["a", "b", ""], 2):
                sums = {name: chance.randrange(1, 10**10) for name in past_totals.Sums._fields}
                row = {"day": TODAY - timedelta(days=at), "model": model, **sums}
                rows[UsageDaily].append({"team_id": team.id, **row})
                if number and chance.random() < 0.8:
                    rows[GroupUsageDaily].append({"group_id": group, "team_id": team.id, **row})
                if chance.random() < 0.8:
                    rows[TokenUsageDaily].append({"token_id": tokens[team.id], **row})
    with writing(db.engine) as connection:
        for table, values in rows.items():
            connection.execute(insert(table), values)
    return chance


def scopes(chance: random.Random) -> Iterator[Scope]:
    yield Scope()
    yield Scope(sums=("requests", "cost"))
    team = teams.find("team 1").id
    for _ in range(1):
        since = TODAY - timedelta(days=chance.randrange(DRAWN_DAYS))
        scope = Scope(since, since + timedelta(days=chance.randrange(100)))
        yield from (scope, replace(scope, since=None), replace(scope, until=None, team_id=team))
    yield Scope(since=OLD, group_id=1)


def groupings() -> Iterator[tuple[reports.Dimension, ...]]:
    yield ()
    for first in reports.DIMENSIONS:
        yield (first,)
        yield from ((first, second) for second in reports.DIMENSIONS if second != first)


def can_be(by: tuple[reports.Dimension, ...], scope: Scope) -> bool:
    return "token" not in by or ("group" not in by and scope.group_id is None)


def test_reports_say_the_same_once_days_are_summed_up(drawn: random.Random):
    asked = [(by, scope) for scope in scopes(drawn) for by in groupings() if can_be(by, scope)]
    before = [read(by, scope) for by, scope in asked]
    assert sum_up() > 0
    assert {kind for kind, _ in kept()} == {rollup.kind for rollup in ROLLUPS}
    assert sum_up() == 0
    for (by, scope), said in zip(asked, before, strict=True):
        assert read(by, scope) == said, (by, scope)


def test_summed_days_are_not_added_up_again(drawn: random.Random):
    last = TODAY.replace(day=1) - timedelta(days=1)
    days = reports.Days(last.replace(day=1) - timedelta(days=31), TODAY - timedelta(days=5))
    months = reports.Days(
        (last.replace(day=1) - timedelta(days=1)).replace(day=1), last.replace(day=1) - timedelta(days=1)
    )
    asked: list[tuple[reports.Days, tuple[reports.Dimension, ...]]] = [
        (days, ("day", "model")), (days, ("group", "day")), (days, ("model",)), (months, ("team", "model")),
        (months, ("team", "group")), (months, ("token",)),
    ]  # fmt: skip
    sum_up()
    said = [reports.usage_report(days, by, TODAY).lines for days, by in asked]
    with writing(db.engine) as connection:
        for table in (UsageDaily, GroupUsageDaily, TokenUsageDaily):
            connection.execute(delete(table).where(table.day < TODAY - timedelta(days=4)))
    assert [reports.usage_report(days, by, TODAY).lines for days, by in asked] == said


@pytest.mark.parametrize("by", [("team",), ("token",), ("team", "token")])
def test_summed_thirds_are_not_added_up_again(drawn: random.Random, by: tuple[reports.Dimension, ...]):
    until = first_of("third", TODAY - timedelta(days=4)) - timedelta(days=1)
    scope = Scope((until - timedelta(days=60)).replace(day=11), until)
    sum_up()
    said = read(by, scope)
    with writing(db.engine) as connection:
        for table in (UsageDaily, TokenUsageDaily):
            connection.execute(delete(table).where(table.day <= until))
        connection.execute(delete(UsageTotalsKept).where(UsageTotalsKept.kind.like("% months")))
    assert len(said) > 2
    assert read(by, scope) == said


def test_thirds_and_months_have_each_day_once():
    for span in ("third", "month"):
        day, end = date(2023, 1, 1), date(2025, 1, 1)
        while day < end:
            days = [day + timedelta(days=at) for at in range((last_of(span, day) - day).days + 1)]
            assert {first_of(span, each) for each in days} == {day}
            assert {each.month for each in days} == {day.month}
            assert len(days) in ((8, 9, 10, 11) if span == "third" else (28, 29, 30, 31))
            day = days[-1] + timedelta(days=1)
        assert day == end


def test_today_and_the_days_before_are_never_summed_up(app: Flask, team: Member):
    for ago in range(5):
        add_use(team.team.id, TODAY - timedelta(days=ago), 1)
    sum_up()
    assert max(day for _, day in kept()) == TODAY - timedelta(days=3)


def test_call_booked_late_takes_its_day_third_and_month_out(app: Flask, team: Member):
    add_use(team.team.id, OLD, 5)
    sum_up()
    was = kept()
    books = runtime.current().ledger
    late = replace(request(team), created_at=datetime.combine(OLD, datetime.min.time(), UTC))
    books.settle(books.reserve(late), ok(10, 2))
    assert tokens_of_old_day() == 17
    assert {day for _, day in was} - {day for _, day in kept()} == {OLD, first_of("third", OLD), OLD.replace(day=1)}
    sum_up()
    assert kept() == was
    assert tokens_of_old_day() == 17


@pytest.mark.parametrize("commits_first", [True, False])
def test_who_adds_while_a_day_is_summed_up_is_not_missed(
    app: Flask, team: Member, monkeypatch: pytest.MonkeyPatch, commits_first: bool
):
    add_use(team.team.id, OLD, 5)
    real = past_totals.sums_of_days

    def read_and_add(*arguments: Any) -> Any:
        found = real(*arguments)
        if arguments[1].kind == "days":
            add_to(OLD)
        return found

    def add_to(day: date) -> None:
        with writing(db.engine) as connection:
            connection.execute(update(UsageDaily).where(UsageDaily.day == day).values(total_tokens=100))
            forget(driver_connection(connection), [day])
            begun.set()
            time.sleep(0.2)  # in which the other waits

    begun = threading.Event()
    if commits_first:
        other = threading.Thread(target=in_context, args=(app, add_to))
        other.start()
        begun.wait(5)
        sum_up()
        other.join()
    else:
        monkeypatch.setattr(past_totals, "sums_of_days", read_and_add)
        sum_up()
        assert ("days", OLD) not in kept()
    assert tokens_of_old_day() == 100


def in_context(app: Flask, run: Callable[[date], None]) -> None:
    with app.app_context():
        run(OLD)


def test_wrong_sum_is_found_and_dropped_by_a_repair(client: FlaskClient, team: Member):
    chat(client, team, "words=5")
    make_old()
    sum_up()
    assert ledger.verify(db.engine).problems == []
    with writing(db.engine) as connection:
        connection.execute(text("UPDATE usage_totals SET cost = cost + 1 WHERE kind = 'days'"))
    (problem,) = ledger.verify(db.engine).problems
    assert problem.startswith("reports: the sums of days from ")
    (done,) = ledger.repair(db.engine, by=TESTER)
    assert done.startswith("reports: sums of days from ")
    assert ledger.verify(db.engine).problems == []


def test_correction_of_costs_takes_its_days_out(client: FlaskClient, team: Member):
    prices.set_price("GPT-5-nano", 10**9, 10**9, by=TESTER)
    chat(client, team, "words=5")
    make_old()
    sum_up()
    prices.set_price("GPT-5-nano", 3 * 10**9, 3 * 10**9, by=TESTER)
    assert ledger.correct_costs(db.engine, "GPT-5-nano", TODAY - timedelta(days=100), by=TESTER).calls == 1
    assert ledger.verify(db.engine).problems == []
    with db.engine.connect() as connection:
        day = connection.execute(select(RequestLog.day)).scalar_one()
        assert connection.execute(select(CostCorrection.day)).scalar_one() == day
    assert day not in {each for kind, each in kept() if kind == "days"}

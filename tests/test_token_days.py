"""What each token used by day: counted with the call, filled in for the past, and proven."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import delete, insert, select, update
from test_prices import ok, settle

from tokenrouter import ledger, prices, runtime, teams
from tokenrouter.database import schema
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import RequestLog, TokenUsageDaily, db

pytestmark = pytest.mark.both_databases

TOLD = ("token_id", "day", "model", "requests", "errors", "total_tokens", "cost", "priced_tokens")


def days() -> list[tuple[object, ...]]:
    columns = [getattr(TokenUsageDaily, name) for name in TOLD]
    with db.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(*columns).order_by(*columns[:3]))]


@pytest.fixture
def used(app: Flask, client: FlaskClient, team: Member) -> Member:
    """A team whose two tokens made calls that were answered, failed, were refused, repeated and corrected."""
    prices.set_price("GPT-5-nano", 10**9, 10**9, by=TESTER)
    _, second = teams.create_token("team", "second", by=TESTER)
    for bearer in (team.bearer_token, second):
        chat(client, Member(team.team, bearer), "prompt_tokens=7 words=3")
    chat(client, team, "status=500")
    for _ in range(3):
        chat(client, team, model="no-such-model")
    runtime.of(app).ledger._write_repeats()
    prices.set_price("GPT-5-nano", 3 * 10**9, 3 * 10**9, by=TESTER)
    ledger.correct_costs(db.engine, "GPT-5-nano", datetime.now(UTC).date() - timedelta(days=1), by=TESTER)
    return team


def test_calls_failures_repeats_and_corrections_count_to_their_token(used: Member):
    today = datetime.now(UTC).date()
    first, second = (token.id for token in teams.tokens("team"))
    assert days() == [
        (first, today, "", 3, 3, 0, 0, 0),
        (first, today, "GPT-5-nano", 2, 1, 10, 30_000, 10),
        (second, today, "GPT-5-nano", 1, 0, 10, 30_000, 10),
    ]
    found = ledger.verify(db.engine)
    assert (found.problems, found.notes) == ([], [])


def test_migration_fills_in_what_the_log_has(app: Flask, used: Member):
    counted = days()
    with writing(db.engine) as connection:  # as a version wrote it that did not keep the day
        connection.execute(update(RequestLog).where(RequestLog.status == "ok").values(day=None))
    schema._flask_migrate(app).downgrade(directory=schema.MIGRATIONS, revision="0013")
    schema.ensure(app)
    assert days() == counted
    assert ledger.verify(db.engine).notes == []


def test_what_an_older_version_did_not_count_is_a_note_until_it_is_repaired(used: Member, runner: FlaskCliRunner):
    counted = days()
    with writing(db.engine) as connection:
        connection.execute(delete(TokenUsageDaily).where(TokenUsageDaily.model == ""))
        connection.execute(update(TokenUsageDaily).values(requests=1, total_tokens=3))
    done = runner.invoke(args=["usage", "verify"])
    assert done.exit_code == 0, done.output
    assert "3 daily totals of tokens lack calls" in done.output
    assert "`flask usage repair`" in done.output
    assert "daily totals" in runner.invoke(args=["usage", "repair", "--yes"]).output
    assert days() == counted
    assert ledger.verify(db.engine).notes == []


def test_what_no_call_explains_is_no_note(used: Member):
    with writing(db.engine) as connection:
        connection.execute(update(TokenUsageDaily).values(total_tokens=TokenUsageDaily.total_tokens + 1))
    found = ledger.verify(db.engine)
    assert found.notes == []
    assert all("`flask usage repair`" in problem and ", token tr-" in problem for problem in found.problems)
    assert len(found.problems) == 3


def test_recovered_call_counts_to_its_token(app: Flask, team: Member, new_team: Callable[..., Member]):
    books = runtime.of(app).ledger
    settle(books, team, ok(5, 5))
    with writing(db.engine) as connection:
        row = dict(connection.execute(select(RequestLog.__table__)).mappings().one())
        more = {"id": 99, "request_id": "req_99", "status": "pending", "held_tokens": 8, "worker_id": None}
        charges = {"charged_tokens": 0, "prompt_tokens": 4, "completion_tokens": 4, "cost": None}
        connection.execute(insert(RequestLog).values(row | more | charges))
    ledger.recover(db.engine, {})
    assert [row[5] for row in days()] == [18]

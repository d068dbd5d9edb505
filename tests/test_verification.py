"""What `verify` proves, tamper by tamper, and what `repair` sets right."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TESTER, Member, chat, stored
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import text

from tokenrouter import ledger, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import db

pytestmark = pytest.mark.both_databases


def execute(*statements: str) -> None:
    with writing(db.engine) as connection:
        for statement in statements:
            connection.execute(text(statement))


def without_foreign_keys(statement: str) -> None:
    with db.engine.connect() as connection:
        if db.engine.dialect.name == "sqlite":
            connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SET session_replication_role = replica")
        connection.execute(text(statement))
        connection.commit()
        connection.invalidate()


def problems() -> list[str]:
    return ledger.verify(db.engine).problems


@pytest.fixture
def used(client: FlaskClient, team: Member, new_team: Callable[..., Member]) -> Member:
    """A team with two days' sorts of calls: answered, refused for quota and for the model, failed, and a reset."""
    for directives in ("words=5", "usage=none words=5", "status=500", "prompt_tokens=7 words=3"):
        chat(client, team, directives)
    chat(client, team, model="no-such-model")
    ledger.reset(db.engine, [team.team.id], by=TESTER)
    chat(client, team, "words=4")
    teams.update("team", quota_tokens=1, by=TESTER)
    chat(client, team)
    assert problems() == []
    return team


ANSWERED = "WHERE status = 'ok' AND usage_source = 'provider' AND id = 1"
TAMPERS = {
    "settled": ("UPDATE teams SET settled_tokens = settled_tokens + 1", "charged in the log"),
    "held": ("UPDATE teams SET held_tokens = 7", "7 held, and 0 held"),
    "held below zero": ("UPDATE teams SET held_tokens = -7", "below zero"),
    "mark too high": ("UPDATE teams SET reset_mark_tokens = 10000", "reset at 10000"),
    "mark moved": (
        "UPDATE teams SET reset_mark_tokens = reset_mark_tokens + 1",
        "in the resets and renewals",
    ),
    "mark taken back": ("UPDATE teams SET reset_mark_tokens = 0", "in the resets and renewals"),
    "reset forgotten": (
        "DELETE FROM changes WHERE action = 'usage.reset'",
        "in the resets and renewals",
    ),
    "charge": (f"UPDATE request_logs SET charged_tokens = charged_tokens + 1 {ANSWERED}", "other than its total"),
    "charge and total": (
        f"UPDATE request_logs SET charged_tokens = charged_tokens + 1, total_tokens = total_tokens + 1 {ANSWERED}",
        "in the daily totals",
    ),
    "row gone": ("DELETE FROM request_logs WHERE id = 1", "in the daily totals"),
    "row of a refusal gone": ("DELETE FROM request_logs WHERE status = 'rejected'", "in the daily totals"),
    "day": ("UPDATE usage_daily SET total_tokens = total_tokens + 1", "in the daily totals"),
    "day's requests": ("UPDATE usage_daily SET requests = requests + 1", "calls in the log"),
    "day's errors": ("UPDATE usage_daily SET errors = errors + 1", "errors in the log"),
    "day's prompts": ("UPDATE usage_daily SET prompt_tokens = prompt_tokens + 1", "prompt tokens in the log"),
    "day's answers": ("UPDATE usage_daily SET completion_tokens = 0", "completion tokens in the log"),
    "day's model": ("UPDATE usage_daily SET model = 'other' WHERE model <> ''", "for 'other'"),
    "token's day": ("UPDATE token_usage_daily SET total_tokens = total_tokens + 1", "in the daily totals"),
    "token's model": ("UPDATE token_usage_daily SET model = 'other' WHERE model <> ''", "for 'other'"),
    "day gone": ("DELETE FROM usage_daily", "0 in the daily totals"),
    "model of a call": (f"UPDATE request_logs SET model = 'other' {ANSWERED}", "for 'other'"),
    "prompt of a call": (
        f"UPDATE request_logs SET prompt_tokens = prompt_tokens + 1 {ANSWERED}",
        "prompt tokens in the log",
    ),
    "repeats of an answer": (f"UPDATE request_logs SET repeats = 2 {ANSWERED}", "odd repeats"),
    "repeats of a refusal": ("UPDATE request_logs SET repeats = 2 WHERE status = 'rejected'", "errors in the log"),
    "status": (f"UPDATE request_logs SET status = 'fine' {ANSWERED}", "a status that does not exist"),
    "source": (f"UPDATE request_logs SET usage_source = 'guess' {ANSWERED}", "source of usage that does not exist"),
    "source taken away": (
        f"UPDATE request_logs SET usage_source = 'none' {ANSWERED}",
        "was not counted, and was charged",
    ),
    "refusal charged": (
        "UPDATE request_logs SET charged_tokens = 5 WHERE status = 'rejected'",
        "was refused, and was charged",
    ),
    "estimate below its parts": (
        "UPDATE request_logs SET total_tokens = 1, charged_tokens = 1 WHERE usage_source = 'estimated'",
        "a total below prompt and answer",
    ),
    "number below zero": (f"UPDATE request_logs SET held_tokens = -1 {ANSWERED}", "tokens below zero"),
    "future": (f"UPDATE request_logs SET created_at = '2999-01-01 00:00:00.000000' {ANSWERED}", "began in the future"),
    "past": (
        f"UPDATE request_logs SET created_at = '2001-01-01 00:00:00.000000' {ANSWERED}",
        "began before its team was created",
    ),
    "token of a call": (f"UPDATE request_logs SET token_id = 999 {ANSWERED}", "is of a token that is not there"),
    "pending again": (f"UPDATE request_logs SET status = 'pending', worker_id = 99 {ANSWERED}", "has been dead"),
    "day in the future": ("UPDATE usage_daily SET day = '2999-01-01' WHERE model = ''", "a day in the future"),
}


@pytest.mark.parametrize("tamper", TAMPERS)
def test_verify_finds_what_was_tampered_with(used: Member, tamper: str):
    statement, complaint = TAMPERS[tamper]
    execute(statement)
    found = problems()
    assert any(complaint in problem for problem in found), found
    assert all(problem.count("; ") >= 1 for problem in found)  # what to do next


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE request_logs SET team_id = 999 WHERE id = 1", "is of a team that is not there"),
        ("UPDATE api_tokens SET team_id = 999", "it is of a team that is not there"),
        ("UPDATE usage_daily SET team_id = 999 WHERE model = ''", "team 999, which is not there"),
    ],
)
def test_verify_finds_what_belongs_to_no_team(used: Member, statement: str, complaint: str):
    without_foreign_keys(statement)
    assert any(complaint in problem for problem in problems()), problems()


def test_days_older_than_the_log_are_counted_and_named(used: Member):
    sums = ", ".join(ledger.verification.Sums._fields)
    execute(
        f"INSERT INTO usage_daily (team_id, day, model, {sums})"
        " VALUES (1, '2020-02-01', 'm', 1, 0, 5, 5, 10, 7, 10), (1, '2020-02-02', 'm', 1, 0, 5, 5, 10, 0, 0)",
        "UPDATE teams SET settled_tokens = settled_tokens + 20, settled_cost = 7, settled_priced_tokens = 10",
    )
    found = ledger.verify(db.engine)
    assert found.problems == []
    assert "2 days rest on daily totals alone" in found.notes[0]
    assert "2020-02-01 to 2020-02-02" in found.notes[0]


def test_resets_before_changes_were_recorded_are_said_to_be_unproven(used: Member):
    execute("DELETE FROM changes")
    found = ledger.verify(db.engine)
    assert found.problems == []
    assert "Resets of 1 teams" in found.notes[0]


@pytest.mark.parametrize(
    "tamper", ["settled", "held", "mark moved", "day", "day's requests", "day's model", "day gone"]
)
def test_repair_sets_counters_and_days_to_what_the_log_says(used: Member, tamper: str):
    before = stored(used)
    execute(TAMPERS[tamper][0])
    assert ledger.repair(db.engine, by=TESTER) != []
    assert problems() == []
    assert stored(used) == before
    assert ledger.repair(db.engine, by=TESTER) == []
    with db.engine.connect() as connection:
        recorded = connection.execute(text("SELECT actor_detail FROM changes WHERE action = 'usage.repair'")).all()
    assert recorded == [(TESTER.detail,)]


def test_reset_after_a_repair_is_proven(used: Member):
    execute(TAMPERS["settled"][0])
    ledger.repair(db.engine, by=TESTER)
    ledger.reset(db.engine, [used.team.id], by=TESTER)
    assert problems() == []


def test_repair_asks_first_and_says_what_it_changed(used: Member, runner: FlaskCliRunner):
    execute(TAMPERS["settled"][0])
    assert runner.invoke(args=["usage", "repair"], input="n\n").exit_code == 1
    assert problems() != []
    done = runner.invoke(args=["usage", "repair", "--yes"])
    assert done.exit_code == 0
    assert "team: settled_tokens" in done.output
    assert problems() == []


def test_verify_names_the_database_without_its_password(used: Member, runner: FlaskCliRunner):
    done = runner.invoke(args=["usage", "verify"])
    assert done.exit_code == 0
    assert db.engine.url.render_as_string(hide_password=True) in done.output


@pytest.mark.sqlite_only
def test_verify_finds_a_damaged_file(used: Member):
    path = Path(db.engine.url.database)
    with db.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.exec_driver_sql("SELECT rootpage FROM sqlite_master WHERE name = 'responses'").scalar()
        size = connection.exec_driver_sql("PRAGMA page_size").scalar()
    db.engine.dispose()  # what it has read it would not read again
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * 64)
    assert any("damaged" in problem for problem in problems())


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "command", ["usage verify", "usage repair --yes", "teams list", "logs list", "usage reset --all --yes"]
)
def test_no_such_command_makes_a_database(
    app: Flask, runner: FlaskCliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    missing = tmp_path / "elsewhere" / "missing.db"
    monkeypatch.setattr(db.engine, "url", db.engine.url.set(database=str(missing)))
    done = runner.invoke(args=command.split())
    assert done.exit_code == 1
    assert "no database" in done.stderr
    assert not missing.parent.exists()

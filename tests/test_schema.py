"""Migrations: they make what the models say, from nothing and from every earlier version, and keep what is there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import flask_migrate
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import ROOT
from flask import Flask
from sqlalchemy import create_engine, inspect, make_url, text

from tokenrouter import changes, create_app, ledger, reports, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.config import ConfigError
from tokenrouter.database import schema
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import db

pytestmark = [
    pytest.mark.both_databases,
    # SQLAlchemy reads a CHECK that is NOT VALID back with options that its own constraint does not take
    pytest.mark.filterwarnings("ignore:Can't validate argument 'dialect_options'"),
]

FILLED = (
    """INSERT INTO teams (id, name, quota_tokens, active, settled_tokens, created_at)
    VALUES (1, 'old team', 1000, true, 42, '2026-01-01 00:00:00')""",
    """INSERT INTO api_tokens (id, team_id, prefix, token_hash, created_at)
    VALUES (1, 1, 'tr-12345', 'abc', '2026-01-01 00:00:00')""",
    """INSERT INTO request_logs (id, request_id, team_id, team_name, token_id, token_prefix, model, endpoint, status,
        stream, held_tokens, prompt_tokens, completion_tokens, total_tokens, charged_tokens, usage_source, created_at)
    VALUES (1, 'req_old', 1, 'old team', 1, 'tr-12345', 'm', '/v1/e', 'client_closed', false, 0, 2, 40, 42, 42,
        'estimated', '2026-01-02 00:00:00')""",
    """INSERT INTO usage_daily (team_id, day, model, requests, errors, prompt_tokens, completion_tokens, total_tokens)
    VALUES (1, '2026-01-02', 'm', 1, 0, 2, 40, 42)""",
)
VERSIONS = sorted(path.name.partition("_")[0] for path in (schema.MIGRATIONS / "versions").glob("*.py"))


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    return empty_database_url


@pytest.fixture
def unmade(settings: dict[str, str]) -> Flask:
    """An app whose database has no table yet, as a command finds it."""
    with click.Context(click.Command("any")):
        app = create_app(settings)
    with app.app_context():
        yield app
    runtime.close(app)


def migrate_to(version: str) -> None:
    flask_migrate.upgrade(directory=schema.MIGRATIONS, revision=version)


def fill() -> None:
    with writing(db.engine) as connection:
        for statement in FILLED:
            connection.execute(text(statement))


def differences() -> list[object]:
    with db.engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection), db.metadata)


def test_newest_migration_is_the_one_that_is_expected():
    assert VERSIONS[-1] == schema.HEAD


def test_tables_are_those_of_the_models(app: Flask):
    assert differences() == []


def test_version_before_goes_on_serving_once_another_has_migrated(app: Flask):
    """What it writes, which knows none of the new columns, is taken, and read by the new one."""
    fill()
    with writing(db.engine) as connection:
        connection.execute(text("UPDATE teams SET held_tokens = held_tokens + 7, settled_tokens = settled_tokens + 0"))
        connection.execute(text("UPDATE teams SET held_tokens = held_tokens - 7, settled_tokens = settled_tokens + 0"))
    (team,) = teams.living()
    assert (team.used_tokens, team.allowance_tokens, team.calls_in_flight) == (42, 1000, 0)
    assert reports.team_view(team)["renews"] == "never"
    assert ledger.verify(db.engine).problems == []


OLD = VERSIONS[:-1]
EARLIER = [pytest.param("sqlite", version, marks=pytest.mark.slow) for version in OLD[1:-1]]
EARLIER += [("sqlite", OLD[0]), ("sqlite", OLD[-1]), *(("postgresql", version) for version in OLD[::3])]
"""From each version on SQLite, and from some on PostgreSQL: what is of the first passes through all others."""


@pytest.mark.parametrize(("database", "version"), EARLIER)
def test_earlier_database_is_brought_up_to_date_and_keeps_everything(unmade: Flask, version: str):
    schema._make_sqlite_file()
    migrate_to(version)
    fill()
    schema.ensure(unmade)
    assert differences() == []
    assert ledger.verify(db.engine).problems == []
    assert teams.find("old team").used_tokens == 42
    (row,) = reports.calls_page(reports.CallFilter(status="client_closed")).rows
    assert row.request_id == "req_old"
    teams.update("old team", quota_tokens=5, by=Actor("cli", "tester"))
    assert len(changes.page().rows) == 1


def test_migrations_can_be_taken_back(app: Flask):
    flask_migrate.downgrade(directory=schema.MIGRATIONS, revision=VERSIONS[0])
    with db.engine.connect() as connection:
        assert "changes" not in inspect(connection).get_table_names()
    schema.ensure(app)
    assert differences() == []


def fail_after(run: Callable[..., None]) -> Callable[..., None]:
    def run_and_fail(*arguments: object, **options: object) -> None:
        run(*arguments, **options)
        raise RuntimeError("it fails at its end")

    return run_and_fail


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-2]])
def test_migration_that_fails_leaves_the_database_as_it_was(
    unmade: Flask, version: str, monkeypatch: pytest.MonkeyPatch
):
    schema._make_sqlite_file()
    migrate_to(version)
    fill()
    with db.engine.connect() as connection:
        before = inspect(connection).get_table_names()
    monkeypatch.setattr(MigrationContext, "run_migrations", fail_after(MigrationContext.run_migrations))
    with pytest.raises(ConfigError, match="left as it is"):
        schema.ensure(unmade)
    with db.engine.connect() as connection:
        assert schema.stored_revision(connection) == version
        assert inspect(connection).get_table_names() == before
    monkeypatch.undo()
    schema.ensure(unmade)
    assert ledger.verify(db.engine).problems == []


@pytest.mark.sqlite_only
def test_older_database_is_saved_before_it_is_migrated(unmade: Flask):
    schema._make_sqlite_file()
    migrate_to(VERSIONS[-2])
    fill()
    schema.ensure(unmade)
    path = Path(db.engine.url.database)
    saved = path.with_name(f"{path.name}.before-{schema.HEAD}")
    assert saved.stat().st_mode & 0o777 == 0o600
    engine = create_engine(f"sqlite:///{saved}")
    with engine.connect() as connection:
        assert schema.stored_revision(connection) == VERSIONS[-2]
        assert connection.execute(text("SELECT settled_tokens FROM teams")).scalar() == 42
    engine.dispose()
    assert [path for path in path.parent.iterdir() if "part" in path.name] == []


@pytest.mark.slow
def test_start_waits_for_who_migrates_already_and_says_so(database_url: str, tmp_path: Path):
    """Longer than any lock is waited for at other times."""
    environment = os.environ | {"DATABASE_URL": database_url}
    command = [sys.executable, "-m", "flask", "--app", f"{ROOT}/wsgi.py", "teams", "create", "first"]
    if database_url.startswith("sqlite"):
        Path(make_url(database_url).database).touch()
    engine = create_engine(database_url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": 0x746F6B656E})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        start = subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)
        assert "this waits for it" in start.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            start.wait(6)
        connection.rollback()
    engine.dispose()
    out, err = start.communicate(timeout=60)
    assert start.returncode == 0, err
    assert out.splitlines()[-1].startswith("tr-")

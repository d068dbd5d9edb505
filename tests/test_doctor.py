"""What `flask doctor` finds, and what it says to do about it."""

import json
import os
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import Member, chat
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from requests_mock import Mocker
from sqlalchemy import insert, text, update

from tokenrouter import create_app, runtime
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Job, Team, Worker, db
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases

sqlite_only = pytest.mark.sqlite_only
PROXY = "https://router.example.org"


@pytest.fixture
def settings(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    return settings | {"ALLOWED_MODELS": getattr(request, "param", "GPT-5-nano")}


@pytest.fixture
def examined(runner: FlaskCliRunner) -> Callable[..., tuple[int, dict[str, list[dict[str, str]]]]]:
    """Run the command; return its exit status and the findings by what they are about."""

    def run(*options: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
        result = runner.invoke(args=["doctor", "--json", *options])
        found: dict[str, list[dict[str, str]]] = {}
        for finding in json.loads(result.output):
            found.setdefault(finding["about"], []).append(finding)
        return result.exit_code, found

    return run


@pytest.fixture
def other_sites() -> Iterator[Mocker]:
    """The proxy's answers, while the stand-in provider is asked for real."""
    with Mocker(real_http=True) as mocker:
        mocker.get(f"{PROXY}/healthz", text='{"status": "ok"}')
        refusal = {"error": {"code": "invalid_api_key"}}
        mocker.post(f"{PROXY}/v1/chat/completions", status_code=401, json=refusal)
        mocker.get(f"{PROXY}/admin/login", headers={"Set-Cookie": "session=x; Secure; HttpOnly; Path=/"})
        yield mocker


def marks(found: list[dict[str, str]]) -> set[str]:
    return {each["mark"] for each in found}


def test_well_installation_has_nothing_wrong(app: Flask, client: FlaskClient, team: Member, examined):
    chat(client, team)
    status, found = examined()
    assert status == 0
    assert list(found) == [
        "settings",
        "files",
        "disk",
        "database",
        "clock",
        "workers",
        "jobs",
        "alerts",
        "books",
        "provider",
    ]
    assert set.union(*map(marks, found.values())) == {"ok"}
    assert "1 calls" in found["books"][0]["message"]


def test_each_line_says_what_to_do(app: Flask, runner: FlaskCliRunner, settings: dict[str, str]):
    result = runner.invoke(args=["doctor", "--quick"])
    assert "warning  workers   No worker runs.\n                   → start the service" in result.output
    assert "books" not in result.output


def test_missing_key_is_wrong(settings: dict[str, str]):
    own = create_app(settings | {"PROVIDER_API_KEY": ""})
    result = own.test_cli_runner().invoke(args=["doctor"])
    runtime.close(own)
    assert result.exit_code == 1
    assert "PROVIDER_API_KEY is not set" in result.output


def test_slip_of_the_pen_in_the_env_file_and_its_rights_are_warned_of(app: Flask, examined, tmp_path: Path):
    (tmp_path / ".env").write_text("ALOWED_MODELS=x\n")
    (tmp_path / ".env").chmod(0o644)
    status, found = examined("--quick")
    assert status == 0
    assert "Is ALLOWED_MODELS meant?" in found["settings"][0]["message"]
    assert f"{tmp_path / '.env'} is open to others" in found["files"][0]["message"]
    assert found["files"][0]["advice"] == f"chmod 600 {tmp_path / '.env'}"


@sqlite_only
def test_database_open_to_others_is_warned_of(app: Flask, examined):
    os.chmod(db.engine.url.database, 0o666)
    _, found = examined("--quick")
    assert marks(found["files"]) == {"warning", "ok"}


def test_full_disk_is_wrong(app: Flask, examined):
    usage = namedtuple("usage", "total used free")(10**12, 95 * 10**10, 5 * 10**10)
    with patch("shutil.disk_usage", return_value=usage):
        status, found = examined("--quick")
    assert status == 1
    assert found["disk"][0]["mark"] == "wrong"
    said = found["disk"][0]["message"]
    assert "50.0 GB of 1,000.0 GB are free" in said
    assert ("not seen from here" in said) == (db.engine.dialect.name == "postgresql")


@sqlite_only
def test_database_that_is_not_there_is_not_made(settings: dict[str, str], tmp_path: Path):
    own = create_app(settings | {"DATABASE_URL": f"sqlite:///{tmp_path}/other.db"})
    (tmp_path / "other.db").unlink()
    result = own.test_cli_runner().invoke(args=["doctor"])
    runtime.close(own)
    assert result.exit_code == 1
    assert "There is none yet" in result.output
    assert "books" not in result.output
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(("revision", "advice"), [("0017", "start the service"), ("9999", "a later version made it")])
def test_tables_of_another_version_are_wrong_and_stay_as_they_are(app: Flask, examined, revision: str, advice: str):
    with writing(db.engine) as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    status, found = examined()
    assert status == 1
    assert advice in found["database"][0]["advice"]
    assert "books" not in found
    with db.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == revision


def test_database_that_cannot_be_reached_leaves_the_rest(settings: dict[str, str]):
    with patch("tokenrouter.database.schema.ensure"):
        own = create_app(settings | {"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"})
    result = own.test_cli_runner().invoke(args=["doctor", "--json"])
    runtime.close(own)
    found = {each["about"]: each for each in json.loads(result.output)}
    assert result.exit_code == 1
    assert "cannot be looked at" in found["database"]["message"]
    assert found["provider"]["mark"] == "ok"


def test_clock_that_is_off_is_warned_of(app: Flask, examined):
    with patch("tokenrouter.doctor.database.time.time", return_value=1.7e9):
        _, found = examined("--quick")
    assert "s behind the database's" in found["clock"][0]["message"]


def test_worker_that_died_is_named(app: Flask, client: FlaskClient, team: Member, examined):
    chat(client, team)
    with writing(db.engine) as connection:
        connection.execute(insert(Worker).values(name="away:12", lease_expires_at=epoch_now() - 60))
    _, found = examined("--quick")
    assert found["workers"][0]["message"] == "away:12 died without leaving."
    assert "another worker settles its calls" in found["workers"][0]["advice"]
    assert found["workers"][1]["mark"] == "ok"


def test_job_that_failed_or_is_late_is_named(app: Flask, client: FlaskClient, team: Member, examined):
    chat(client, team)
    name = runtime.of(app).jobs.names[0]
    with writing(db.engine) as connection:
        connection.execute(insert(Job).values(name=name, due_at=epoch_now() - 3600, began_at=epoch_now() - 7200))
    _, found = examined("--quick")
    assert found["jobs"][0]["message"].endswith("It is late.")
    with writing(db.engine) as connection:
        connection.execute(update(Job).where(Job.name == name).values(error="OSError: the disk is full"))
    _, found = examined("--quick")
    assert found["jobs"][0]["message"].endswith("It failed: OSError: the disk is full")


def test_books_that_do_not_agree_are_wrong(app: Flask, client: FlaskClient, team: Member, examined):
    chat(client, team)
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(settled_tokens=Team.settled_tokens + 1))
    status, found = examined()
    assert (status, marks(found["books"])) == (1, {"wrong"})
    assert examined("--quick")[0] == 0


def test_provider_that_refuses_the_key_is_wrong(app: Flask, examined, provider: StandInProvider):
    provider.api_key = "another"
    status, found = examined("--quick")
    assert (status, marks(found["provider"])) == (1, {"wrong"})


@pytest.mark.parametrize("settings", ["GPT-5-nano,GPT-9*"], indirect=True)
def test_models_that_the_provider_does_not_have_are_named(settings: dict[str, str], app: Flask, examined):
    _, found = examined("--quick")
    assert found["provider"][-1]["message"] == "It has no model that ALLOWED_MODELS names so: GPT-9*."


def test_proxy_that_passes_everything_on_is_well(app: Flask, examined, other_sites: Mocker):
    status, found = examined("--quick", "--url", PROXY)
    assert (status, marks(found["proxy"])) == (0, {"ok"})


def test_proxy_that_limits_bodies_is_wrong(app: Flask, examined, other_sites: Mocker):
    other_sites.post(f"{PROXY}/v1/chat/completions", status_code=413, text="<html>Too large</html>")
    status, found = examined("--quick", "--url", PROXY)
    assert status == 1
    assert found["proxy"][1]["advice"] == "nginx: client_max_body_size 32m;"


def test_proxy_that_answers_errors_itself_is_wrong(app: Flask, examined, other_sites: Mocker):
    other_sites.post(f"{PROXY}/v1/chat/completions", status_code=401, text="<html>Unauthorized</html>")
    _, found = examined("--quick", "--url", PROXY)
    assert "not with the 401 of this service" in found["proxy"][1]["message"]


def test_proxy_whose_https_is_not_known_here_is_wrong(app: Flask, examined, other_sites: Mocker):
    other_sites.get(f"{PROXY}/admin/login", headers={"Set-Cookie": "session=x; HttpOnly; Path=/"})
    _, found = examined("--quick", "--url", PROXY)
    assert found["proxy"][2]["advice"] == "set TRUSTED_PROXIES=1"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9", "nothing answers there"),
        ("router", "it is no address"),
    ],
)
def test_address_at_which_nothing_answers_is_wrong(app: Flask, examined, url: str, words: str):
    status, found = examined("--quick", "--url", url)
    assert status == 1
    assert words in found["proxy"][0]["message"]

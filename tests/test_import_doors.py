"""Many teams at once, by a command, by the API and in the panel."""

import csv
import io
from pathlib import Path

import pytest
from conftest import HELLO, TEAM_FIELDS, TESTER, Member
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner

from tokenrouter import changes, teams
from tokenrouter.teams import management_tokens


def names() -> list[str]:
    return [team.name for team in teams.living()]


def works(client: FlaskClient, token: str) -> bool:
    reply = client.post("/v1/chat/completions", json=HELLO, headers={"Authorization": f"Bearer {token}"})
    return reply.status_code == 200


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a list as Excel writes it, two teams of which one has a name for a formula."""
    (tmp_path / "teams.csv").write_bytes("\ufeffName;Quota\r\n=Größe;2.5M\r\n9b;\r\n".encode())
    return tmp_path / "teams.csv"


@pytest.mark.both_databases
def test_command_creates_all_and_prints_names_and_tokens(runner: FlaskCliRunner, client: FlaskClient, file: Path):
    done = runner.invoke(args=["teams", "import", str(file)])
    assert (done.exit_code, done.stderr, "\r" in done.stdout) == (0, "", False)
    header, *rows = csv.reader(io.StringIO(done.stdout))
    assert (header, [name for name, _ in rows]) == (["name", "token"], ["'=Größe", "9b"])
    assert [works(client, token) for _, token in rows] == [True, True]
    assert teams.find("=Größe").quota_tokens == 2_500_000


def test_command_reads_standard_input_and_may_only_look(runner: FlaskCliRunner):
    done = runner.invoke(args=["teams", "import", "-", "--dry-run"], input="9a\n9b,,5k\n")
    assert (done.exit_code, names()) == (0, [])
    assert "Teams that it would create: 2" in done.stdout


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_command_tells_each_fault_on_standard_error_and_creates_none(
    runner: FlaskCliRunner, team: Member, more: list[str]
):
    done = runner.invoke(args=["teams", "import", "-", *more], input="9a,,many\nteam\n9c\n")
    assert (done.exit_code, done.stdout, names()) == (1, "", ["team"])
    assert "Line 1, quota 'many': " in done.stderr
    assert "Line 2, name 'team': There is a team 'team' already.\n" in done.stderr


def test_command_says_how_to_save_a_workbook(runner: FlaskCliRunner):
    done = runner.invoke(args=["teams", "import", "-"], input=b"PK\x03\x04")
    assert (done.exit_code, done.stderr.count("\n"), "Save it as CSV" in done.stderr) == (1, 1, True)


@pytest.fixture
def management(app: Flask) -> dict[str, str]:
    return {"Authorization": f"Bearer {management_tokens.create('tests', by=TESTER)[1]}"}


@pytest.mark.both_databases
def test_api_creates_all_with_what_a_team_may_have(client: FlaskClient, management: dict[str, str]):
    rows = [
        {"name": "9b", "renews": "monthly", "calls_at_once": 3, "budget": "12.50", "label": "laptop"},
        {"name": "9a"},
    ]
    reply = client.post("/api/teams/import", json={"teams": rows}, headers=management)
    assert (reply.status_code, [set(row) for row in reply.json["data"]]) == (201, [{*TEAM_FIELDS, "token"}] * 2)
    first, second = reply.json["data"]
    assert (first["name"], first["renews_on"], first["calls_at_once"], first["budget"]) == ("9b", 1, 3, "12.5")
    assert teams.tokens("9b")[0].label == "laptop"
    assert works(client, second["token"])
    assert len({change.batch for change in changes.page().rows[:2]}) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"teams": []}, "teams"),
        ({}, "teams"),
        ({"teams": "9a"}, "teams"),
        ({"teams": [{"name": "9a"}, 5]}, "teams[1]"),
        ({"teams": [{"name": "9a"}, {}]}, "teams[1].name"),
        ({"teams": [{"name": "9a"}, {"name": "9b", "qutoa": 5}]}, "teams[1].qutoa"),
        ({"teams": [{"name": "9a"}, {"name": "9b", "renews": "hourly"}]}, "teams[1].renews"),
        ({"teams": [{"name": "9a"}, {"name": "9b", "budget": "-1"}]}, "teams[1].budget"),
        ({"teams": [{"name": "9a"}, {"name": "9b", "quota_tokens": -1}]}, "teams[1].quota_tokens"),
        ({"teams": [{"name": "9a"}, {"name": "9b", "group": "Year 9"}]}, "teams[1].group"),
        ({"teams": [{"name": "9a"}, {"name": "9a"}]}, "teams[1].name"),
        ({"teams": [{"name": "9a"}, {"name": "team"}]}, "teams[1].name"),
        ({"teams": [{"name": "team"}], "dry_run": True}, "teams[0].name"),
        ({"teams": [{"name": "9a"}], "dry_run": 1}, "dry_run"),
    ],
)
def test_api_names_what_is_wrong_and_creates_none(
    client: FlaskClient, management: dict[str, str], team: Member, fields: dict[str, object], param: str
):
    reply = client.post("/api/teams/import", json=fields, headers=management)
    assert (reply.status_code, reply.json["error"]["param"]) == (400, param)
    assert names() == ["team"]


def test_api_may_only_look(client: FlaskClient, management: dict[str, str]):
    reply = client.post("/api/teams/import", json={"teams": [{"name": "9a"}], "dry_run": True}, headers=management)
    assert (reply.status_code, reply.json, names()) == (200, {"data": []}, [])

"""Many teams at once, by a command, by the API and in the panel."""

import csv
import io
import re
from base64 import b64decode
from html import unescape
from pathlib import Path

import pytest
from adminclient import Panel
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


def test_command_reads_no_more_of_a_file_than_a_list_may_have(runner: FlaskCliRunner):
    with open("endless.csv", "wb") as file:
        file.truncate(50 * 2**30)  # of zeros, and without a block on the disk
    assert "no text that can be read" in runner.invoke(args=["teams", "import", "endless.csv"]).stderr
    with open("long.csv", "wb") as file:
        file.write(b"name\n" + b"9a\n" * 2_000_000)
    assert "larger than 1,000,000 bytes" in runner.invoke(args=["teams", "import", "long.csv"]).stderr


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


IMPORT = "/admin/teams/import"
TOKEN = re.compile(r"tr-[\w-]{43}")


def check(panel: Panel, text: str) -> dict[str, str]:
    """Have a list checked, and return what the button that creates its teams would send."""
    page = panel.post(IMPORT, {"list": text}).text
    (fingerprint,) = re.findall(r'name="create" value="(\w+)"', page)
    (shown,) = re.findall(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)
    return {"list": unescape(shown).replace("\n", "\r\n"), "create": fingerprint}


@pytest.mark.both_databases
def test_panel_shows_what_it_will_create_and_then_all_tokens_once(panel: Panel, client: FlaskClient):
    asked = check(panel, "9a,,2.5M\n<b>9b</b>,,,GPT-5-nano,laptop\n")
    assert names() == []
    page = panel.post(IMPORT, asked).text
    assert (sorted(names()), "Created 2 teams." in page) == (["9a", "<b>9b</b>"], True)
    tokens = list(dict.fromkeys(TOKEN.findall(page)))
    assert len(tokens) == 2 and all(works(client, token) for token in tokens)
    assert 'data-reload-as="/admin/teams/"' in page and "<b>9b" not in page
    assert page.count('<section class="slip">') == 2 and page.count("Ask for a model, such as GPT-5-nano.") == 2
    again = panel.post(IMPORT, asked).text
    assert (TOKEN.findall(again), len(names()), again.count("There is a team")) == ([], 2, 2)


@pytest.mark.parametrize(("words", "delimiter"), [("commas", ","), ("semicolons", ";")])
def test_panel_gives_the_tokens_as_a_file_for_spreadsheets(panel: Panel, words: str, delimiter: str):
    page = panel.post(IMPORT, check(panel, "=9a\n9b\n")).text
    (address,) = re.findall(rf'href="data:text/csv;charset=utf-8;base64,([^"]+)" [^>]*>CSV with {words}<', page)
    text = b64decode(unescape(address)).decode()
    rows = [line.split(delimiter) for line in text.splitlines()]
    assert [name for name, _ in rows] == ["\ufeffname", "'=9a", "9b"]
    assert {token for _, token in rows[1:]} == set(TOKEN.findall(page))


def test_panel_takes_a_file_and_shows_its_text(panel: Panel, file: Path):
    page = panel.post(IMPORT, {"list": "left alone", "file": (io.BytesIO(file.read_bytes()), "teams.csv")}).text
    assert "2 teams can be created" in page and "Name;Quota" in page and "left alone" not in page
    assert names() == []


def test_panel_takes_a_list_as_long_as_may_be(panel: Panel):
    text = "\n".join(f"{number};;2500000;;{'x' * 190}" for number in range(2000))
    assert "2,000 teams can be created" in panel.post(IMPORT, {"list": text}).text
    assert "more than 2,000 teams" in panel.post(IMPORT, {"list": f"{text}\nmore"}).text
    reply = panel.post(IMPORT, {"list": "x" * 2_100_000})
    assert (reply.status_code, "larger than 2,016,384 bytes" in reply.text) == (413, True)


def test_panel_tells_each_fault_and_creates_none(panel: Panel, team: Member):
    page = panel.post(IMPORT, {"list": "9a;;many\nteam\n9c", "create": "anything"}).text
    assert "2 lines have faults, so no team was created" in page and ">1 is good<" in page
    assert "There is a team &#39;team&#39; already." in page and 'name="create"' not in page
    assert names() == ["team"]


def test_panel_asks_again_where_the_list_is_not_the_one_that_was_checked(panel: Panel):
    asked = check(panel, "9a\n9b")
    page = panel.post(IMPORT, asked | {"list": "9a\n9c"}).text
    assert "The list was changed since it was checked. 2 teams can be created" in page
    assert names() == []


def test_panel_says_how_to_save_a_workbook(panel: Panel):
    page = panel.post(IMPORT, {"list": "", "file": (io.BytesIO(b"PK\x03\x04"), "teams.xlsx")})
    assert (page.status_code, "Save it as CSV" in page.text) == (200, True)


def test_page_of_a_new_token_has_a_slip_of_it(panel: Panel, team: Member):
    page = panel.post(f"/admin/teams/{team.team.id}/tokens", {"label": "", "expires": ""}).text
    (slip,) = re.findall(r'<section class="slip">(.*?)</section>', page, re.DOTALL)
    assert TOKEN.search(slip) and "http://localhost/v1<" in slip and "http://localhost/usage<" in slip
    assert page.count('id="usage-qr"') == 1 == page.count('href="#usage-qr"')

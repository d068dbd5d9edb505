"""Codes to join with in the panel: made, listed with who joined, shown on a wall, and revoked."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from adminclient import NASTY_NAMES, Panel
from conftest import TESTER
from markupsafe import escape

from tokenrouter import reports, teams
from tokenrouter.database.tables import JoinCode
from tokenrouter.teams import codes


def code_path(code: JoinCode, rest: str = "") -> str:
    return f"/admin/codes/{code.id}/{rest}"


def shown(panel: Panel, path: str, **options: object) -> str:
    """Return a page's text, without what is markup alone."""
    page = panel.get(path, **options)
    assert page.status_code == 200
    return " ".join(re.sub("<[^>]+>", " ", page.text).split())


@pytest.fixture
def code(app) -> JoinCode:
    teams.create_group("Year 9", by=TESTER)
    ends = datetime.now(UTC) + timedelta(hours=3)
    return codes.create("Year 9", 30, ends, group="Year 9", quota_tokens=250_000, by=TESTER)


@pytest.mark.both_databases
def test_code_is_made_and_shown(panel: Panel, settings: dict[str, str]):
    assert "No codes yet" in shown(panel, "/admin/codes/")
    group = teams.create_group("Year 9", by=TESTER)
    fields = {"label": "9b", "uses": "30", "quota": "250k", "group": str(group.id), "renews": "weekly"}
    made = panel.post("/admin/codes/new/", fields | {"expires": "2099-12-04T17:00", "models": "GPT-5-nano"})
    (code,) = reports.codes(datetime.now(UTC))
    assert made.location == code_path(code)
    assert (code.label, code.uses, code.group_name) == ("9b", 30, "Year 9")
    assert code.expires_at == datetime(2099, 12, 4, 17, tzinfo=UTC)
    page = shown(panel, code_path(code))
    assert f"Created the code {code.code}." in page
    assert "Quota 250k tokens Renews every Monday Pace no limit Group Year 9 Models GPT-5-nano" in page
    assert "Nobody joined yet" in page
    assert f"{code.code} 9b open 0 of 30 2099-12-04 17:00:00 UTC Year 9 Sheet" in shown(panel, "/admin/codes/")


@pytest.fixture
def zone(request: pytest.FixtureRequest, settings: dict[str, str]) -> None:
    """The service's time zone."""
    settings["TIMEZONE"] = request.param


@pytest.mark.parametrize("zone", ["Europe/Berlin"], indirect=True)
def test_end_is_typed_and_printed_in_the_time_zone_of_the_service(zone: None, panel: Panel):
    panel.post("/admin/codes/new/", {"expires": "2099-07-03T17:00"})
    (code,) = reports.codes(datetime.now(UTC))
    assert code.expires_at == datetime(2099, 7, 3, 15, tzinfo=UTC)
    assert "Until Friday 3 July, 17:00" in shown(panel, code_path(code, "sheet"))
    assert "Day and time in Europe/Berlin." in shown(panel, "/admin/codes/new/")


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/New_York"], indirect=True)
def test_end_of_the_calendar_is_shown_in_every_time_zone(zone: None, panel: Panel):
    for typed, status in (("9999-12-31T23:59", 302), ("0001-01-01T00:00", 200)):
        assert panel.post("/admin/codes/new/", {"expires": typed}).status_code == status
    last = codes.create(expires_at=datetime.max.replace(tzinfo=UTC), by=TESTER)
    assert "Until " in shown(panel, code_path(last, "sheet"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"uses": "thirty"}, "Type a number from 1 to 1,000,000, or nothing."),
        ({"uses": "0"}, "A code is for 1 to 1,000,000 teams."),
        ({"uses": "9" * 50}, "Type a number from 1 to 1,000,000, or nothing."),
        ({"expires": "2020-01-01T00:00"}, "A code cannot expire in the past."),
        ({"expires": "on Friday"}, "Not a valid datetime value."),
        ({"quota": "many"}, "is not a number of tokens"),
        ({"group": "99"}, "There is no such group."),
        ({"label": "a\u202eb"}, "A label has at most 200 characters"),
    ],
)
def test_what_is_wrong_is_told_beside_what_was_typed(panel: Panel, fields: dict[str, str], told: str):
    page = panel.post("/admin/codes/new/", {"label": "9b"} | fields)
    assert (page.status_code, told in page.text) == (200, True)
    assert reports.codes(datetime.now(UTC)) == []
    assert all(str(escape(value)) in page.text for name, value in fields.items() if name != "group")


def test_who_joined_is_listed_whatever_they_are_called(panel: Panel, code: JoinCode):
    for name in NASTY_NAMES:
        codes.join(code.code, name, address="192.0.2.1")
    gone, _ = codes.join(code.code, "gone", address="192.0.2.1")
    teams.delete("gone", by=TESTER)
    page = panel.get(code_path(code)).text
    for name in map(teams.check_name, NASTY_NAMES):
        assert f"<bdi>{escape(name)}</bdi></a>" in page
    assert "<bdi>gone</bdi></th>" in page and f"/admin/teams/{gone.id}/" not in page
    assert "8 of 30" in shown(panel, "/admin/codes/")


def test_team_tells_the_code_that_made_it_and_the_changes_tell_who(panel: Panel, code: JoinCode):
    team, _ = codes.join(code.code, "blue", address="192.0.2.1")
    page = panel.get(f"/admin/teams/{team.id}/").text
    assert f'by the code <a href="{code_path(code)}"><bdi>Year 9</bdi></a>' in page
    assert "joined by a code 192.0.2.1 blue Created the team" in shown(panel, "/admin/changes/")
    assert code.code not in page + panel.get("/admin/changes/").text


def test_sheet_shows_all_that_one_has_to_know(panel: Panel, code: JoinCode):
    sheet = panel.get(code_path(code, "sheet"), base_url="https://llm.example.org")
    assert sheet.status_code == 302  # the session is of another host
    page = panel.get(code_path(code, "sheet"))
    assert re.sub("<[^>]+>", "", re.search(r'class="code".*?</p>', page.text)[0]).endswith(f"{code.code}")
    assert f'aria-label="QR code of http://localhost/join?code={code.code}"' in page.text
    assert "http://localhost<wbr>/join" in page.text and "For 30 teams, until " in page.text
    assert "This address opens on this machine alone." in page.text
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\s(?:style|on\w+)=", page.text) == []


@pytest.mark.both_databases
def test_revoked_code_has_no_sheet_and_keeps_its_teams(panel: Panel, code: JoinCode):
    codes.join(code.code, "blue", address="192.0.2.1")
    assert panel.post(code_path(code, "revoke")).location == code_path(code)
    page = shown(panel, code_path(code))
    assert f"Revoked the code {code.code}: nobody joins with it any more. Its teams stay." in page
    assert "Sheet for the wall" not in page and "blue active" in page
    assert panel.get(code_path(code, "sheet")).location == code_path(code)
    assert "Nobody can join with this code: revoked." in panel.messages(code_path(code))
    panel.post(code_path(code, "revoke"))
    assert "is revoked already." in panel.messages(code_path(code))


@pytest.mark.parametrize(("path", "method"), [("", "GET"), ("sheet", "GET"), ("revoke", "POST")])
def test_unknown_code_is_not_found(panel: Panel, path: str, method: str):
    for number in (99, 10**30):
        address = f"/admin/codes/{number}/{path}"
        assert (panel.get(address) if method == "GET" else panel.post(address)).status_code == 404


def test_teams_lead_to_the_codes_and_the_menu_stays_short(panel: Panel):
    page = panel.get("/admin/teams/").text
    assert re.findall('<a[^>]* href="/admin/codes/">([^<]+)</a>', page) == ["Codes to join"]

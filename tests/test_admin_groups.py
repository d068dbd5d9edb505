"""Groups in the panel: made, changed, filled and emptied; and what the other pages tell of them."""

import csv
import io
import re
from collections.abc import Callable

import pytest
from adminclient import NASTY_NAMES, Panel
from conftest import TESTER, Member, chat
from flask.testing import FlaskClient

from tokenrouter import teams
from tokenrouter.database.tables import Group

NewTeam = Callable[..., Member]


def group_path(group: Group, action: str = "") -> str:
    return f"/admin/groups/{group.id}/{action}"


def shown(panel: Panel, path: str) -> str:
    """Return a page's text, without what is markup alone."""
    page = panel.get(path)
    assert page.status_code == 200
    return " ".join(re.sub("<[^>]+>", " ", page.text).split())


@pytest.fixture
def group(app) -> Group:
    return teams.create_group("Year 9", 1_000_000, by=TESTER)


@pytest.fixture
def member(group: Group, new_team: NewTeam) -> Member:
    return new_team("9a", quota_tokens=250_000, group="Year 9")


@pytest.mark.both_databases
def test_group_is_created_and_shown(panel: Panel):
    assert "A group is a course or a department" in shown(panel, "/admin/groups/")
    fields = {"name": "Year 9", "quota": "20M", "renews": "monthly", "renews_on": "15", "calls_at_once": "8"}
    made = panel.post("/admin/groups/new/", fields)
    group = teams.find_group("Year 9")
    assert made.location == group_path(group)
    assert (group.quota_tokens, group.renews, group.renews_on, group.calls_at_once) == (20_000_000, "monthly", 15, 8)
    page = shown(panel, group_path(group))
    assert "Created the group “ Year 9 ”" in page
    assert "every month, on day 15; next 15 " in page
    assert "8 calls at once" in page
    assert "Year 9 0 used, 20M left" in shown(panel, "/admin/groups/")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "Year 9"}, "There is a group &#39;Year 9&#39; already."),
        ({"name": ""}, "Give it a name."),
        ({"name": "none"}, "stands for no group"),
        ({"name": "new", "quota": "lots"}, "is not a number of tokens"),
        ({"name": "new", "tokens_per_minute": "fast"}, "such as 60 or 10k"),
    ],
)
def test_what_is_wrong_with_a_new_group_stands_beside_its_field(
    panel: Panel, group: Group, fields: dict[str, str], told: str
):
    page = panel.post("/admin/groups/new/", fields).text
    assert told in page
    assert 'aria-invalid="true"' in page


def edit_form(panel: Panel, group: Group) -> dict[str, str]:
    page = panel.get(group_path(group, "edit/")).text
    stored = dict(re.findall(r'name="was_(\w+)" value="([^"]*)"', page))
    return {**{f"was_{name}": value for name, value in stored.items()}, **stored}


@pytest.mark.both_databases
def test_group_is_edited_and_nothing_else_is_taken_back(panel: Panel, group: Group):
    opened = edit_form(panel, group)
    teams.update_group("Year 9", quota_tokens=5, by=TESTER)
    saved = panel.post(group_path(group, "edit/"), opened | {"name": "Class 9", "requests_per_minute": "60"})
    assert saved.location == group_path(group)
    found = teams.find_group("Class 9")
    assert (found.quota_tokens, found.requests_per_minute) == (5, 60)


def test_edit_of_what_another_changed_too_asks_again(panel: Panel, group: Group):
    opened = edit_form(panel, group)
    teams.update_group("Year 9", quota_tokens=5, by=TESTER)
    page = panel.post(group_path(group, "edit/"), opened | {"quota": "7"}).text
    assert "Somebody changed this to “5” meanwhile." in page
    assert teams.find_group("Year 9").quota_tokens == 5


@pytest.mark.both_databases
def test_quota_and_extra_are_typed_on_the_groups_page(panel: Panel, group: Group):
    here = {"url": group_path(group)}
    assert panel.post(group_path(group, "quota"), {"quota": "3M", **here}).location == group_path(group)
    panel.post(group_path(group, "extra"), {"tokens": "+100k", **here})
    found = teams.find_group("Year 9")
    assert (found.quota_tokens, found.allowance_tokens) == (3_000_000, 3_100_000)
    assert "The extra of “Year 9” is now 100k tokens." in panel.messages()
    panel.post(group_path(group, "quota"), {"quota": "", **here})
    assert "The quota of “Year 9” stays as it is." in panel.messages()
    panel.post(group_path(group, "extra"), {"tokens": "-1M", **here})
    assert "The extra of “Year 9” stays as it is." in panel.messages()
    assert teams.find_group("Year 9").allowance_tokens == 3_100_000


@pytest.mark.both_databases
def test_teams_are_put_in_and_taken_out(panel: Panel, group: Group, team: Member):
    assert panel.post(group_path(group, "teams"), {"team": "team"}).location == group_path(group)
    assert teams.find("team").group_name == "Year 9"
    assert "Take team out of this group" in panel.get(group_path(group)).text
    panel.post(group_path(group, "teams"), {"leaves": str(team.team.id)})
    assert teams.find("team").group_name is None
    panel.post(group_path(group, "teams"), {"team": "nobody"})
    assert "There is no team &#39;nobody&#39;." in panel.messages()


@pytest.mark.both_databases
def test_reset_and_deletion_say_first_what_they_do(panel: Panel, client: FlaskClient, group: Group, member: Member):
    chat(client, member)
    used = teams.find_group("Year 9").used_tokens
    asked = panel.post(group_path(group, "reset"), {"url": "/admin/"}).text
    assert "own quotas stays" in asked and teams.find_group("Year 9").used_tokens == used > 0
    assert panel.post(group_path(group, "reset"), {"url": "/admin/", "confirmed": "1"}).location == "/admin/"
    assert teams.find_group("Year 9").used_tokens == 0
    assert teams.find("9a").used_tokens == used
    assert "Its teams stay" in panel.post(group_path(group, "delete")).text
    assert panel.post(group_path(group, "delete"), {"confirmed": "1"}).location == "/admin/groups/"
    assert teams.find("9a").group_name is None
    assert panel.get(group_path(group)).status_code == 404
    assert panel.post(group_path(group, "quota"), {"quota": "5"}).status_code == 404


@pytest.mark.both_databases
def test_teams_form_and_list_know_the_group(panel: Panel, group: Group, member: Member, team: Member):
    panel.post("/admin/teams/new/", {"name": "9b", "group": str(group.id)})
    assert teams.find("9b").group_name == "Year 9"
    assert "9a" not in shown(panel, "/admin/teams/?group=0")
    listed = shown(panel, f"/admin/teams/?group={group.id}")
    assert "9a Year 9 active" in listed and "9b Year 9 active" in listed and "1–2 of 2" in listed
    assert f'href="/admin/groups/{group.id}/"' in panel.get(f"/admin/teams/{member.team.id}/").text
    for wrong in ("999", "x"):
        assert "There is no such group." in panel.post("/admin/teams/new/", {"name": "9c", "group": wrong}).text


@pytest.mark.both_databases
def test_log_its_filter_and_its_csv_know_the_group(
    panel: Panel, client: FlaskClient, group: Group, member: Member, team: Member
):
    call_id = chat(client, member)
    chat(client, team)
    assert "All calls of this group" in shown(panel, group_path(group))
    exported = panel.get("/admin/logs/export/csv/?group=Year+9").text
    (row,) = csv.DictReader(io.StringIO(exported))
    assert (row["team_name"], row["group_name"]) == ("9a", "Year 9")
    assert "Group Year 9" in shown(panel, f"/admin/logs/{call_id}/")
    assert "There is no group “nowhere”" in panel.get("/admin/logs/?group=nowhere").text
    teams.delete_group("Year 9", by=TESTER)
    assert panel.get("/admin/logs/export/csv/?group=Year+9").text == exported


def test_dashboard_names_groups_near_their_quota(panel: Panel, client: FlaskClient, group: Group, member: Member):
    chat(client, member)
    teams.update_group("Year 9", quota_tokens=1, by=TESTER)
    page = shown(panel, "/admin/")
    assert "1 group has used up its quota" in page
    assert "1 group has used it up." in page
    assert "Nobody is near a quota" not in page


def test_changes_name_the_group(panel: Panel, group: Group):
    assert "Year 9 Created the group" in shown(panel, "/admin/changes/")
    assert "Year 9 Created the group" in shown(panel, f"/admin/changes/?group={group.id}")
    assert "No change fits" in shown(panel, f"/admin/changes/?group={group.id + 1}")


def test_names_are_text(panel: Panel, member: Member):
    name_before = "Year 9"
    for name in NASTY_NAMES:
        group = teams.update_group(name_before, rename=name, by=TESTER)
        name_before = group.name
        own = "/admin/groups/", group_path(group), group_path(group, "edit/")
        for path in (*own, "/admin/teams/", "/admin/changes/"):
            page = panel.get(path).text
            assert "<img src=x" not in page and "49" not in re.findall(r"<bdi>(.*?)</bdi>", page)


def test_team_sees_what_its_group_has_left(client: FlaskClient, member: Member):
    told = client.get("/usage/data", headers=member.headers).json["group"]
    assert (told["name"], told["quota_tokens"], told["remaining_tokens"]) == ("Year 9", 1_000_000, 1_000_000)

"""Several teams changed in the panel, quotas typed inline, and what takes all of it back."""

import csv
import io
import re
from collections.abc import Callable

import pytest
from adminclient import NASTY_NAMES, Panel, team_path
from conftest import TESTER, Member, chat, stored
from flask.testing import FlaskClient
from markupsafe import escape

from tokenrouter import changes, ledger, teams
from tokenrouter.database.tables import db

NewTeam = Callable[..., Member]
ACTION, CHANGE, CHANGES, UNDO = "/admin/teams/action/", "/admin/teams/change/", "/admin/changes/", "/admin/changes/undo"


def hidden(page: str) -> dict[str, list[str]]:
    """Return what a page's own form sends beside its CSRF token."""
    form = re.search(r'<form method="post"[^>]*class="card.*?</form>', page, re.DOTALL)[0]
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form):
        fields.setdefault(name, []).append(value)
    fields.pop("csrf_token")
    return fields


def words(page: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", page).split())


def undo_of_message(panel: Panel) -> dict[str, str]:
    """Return what the Undo button in the next page's message sends."""
    note = re.search(r'class="note note-success".*?</div>', panel.get("/admin/teams/").text, re.DOTALL)[0]
    return dict(re.findall(r'name="(batch|url)" value="([^"]*)"', note))


@pytest.fixture
def course(new_team: NewTeam) -> list[Member]:
    """Sixty teams, the first without a quota."""
    return [new_team(f"Course {number:02}", quota_tokens=1000 * number or None) for number in range(60)]


def test_all_that_match_get_more_over_pages_and_back(panel: Panel, course: list[Member]):
    asked = panel.get("/admin/teams/?search=course").text
    assert "all 60 that match" in words(asked) and "Reset the 60 that match…" in words(asked)
    chosen = {"action": "quota", "quota": "+100k", "all": "1", "search": "course 0", "url": "/admin/teams/?page=1"}
    page = panel.post(ACTION, chosen).text
    assert "Change 9 teams?" in words(page)
    assert "Course 09 quota 9,000 → 109,000" in words(page)
    assert "Stay as they are Course 00 It has no quota to add to." in words(page)
    assert stored(course[9]).quota_tokens == 9000
    assert panel.post(CHANGE, hidden(page)).location == "/admin/teams/?page=1"
    assert [stored(course[number]).quota_tokens for number in (0, 1, 9, 10)] == [None, 101_000, 109_000, 10_000]
    assert "Changed 9 teams." in panel.messages()
    panel.post(UNDO, {"batch": changes.page(limit=1).rows[0].batch})
    assert "Undone for 9 teams: Changed the team." in panel.messages()
    assert stored(course[9]).quota_tokens == 9000


def test_what_another_changed_meanwhile_is_asked_again(panel: Panel, course: list[Member]):
    chosen = {"action": "quota", "quota": "x2", "rowid": [course[1].team.id, course[2].team.id]}
    confirmed = hidden(panel.post(ACTION, chosen).text)
    teams.update("Course 01", quota_tokens=7, by=TESTER)
    again = panel.post(CHANGE, confirmed).text
    assert "Somebody changed or deleted 1 team meanwhile, so nothing was done." in words(again)
    assert "Course 01 quota 7 → 14 changed meanwhile" in words(again)
    assert stored(course[2]).quota_tokens == 2000
    panel.post(CHANGE, hidden(again))
    assert [stored(course[number]).quota_tokens for number in (1, 2)] == [14, 4000]


def test_more_than_quotas_is_changed_by_the_form(panel: Panel, course: list[Member]):
    group = teams.create_group("Year 9", by=TESTER)
    ids = [member.team.id for member in course[:2]]
    form = panel.post(ACTION, {"action": "edit", "rowid": ids}).text
    assert "Change 2 teams" in words(form) and hidden(form)["rowid"] == [str(id_) for id_ in ids]
    typed = {"rowid": ids, "group": group.id, "renews": "monthly", "renews_on": "31", "models": "GPT-5-nano"}
    typed |= {"calls_at_once": "4", "budget": "2.50", "extra_budget": "1", "requests_per_minute": "none"}
    page = panel.post(CHANGE, typed).text
    panel.post(CHANGE, hidden(page))
    row = stored(course[0])
    assert (row.group_id, row.renews, row.renews_on, row.models) == (group.id, "monthly", 31, "GPT-5-nano")
    assert (row.calls_at_once, row.budget, row.extra_budget) == (4, 25 * 10**8, 10**9)
    panel.post(CHANGE, hidden(panel.post(CHANGE, {"rowid": ids, "models": "default", "group": "none"}).text))
    assert (stored(course[0]).group_id, stored(course[0]).models) == (None, None)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({}, "Type what is to change."),
        ({"quota": "lots"}, "is not a number of tokens"),
        ({"budget": "x"}, "is not an amount"),
        ({"group": "x"}, "There is no such group."),
        ({"renews": "monthly", "renews_on": "32"}, "from 1 to 31"),
        ({"calls_at_once": "many"}, "such as 60 or 10k"),
        ({"models": "strange"}, "nothing that fits strange"),
    ],
)
def test_what_is_wrong_stands_in_the_form(panel: Panel, team: Member, typed: dict[str, str], told: str):
    assert told in words(panel.post(CHANGE, {"rowid": team.team.id, **typed}).text)
    assert stored(team).quota_tokens == 100_000


def test_reset_of_all_obeys_the_filter(panel: Panel, client: FlaskClient, new_team: NewTeam):
    members = [new_team(name) for name in ("9a", "9b", "10a")]
    for member in members:
        chat(client, member)
    page = panel.post(ACTION, {"action": "reset", "all": "1", "search": "9"}).text
    assert "Reset usage of 2 teams?" in words(page) and "danger-solid" in page
    panel.post(ACTION, hidden(page))
    assert [teams.get(member.team.id).used_tokens > 0 for member in members] == [False, False, True]
    panel.post(UNDO, undo_of_message(panel))
    assert all(teams.get(member.team.id).used_tokens for member in members)
    assert ledger.verify(db.engine).problems == []


# Quotas typed inline


def inline(panel: Panel, member: Member, typed: str, **fields: str) -> str:
    """Send the list's own form, as the page was when it was opened."""
    return panel.post(team_path(member.team.id, "quota"), {"quota": typed, "url": "/admin/teams/", **fields}).text


def test_enter_alone_takes_back_nothing(panel: Panel, team: Member):
    assert 'name="was" value="100k"' in panel.get("/admin/teams/").text
    teams.update("team", quota_tokens=7, by=TESTER)
    inline(panel, team, "100k", was="100k")
    assert stored(team).quota_tokens == 7
    assert "The quota of “team” stays 7." in panel.messages()


@pytest.mark.parametrize(("typed", "becomes"), [("1M", 1_000_000), ("+100k", 100_007), ("x2", 14)])
def test_quota_that_another_changed_meanwhile_is_asked_for_again(panel: Panel, team: Member, typed: str, becomes: int):
    teams.update("team", quota_tokens=7, by=TESTER)
    asked = inline(panel, team, typed, was="100k")
    assert "Somebody set it to 7 ; it was 100k on the page before you." in words(asked)
    assert f'value="{escape(typed)}"' in asked and stored(team).quota_tokens == 7
    inline(panel, team, typed, was="7")
    assert stored(team).quota_tokens == becomes


def test_quota_that_both_set_alike_is_not_asked_for(panel: Panel, team: Member):
    teams.update("team", quota_tokens=7, by=TESTER)
    inline(panel, team, "7", was="100k")
    assert "The quota of “team” is now 7." in panel.messages()


@pytest.mark.parametrize("where", ["teams", "groups"])
def test_quota_is_added_to_and_undone_from_the_message(panel: Panel, new_team: NewTeam, where: str):
    row = new_team("x", quota_tokens=5).team if where == "teams" else teams.create_group("x", 5, by=TESTER)
    find = teams.get if where == "teams" else teams.find_group
    panel.post(f"/admin/{where}/{row.id}/quota", {"quota": "+100k", "was": "5", "url": "/admin/teams/"})
    assert find(row.id).quota_tokens == 100_005
    sent = undo_of_message(panel)
    assert panel.post(UNDO, sent).location == "/admin/teams/"
    assert find(row.id).quota_tokens == 5
    panel.post(UNDO, undo_of_message(panel))  # which takes that back
    assert find(row.id).quota_tokens == 100_005


def test_field_is_as_wide_as_its_number(panel: Panel, new_team: NewTeam):
    new_team(quota_tokens=999_999_999_999_999)
    assert 'size="19" value="999,999,999,999,999"' in panel.get("/admin/teams/").text


# Undo and the page of changes


def test_deleted_team_comes_back_from_the_list_of_changes(panel: Panel, team: Member):
    panel.post(ACTION, {"action": "delete", "rowid": team.team.id, "confirmed": "1"})
    page = panel.get(CHANGES).text
    assert f'href="/admin/changes/?team={team.team.id}"' in page
    (change,) = [row.id for row in changes.page().rows if row.action == "team.delete"]
    panel.post(UNDO, {"change": change, "url": CHANGES})
    assert "Undone for “team”: Deleted the team." in panel.messages()
    assert panel.get("/v1/models", headers=team.headers).status_code == 200
    page = panel.get(CHANGES).text
    assert f'href="{team_path(team.team.id)}"' in page and "undone" in page
    panel.post(UNDO, {"change": change})
    assert "This was taken back already." in panel.messages()


def test_batch_that_cannot_be_undone_as_a_whole_is_asked_about(panel: Panel, course: list[Member]):
    ids = [member.team.id for member in course[:20]]
    panel.post(ACTION, {"action": "disable", "rowid": ids, "confirmed": "1"})
    batch = changes.page(limit=1).rows[0].batch
    assert "Changed 20 teams" in words(panel.get(CHANGES).text)
    teams.update("Course 03", active=True, by=TESTER)
    page = panel.post(UNDO, {"batch": batch}).text
    assert "Undo 19 of 20 changes?" in words(page) and "Course 03 Its state was changed since." in words(page)
    assert not stored(course[4]).active
    panel.post(UNDO, hidden(page))
    assert all(team.active for team in teams.living())


def test_change_that_was_overtaken_is_not_undone_and_says_why(panel: Panel, team: Member):
    teams.update("team", quota_tokens=7, by=TESTER)
    first = changes.page(limit=1).rows[0].id
    teams.update("team", quota_tokens=8, by=TESTER)
    panel.post(UNDO, {"change": first, "url": team_path(team.team.id)})
    assert "Nothing was undone for “team”. Its quota was changed since." in panel.messages()


def test_revoked_token_and_deleted_group_are_undone_from_their_messages(panel: Panel, team: Member):
    (token,) = teams.tokens("team")
    panel.post(team_path(team.team.id, f"tokens/{token.id}/revoke"))
    panel.post(UNDO, undo_of_message(panel))
    assert [each.id for each in teams.tokens("team")] == [token.id]
    group = teams.create_group("Year 9", by=TESTER)
    panel.post(f"/admin/groups/{group.id}/teams", {"team": "team"})
    panel.post(f"/admin/groups/{group.id}/delete", {"confirmed": "1"})
    panel.post(UNDO, undo_of_message(panel))
    assert teams.find("team").group_name == "Year 9"


@pytest.mark.both_databases
def test_changes_are_filtered_and_exported(panel: Panel, new_team: NewTeam):
    new_team("=HYPERLINK(1)"), new_team("other")
    teams.update("other", quota_tokens=5, by=TESTER)
    teams.set_active([team.id for team in teams.living()], False, by=changes.Actor("api", "script"))

    def exported(query: str) -> list[tuple[str, str]]:
        text = panel.get(f"{CHANGES}export/csv/?{query}").text
        return [(row["what"], row["team"]) for row in csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))]

    assert len(exported("")) == 5
    assert exported("name=HYPER&action=team.create") == [("Created the team", "'=HYPERLINK(1)")]
    assert exported("who=api&name=OTHER") == [("Changed the team", "other")]
    assert exported("until=2020-01-01") == exported("name=nobody") == []
    assert len(exported("since=2020-01-01&action=nonsense&zone=x")) == 5
    assert "No change fits" in panel.get(f"{CHANGES}?until=2020-01-01").text
    assert "Changed 2 teams" in words(panel.get(f"{CHANGES}?who=api").text)


def test_names_are_text(panel: Panel, new_team: NewTeam):
    for name in NASTY_NAMES:
        member = new_team(name, quota_tokens=5)
        pages = [panel.post(ACTION, {"action": "quota", "quota": "+1", "rowid": member.team.id}).text]
        pages.append(inline(panel, member, "9", was="6"))
        panel.post(ACTION, {"action": "disable", "rowid": member.team.id, "confirmed": "1"})
        pages += [panel.get(path).text for path in ("/admin/teams/", CHANGES, f"{CHANGES}?team={member.team.id}")]
        for page in pages:
            assert str(escape(name)) in page and "<img src=x" not in page

"""Teams and tokens in the panel: what is shown, and changes, which are all the domain's own."""

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from adminclient import NASTY_NAMES, PAGES, Panel, team_path
from conftest import Member, chat, stored
from flask import Flask
from flask.testing import FlaskClient
from markupsafe import escape

from tokenrouter import changes, ledger, teams
from tokenrouter.changes import Actor
from tokenrouter.database.tables import db

BY = Actor("cli", "test")
TOKEN = re.compile(r"tr-[\w-]{43}")


def test_new_team_shows_its_token_once(panel: Panel, app: Flask):
    page = panel.post("/admin/teams/new/", {"name": "Physics", "quota": "2.5M"})
    (token,) = set(TOKEN.findall(page.text))
    assert 'base_url="http://localhost/v1"' in page.text.replace("&#34;", '"')
    team = teams.find("Physics")
    assert (team.quota_tokens, team.models) == (2_500_000, None)
    everywhere = "".join(panel.get(path).text for path in (*PAGES, f"/admin/teams/{team.id}/"))
    assert token not in everywhere
    assert panel.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    ("typed", "stored_quota"),
    [("2.5M", 2_500_000), ("2,500,000", 2_500_000), (" 2 500 000 ", 2_500_000), ("unlimited", None), ("0", 0)],
)
def test_quota_is_typed_as_people_write_it(panel: Panel, team: Member, typed: str, stored_quota: int | None):
    reply = panel.post(team_path(team.team.id, "quota"), {"quota": typed, "url": "/admin/teams/?page=1"})
    assert reply.location == "/admin/teams/?page=1"
    assert stored(team).quota_tokens == stored_quota
    assert "The quota of “team” is now" in panel.messages()


def test_quota_that_is_none_changes_nothing_and_says_so(panel: Panel, team: Member):
    for typed in ("", "  ", "many", "-200k", "x", "1.5", "9" * 30, "2,5", "250.000"):
        panel.post(team_path(team.team.id, "quota"), {"quota": typed})
        assert stored(team).quota_tokens == 100_000
        assert "The quota of “team” stays as it is." in panel.messages(), typed


def edit_form(panel: Panel, member: Member) -> dict[str, str]:
    """Open the form to edit a team, and return what it would send."""
    page = panel.get(team_path(member.team.id, "edit/")).text
    fields = dict(
        re.findall(
            r'name="(was_\w+|name|quota|renews_on|\w+_per_minute|calls_at_once|budget|models|mail)" value="([^"]*)"',
            page,
        )
    )
    (renews,) = re.findall(r'<option value="([a-z]+)" selected>', page)
    return fields | {"active": fields["was_active"], "group": fields["was_group"], "renews": renews}


def test_team_is_edited(panel: Panel, team: Member):
    fields = edit_form(panel, team) | {"name": "Renamed", "quota": "", "models": "GPT-5-nano, GPT-5-mini", "active": ""}
    assert panel.post(team_path(team.team.id, "edit/"), fields).location == team_path(team.team.id)
    row = stored(team)
    assert (row.name, row.quota_tokens, row.models, row.active) == ("Renamed", None, "GPT-5-nano,GPT-5-mini", False)


def test_period_is_edited_and_shown(panel: Panel, team: Member):
    opened = edit_form(panel, team)
    assert (opened["renews"], opened["renews_on"]) == ("never", "")
    panel.post(team_path(team.team.id, "edit/"), opened | {"renews": "monthly", "renews_on": "31"})
    row = stored(team)
    assert (row.renews, row.renews_on, row.quota_tokens) == ("monthly", 31, 100_000)
    assert "every month, on day 31" in panel.get(team_path(team.team.id)).text
    assert ", renews " in panel.get("/admin/teams/").text
    opened = edit_form(panel, team)
    assert (opened["renews"], opened["renews_on"]) == ("monthly", "31")
    panel.post(team_path(team.team.id, "edit/"), opened | {"renews": "weekly"})
    assert (stored(team).renews, stored(team).renews_on) == ("weekly", None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"renews": "monthly", "renews_on": "32"}, "from 1 to 31"),
        ({"renews": "monthly", "renews_on": "first"}, "a number from 1 to 31"),
        ({"renews": "yearly"}, "is none of never, daily"),
    ],
)
def test_period_that_is_none_changes_nothing_and_says_so(panel: Panel, team: Member, fields: dict[str, str], told: str):
    page = panel.post(team_path(team.team.id, "edit/"), edit_form(panel, team) | fields).text
    assert told in page
    assert stored(team).renews == "never"


def test_one_of_a_thing_is_told_as_one(panel: Panel, team: Member, client: FlaskClient):
    chat(client, team)
    teams.update("team", requests_per_minute=1, tokens_per_minute=1, by=BY)
    page = panel.get(team_path(team.team.id)).text
    assert "<dd>1 call, " in page
    assert "1 request a minute, 1 token a minute" in page
    assert "Reset the one team…" in panel.get("/admin/teams/").text
    assert "Reset the 1 that matches…" in panel.get("/admin/teams/?search=tea").text


def test_pace_is_edited_and_shown(panel: Panel, team: Member):
    paces = {"requests_per_minute": "60", "tokens_per_minute": "100k", "calls_at_once": ""}
    panel.post(team_path(team.team.id, "edit/"), edit_form(panel, team) | paces)
    row = stored(team)
    assert (row.requests_per_minute, row.tokens_per_minute, row.calls_at_once) == (60, 100_000, None)
    assert "60 requests a minute, 100,000 tokens a minute" in panel.get(team_path(team.team.id)).text
    assert edit_form(panel, team)["tokens_per_minute"] == "100k"
    page = panel.post(team_path(team.team.id, "edit/"), edit_form(panel, team) | {"calls_at_once": "many"}).text
    assert "is not a number such as 60 or 10k" in page


def test_extra_is_given_shown_and_taken_back(panel: Panel, team: Member):
    panel.post(team_path(team.team.id, "extra"), {"tokens": "+50k"})
    assert "The extra of “team” is now 50k tokens." in panel.messages()
    assert ">150k</span> left" in panel.get(team_path(team.team.id)).text
    panel.post(team_path(team.team.id, "extra"), {"tokens": "-20k"})
    assert stored(team).extra_tokens == 30_000
    panel.post(team_path(team.team.id, "extra"), {"tokens": "-31k"})
    assert "The extra of “team” stays as it is." in panel.messages()
    panel.post(team_path(team.team.id, "extra"), {"tokens": "unlimited"})
    assert stored(team).extra_tokens == 30_000


def test_edit_takes_back_nothing_that_another_administrator_changed_meanwhile(panel: Panel, team: Member):
    opened = edit_form(panel, team)
    teams.update(team.team.id, quota_tokens=7_000_000, models="GPT-5-mini", by=BY)
    panel.post(team_path(team.team.id, "edit/"), opened | {"name": "Renamed"})
    row = stored(team)
    assert (row.name, row.quota_tokens, row.models, row.active) == ("Renamed", 7_000_000, "GPT-5-mini", True)


def test_edit_of_what_another_administrator_changed_too_asks_again(panel: Panel, team: Member):
    opened = edit_form(panel, team) | {"quota": "1M"}
    teams.update(team.team.id, quota_tokens=7_000_000, by=BY)
    page = panel.post(team_path(team.team.id, "edit/"), opened).text
    assert "Somebody changed this to “7M” meanwhile." in page and stored(team).quota_tokens == 7_000_000
    assert 'name="was_quota" value="7M"' in page and 'name="quota" value="1M"' in page
    panel.post(team_path(team.team.id, "edit/"), opened | {"was_quota": "7M"})
    assert stored(team).quota_tokens == 1_000_000


def test_edit_form_with_a_field_missing_is_refused_and_changes_nothing(panel: Panel, team: Member):
    fields = edit_form(panel, team) | {"name": "Renamed"}
    for lacking in ("name", "quota", "renews", "models", "was_quota", "was_active"):
        sent = {name: value for name, value in fields.items() if name != lacking}
        assert panel.post(team_path(team.team.id, "edit/"), sent).status_code == 400, lacking
        assert stored(team).name == "team" and stored(team).active


def test_edit_form_begins_with_what_is_set(panel: Panel, new_team):
    member = new_team("Begins", quota_tokens=2_500_000, models="GPT-5*")
    page = panel.get(team_path(member.team.id, "edit/")).text
    assert all(f'value="{value}"' in page for value in ("Begins", "2.5M", "GPT-5*"))
    assert re.search(r'name="active" value="y" checked', page)


def test_no_form_saves_a_counter(panel: Panel, team: Member, client: FlaskClient):
    opened = edit_form(panel, team)
    chat(client, team)
    used = stored(team).settled_tokens
    counters = {"settled_tokens": "0", "reset_mark_tokens": "7", "held_tokens": "9", "used_tokens": "0"}
    panel.post(team_path(team.team.id, "edit/"), opened | {"quota": "200k", **counters})
    row = stored(team)
    assert (row.settled_tokens, row.reset_mark_tokens, row.held_tokens) == (used, 0, 0) and used > 0
    assert row.quota_tokens == 200_000


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "taken"}, "There is a team &#39;taken&#39; already."),
        ({"name": ""}, "Give it a name."),
        ({"name": "x" * 201}, "200 characters"),
        ({"name": "bell\a"}, "no control, line-separating or text-turning characters"),
        ({"name": "new", "quota": "lots"}, "is not a number of tokens"),
        ({"name": "new", "models": "a*b"}, "each with at most a trailing *"),
        ({"name": "new", "models": "a\0b"}, "names separated by commas"),
    ],
)
def test_what_is_wrong_with_a_new_team_stands_beside_its_field(
    panel: Panel, new_team, fields: dict[str, str], told: str
):
    new_team("taken")
    page = panel.post("/admin/teams/new/", fields).text
    assert told in page
    assert [team.name for team in teams.living()] == ["taken"]
    assert f'value="{escape(fields["name"])}"' in page  # what was typed is not lost


def test_names_are_text_and_whole(panel: Panel, new_team, client: FlaskClient):
    def check(path: str, *names: str) -> None:
        page = panel.get(path).text
        assert [name for name in names if str(escape(name)) not in page] == [], path
        assert "<img src=x" not in page and "&amp;lt;" not in page, path

    for name in NASTY_NAMES:
        member = new_team(name, quota_tokens=1000)
        call_id = chat(client, member)
        teams.create_token(member.team.id, name, by=BY)
        panel.post("/admin/teams/action/", {"action": "disable", "rowid": member.team.id, "confirmed": "1"})
        for path in (team_path(member.team.id), team_path(member.team.id, "edit/"), f"/admin/logs/{call_id}/"):
            check(path, name)
        check(f"/admin/logs/?team={quote(name)}", name)
    for path in ("/admin/", "/admin/teams/", "/admin/logs/", "/admin/changes/"):
        check(path, *NASTY_NAMES)


def test_name_is_composed_taken_and_searched_for_whatever_form_a_browser_sends(panel: Panel, new_team):
    new_team("Caf\u00e9")
    page = panel.post("/admin/teams/new/", {"name": "Cafe\u0301", "quota": "", "models": ""})
    assert "There is a team" in page.text
    assert "Caf\u00e9" in panel.get("/admin/teams/", query_string={"search": "cafe\u0301"}).text


def test_teams_are_searched_filtered_sorted_and_paged(panel: Panel, new_team):
    for number in range(60):
        new_team(f"Course {number:02}", quota_tokens=1000 + number)
    teams.set_active([teams.find("Course 07").id], False, by=BY)

    def names(query: str) -> list[str]:
        return re.findall(r"<bdi>(Course \d\d)</bdi>", panel.get(f"/admin/teams/?{query}").text)

    assert names("") == [f"Course {number:02}" for number in range(50)]
    assert names("page=2") == [f"Course {number:02}" for number in range(50, 60)]
    assert names("sort=quota&descending=1")[0] == "Course 59"
    assert names("search=COURSE+1") == [f"Course {number:02}" for number in range(10, 20)]
    assert names("state=disabled") == ["Course 07"]
    assert names("near_quota=exhausted") == []
    assert "No team fits" in panel.get("/admin/teams/?near_quota=exhausted").text
    assert names("sort=nonsense&state=x&page=-3&near_quota=y") == names("")


@pytest.mark.parametrize(
    ("action", "told"),
    [("reset", "Usage reset"), ("disable", "Disabled"), ("enable", "Enabled"), ("delete", "Deleted")],
)
def test_bulk_action_says_what_it_will_do_before_it_does_it(
    panel: Panel, new_team, client: FlaskClient, action: str, told: str
):
    one, two, other = (new_team(name, quota_tokens=5000) for name in ("one", "two", "other"))
    chat(client, one), chat(client, two)
    if action == "enable":
        teams.set_active([one.team.id, two.team.id], False, by=BY)
    before = [stored(each) for each in (one, two, other)]
    fields = {"action": action, "rowid": [one.team.id, two.team.id]}

    question = panel.post("/admin/teams/action/", fields).text
    assert "2 teams?" in question and "<bdi>one</bdi>" in question and "<bdi>two</bdi>" in question
    assert [stored(each) for each in (one, two, other)] == before

    panel.post("/admin/teams/action/", fields | {"confirmed": "1"})
    assert f"{told}: 2 teams." in panel.messages()
    changed = [was != stored(each) for was, each in zip(before, (one, two, other), strict=True)]
    assert changed == [True, True, False]
    recorded = changes.page(limit=1).rows[0]
    assert (recorded.actor_kind, recorded.actor_detail) == ("panel", "127.0.0.1")


def test_all_teams_are_reset_at_once(panel: Panel, new_team, client: FlaskClient):
    members = [new_team(name) for name in ("one", "two")]
    for member in members:
        chat(client, member)
    assert "Reset usage of 2 teams?" in re.sub(
        r"\s+", " ", panel.post("/admin/teams/action/", {"action": "reset", "all": "1"}).text
    )
    panel.post("/admin/teams/action/", {"action": "reset", "all": "1", "confirmed": "1"})
    assert [teams.get(member.team.id).used_tokens for member in members] == [0, 0]
    assert not ledger.verify(db.engine).problems


def test_bulk_action_on_nothing_asks_for_a_selection(panel: Panel, team: Member):
    panel.post("/admin/teams/action/", {"action": "delete"})
    assert "Select at least one team first." in panel.messages()
    assert teams.get(team.team.id)


def test_bulk_action_on_a_team_that_was_deleted_meanwhile_says_so(panel: Panel, team: Member):
    teams.delete(team.team.id, by=BY)
    panel.post("/admin/teams/action/", {"action": "reset", "rowid": team.team.id, "confirmed": "1"})
    assert "What you selected was deleted meanwhile." in panel.messages()


def test_sentence_about_a_team_keeps_its_order_whatever_the_name(panel: Panel, new_team):
    member = new_team("\u05d0\u05d1\u05d2")
    panel.post(team_path(member.team.id, "quota"), {"quota": "5"})
    assert "The quota of “<bdi>\u05d0\u05d1\u05d2</bdi>” is now 5." in panel.get("/admin/teams/").text


@pytest.mark.parametrize(
    ("models", "shown"), [(None, "GPT-5-nano"), ("GPT-5-mini", "GPT-5-mini"), ("Gemini*", "Gemini-2.5-flash")]
)
def test_example_names_a_model_that_the_team_may_call(panel: Panel, new_team, models: str | None, shown: str):
    page = panel.get(team_path(new_team(models=models).team.id)).text
    assert f'model="{shown}"' in page


def test_example_names_a_model_of_the_providers_where_only_prefixes_are_allowed(
    settings: dict[str, str], request: pytest.FixtureRequest
):
    settings["ALLOWED_MODELS"] = "GPT-5*,Gemini*"
    panel: Panel = request.getfixturevalue("panel")
    member = request.getfixturevalue("new_team")(models="Gemini*")
    panel.get("/admin/provider")
    assert 'model="Gemini-2.5-flash"' in panel.get(team_path(member.team.id)).text


def test_unknown_bulk_action_is_refused(panel: Panel, team: Member):
    assert panel.post("/admin/teams/action/", {"action": "drop", "rowid": team.team.id}).status_code == 400


def test_deleted_team_has_no_page_and_its_log_stays(panel: Panel, team: Member, client: FlaskClient):
    call_id = chat(client, team)
    panel.post("/admin/teams/action/", {"action": "delete", "rowid": team.team.id, "confirmed": "1"})
    assert panel.get(team_path(team.team.id)).status_code == 404
    assert "deleted" in panel.get(f"/admin/logs/{call_id}/").text
    assert "<bdi>team</bdi>" in panel.get("/admin/logs/?team=team").text


def test_flask_admins_own_ways_to_change_rows_are_shut(panel: Panel, team: Member):
    panel.post("/admin/teams/delete/", {"id": team.team.id})
    panel.post("/admin/logs/delete/", {"id": 1})
    for path in ("/admin/teams/ajax/update/", "/admin/logs/ajax/update/"):
        assert panel.post(path, {"list_form_pk": team.team.id, "name": "changed"}).status_code == 404
    assert teams.get(team.team.id).name == "team"


def test_token_is_created_with_label_and_end(panel: Panel, team: Member):
    page = panel.post(team_path(team.team.id, "tokens"), {"label": "laptops", "expires": "2099-12-31"})
    assert len(set(TOKEN.findall(page.text))) == 1
    token = teams.tokens(team.team.id)[-1]
    assert (token.label, token.expires_at) == ("laptops", datetime(2100, 1, 1, tzinfo=UTC))


def test_token_that_would_have_expired_is_refused_beside_the_field(panel: Panel, team: Member):
    page = panel.post(team_path(team.team.id, "tokens"), {"label": "kept", "expires": "2020-01-01"}).text
    assert "A token cannot expire in the past." in page and 'value="kept"' in page
    assert len(teams.tokens(team.team.id)) == 1


def test_token_may_last_until_the_last_day_there_is(panel: Panel, team: Member):
    assert panel.post(team_path(team.team.id, "tokens"), {"expires": "9999-12-31"}).status_code == 200
    assert teams.tokens(team.team.id)[-1].expires_at.year == 9999


def test_rotated_token_works_for_its_grace(panel: Panel, team: Member):
    old = teams.tokens(team.team.id)[0]
    page = panel.post(team_path(team.team.id, f"tokens/{old.id}/rotate"), {"grace": "1d"})
    (new,) = set(TOKEN.findall(page.text))
    for token in (new, team.bearer_token):
        assert panel.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    ends = teams.tokens(team.team.id)[0].expires_at - datetime.now(UTC)
    assert timedelta(hours=23) < ends <= timedelta(days=1)


def test_rotated_token_without_grace_is_refused(panel: Panel, team: Member):
    panel.post(team_path(team.team.id, f"tokens/{teams.tokens(team.team.id)[0].id}/rotate"), {"grace": "0"})
    assert panel.get("/v1/models", headers=team.headers).status_code == 401


def test_grace_is_one_of_those_offered(panel: Panel, team: Member):
    path = team_path(team.team.id, f"tokens/{teams.tokens(team.team.id)[0].id}/rotate")
    assert panel.post(path, {"grace": "100y"}).status_code == 400


def test_revoked_token_is_refused(panel: Panel, team: Member):
    panel.post(team_path(team.team.id, f"tokens/{teams.tokens(team.team.id)[0].id}/revoke"))
    assert f"Revoked the token {team.bearer_token[:8]}…" in panel.messages(team_path(team.team.id))
    assert panel.get("/v1/models", headers=team.headers).status_code == 401


def test_token_of_another_team_is_out_of_reach(panel: Panel, new_team):
    one, other = new_team("one"), new_team("other")
    panel.post(team_path(one.team.id, f"tokens/{teams.tokens(other.team.id)[0].id}/revoke"))
    assert "has no such token" in panel.messages()
    assert panel.get("/v1/models", headers=other.headers).status_code == 200

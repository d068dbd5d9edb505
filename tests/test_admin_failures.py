"""The panel on failures: sorted by who can do something, with what helps, and found again in the log."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from adminclient import Panel
from conftest import HELLO, TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient

from tokenrouter import errors, reports, runtime, teams
from tokenrouter.admin import failures
from tokenrouter.database.tables import db

CHAT = "/v1/chat/completions"


def calls_in(page: str) -> list[int]:
    return [int(number) for number in re.findall(r'href="/admin/logs/(\d+)/\?back=', page)]


def links_in(page: str) -> list[str]:
    return [unescape(link) for link in re.findall(r'href="([^"]+)"', page)]


def test_dashboard_puts_the_provider_first_and_callers_mistakes_last(panel: Panel, client: FlaskClient, new_team):
    blocked, calling = new_team("blocked", quota_tokens=0), new_team("calling")
    chat(client, calling, "status=400 code=bad_value")
    for _ in range(3):
        chat(client, blocked)
    for _ in range(2):
        chat(client, calling, "status=401")
    runtime.current().ledger._write_repeats()
    page = panel.get("/admin/").text.partition('aria-labelledby="failures"')[2]
    order = [
        "At the provider",
        "The provider refuses the key",
        "Limits and settings here",
        "The quota is used up",
        "Callers’ own mistakes",
        "The provider did not take the request",
    ]
    places = [page.index(words) for words in order]
    assert places == sorted(places)
    assert "× 2" in page[places[1] : places[2]]
    assert "× 3" in page[places[3] : places[4]]
    assert f"/admin/teams/{blocked.team.id}/#usage" in links_in(page[places[3] : places[4]])


def test_share_of_failed_calls_leads_to_them(panel: Panel, client: FlaskClient, team: Member):
    chat(client, team)
    failed = chat(client, team, "status=500")
    page = panel.get("/admin/").text
    link = re.search(r'<a href="([^"]+)">50\.0 % of today’s calls failed', page)[1]
    assert calls_in(panel.get(unescape(link)).text) == [failed]


def test_links_of_the_dashboard_lead_to_the_calls_of_the_day(panel: Panel, client: FlaskClient, team: Member):
    failed = chat(client, team, "status=500")
    links = [link for link in links_in(panel.get("/admin/").text) if "status=" in link]
    assert links
    assert [calls_in(panel.get(link).text) for link in links if "pending" not in link] == [[failed]] * len(links)


@pytest.mark.parametrize(
    ("fields", "told", "link"),
    [
        ({"quota_tokens": 0}, "limit 0 tokens, of this team", "/admin/teams/1/#usage"),
        ({"requests_per_minute": 0}, "may make 0 a minute", "/admin/teams/1/edit/"),
        ({"models": "GPT-5-mini"}, "the team may call: GPT-5-mini", "/admin/teams/1/edit/"),
        ({"budget": 1000}, "no price; budget", "/admin/prices/"),
    ],
)
def test_page_of_a_call_says_why_and_what_helps(
    panel: Panel, client: FlaskClient, new_team, fields: dict, told: str, link: str
):
    page = panel.get(f"/admin/logs/{chat(client, new_team(**fields))}/").text
    assert told in page
    assert link in links_in(page)
    assert "rejected" not in page


def test_disabled_team_can_be_enabled_from_its_refused_call(panel: Panel, client: FlaskClient, new_team):
    page = panel.get(f"/admin/logs/{chat(client, new_team(active=False))}/").text
    assert "Enable the team" in page


def test_deleted_teams_call_offers_nothing_that_would_lead_nowhere(panel: Panel, client: FlaskClient, new_team):
    call_id = chat(client, new_team("gone", quota_tokens=0))
    teams.delete("gone", by=TESTER)
    assert not any(link.startswith("/admin/teams/1") for link in links_in(panel.get(f"/admin/logs/{call_id}/").text))


def test_every_code_of_ours_has_its_words():
    codes = {each.code for each in _all_errors(errors.APIError) if each.code} - {"provider_error", "name_taken"}
    known = failures.KINDS.keys() | failures.DOOR_WORDS.keys()
    assert codes - known == {"not_found", "invalid_api_key"}  # of the management API; told apart at the door


def _all_errors(kind: type[errors.APIError]) -> list[type[errors.APIError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in _all_errors(sub))]


@pytest.mark.parametrize(
    ("outcome", "side"),
    [
        (("provider_error", 502, "provider_unreachable"), failures.Side.PROVIDER),
        (("provider_error", 429, "rate_limit_exceeded"), failures.Side.PROVIDER),
        (("provider_error", 503, "server_error"), failures.Side.PROVIDER),
        (("provider_error", 200, "provider_error"), failures.Side.PROVIDER),
        (("provider_error", 503, "storage_unavailable"), failures.Side.HERE),
        (("provider_error", 500, "api_error"), failures.Side.HERE),
        (("interrupted", None, None), failures.Side.HERE),
        (("rejected", 429, "rate_limit_exceeded"), failures.Side.HERE),
        (("rejected", 404, "model_not_found"), failures.Side.CALLERS),
        (("provider_error", 404, "model_not_found"), failures.Side.CALLERS),
        (("provider_error", 400, None), failures.Side.CALLERS),
        (("provider_error", 413, "too_large"), failures.Side.CALLERS),
    ],
)
def test_failure_is_put_to_who_can_do_something(outcome: tuple, side: failures.Side):
    assert failures.kind_of(*outcome).side is side
    assert failures.kind_of("ok", 200, None) is None


def test_list_is_kept_on_the_way_to_a_call_and_back(panel: Panel, client: FlaskClient, team: Member):
    chat(client, team, "status=500")
    listed = panel.get("/admin/logs/?status=failed&team=tea")
    call = next(link for link in links_in(listed.text) if re.match(r"/admin/logs/\d+/", link))
    assert "/admin/logs/?status=failed&team=tea" in links_in(panel.get(call).text)
    stray = panel.get(re.sub("back=.*", "back=https://example.org/admin/logs/", call)).text
    assert "example.org" not in stray
    assert "Back to the list" not in panel.get(re.sub("back=.*", "back=/admin/teams/", call)).text


def test_log_is_filtered_by_the_minute_in_the_readers_zone(panel: Panel, client: FlaskClient, team: Member):
    call = chat(client, team)
    at = (datetime.now(UTC) + timedelta(hours=5, minutes=30)).replace(tzinfo=None)
    query = "/admin/logs/?zone=Asia/Kolkata&{}={:%Y-%m-%dT%H:%M}"
    before, after = at - timedelta(minutes=2), at + timedelta(minutes=2)
    assert calls_in(panel.get(query.format("since", before)).text) == [call]
    assert calls_in(panel.get(query.format("since", after)).text) == []
    assert calls_in(panel.get(query.format("until", before)).text) == []
    assert calls_in(panel.get(query.format("until", at)).text) == [call]  # that minute is within
    assert f'value="{before:%Y-%m-%dT%H:%M}"' in panel.get(query.format("since", before)).text


def test_part_of_a_name_finds_all_teams_that_have_it(panel: Panel, client: FlaskClient, new_team):
    ids = {name: chat(client, new_team(name)) for name in ("Class 9", "Class 9a", "class 9b", "Year 7")}
    page = panel.get("/admin/logs/?team=ass+9a").text
    assert calls_in(page) == [ids["Class 9a"]]
    page = panel.get("/admin/logs/?team=CLASS").text
    assert calls_in(page) == [ids["class 9b"], ids["Class 9a"], ids["Class 9"]]
    assert "3 teams have this in their name" in page
    assert calls_in(panel.get("/admin/logs/?team=Class+9").text) == [ids["Class 9"]]  # all of a name is that team
    assert "<option>Year 7</option>" in page


def test_log_is_filtered_by_token_error_and_slowness(panel: Panel, client: FlaskClient, team: Member):
    token, bearer_token = teams.create_token(team.team.id, "laptop", by=TESTER)
    first, failed = chat(client, team), chat(client, team, "status=401")
    other = chat(client, Member(team.team, bearer_token))
    assert calls_in(panel.get(f"/admin/logs/?token_id={token.id}").text) == [other]
    assert calls_in(panel.get("/admin/logs/?token_id=999").text) == []
    assert calls_in(panel.get(f"/admin/logs/?token_id={token.id}&token={team.bearer_token[:8]}").text) == [
        failed,
        first,
    ]
    assert calls_in(panel.get("/admin/logs/?error_code=provider_auth_failed").text) == [failed]
    assert calls_in(panel.get("/admin/logs/?slower=600+s").text) == []
    assert calls_in(panel.get("/admin/logs/?slower=0ms&team=team").text) != []
    assert f"/admin/logs/?token_id={token.id}" in links_in(panel.get("/admin/logs/").text)


def test_sums_are_told_of_a_filter_alone(panel: Panel, client: FlaskClient, team: Member, monkeypatch):
    for _ in range(3):
        chat(client, team)
    assert "without a price" not in panel.get("/admin/logs/").text
    page = panel.get("/admin/logs/?status=ok").text
    assert '<strong class="num">3</strong> calls' in page
    assert "3 of them without a price" in page
    assert "as far as counted" not in page
    monkeypatch.setattr(reports.calls, "SCATTERED_ROWS", 1)
    monkeypatch.setattr(reports.calls, "WINDOW_ROWS", 1)
    monkeypatch.setattr("tokenrouter.admin.logs.SUMS_S", 0)
    page = panel.get("/admin/logs/?status=ok").text
    assert '<strong class="num">1</strong> call,' in page
    link = next(link for link in links_in(page) if "sums=all" in link)
    assert '<strong class="num">3</strong> calls' in panel.get(link).text


def test_door_page_tells_why_from_where_and_whose_token(
    app: Flask, panel: Panel, client: FlaskClient, new_team: Callable[..., Member]
):
    assert "Nobody was turned away" in panel.get("/admin/logs/door/").text
    member = new_team("<b>bold</b>")
    with db.engine.connect() as connection:
        token_id = connection.execute(db.text("SELECT id FROM api_tokens")).scalar_one()
    teams.revoke_token(member.team.id, token_id, by=TESTER)
    client.post(CHAT, json=HELLO, headers=member.headers)
    client.post(CHAT, json=HELLO, headers={"Authorization": "Bearer tr-guess"})
    runtime.current().ledger._write_refusals()
    page = panel.get("/admin/logs/door/").text
    for words in ("Revoked token", "Unknown token", "127.0.0.1", "&lt;b&gt;bold", member.bearer_token[:8]):
        assert words in page
    assert "2 requests turned away at the door" in panel.get("/admin/").text
    assert "/admin/logs/door/" in links_in(panel.get("/admin/logs/").text)

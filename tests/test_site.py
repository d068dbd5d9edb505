"""The pages for teams, and the data of a team's own page."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from conftest import TESTER, Member, chat
from flask.testing import FlaskClient

from tokenrouter import reports, teams
from tokenrouter.database import tables
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import UsageDaily, db

PAGES = ("/", "/usage")
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def data(client: FlaskClient, member: Member) -> dict[str, object]:
    reply = client.get("/usage/data", headers=member.headers)
    assert reply.status_code == 200
    return reply.json


def use(member: Member, days_ago: int, tokens: int) -> None:
    sums = {"requests": 1, "errors": 0, "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": tokens}
    row = {"team_id": member.team.id, "day": NOW.date() - timedelta(days_ago), "model": "m", **sums}
    with writing(db.engine) as connection:
        connection.execute(db.insert(UsageDaily).values(row))


# The pages


@pytest.mark.parametrize("path", PAGES)
def test_page_has_neither_inline_scripts_nor_inline_styles(client: FlaskClient, path: str):
    page = client.get(path)
    assert page.status_code == 200
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\s(?:style|on\w+)=", page.text) == []


@pytest.mark.parametrize("path", PAGES)
def test_page_lets_nothing_in_from_elsewhere_and_is_not_kept(client: FlaskClient, path: str):
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", PAGES)
def test_page_shows_the_address_that_it_was_asked_at(client: FlaskClient, path: str):
    page = client.get(path, base_url="https://llm.example.org:8443").text
    assert "https://llm.example.org:8443/v1" in page


def test_front_page_leads_to_usage_and_panel(client: FlaskClient):
    assert set(re.findall(r'<a href="([^"]+)"', client.get("/").text)) >= {"/usage", "/admin/"}


# The data


@pytest.mark.both_databases
def test_team_is_told_its_models_and_calls_without_their_content(client: FlaskClient, team: Member):
    chat(client, team, "words=5")
    told = data(client, team)
    assert [(row["model"], row["requests"]) for row in told["by_model"]] == [("GPT-5-nano", 1)]
    (call,) = told["calls"]
    assert (call["model"], call["status"]) == ("GPT-5-nano", "ok")
    assert call["charged_tokens"] == told["by_model"][0]["total_tokens"] > 0
    assert "Hello" not in client.get("/usage/data", headers=team.headers).text


@pytest.mark.parametrize("path", ["/v1/usage", "/usage/data"])
def test_use_is_kept_by_no_one_in_between(client: FlaskClient, team: Member, path: str):
    assert client.get(path, headers=team.headers).headers["Cache-Control"] == "no-store"


def test_team_is_told_nothing_of_another(client: FlaskClient, team: Member, new_team):
    chat(client, team)
    assert data(client, new_team("other")) == {
        "extra_tokens": 0,
        "group": None,
        "currency": "USD",
        "by_model": [],
        "pace": None,
        "calls": [],
        "example_model": "GPT-5-nano",
    }


@pytest.mark.parametrize(("models", "shown"), [(None, "GPT-5-nano"), ("gemini*", "Gemini-2.5-flash")])
def test_example_names_a_model_that_the_team_may_call(client: FlaskClient, new_team, models: str | None, shown: str):
    assert data(client, new_team(models=models))["example_model"] == shown


def test_calls_are_the_newest_twenty(client: FlaskClient, team: Member):
    for number in range(21):
        client.post("/v1/chat/completions", json={"model": f"unknown-{number}", "messages": []}, headers=team.headers)
    chat(client, team)
    calls = data(client, team)["calls"]
    assert [call["status"] for call in calls] == ["ok"] + 19 * ["rejected"]


def test_exhausted_team_is_told(client: FlaskClient, new_team):
    assert data(client, new_team(quota_tokens=0))["calls"] == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer tr-unknown"}])
def test_stranger_is_refused_as_under_v1(client: FlaskClient, headers: dict[str, str]):
    own, other = (client.get(path, headers=headers) for path in ("/usage/data", "/v1/usage"))
    assert (own.status_code, own.json) == (other.status_code, other.json)
    assert own.json["error"]["code"] == "invalid_api_key"


def test_token_in_the_address_is_not_looked_at(client: FlaskClient, team: Member):
    assert client.get(f"/usage/data?token={team.bearer_token}").status_code == 401


def test_revoked_token_is_refused(client: FlaskClient, team: Member):
    teams.revoke_token(team.team.name, team.bearer_token[:8], by=TESTER)
    assert client.get("/usage/data", headers=team.headers).status_code == 401


def test_disabled_team_is_refused(client: FlaskClient, team: Member):
    teams.set_active([team.team.id], False, by=TESTER)
    reply = client.get("/usage/data", headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (403, "team_disabled")


def test_wrong_method_is_told_in_the_shape_of_v1(client: FlaskClient, team: Member):
    reply = client.post("/usage/data", headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (405, "method_not_allowed")


# How long it lasts


def test_pace_is_the_average_since_the_first_use(new_team):
    team = new_team(quota_tokens=1000)
    use(team, 1, 150)  # one and a half days ago
    with writing(db.engine) as connection:
        connection.execute(db.update(tables.Team).values(settled_tokens=150))
    pace = reports.own_details(team.team.id, NOW)["pace"]
    assert pace == {"tokens_per_day": 100, "lasts_until": "2026-12-04T00:00:00.000Z"}


def test_pace_looks_at_seven_days_only(new_team):
    team = new_team(quota_tokens=1000)
    use(team, 7, 500)
    assert reports.own_details(team.team.id, NOW)["pace"] is None


def test_team_without_a_quota_has_no_pace(new_team):
    team = new_team()
    use(team, 1, 150)
    assert reports.own_details(team.team.id, NOW)["pace"] is None

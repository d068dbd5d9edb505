"""The management API: what its routes do, how they refuse, and who may ask."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import HELLO, TEAM_FIELDS, TESTER, Member, chat, stored
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from tokenrouter import changes, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ManagementToken, db
from tokenrouter.teams import management_tokens

TOKEN_FIELDS = ["id", "label", "prefix", "created_at", "last_used_at", "expires_at"]

ApiCall = Callable[..., Any]
NewTeam = Callable[..., Member]


@pytest.fixture
def key(app: Flask) -> str:
    return management_tokens.create("billing", by=TESTER)[1]


@pytest.fixture
def api(client: FlaskClient, key: str) -> ApiCall:
    """Call the API by its token."""

    def api(method: str, path: str, **options: Any) -> Any:
        return client.open(f"/api{path}", method=method, headers={"Authorization": f"Bearer {key}"}, **options)

    return api


def refusal(reply: Any) -> tuple[int, str | None, str | None]:
    assert set(reply.json) == {"error"} and set(reply.json["error"]) == {"message", "type", "param", "code"}
    return reply.status_code, reply.json["error"]["code"], reply.json["error"]["param"]


@pytest.mark.both_databases
def test_team_is_created_with_its_first_token(api: ApiCall, client: FlaskClient):
    reply = api("POST", "/teams", json={"name": "blue", "quota_tokens": 5000, "models": ["GPT-5-nano"]})
    assert reply.status_code == 201
    assert sorted(reply.json) == sorted([*TEAM_FIELDS, "token"])
    assert (reply.json["quota_tokens"], reply.json["models"], reply.json["active"]) == (5000, ["GPT-5-nano"], True)
    called = client.post("/v1/chat/completions", json=HELLO, headers={"Authorization": f"Bearer {reply.json['token']}"})
    assert called.status_code == 200


def test_team_may_be_created_disabled(api: ApiCall):
    assert api("POST", "/teams", json={"name": "blue", "active": False}).json["active"] is False


@pytest.mark.both_databases
def test_team_is_shown_changed_and_deleted(api: ApiCall, team: Member):
    path = f"/teams/{team.team.id}"
    assert sorted(api("GET", path).json) == sorted(TEAM_FIELDS)
    assert api("PATCH", path, json={"name": "red"}).json["name"] == "red"
    gone = api("DELETE", path)
    assert (gone.status_code, gone.data) == (204, b"")
    assert refusal(api("GET", path)) == (404, "not_found", None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "red"}, {"name": "red"}),
        ({"quota_tokens": None}, {"quota_tokens": None, "remaining_tokens": None}),
        ({"quota_tokens": 7}, {"quota_tokens": 7, "remaining_tokens": 7}),
        ({"models": ["GPT-5-mini", "gemini*"]}, {"models": ["GPT-5-mini", "gemini*"]}),
        ({"models": None}, {"models": None}),
        ({"active": False}, {"active": False}),
        ({}, {}),
    ],
)
def test_patch_changes_only_what_it_names(api: ApiCall, new_team: NewTeam, fields: dict, expected: dict):
    path = f"/teams/{new_team(quota_tokens=100, models='GPT-5-nano').team.id}"
    before = api("GET", path).json
    assert api("PATCH", path, json=fields).json == before | expected
    assert api("GET", path).json == before | expected


@pytest.mark.both_databases
def test_reset_counts_from_zero(api: ApiCall, client: FlaskClient, team: Member):
    chat(client, team)
    assert stored(team).settled_tokens > 0
    reply = api("POST", f"/teams/{team.team.id}/reset")
    assert (reply.status_code, reply.json["used_tokens"]) == (200, 0)


GROUP_FIELDS = [name for name in TEAM_FIELDS if name not in ("active", "models", "group")] + ["teams"]


@pytest.mark.both_databases
def test_group_is_created_shown_changed_and_deleted(api: ApiCall, new_team: NewTeam):
    made = api("POST", "/groups", json={"name": "year 9", "quota_tokens": 5000, "renews": "monthly", "renews_on": 31})
    assert (made.status_code, sorted(made.json)) == (201, sorted(GROUP_FIELDS))
    path = f"/groups/{made.json['id']}"
    new_team("9a", group="year 9")
    changed = api("PATCH", path, json={"name": "class 9", "calls_at_once": 3, "renews_on": 1})
    shown = api("GET", path).json
    assert changed.json == shown
    assert (shown["name"], shown["quota_tokens"], shown["calls_at_once"], shown["renews"]) == (
        "class 9",
        5000,
        3,
        "monthly",
    )
    assert (shown["renews_on"], shown["teams"]) == (1, ["9a"])
    assert api("DELETE", path).status_code == 204
    assert refusal(api("GET", path)) == (404, "not_found", None)
    assert teams.find("9a").group_name is None


@pytest.mark.both_databases
def test_use_of_a_group_is_reset_and_extended(api: ApiCall, client: FlaskClient, new_team: NewTeam):
    path = f"/groups/{teams.create_group('year 9', 1000, by=TESTER).id}"
    chat(client, new_team("9a", group="year 9"))
    used = api("GET", path).json["used_tokens"]
    extended = api("POST", f"{path}/extra", json={"tokens": 500})
    assert (extended.status_code, extended.json["remaining_tokens"]) == (200, 1500 - used)
    reset = api("POST", f"{path}/reset")
    assert (reset.status_code, reset.json["used_tokens"], reset.json["remaining_tokens"]) == (200, 0, 1500)
    assert refusal(api("POST", f"{path}/extra", json={})) == (400, None, "tokens")


def test_teams_group_is_set_by_its_name_and_taken_away(api: ApiCall):
    teams.create_group("year 9", by=TESTER)
    made = api("POST", "/teams", json={"name": "9a", "group": "year 9"}).json
    assert made["group"] == "year 9"
    assert api("PATCH", f"/teams/{made['id']}", json={"quota_tokens": 5}).json["group"] == "year 9"
    assert api("PATCH", f"/teams/{made['id']}", json={"group": None}).json["group"] is None
    assert refusal(api("PATCH", f"/teams/{made['id']}", json={"group": "nowhere"})) == (400, None, "group")
    assert refusal(api("PATCH", f"/teams/{made['id']}", json={"group": 1})) == (400, None, "group")


def test_groups_are_listed_in_pages_and_found_by_name(api: ApiCall):
    for number in range(3):
        teams.create_group(f"group {number}", by=TESTER)
    first = api("GET", "/groups?limit=2").json
    rest = api("GET", f"/groups?limit=2&after={first['next']}").json
    assert [group["name"] for group in first["data"] + rest["data"]] == ["group 0", "group 1", "group 2"]
    assert (first["has_more"], rest["has_more"], rest["next"]) == (True, False, None)
    assert [group["name"] for group in api("GET", "/groups?name=group 1").json["data"]] == ["group 1"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": "none"}, "name"),
        ({}, "name"),
        ({"name": "x", "quota_tokens": -1}, "quota_tokens"),
        ({"name": "x", "quota_tokens": "5"}, "quota_tokens"),
        ({"name": "x", "calls_at_once": -1}, "calls_at_once"),
        ({"name": "x", "renews": "hourly"}, "renews"),
        ({"name": "x", "renews": "weekly", "renews_on": 1}, "renews_on"),
        ({"name": "x", "models": None}, "models"),
    ],
)
def test_group_that_is_none_is_refused(api: ApiCall, fields: dict, param: str):
    assert refusal(api("POST", "/groups", json=fields)) == (400, None, param)


@pytest.mark.both_databases
def test_use_is_told_by_group(api: ApiCall, client: FlaskClient, new_team: NewTeam):
    teams.create_group("year 9", by=TESTER)
    for member in (new_team("9a", group="year 9"), new_team("alone")):
        chat(client, member)
    rows = api("GET", "/usage?group_by=group").json["data"]
    assert [(row["group"], row["requests"]) for row in rows] == [("year 9", 1), (None, 1)]
    assert [row["team"] for row in api("GET", "/usage?group=year 9&group_by=team").json["data"]] == ["9a"]
    assert refusal(api("GET", "/usage?group=nowhere")) == (404, "not_found", None)
    assert refusal(api("GET", "/usage?group_by=colour")) == (400, None, "group_by")


@pytest.mark.both_databases
def test_tokens_are_created_listed_and_revoked(api: ApiCall, client: FlaskClient, team: Member):
    path = f"/teams/{team.team.id}/tokens"
    made = api("POST", path, json={"label": "laptop", "expires_at": "2999-01-01T00:00:00Z"})
    token = made.json
    assert (made.status_code, token["label"], token["expires_at"]) == (201, "laptop", "2999-01-01T00:00:00.000Z")
    bearer_token = token.pop("token")
    listed = api("GET", path).json
    assert (listed["data"][1], listed["has_more"], listed["next"]) == (token, False, None)
    assert sorted(token) == sorted(TOKEN_FIELDS)
    assert api("DELETE", f"{path}/{token['id']}").status_code == 204
    called = client.get("/v1/usage", headers={"Authorization": f"Bearer {bearer_token}"})
    assert refusal(called) == (401, "invalid_api_key", None)


def test_token_needs_no_body(api: ApiCall, team: Member):
    assert api("POST", f"/teams/{team.team.id}/tokens").json["label"] is None


@pytest.mark.both_databases
def test_pages_hold_every_team_once_while_teams_are_added(api: ApiCall, new_team: NewTeam):
    ids = [new_team(f"team {number}").team.id for number in range(5)]
    seen, after = [], "0"
    while after is not None:
        page = api("GET", f"/teams?limit=2&after={after}").json
        assert page["has_more"] == (page["next"] is not None)
        seen += [team["id"] for team in page["data"]]
        if len(ids) < 7:
            ids.append(new_team(f"team {len(ids)}").team.id)
        after = page["next"]
    assert seen == ids


def test_teams_are_found_by_their_name(api: ApiCall, new_team: NewTeam):
    new_team("blue"), new_team("blue 2")
    assert [team["name"] for team in api("GET", "/teams?name=blue").json["data"]] == ["blue"]
    assert api("GET", "/teams?name=%00").json["data"] == []


@pytest.mark.both_databases
def test_pages_of_the_log_hold_every_call_once_newest_first(api: ApiCall, client: FlaskClient, team: Member):
    for _ in range(5):
        chat(client, team)
    first = api("GET", "/logs?limit=2").json
    chat(client, team)
    rest = api("GET", f"/logs?limit=1000&after={first['next']}").json
    times = [row["created_at"] for row in first["data"] + rest["data"]]
    assert times == sorted(times, reverse=True)
    assert len({row["request_id"] for row in first["data"] + rest["data"]}) == 5
    assert (rest["has_more"], rest["next"]) == (False, None)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("team={id}", 1),
        ("team=team", 1),
        ("team=99", 0),
        ("team=999999999999999999999999", 0),
        ("model=GPT-5-nano", 2),
        ("model=GPT", 0),
        ("status=ok", 2),
        ("status=rejected", 0),
        ("since=2000-01-01", 2),
        ("until=2000-01-01T00:00:00%2B01:00", 0),
    ],
)
def test_log_is_filtered(api: ApiCall, client: FlaskClient, team: Member, new_team: NewTeam, query: str, found: int):
    chat(client, team)
    chat(client, new_team("other"))
    assert len(api("GET", f"/logs?{query.format(id=team.team.id)}").json["data"]) == found


@pytest.mark.both_databases
@pytest.mark.parametrize("group_by", ["day", "team", "model"])
def test_usage_adds_up_by_group(api: ApiCall, client: FlaskClient, team: Member, group_by: str):
    chat(client, team)
    chat(client, team)
    (row,) = api("GET", f"/usage?group_by={group_by}").json["data"]
    today = datetime.now(UTC).date().isoformat()
    assert row[group_by] == {"day": today, "team": "team", "model": "GPT-5-nano"}[group_by]
    assert (row["requests"], row["total_tokens"]) == (2, stored(team).settled_tokens)
    assert set(row) == {group_by, "requests", "prompt_tokens", "completion_tokens", "total_tokens", "cost"}


def test_usage_is_filtered_by_team_and_days(api: ApiCall, client: FlaskClient, team: Member, new_team: NewTeam):
    chat(client, team)
    other = new_team("other").team.id
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert len(api("GET", f"/usage?team={team.team.id}&until={tomorrow}").json["data"]) == 1
    for query in (f"team={other}", f"since={tomorrow}", "until=2000-01-01"):
        assert api("GET", f"/usage?{query}").json == {"data": [], "has_more": False, "next": None}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/reset"), ("GET", "/tokens"), ("POST", "/tokens")],
)
def test_unknown_team_is_not_found(api: ApiCall, method: str, path: str):
    for id_ in ("0", "999", "-1", "x", "1.0", "9" * 30, "9" * 5000, "%D9%A1"):
        assert refusal(api(method, f"/teams/{id_}{path}")) == (404, "not_found", None)


def test_token_of_another_team_is_not_found(api: ApiCall, team: Member, new_team: NewTeam):
    theirs = teams.tokens(new_team("other").team.id)[0].id
    assert refusal(api("DELETE", f"/teams/{team.team.id}/tokens/{theirs}"))[:2] == (404, "not_found")


def test_name_in_use_is_a_conflict(api: ApiCall, team: Member, new_team: NewTeam):
    assert refusal(api("POST", "/teams", json={"name": "team"})) == (409, "name_taken", "name")
    other = new_team("other").team.id
    assert refusal(api("PATCH", f"/teams/{other}", json={"name": " team "})) == (409, "name_taken", "name")


WRONG_FIELDS = [
    ({"name": 1}, "name"),
    ({"name": None}, "name"),
    ({"name": ""}, "name"),
    ({"name": "a\nb"}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"quota_tokens": -1}, "quota_tokens"),
    ({"quota_tokens": 1.5}, "quota_tokens"),
    ({"quota_tokens": "5"}, "quota_tokens"),
    ({"quota_tokens": True}, "quota_tokens"),
    ({"quota_tokens": 10**16}, "quota_tokens"),
    ({"quota_tokens": 10**30}, "quota_tokens"),
    ({"models": "m"}, "models"),
    ({"models": []}, "models"),
    ({"models": ["a,b"]}, "models"),
    ({"models": ["*a"]}, "models"),
    ({"models": [1]}, "models"),
    ({"models": ["GPT-5-nano", "claude"]}, "models"),
    ({"active": None}, "active"),
    ({"active": 1}, "active"),
    ({"used_tokens": 0}, "used_tokens"),
]


def test_wrong_field_is_named_and_nothing_changes(api: ApiCall, team: Member):
    for fields, param in WRONG_FIELDS:
        assert refusal(api("PATCH", f"/teams/{team.team.id}", json=fields)) == (400, None, param)
        assert refusal(api("POST", "/teams", json={"name": "new", **fields})) == (400, None, param)
    assert [each.name for each in teams.living()] == ["team"]
    assert stored(team).quota_tokens == 100_000


def test_token_that_is_given_a_day_is_valid_through_it(api: ApiCall, team: Member):
    made = api("POST", f"/teams/{team.team.id}/tokens", json={"expires_at": "2999-12-31"})
    assert made.json["expires_at"] == "3000-01-01T00:00:00.000Z"


@pytest.mark.parametrize("path", ["/teams", "/logs", "/nothing"])
def test_answer_is_taken_for_what_it_is_and_not_kept(api: ApiCall, path: str):
    headers = api("GET", path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert path == "/nothing" or headers["Cache-Control"] == "no-store"


def test_team_without_a_name_is_refused(api: ApiCall):
    assert refusal(api("POST", "/teams", json={})) == (400, None, "name")


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff"])
def test_body_that_is_no_object_is_refused(api: ApiCall, body: bytes):
    assert refusal(api("POST", "/teams", data=body)) == (400, None, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"label": 1}, "label"),
        ({"label": "x" * 201}, "label"),
        ({"expires_at": "2000-01-01"}, "expires_at"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"expires_at": 1}, "expires_at"),
        ({"scope": "all"}, "scope"),
    ],
)
def test_wrong_field_of_a_token_is_named(api: ApiCall, team: Member, fields: dict, param: str):
    assert refusal(api("POST", f"/teams/{team.team.id}/tokens", json=fields)) == (400, None, param)


WRONG_PARAMETERS = [
    ("/teams?limit=0", "limit"),
    ("/teams?limit=1001", "limit"),
    ("/teams?limit=ten", "limit"),
    ("/logs?limit=-1", "limit"),
    ("/teams?after=x", "after"),
    ("/logs?after=-1", "after"),
    ("/logs?status=good", "status"),
    ("/logs?since=yesterday", "since"),
    ("/logs?until=2026-02-30", "until"),
    ("/logs?since=2026-01-01T00:00:00", "since"),
    ("/logs?since=0001-01-01T00:00:00%2B14:00", "since"),
    ("/usage?since=2026-01-01T05:00:00Z", "since"),
    ("/usage?group_by=hour", "group_by"),
    ("/usage?sinse=2026-01-01", "sinse"),
]


def test_wrong_parameter_is_named(api: ApiCall):
    for path, param in WRONG_PARAMETERS:
        assert refusal(api("GET", path)) == (400, None, param)


def test_log_of_an_unknown_name_is_not_found(api: ApiCall):
    assert refusal(api("GET", "/logs?team=nobody")) == (404, "not_found", None)


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer trm-x", "Basic eDp5", "team"])
def test_stranger_is_refused_on_every_route(app: Flask, client: FlaskClient, team: Member, authorization: str | None):
    headers = team.headers if authorization == "team" else {"Authorization": authorization} if authorization else {}
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("api.")]
    assert len(rules) == 20
    for rule in rules:
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            reply = client.open(re.sub("<.*?>", "1", rule.rule), method=method, headers=headers)
            assert refusal(reply) == (401, "invalid_api_key", None)


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/models"])
def test_management_token_calls_no_model(client: FlaskClient, key: str, path: str):
    assert refusal(client.get(path, headers={"Authorization": f"Bearer {key}"})) == (401, "invalid_api_key", None)


def test_revoked_token_is_refused_at_once(api: ApiCall, key: str):
    assert api("GET", "/teams").status_code == 200
    management_tokens.revoke(key, by=TESTER)
    assert refusal(api("GET", "/teams")) == (401, "invalid_api_key", None)


def test_unknown_path_and_wrong_method_need_no_token(client: FlaskClient):
    assert refusal(client.get("/api/nothing")) == (404, "unknown_url", None)
    assert refusal(client.put("/api/teams")) == (405, "method_not_allowed", None)


def test_body_that_is_too_large_is_refused_before_the_token(app: Flask, client: FlaskClient):
    app.config["MAX_CONTENT_LENGTH"] = 10
    assert refusal(client.post("/api/teams", data=b"x" * 11)) == (413, "request_too_large", None)


def test_changes_are_recorded_under_the_label_of_the_token(api: ApiCall):
    team_id = api("POST", "/teams", json={"name": "blue"}).json["id"]
    api("PATCH", f"/teams/{team_id}", json={"active": False})
    api("DELETE", f"/teams/{team_id}")
    rows = changes.page().rows[::-1][1:]
    assert [row.action for row in rows] == ["team.create", "team.update", "team.delete"]
    assert {(row.actor_kind, row.actor_detail) for row in rows} == {("api", "billing")}


def test_use_of_the_token_is_written_once_a_minute(api: ApiCall):
    def used_at() -> datetime | None:
        with db.engine.connect() as connection:
            return connection.execute(select(ManagementToken.last_used_at)).scalar_one()

    api("GET", "/teams")
    first = used_at()
    api("GET", "/teams")
    assert first is not None and used_at() == first
    with writing(db.engine) as connection:
        connection.execute(update(ManagementToken).values(last_used_at=first - timedelta(seconds=61)))
    api("GET", "/teams")
    assert used_at() > first - timedelta(seconds=1)

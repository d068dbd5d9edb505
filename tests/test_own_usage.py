"""What a team is told of its models and its use."""

from datetime import UTC, datetime, timedelta

import pytest
from conftest import Member, stored
from flask.testing import FlaskClient
from sending import fetch

from tokenrouter import reports
from tokenrouter.database.tables import UsageDaily, db

BOTH = pytest.mark.both_databases


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, **getattr(request, "param", {})}


# What a team is told


@BOTH
def test_usage_is_told_to_the_team(client: FlaskClient, team: Member):
    fetch(client, team, "chat/completions")
    fetch(client, team, "moderations")
    told = client.get("/v1/usage", headers=team.headers).json
    used = stored(team).settled_tokens
    days = told.pop("by_day")
    assert told == {
        "team": "team",
        "group": None,
        "quota_tokens": 100_000,
        "used_tokens": used,
        "held_tokens": 0,
        "remaining_tokens": 100_000 - used,
        "budget": None,
        "cost": None,
        "renews_at": None,
        "models": ["GPT-5-nano", "GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-pro"],
    }
    today = datetime.now(UTC).date().isoformat()
    assert days[-1] == {"date": today, "requests": 2, "total_tokens": used, "cost": None}
    assert len(days) == 30 and days == sorted(days, key=lambda row: row["date"])


@BOTH
def test_usage_is_of_the_last_30_days_and_of_this_team_alone(client: FlaskClient, team: Member, new_team):
    today = datetime.now(UTC).date()
    own, other = team.team.id, new_team("other").team.id
    with db.engine.begin() as connection:
        for team_id, ago, tokens in [(own, 30, 1), (own, 29, 2), (own, 29, 4), (other, 3, 8)]:
            row = {"team_id": team_id, "day": today - timedelta(ago), "model": f"m{tokens}", "requests": 1, "errors": 0}
            sums = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": tokens}
            connection.execute(db.insert(UsageDaily).values(row | sums))
    days = client.get("/v1/usage", headers=team.headers).json["by_day"]
    told = [row for row in days if row["requests"]]
    assert told == [{"date": (today - timedelta(29)).isoformat(), "requests": 2, "total_tokens": 6, "cost": None}]


def test_exhausted_team_is_still_told(client: FlaskClient, new_team):
    team = new_team(quota_tokens=0)
    for path in ("/v1/usage", "/v1/models", "/v1/models/GPT-5-nano"):
        assert client.get(path, headers=team.headers).status_code == 200
    assert client.get("/v1/usage", headers=team.headers).json["remaining_tokens"] == 0
    assert reports.newest_calls(None, 1) == []


def test_team_without_a_quota_is_told_so(client: FlaskClient, new_team):
    told = client.get("/v1/usage", headers=new_team("free").headers).json
    assert (told["quota_tokens"], told["remaining_tokens"]) == (None, None)


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/models", "/v1/models/GPT-5-nano"])
def test_nobody_is_told_without_a_token(client: FlaskClient, path: str):
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("settings", [{"ALLOWED_MODELS": "GPT-5-nano,Gemini-*,meta/llama"}], indirect=True)
@pytest.mark.parametrize(
    ("model", "status"),
    [("GPT-5-nano", 200), ("Gemini-2.5-pro", 200), ("meta/llama", 200), ("Gemini-9", 404), ("GPT-5-mini", 404)],
)
def test_one_model_is_told_where_the_team_may_call_it(client: FlaskClient, team: Member, model: str, status: int):
    reply = client.get(f"/v1/models/{model}", headers=team.headers)
    assert reply.status_code == status
    assert reply.json["id"] == model if status == 200 else reply.json["error"]["code"] == "model_not_found"

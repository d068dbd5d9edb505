"""Why a call was refused, or failed: what its row of the log says, which is never what anybody wrote."""

from collections.abc import Callable

import pytest
from conftest import HELLO, PROVIDER_KEY, TESTER, Member, hello
from flask import Flask
from flask.testing import FlaskClient

from tokenrouter import ledger, prices, reports, teams
from tokenrouter.database.tables import AnyRow, db
from tokenrouter.ledger.log_rows import kept_reason

pytestmark = pytest.mark.both_databases

CHAT = "/v1/chat/completions"


def last_call() -> AnyRow:
    return reports.calls_page(reports.CallFilter(), limit=1).rows[0]


def reason_of(client: FlaskClient, member: Member, directives: str = "", **fields: object) -> str | None:
    with client.post(CHAT, json=hello(directives, **fields), headers=member.headers) as reply:
        reply.get_data()
    return last_call().reason


def test_refusal_tells_what_was_used_held_needed_and_the_limit(client: FlaskClient, new_team: Callable[..., Member]):
    team = new_team(quota_tokens=40)
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200
    used = last_call().charged_tokens
    reason = reason_of(client, team, messages=[{"role": "user", "content": "word " * 50}])
    assert reason == f"{used} used, 0 held, 58 needed for the prompt; limit 40 tokens, of this team"
    assert reports.log_view(last_call())["reason"] == reason


def test_refusal_by_a_group_names_it(client: FlaskClient, new_team: Callable[..., Member]):
    teams.create_group("Year 9", quota_tokens=0, by=TESTER)
    reason = reason_of(client, new_team(group="Year 9"))
    assert reason == "0 used, 0 held, 9 needed for the prompt; limit 0 tokens, of the group “Year 9”"


def test_refusal_by_a_budget_is_exact_to_the_last_digit(client: FlaskClient, new_team: Callable[..., Member]):
    team = new_team(budget=1000)
    assert reason_of(client, team) == "no price; budget 0.000001 USD, of this team"
    prices.set_price("GPT-5-nano", 10**9, 2 * 10**9, by=TESTER)
    assert reason_of(client, team) == (
        "0 used, 0 held, 0.000009 needed for the prompt; limit 0.000001 USD, of this team"
    )


@pytest.mark.parametrize(
    ("fields", "request_fields", "reason"),
    [
        ({"requests_per_minute": 0}, {}, "Too many requests: this team may make 0 a minute"),
        ({"calls_at_once": 0}, {}, "Too many calls at once: this team may have 0, and has 0"),
        ({"models": "GPT-5-mini"}, {}, "the team may call: GPT-5-mini"),
        ({"active": False}, {}, "the team is disabled"),
    ],
)
def test_other_refusals_tell_theirs(
    client: FlaskClient, new_team: Callable[..., Member], fields: dict, request_fields: dict, reason: str
):
    assert reason_of(client, new_team(**fields), **request_fields) == reason


@pytest.mark.parametrize(
    ("directives", "reason"),
    [
        ("status=429 code=slow_down", "HTTP 429, code slow_down, type"),
        ("status=401", "HTTP 401, "),
        ("status=500 body=html", "HTTP 500, no code"),
        ("drop=1", "The provider could not be reached."),
        ("status=200 body=html", "The provider's answer is not a JSON object."),
    ],
)
def test_failed_call_tells_the_providers_code_and_type(client: FlaskClient, team: Member, directives: str, reason: str):
    assert (reason_of(client, team, directives) or "").startswith(reason)


def test_answered_call_has_no_reason(client: FlaskClient, team: Member):
    assert reason_of(client, team) is None


def test_what_a_provider_repeats_of_caller_or_key_is_not_kept(client: FlaskClient, team: Member):
    reason = reason_of(client, team, f"status=400 code={PROVIDER_KEY} message=the_secret_of_the_prompt")
    assert reason is not None
    assert PROVIDER_KEY not in reason
    assert "secret" not in reason
    assert PROVIDER_KEY not in (last_call().error_code or "")


def test_provider_that_fails_in_the_stream_is_logged_as_its_caller_saw_it(client: FlaskClient, team: Member):
    with client.post(CHAT, json=hello("error_event=0", stream=True), headers=team.headers) as reply:
        reply.get_data()
    row = last_call()
    assert (row.status, row.status_code, row.charged_tokens) == ("provider_error", reply.status_code, 0)


def test_reason_is_short_and_of_characters_that_are_seen(app: Flask):
    assert kept_reason("a\x00b\nc\u202ed\ud800e" + "x" * 400) == "a b c d e" + "x" * 291
    assert ledger.verify(db.engine).problems == []

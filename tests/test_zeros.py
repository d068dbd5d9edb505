"""Zeros that callers send: a limit of nothing is a limit, and no choices are one."""

import pytest
from conftest import HELLO, Member
from flask.testing import FlaskClient
from sending import body_of

from tokenrouter import config, payload, reports
from tokenrouter.payload.endpoints import COMPLETIONS
from tokenrouter.standin import StandInProvider

SETTINGS = config.load({"MAX_OUTPUT_TOKENS": "512"})


def checked(endpoint: payload.Endpoint, **fields: object) -> payload.Call:
    return payload.check(endpoint, body_of(endpoint.path[1:], **fields), "m", SETTINGS)


@pytest.mark.parametrize("field", payload.CHAT.limits)
def test_limit_of_zero_is_sent_and_holds_nothing(field: str):
    call = checked(payload.CHAT, **{field: 0})
    assert (call.body[field], call.output_tokens, call.output_ceiling()) == (0, 0, 0)


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 50}, {"max_completion_tokens": 50}, {"max_tokens": 5, "max_completion_tokens": 50}]
)
def test_limit_of_ours_is_written_to_the_fields_that_the_caller_used(fields: dict[str, int]):
    call = checked(payload.CHAT, **fields)
    call.limit_output(10)
    assert {name: call.body[name] for name in call.body if name.startswith("max_")} == dict.fromkeys(fields, 10)


def test_of_two_limits_the_larger_counts():
    call = checked(payload.CHAT, max_tokens=0, max_completion_tokens=7)
    assert (call.output_tokens, call.output_ceiling()) == (7, 7)
    assert (call.body["max_tokens"], call.body["max_completion_tokens"]) == (0, 7)


def test_limit_of_zero_fits_where_little_is_left(client: FlaskClient, new_team, provider: StandInProvider):
    team = new_team(quota_tokens=20)
    body = {"model": "GPT-5-nano", "prompt": "The sky is blue", "max_tokens": 0, "echo": True}
    reply = client.post("/v1/completions", json=body, headers=team.headers)
    assert "x-tokenrouter-output-limit" not in reply.headers
    assert provider.calls[0].json == body


@pytest.mark.parametrize(
    ("fields", "choices"),
    [({"n": 0}, 1), ({"best_of": 0}, 1), ({"n": 0, "best_of": 3}, 3), ({"n": 2, "best_of": 0}, 2)],
)
def test_no_choices_are_passed_on_and_count_as_one(fields: dict[str, int], choices: int):
    call = checked(COMPLETIONS, max_tokens=10, **fields)
    assert (call.choices, call.output_tokens) == (choices, choices * 10)
    assert {name: call.body[name] for name in fields} == fields


def test_call_for_no_choices_reaches_the_provider(client: FlaskClient, team: Member, provider: StandInProvider):
    client.post("/v1/chat/completions", json={**HELLO, "n": 0}, headers=team.headers)
    assert provider.calls[0].json["n"] == 0
    assert len(reports.newest_calls(None, 2)) == 1

"""How the paid account stands: by the calls since the last one that was answered, and by what it says when asked."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from conftest import Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from tokenrouter import account, runtime
from tokenrouter.account import Standing
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import RequestLog, db
from tokenrouter.provider.account import State
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe"}


def standing() -> Standing:
    return account.standing(db.engine)


def refresh() -> None:
    account.refresh(db.engine, runtime.current().account)


def change_calls(**values: object) -> None:
    with writing(db.engine) as connection:
        connection.execute(update(RequestLog).values(values))


def test_nothing_is_known_before_the_first_call_or_check(app: Flask):
    assert standing().state is State.UNPROVEN


def test_check_tells_before_the_first_call(app: Flask, provider: StandInProvider):
    refresh()
    assert standing() == Standing(State.GOOD, said="The provider answers and accepts the key.")
    provider.account.points = 0
    refresh()
    assert standing().state is State.EMPTY
    assert standing().words(BERLIN).startswith("The provider’s account is empty since ")


@pytest.mark.parametrize(
    ("faults", "state"),
    [
        ({"status": "402"}, State.EMPTY),
        ({"status": "401"}, State.KEY_REFUSED),
        ({"drop": "1"}, State.UNREACHABLE),
        ({"body": "html", "status": "200"}, State.BROKEN),
    ],
)
def test_calls_that_fail_tell_until_one_is_answered(
    client: FlaskClient,
    new_team: Callable[..., Member],
    provider: StandInProvider,
    faults: dict[str, str],
    state: State,
):
    refresh()
    teams = [new_team(f"team {number}") for number in range(3)]
    chat(client, teams[0])
    provider.defaults = faults
    for team in (*teams, teams[0]):
        chat(client, team)
    found = standing()
    assert (found.state, found.calls, found.teams) == (state, 4, 3)
    refused = state in (State.EMPTY, State.KEY_REFUSED, State.LIMITED)
    assert found.words(BERLIN).endswith(f": 4 calls of 3 teams {'were refused' if refused else 'failed'}.")
    provider.defaults = {}
    chat(client, teams[0])
    assert standing().state is State.GOOD


def test_proven_check_after_the_failures_ends_the_trouble(client: FlaskClient, team: Member, provider: StandInProvider):
    provider.defaults = {"status": "402"}
    chat(client, team)
    refresh()
    assert standing().state is State.GOOD


def test_list_of_models_proves_neither_key_nor_balance(client: FlaskClient, team: Member, provider: StandInProvider):
    runtime.current().account.kind = "none"
    provider.defaults = {"drop": "1"}
    chat(client, team)
    provider.defaults = {}
    refresh()
    assert standing().state is State.UNPROVEN
    provider.defaults = {"status": "402"}
    chat(client, team)
    provider.defaults = {}
    refresh()
    assert standing().state is State.EMPTY


def test_of_several_troubles_the_worst_is_told(client: FlaskClient, team: Member, provider: StandInProvider):
    for faults in ({"drop": "1"}, {"status": "402"}, {"drop": "1"}):
        provider.defaults = faults
        chat(client, team)
    assert (standing().state, standing().calls) == (State.EMPTY, 1)


def test_what_failed_long_ago_tells_nothing(client: FlaskClient, team: Member, provider: StandInProvider):
    provider.defaults = {"status": "402"}
    chat(client, team)
    change_calls(created_at=datetime.now(UTC) - account.LOOKED_BACK - timedelta(minutes=1))
    assert standing().state is State.UNPROVEN


def test_rate_limit_of_the_account_is_told(client: FlaskClient, team: Member, provider: StandInProvider):
    provider.defaults = {"status": "429"}
    chat(client, team)
    provider.defaults = {}
    chat(client, team)
    assert (standing().state, standing().calls) == (State.LIMITED, 1)
    change_calls(created_at=datetime.now(UTC) - account.LATELY)
    assert standing().state is State.GOOD


def test_late_answers_are_told(client: FlaskClient, team: Member):
    for _ in range(account.PACED_CALLS):
        chat(client, team)
    assert standing().state is State.GOOD
    change_calls(first_byte_ms=14_000)
    assert standing().words(BERLIN) == "The provider is slow: answers begin after 14 s."


def test_refused_calls_of_ours_tell_nothing_of_the_provider(client: FlaskClient, new_team: Callable[..., Member]):
    chat(client, new_team("blocked", quota_tokens=0))
    assert standing().state is State.UNPROVEN

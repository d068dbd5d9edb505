"""The paid account: what is left of it, as Poe, OpenRouter and DeepSeek tell it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import PROVIDER_KEY, Member, chat
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from unreachable import ports_of_others

from tokenrouter import runtime
from tokenrouter.config import ConfigError, load
from tokenrouter.errors import APIError, ProviderBadResponse
from tokenrouter.money import BILLION
from tokenrouter.provider.account import Account, AccountCheck, Balance, State, kind_of
from tokenrouter.provider.catalogue import Catalogue
from tokenrouter.provider.client import Provider
from tokenrouter.standin import StandInProvider

KINDS = ("poe", "openrouter", "deepseek")


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    kind = getattr(request, "param", "poe")
    return settings | {"PROVIDER_ACCOUNT": kind}


def settings_of(url: str, account: str = "") -> Any:
    return load({"PROVIDER_BASE_URL": url, "PROVIDER_ACCOUNT": account})


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://api.poe.com/v1", "poe"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://api.poe.com.example/v1", "none"),
        ("http://127.0.0.1:1/v1", "none"),
    ],
)
def test_account_goes_by_the_host_unless_it_is_set(url: str, kind: str):
    assert kind_of(settings_of(url)) == kind
    assert kind_of(settings_of(url, "DeepSeek")) == "deepseek"


def test_setting_of_another_account_is_refused():
    with pytest.raises(ConfigError, match="PROVIDER_ACCOUNT: 'openai' is refused"):
        settings_of("http://127.0.0.1:1/v1", "openai")


@pytest.mark.parametrize(("settings", "kind"), [(each, each) for each in KINDS], indirect=["settings"])
def test_balance_falls_by_what_was_served(
    app: Flask, client: FlaskClient, team: Member, provider: StandInProvider, kind: str
):
    provider.account.kind, provider.account.points = kind, 100_000
    chat(client, team, "prompt_tokens=1000 words=1500")
    balance = runtime.current().account.balance()
    assert balance == Balance(points=97_500 if kind == "poe" else None, money=int(3.9 * BILLION))
    assert not balance.is_empty


def test_provider_without_such_an_api_tells_none(app: Flask, provider: StandInProvider):
    runtime.current().account.kind = "none"
    assert runtime.current().account.balance() is None
    assert provider.calls == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"current_point_balance": 1500}, Balance(points=1500)),
        ({"plan_points_balance": 1000, "addon_point_balance": 500}, Balance(points=1500)),
        ({"addon_point_balance": 0}, Balance(points=0)),
        (
            {
                "current_point_balance": 0,
                "total_balance_usd": "12.345678901234",
                "next_monthly_grant_time": 1_767_225_600_000_000,
                "next_monthly_grant_amount": 1_000_000,
            },
            Balance(0, 12_345_678_901, next_grant_at=datetime(2026, 1, 1, tzinfo=UTC), next_grant_points=1_000_000),
        ),
        ({"current_point_balance": "many", "total_balance_usd": "NaN", "next_monthly_grant_time": "soon"}, Balance()),
        ({"current_point_balance": True, "total_balance_usd": [], "next_monthly_grant_time": -5}, Balance()),
        ({"current_point_balance": 1e300, "total_balance_usd": "1e999"}, Balance()),
        ({}, Balance()),
    ],
)
def test_what_is_missing_or_odd_in_poes_answer_is_not_known(
    app: Flask, provider: StandInProvider, document: dict[str, Any], expected: Balance
):
    provider.account.document = document
    assert runtime.current().account.balance() == expected


@pytest.mark.parametrize("document", [{"data": 5}, {"balance_infos": []}, {"balance_infos": [5]}, {"data": {}}])
@pytest.mark.parametrize(("settings", "kind"), [(each, each) for each in KINDS], indirect=["settings"])
def test_other_shapes_are_no_balance(app: Flask, provider: StandInProvider, kind: str, document: Any):
    provider.account.kind, provider.account.document = kind, document
    assert runtime.current().account.balance() == Balance()


@pytest.mark.parametrize("document", [[], "1500", 1500])
def test_what_is_no_object_is_refused(app: Flask, provider: StandInProvider, document: Any):
    provider.account.document = document
    with pytest.raises(ProviderBadResponse):
        runtime.current().account.balance()


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"status": "401"}, "provider_auth_failed"),
        ({"status": "402"}, "provider_quota_exhausted"),
        ({"status": "500"}, None),
        ({"body": "html", "status": "200"}, "provider_bad_response"),
        ({"drop": "1"}, "provider_unreachable"),
    ],
)
def test_error_in_place_of_a_balance_says_what_is_wrong(
    app: Flask, provider: StandInProvider, faults: dict[str, str], code: str | None
):
    provider.account.faults = faults
    with pytest.raises(APIError) as raised:
        runtime.current().account.balance()
    assert raised.value.code == code or (code is None and raised.value.status == 500)


def test_wrong_key_is_refused(app: Flask, provider: StandInProvider):
    provider.api_key = "another"
    with pytest.raises(APIError) as raised:
        runtime.current().account.balance()
    assert raised.value.code == "provider_auth_failed" and PROVIDER_KEY not in str(raised.value)


def test_command_tells_the_balance(runner: FlaskCliRunner, provider: StandInProvider):
    provider.account.points = 50_000
    assert runner.invoke(args=["provider", "balance"]).output.splitlines()[0] == "Left: 50,000 points, $2.00."
    told = json.loads(runner.invoke(args=["provider", "balance", "--json"]).output)
    assert (told["points"], told["balance"], told["currency"], told["lasts_until"]) == (50_000, "2", "USD", None)
    provider.account.faults = {"status": "401"}
    refused = runner.invoke(args=["provider", "balance"])
    assert (refused.exit_code, "refuses this service's key" in refused.output) == (1, True)


@pytest.fixture
def ports() -> Iterator[dict[str, int]]:
    with ports_of_others() as ports:
        yield ports


def checked(settings: dict[str, str], url: str) -> AccountCheck:
    made = load(settings | {"PROVIDER_BASE_URL": url})
    provider = Provider(made)
    try:
        return Account(provider, made, Catalogue(provider, "m").ask).check()
    finally:
        provider.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://no-such-host.invalid/v1", "the name of its host was not found"),
        ("http://127.0.0.1:{none}/v1", "the connection was refused: nothing listens"),
        ("https://127.0.0.1:{plain}/v1", "it does not speak TLS at this port"),
        ("https://localhost:{tls}/v1", "its certificate is not trusted here (unable"),
    ],
)
def test_unreachable_provider_says_why(settings: dict[str, str], ports: dict[str, int], url: str, words: str):
    found = checked(settings, url.format(**ports))
    assert found.state is State.UNREACHABLE
    assert words in found.words


@pytest.mark.parametrize(("settings", "kind"), [("poe", "poe"), ("none", "none")], indirect=["settings"])
def test_root_without_v1_is_told(settings: dict[str, str], provider: StandInProvider, kind: str):
    found = checked(settings, f"http://127.0.0.1:{provider.port}/api")
    assert (found.state, found.words) == (
        State.BROKEN,
        "The provider has nothing at this address (404): does PROVIDER_BASE_URL end in /v1?",
    )


@pytest.mark.parametrize("settings", ["none"], indirect=True)
def test_list_of_models_alone_proves_no_key(app: Flask, provider: StandInProvider):
    found = runtime.current().account.check()
    assert (found.state, found.state.is_good) == (State.UNPROVEN, True)
    assert "not proven" in found.words


@pytest.mark.parametrize(
    ("faults", "points", "state"),
    [
        ({}, 1000, State.GOOD),
        ({}, 0, State.EMPTY),
        ({}, -5, State.EMPTY),
        ({"status": "402"}, 1000, State.EMPTY),
        ({"status": "401"}, 1000, State.KEY_REFUSED),
        ({"status": "403", "code": "invalid_api_key"}, 1000, State.KEY_REFUSED),
        ({"status": "429"}, 1000, State.LIMITED),
        ({"status": "500"}, 1000, State.BROKEN),
        ({"body": "html", "status": "200"}, 1000, State.BROKEN),
    ],
)
def test_check_tells_how_the_account_stands(
    runner: FlaskCliRunner, provider: StandInProvider, faults: dict[str, str], points: int, state: State
):
    provider.account.faults, provider.account.points = faults, points
    found = runtime.current().account.check()
    assert found.state is state
    told = runner.invoke(args=["provider", "check"])
    assert (told.exit_code == 0) == state.is_good
    assert found.words in told.output
    as_json = runner.invoke(args=["provider", "check", "--json"])
    assert json.loads(as_json.output.splitlines()[0])["state"] == state.value

"""Each state of the light, from a real stand-in or a real socket to the text on the page and of the command."""

import html

import pytest
from adminclient import Panel
from conftest import Member, chat
from flask.testing import FlaskClient, FlaskCliRunner
from unreachable import ports_of_others

from tokenrouter import runtime
from tokenrouter.config import load
from tokenrouter.provider.account import Account
from tokenrouter.provider.catalogue import Catalogue
from tokenrouter.provider.client import Provider
from tokenrouter.standin import StandInProvider

ANSWERS = (
    ("poe", {}, "dot-good", "The provider answers and accepts the key."),
    ("none", {}, "", "The provider answers; the key is not proven before a call."),
    ("poe", {"points": 0}, "dot-bad", "The provider’s account is empty since"),
    ("openrouter", {"points": 0}, "dot-bad", "The provider’s account is empty since"),
    ("poe", {"status": "402"}, "dot-bad", "The provider’s account is empty since"),
    ("poe", {"status": "401"}, "dot-bad", "The provider refuses the key since"),
    ("none", {"status": "401"}, "dot-bad", "The provider refuses the key since"),
    ("poe", {"status": "429"}, "dot-warn", "The account is at its rate limit since"),
    ("poe", {"silent": "1"}, "dot-warn", "The provider is slow since"),
    ("poe", {"status": "500"}, "dot-bad", "The provider answers with what is no answer since"),
    ("poe", {"body": "html", "status": "200"}, "dot-bad", "The provider answers with what is no answer since"),
    ("poe", {"drop": "1"}, "dot-bad", ": the connection was closed without an answer"),
)
ADDRESSES = (
    ("http://no-such-host.invalid/v1", "the name of its host was not found"),
    ("http://127.0.0.1:{none}/v1", "the connection was refused: nothing listens"),
    ("https://127.0.0.1:{plain}/v1", "it does not speak TLS at this port"),
    ("https://localhost:{tls}/v1", "its certificate is not trusted here"),
    ("http://127.0.0.1:{mail}/v1", "The provider's answer is not HTTP."),
    ("http://127.0.0.1:{provider}/api", "nothing at this address (404): does PROVIDER_BASE_URL end in /v1?"),
)


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe", "PROVIDER_READ_TIMEOUT": "1"}


def light(panel: Panel) -> tuple[str, str]:
    """Ask the provider in the panel; return the light on the account's page, and all of the page's text."""
    panel.post("/admin/account/check")
    page = html.unescape(panel.get("/admin/account/").text)
    section = page[page.index('aria-labelledby="stands"') :]
    return section.partition('<span class="dot ')[2].partition('"')[0], section


@pytest.mark.parametrize(("kind", "faults", "dot", "words"), ANSWERS)
def test_state_is_on_the_page(
    panel: Panel,
    runner: FlaskCliRunner,
    provider: StandInProvider,
    kind: str,
    faults: dict[str, object],
    dot: str,
    words: str,
):
    provider.account.kind = runtime.current().account.kind = kind
    provider.account.points = int(faults.get("points", 1000))
    told = {name: str(value) for name, value in faults.items() if name != "points"}
    provider.account.faults, provider.defaults = told, told if kind == "none" else {}
    found, text = light(panel)
    assert (found, words in text) == (dot, True)
    assert (runner.invoke(args=["provider", "check"]).exit_code == 0) == (dot in ("dot-good", ""))
    is_above_every_page = 'role="alert"><strong>' in panel.get("/admin/usage/").text
    assert is_above_every_page == (dot in ("dot-bad", "dot-warn"))


@pytest.mark.parametrize(("url", "words"), ADDRESSES)
def test_cause_is_on_the_page(panel: Panel, settings: dict[str, str], provider: StandInProvider, url: str, words: str):
    with ports_of_others() as ports:
        made = load(settings | {"PROVIDER_BASE_URL": url.format(provider=provider.port, **ports)})
        elsewhere = Provider(made)
        runtime.current().account = Account(elsewhere, made, Catalogue(elsewhere, "m").ask)
        found, text = light(panel)
        elsewhere.close()
    assert (found, words in text) == ("dot-bad", True)


def test_cause_stands_beside_the_calls_that_failed(
    panel: Panel, client: FlaskClient, team: Member, provider: StandInProvider
):
    provider.stop()
    chat(client, team)
    _, text = light(panel)
    assert "The provider cannot be reached since" in text and "1 call of 1 team failed." in text
    assert "the connection was refused: nothing listens at this address and port" in text

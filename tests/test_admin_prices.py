"""The panel's page of prices, and where the other pages tell what calls cost."""

import re
import sys
from typing import Any

import pytest
from adminclient import NASTY_NAMES, Panel
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient

from tokenrouter import prices
from tokenrouter.provider.catalogue import Catalogue
from tokenrouter.standin import StandInProvider

PRICE = {"model": "GPT-5-nano", "input": "0.05", "cached_input": "", "output": "0.40", "request": ""}
LISTED = {"gpt-5-nano": {"pricing": {"prompt": "0.000000045", "completion": "0.00000036"}}}


def shown(panel: Panel, path: str) -> str:
    page = panel.get(path)
    assert page.status_code == 200
    return " ".join(re.sub("<[^>]+>", " ", page.text).split())


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the provider's list of models says."""
    models = dict(LISTED)
    monkeypatch.setattr(Catalogue, "fetch", lambda self: models)
    return models


@pytest.mark.both_databases
def test_price_is_set_shown_and_ended(panel: Panel, client: FlaskClient, team: Member):
    chat(client, team)
    assert "In use without a price" in shown(panel, "/admin/prices/")
    assert panel.post("/admin/prices/", PRICE).location == "/admin/prices/"
    page = shown(panel, "/admin/prices/")
    assert "Set the price of “ GPT-5-nano ”" in page
    assert "GPT-5-nano 0.05 as input 0.4 – you" in page
    assert "In use without a price" not in page
    panel.post("/admin/prices/unset", {"model": "gpt-5-nano"})
    assert "No prices yet" in shown(panel, "/admin/prices/")
    panel.post("/admin/prices/unset", {"model": "gpt-5-nano"})
    assert "You have set no price" in panel.messages()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": ""}, "Name the model"),
        ({"model": "a*b"}, "at most a trailing *"),
        ({"input": "cheap"}, "is not an amount such as 12.50"),
        ({"output": ""}, "Give the price of an answer"),
        ({"request": "-1"}, "is not an amount"),
    ],
)
def test_what_is_wrong_with_a_price_stands_beside_its_field(panel: Panel, fields: dict[str, str], told: str):
    page = panel.post("/admin/prices/", PRICE | fields)
    assert told in page.text and 'aria-invalid="true"' in page.text
    assert prices.views() == []


@pytest.mark.both_databases
def test_providers_prices_are_shown_beside_yours_before_they_are_taken_over(panel: Panel, listed: dict[str, Any]):
    prices.set_price("GPT-5*", 10**9, 2 * 10**9, by=TESTER)
    page = panel.post("/admin/prices/fetch").text
    assert "0.045 / 0.36" in page and "1 / 2" in page
    assert len(prices.views()) == 1
    panel.post("/admin/prices/fetch", {"confirmed": "1"})
    assert "The provider has prices of 1 model; 1 changed here." in panel.messages()
    assert [view["source"] for view in prices.views()] == ["administrator", "provider"]
    assert "Fetched the provider’s prices" in shown(panel, "/admin/changes/")


def test_list_without_prices_says_so(panel: Panel, listed: dict[str, Any]):
    listed.clear()
    assert "has no prices" in panel.post("/admin/prices/fetch").text


def test_provider_that_does_not_answer_is_told(panel: Panel, provider: StandInProvider):
    provider.api_key = "another"
    panel.post("/admin/prices/fetch")
    assert "The provider’s prices could not be had." in panel.messages()


def test_other_currency_has_no_providers_prices(panel: Panel, app: Flask, listed: dict[str, Any]):
    app.config["CURRENCY"] = "EUR"
    panel.post("/admin/prices/fetch")
    assert "in US dollars, and CURRENCY is EUR" in panel.messages()


def test_names_of_models_are_text(panel: Panel):
    for name in NASTY_NAMES:
        if "," not in name and "*" not in name:
            panel.post("/admin/prices/", PRICE | {"model": name})
    assert "<img src=x" not in panel.get("/admin/prices/").text


@pytest.mark.both_databases
def test_pages_tell_what_calls_cost(panel: Panel, client: FlaskClient, team: Member):
    unpriced = chat(client, team)
    assert "Cost" not in shown(panel, f"/admin/teams/{team.team.id}/")
    prices.set_price("*", 1_000_000_000_000, 1_000_000_000_000, by=TESTER)
    priced = chat(client, team)
    assert "not known: the model has no price" in shown(panel, f"/admin/logs/{unpriced}/")
    assert "Cost $0.03 by the price of that moment" in shown(panel, f"/admin/logs/{priced}/")
    assert "Cost $0.03 and 28 tokens without a price" in shown(panel, f"/admin/teams/{team.team.id}/")
    assert "0.028,price" in panel.get("/admin/logs/export/csv/").text


@pytest.mark.both_databases
def test_dashboard_tells_tokens_or_money_and_remembers_which(panel: Panel, client: FlaskClient, team: Member):
    chat(client, team)
    page = shown(panel, "/admin/")
    assert "Tokens a day" in page and "Money" not in page  # there is none to tell
    assert panel.get("/admin/?in=money").location == "/admin/"
    assert "Cost not known 28 tokens without a price; before: $0.00" in shown(panel, "/admin/")
    prices.set_price("*", 1_000_000_000_000, 1_000_000_000_000, by=TESTER)
    chat(client, team)
    page = panel.get("/admin/").text
    assert "Cost a day" in page and "team: $0.03</title>" in page
    assert "Cost $0.03 28 tokens without a price" in shown(panel, "/admin/")
    panel.get("/admin/?in=tokens")
    assert "Tokens a day" in shown(panel, "/admin/")
    assert panel.get("/admin/?in=gold").status_code == 200


def test_prices_are_proposed_by_a_public_list(panel: Panel, client: FlaskClient, team: Member, new_team):
    chat(client, team)
    chat(client, new_team("other", models="Gemini*"), model="Gemini-2.5-pro")
    page = panel.get("/admin/prices/?propose=1").text
    proposed = re.findall(r'href="([^"]*model=GPT-5-nano[^"]*)#set"', page)[0].replace("&amp;", "&")
    filled = panel.get(proposed).text
    assert 'value="GPT-5-nano"' in filled and re.search(r'name="input" value="0\.\d+"', filled)
    assert "by a public list, not by your provider" in page


def test_list_that_cannot_be_read_is_told(panel: Panel, client: FlaskClient, team: Member, monkeypatch):
    chat(client, team)
    monkeypatch.setattr(prices, "PROPOSALS_S", 0.0001)
    assert "The public list of prices cannot be read (TimeoutExpired)." in panel.get("/admin/prices/?propose=1").text


def test_proposals_are_of_known_models_alone_and_leave_this_process_as_it_was(app: Flask):
    proposed = prices.proposals(["GPT-5-nano", "no-such-model"])
    assert proposed.keys() == {"GPT-5-nano"}
    assert (
        prices.parse_price(proposed["GPT-5-nano"]["output"]) > prices.parse_price(proposed["GPT-5-nano"]["input"]) > 0
    )
    assert "genai_prices" not in sys.modules

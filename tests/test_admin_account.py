"""The account in the panel: the light on every page, the balance, and how long it lasts."""

import re

import pytest
from adminclient import PAGES, Panel
from conftest import Member, chat
from flask.testing import FlaskClient
from sqlalchemy.exc import OperationalError

from tokenrouter import account, reports, runtime
from tokenrouter.database.tables import db
from tokenrouter.standin import StandInProvider

EMPTY = re.compile(
    r'role="alert"><strong>The provider’s account is empty since <time [^>]*>\d\d:\d\d</time>: '
    r"2 calls of 1 team were refused."
)


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe"}


def test_empty_account_stands_on_every_page_until_a_call_is_answered(
    panel: Panel, client: FlaskClient, team: Member, provider: StandInProvider
):
    panel.post("/admin/account/check")
    assert EMPTY.search(panel.get("/admin/").text) is None
    provider.defaults = {"status": "402"}
    for _ in range(2):
        chat(client, team)
    assert [path for path in PAGES if not EMPTY.search(panel.get(path).text)] == []
    assert "Top up the account" in panel.get("/admin/account/").text
    provider.defaults = {}
    chat(client, team)
    assert EMPTY.search(panel.get("/admin/").text) is None


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"status": "401"}, "The provider refuses the key since"),
        ({"drop": "1"}, "The provider cannot be reached since"),
        ({"body": "html", "status": "200"}, "The provider answers with what is no answer since"),
        ({"status": "429"}, "The account is at its rate limit since"),
    ],
)
def test_each_trouble_of_calls_is_told(
    panel: Panel, client: FlaskClient, team: Member, provider: StandInProvider, faults: dict[str, str], words: str
):
    provider.defaults = faults
    chat(client, team)
    assert words in panel.get("/admin/teams/").text


def test_page_that_stays_open_can_ask_for_the_banner_alone(
    panel: Panel, client: FlaskClient, team: Member, provider: StandInProvider
):
    assert panel.get("/admin/banner").text.strip() == ""
    provider.defaults = {"status": "402"}
    chat(client, team)
    answer = panel.get("/admin/banner")
    assert answer.text.startswith('<div class="banner banner-bad" role="alert">') and len(answer.data) < 500
    assert answer.text.strip() in panel.get("/admin/teams/").text


def test_dashboard_says_what_the_account_said(panel: Panel, provider: StandInProvider):
    assert "Asking the provider" in panel.get("/admin/").text
    provider.account.faults = {"status": "401"}
    assert "The provider refuses the key since" in panel.get("/admin/provider").text


def test_page_tells_what_is_left(panel: Panel, provider: StandInProvider):
    assert "Poe was not asked yet" in panel.get("/admin/account/").text
    provider.account.points = 1_500_000
    account.refresh(db.engine, runtime.current().account)
    page = panel.get("/admin/account/").text
    assert "1.5M" in page and "$60.00" in page and "not known yet" in page
    assert 'name="balance"' not in page


def test_balance_is_typed_where_no_api_tells_it(panel: Panel, provider: StandInProvider):
    runtime.current().account.kind = "none"
    assert "This provider has no API" in panel.get("/admin/account/").text
    panel.post("/admin/account/balance", {"balance": "many"})
    assert "is not an amount" in panel.messages("/admin/account/")
    panel.post("/admin/account/balance", {"balance": "12.50"})
    page = panel.get("/admin/account/").text
    assert "$12.50" in page and "less what calls cost since" in page
    assert "Set the provider’s balance" in panel.get("/admin/changes/").text


def test_pages_say_no_more_than_the_account_does_of_an_odd_answer(panel: Panel, provider: StandInProvider):
    provider.account.document = {"current_point_balance": "<script>", "total_balance_usd": "1e400"}
    panel.post("/admin/account/check")
    page = panel.get("/admin/account/").text
    assert "was not asked yet" in page or "Lasts until" not in page
    assert "&lt;script" not in page


def test_page_that_says_that_the_database_fails_asks_it_nothing(panel: Panel, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(reports, "teams_page", fail)
    monkeypatch.setattr(account, "standing", fail)
    answer = panel.get("/admin/teams/")
    assert answer.status_code == 503
    assert "The database does not answer" in answer.text and 'aria-label="Main"' in answer.text

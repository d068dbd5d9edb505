"""The page that lays the provider's record beside ours: its answer in a sentence, what the gap is made of, fetching."""

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from adminclient import NASTY_NAMES, Panel
from conftest import TESTER, Member, chat
from flask.testing import FlaskClient
from sqlalchemy import insert, update

from tokenrouter import account, prices, provider_record, runtime
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ProviderDay, ProviderEntry, ProviderFetch, db
from tokenrouter.money import BILLION
from tokenrouter.provider import history
from tokenrouter.standin import StandInProvider

PAGE = "/admin/account/reconciliation/"
MANY = 25


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe"}


def fetch() -> None:
    provider_record.fetch(db.engine, runtime.current().account)
    with writing(db.engine) as connection:  # whatever the record lacks by now, it will not get any more
        connection.execute(update(ProviderFetch).values(until=datetime.now(UTC) + timedelta(minutes=5)))


def add_foreign(count: int, key: str = "another") -> None:
    at = datetime.now(UTC)
    rows = [
        {"id": f"foreign-{number}", "at": at, "model": "<b>model</b>", "points": 9, "prompt_tokens": 9, "key_name": key}
        for number in range(count)
    ]
    with writing(db.engine) as connection:
        connection.execute(insert(ProviderEntry), rows)


def test_agreement_is_said_in_the_first_sentence(panel: Panel, client: FlaskClient, team: Member):
    prices.set_price("*", 40 * BILLION, 40 * BILLION, by=TESTER)
    chat(client, team, "prompt_tokens=10 words=5")
    fetch()
    page = panel.get(PAGE).text
    assert "agrees with ours to the token on this day" in page
    assert "What the gap is made of" not in page and "Only in our log" not in page


def test_gap_is_said_with_its_parts_and_links_to_the_log(panel: Panel, client: FlaskClient, team: Member):
    chat(client, team, "prompt_tokens=10 words=5")
    call_id = chat(client, team, "prompt_tokens=100 words=50 usage=none")
    fetch()
    add_foreign(1)
    page = panel.get(PAGE).text
    assert "agrees with ours to the token on 0 of 1 day." in page and "It has" in page
    assert "The provider reported no usage with the answer, and it was estimated" in page
    assert f'href="/admin/logs/{call_id}/"' in page
    assert "Only in the provider’s record" in page and "&lt;b&gt;model&lt;/b&gt;" in page
    assert "No day of any model has a gap" not in panel.get(f"{PAGE}?gaps=1").text
    assert "No call differs for this reason" in panel.get(f"{PAGE}?reason=timed_out").text


def test_both_lists_of_calls_in_one_record_alone_are_paged(
    panel: Panel, client: FlaskClient, team: Member, provider: StandInProvider
):
    ours = [chat(client, team) for _ in range(MANY)]
    chat(client, team)
    provider.finished[:MANY] = []
    fetch()
    with writing(db.engine) as connection:  # that record begins before all of them
        connection.execute(update(ProviderEntry).values(at=datetime.now(UTC) - timedelta(hours=2)))
    add_foreign(MANY)
    first, last = panel.get(PAGE).text, panel.get(f"{PAGE}?ours=9&theirs=9").text
    assert "ours=2#ours" in first and "theirs=2#theirs" in first
    assert f'href="/admin/logs/{ours[0]}/"' not in first and f'href="/admin/logs/{ours[0]}/"' in last
    assert "foreign-24" in last and "ours=2&amp;theirs=9#ours" not in last


def test_one_key_of_the_account_can_be_meant(panel: Panel, client: FlaskClient, team: Member):
    chat(client, team)
    fetch()
    add_foreign(3)
    assert "Only in the provider’s record" in panel.get(PAGE).text
    page = panel.get(f"{PAGE}?key=demo").text
    assert "agrees with ours to the token" in page and "<option selected>demo</option>" in page


def test_csv_has_both_sides(panel: Panel, client: FlaskClient, new_team: Callable[..., Member]):
    chat(client, new_team(NASTY_NAMES[0]), "prompt_tokens=10 words=5")
    fetch()
    answer = panel.get(f"{PAGE}export/csv/?period=this-month")
    (row,) = csv.DictReader(io.StringIO(answer.text.lstrip("\ufeff")))
    assert (row["tokens"], row["provider_tokens"], row["gap_tokens"], row["provider_points"]) == ("15", "15", "0", "15")
    assert panel.get(f"{PAGE}export/pdf/").status_code == 404


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "No record to compare with"),
        ("deepseek", "No record to compare with"),
        ("poe", "Nothing was fetched yet"),
    ],
)
def test_page_says_why_it_is_empty(panel: Panel, kind: str, words: str):
    runtime.current().account.kind = kind
    page = panel.get(PAGE).text
    assert words in page
    assert ("Fetch now" in page) == (kind == "poe")


def test_account_without_calls_says_so(panel: Panel):
    panel.post(f"{PAGE}fetch")
    page = panel.get(PAGE).text
    assert "Nothing is new." in page and "No calls" in page


def test_press_fetches_for_a_moment_and_says_that_there_is_more(
    panel: Panel, client: FlaskClient, team: Member, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "PAGE", 2)
    monkeypatch.setattr(provider_record, "PRESS_S", -1)
    for _ in range(5):
        chat(client, team)
    panel.post(f"{PAGE}fetch")
    page = panel.get(PAGE).text
    assert "2 entries are new or changed. There are more" in page and "The record is still being read" in page


def test_refusal_while_fetching_is_told_in_words_until_it_works(panel: Panel, provider: StandInProvider):
    provider.account.faults = {"status": "401"}
    answer = panel.post(f"{PAGE}fetch?period=last-week")
    assert answer.location.endswith("?period=last-week")
    assert "The record could not be fetched: The provider refuses this service" in panel.get(PAGE).text
    assert "What is shown is as of before" in panel.get(PAGE).text
    provider.account.faults = {}
    panel.post(f"{PAGE}fetch")
    panel.get(PAGE)
    assert "could not be fetched" not in panel.get(PAGE).text


def test_days_that_cannot_be_are_told(panel: Panel):
    answer = panel.get(f"{PAGE}?since=2026-13-45")
    assert (answer.status_code, "A date is written as" in answer.text) == (400, True)


def test_provider_of_days_alone_is_compared_by_day(
    panel: Panel, client: FlaskClient, team: Member, provider: StandInProvider
):
    provider.account.kind = runtime.current().account.kind = "openrouter"
    prices.set_price("*", 40 * BILLION, 40 * BILLION, by=TESTER)
    assert "No day was told yet" in panel.get(PAGE).text
    chat(client, team, "prompt_tokens=1000 words=1500")
    panel.post(f"{PAGE}fetch")
    page = panel.get(PAGE).text
    assert "No day is whole yet" in page and "$0.10" in page
    with writing(db.engine) as connection:
        connection.execute(update(ProviderDay).values(is_whole=True))
    assert "agrees with our costs to the cent on 1 of 1 whole day." in panel.get(PAGE).text
    assert "provider_cost_usd" in panel.get(f"{PAGE}export/csv/").text


def test_account_page_leads_there_and_warns_of_what_teams_may_spend(
    panel: Panel, new_team: Callable[..., Member], provider: StandInProvider
):
    provider.account.points = 25_000
    new_team("rich", budget=2 * BILLION)
    new_team("free")
    account.refresh(db.engine, runtime.current().account)
    page = panel.get("/admin/account/").text
    assert f'href="{PAGE}"' in page
    warning = "All teams together may still spend $2.00, more than what is left, $1.00"
    assert warning in page and warning in panel.get("/admin/").text
    assert "1 team has neither quota nor budget" in page


def test_days_without_calls_say_so(panel: Panel, client: FlaskClient, team: Member):
    chat(client, team)
    fetch()
    assert "No calls" in panel.get(f"{PAGE}?since=2020-01-01&until=2020-01-02").text

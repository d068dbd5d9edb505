"""What the provider wrote down of calls, as Poe tells it page by page."""

from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import Member, chat
from flask import Flask
from flask.testing import FlaskClient

from tokenrouter import runtime
from tokenrouter.errors import ProviderBadResponse
from tokenrouter.provider import history
from tokenrouter.provider.history import Entry, pages
from tokenrouter.standin import StandInProvider

ROW = {
    "bot_name": "gpt-5-nano",
    "creation_time": 1_767_225_600_000_000,
    "query_id": "q1",
    "cost_usd": "0.01",
    "cost_points": 12,
    "cost_breakdown_in_points": {"Input": "1433 points (3,581 tokens)", "Output": "9 points (1 token)"},
    "usage_type": "API",
    "api_key_name": "school",
}
AT = datetime(2026, 1, 1, tzinfo=UTC)


def found() -> list[Entry]:
    return [entry for page in pages(runtime.current().provider) for entry in page.entries]


def test_history_is_read_page_by_page(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "PAGE", 2)
    for words in (1, 2, 3, 4, 5):
        chat(client, team, f"prompt_tokens=10 words={words}")
    told = found()
    assert [entry.completion_tokens for entry in told] == [5, 4, 3, 2, 1]
    assert {(entry.model, entry.prompt_tokens, entry.key_name) for entry in told} == {("GPT-5-nano", 10, "demo")}
    assert [entry.id for entry in told] == [served.response_id for served in reversed(provider.finished)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, Entry("q1", AT, "gpt-5-nano", 10_000_000, 12, 3581, 1, "school")),
        ({"cost_breakdown_in_points": "none"}, Entry("q1", AT, "gpt-5-nano", 10_000_000, 12, None, None, "school")),
        ({"cost_usd": None, "api_key_name": 5}, Entry("q1", AT, "gpt-5-nano", None, 12, 3581, 1, None)),
        (
            {"cost_points": "many", "cost_breakdown_in_points": {}},
            Entry("q1", AT, "gpt-5-nano", 10**7, None, None, None, "school"),
        ),
        ({"usage_type": "Chat"}, None),
        ({"query_id": 5}, None),
        ({"bot_name": None}, None),
        ({"creation_time": "yesterday"}, None),
    ],
)
def test_entry_is_read_as_far_as_it_tells(
    app: Flask, provider: StandInProvider, changed: dict[str, Any], expected: Entry | None
):
    provider.account.document = {"has_more": False, "data": [ROW | changed, "no row"]}
    assert found() == ([] if expected is None else [expected])


def test_history_that_says_there_is_more_for_ever_ends(app: Flask, provider: StandInProvider):
    provider.account.document = {"has_more": True, "data": [ROW]}
    assert len(found()) == 2


@pytest.mark.parametrize("document", [[], {"data": 5}, {}])
def test_other_shapes_are_refused(app: Flask, provider: StandInProvider, document: Any):
    provider.account.document = document
    with pytest.raises(ProviderBadResponse):
        found()

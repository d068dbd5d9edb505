"""Crossings of 80, 95 and 100 % of quotas and budgets: told once each, in the transaction that settles."""

import subprocess
import sys
from typing import Any

import pytest
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tokenrouter import ledger, teams
from tokenrouter.database.tables import Alert, Group, Team, db
from tokenrouter.ledger.crossings import Share

pytestmark = pytest.mark.both_databases


def alerts() -> list[Any]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(Alert.__table__).order_by(Alert.id)))


def told() -> list[tuple[str, int]]:
    return [(alert.details["name"], alert.percent) for alert in alerts()]


def use(client: FlaskClient, member: Member, tokens: int) -> None:
    chat(client, member, f"usage={tokens - 10}/10")


@pytest.mark.parametrize(
    ("used", "change", "percent"),
    [(79, 79, 0), (80, 1, 80), (81, 1, 0), (99, 20, 95), (100, 100, 100), (130, 1, 0), (95, 15, 95)],
)
def test_highest_share_that_was_crossed_is_told(used: int, change: int, percent: int):
    assert Share("quota", used, 100, 0).crossed_by(change) == percent


def test_each_share_is_told_once(client: FlaskClient, new_team: Any):
    member = new_team("nine", quota_tokens=10_000)
    for tokens in (7_900, 200, 100, 1_300):
        use(client, member, tokens)
    assert told() == [("nine", 80), ("nine", 95)]

"""What all teams may still spend, as far as that can be said, beside what is left of the paid account."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import insert

from tokenrouter import prices, teams
from tokenrouter.commitments import Commitments, commitments
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ProviderEntry, db
from tokenrouter.money import BILLION
from tokenrouter.runway import Runway

pytestmark = pytest.mark.both_databases
NOW = datetime(2026, 11, 25, tzinfo=UTC)


def left(points: int | None = None, money: int | None = None, currency: str = "USD") -> Runway:
    return Runway(NOW, points, money, currency, None, None, False, None)


def may_spend(of: Runway | None = None, currency: str = "USD") -> Commitments:
    return commitments(db.engine, of, currency)


def figures(found: Commitments) -> tuple[int, int, int]:
    return found.money // BILLION, found.tokens, found.unlimited_teams


def test_budgets_quotas_and_teams_without_limit_are_told_apart(app: Flask, new_team: Callable[..., Member]):
    new_team("budget", budget=10 * BILLION)
    new_team("both", budget=5 * BILLION, quota_tokens=1_000)
    new_team("quota", quota_tokens=2_000)
    new_team("free")
    off = new_team("off", budget=99 * BILLION)
    teams.update(off.team.id, active=False, by=TESTER)
    found = may_spend()
    assert figures(found) == (15, 2_000, 1)
    assert found.words == [
        "Budgets let through $15.00 more.",
        "Quotas without a budget let through 2k tokens more: what they cost is not known before their models are.",
        "Without limit: 1 team has neither quota nor budget, and may spend all that is left.",
    ]


@pytest.mark.parametrize(
    ("group", "members", "expected"),
    [
        ({"budget": 8}, [{"budget": 5}, {"budget": 5}], (8, 0, 0)),
        ({"budget": 8}, [{"budget": 5}], (5, 0, 0)),
        ({"budget": 8}, [{"budget": 5}, {}], (8, 0, 0)),
        ({"budget": 8}, [{"quota_tokens": 100}], (8, 0, 0)),
        ({"quota_tokens": 100}, [{"quota_tokens": 30}, {"quota_tokens": 40}], (0, 70, 0)),
        ({"quota_tokens": 100}, [{"quota_tokens": 30}, {}], (0, 100, 0)),
        ({}, [{"quota_tokens": 30}, {}], (0, 30, 1)),
    ],
)
def test_group_bounds_what_its_teams_may_spend_together(
    app: Flask,
    new_team: Callable[..., Member],
    group: dict[str, Any],
    members: list[dict[str, Any]],
    expected: tuple[int, int, int],
):
    def limits(of: dict[str, int]) -> dict[str, int]:
        return {name: value * BILLION if name == "budget" else value for name, value in of.items()}

    teams.create_group("class", **limits(group), by=TESTER)
    for number, own in enumerate(members):
        new_team(f"team {number}", group="class", **limits(own))
    assert figures(may_spend()) == expected


def test_what_was_used_and_is_held_is_no_longer_to_be_spent(client: FlaskClient, new_team: Callable[..., Member]):
    prices.set_price("*", BILLION, BILLION, by=TESTER)
    member = new_team("team", quota_tokens=10_000)
    chat(client, member, "prompt_tokens=1000 words=500")
    found = may_spend(left(money=8_000_000))
    assert (found.tokens, found.tokens_money, found.exceeds) == (8_500, 8_500_000, True)


def test_more_than_what_is_left_is_warned_of(app: Flask, new_team: Callable[..., Member]):
    new_team("budget", budget=10 * BILLION)
    assert may_spend(left(money=10 * BILLION)).warning is None
    warning = may_spend(left(money=9 * BILLION)).warning
    assert warning == "All teams together may still spend $10.00, more than what is left, $9.00."
    assert may_spend(left(money=9 * BILLION), currency="EUR").left is None


def test_points_are_worth_what_the_providers_record_says(app: Flask, new_team: Callable[..., Member]):
    new_team("budget", budget=10 * BILLION)
    assert may_spend(left(points=1_000)).left is None
    with writing(db.engine) as connection:
        row = {"id": "q", "at": datetime.now(UTC), "model": "m", "cost": BILLION, "points": 500}
        connection.execute(insert(ProviderEntry).values(row))
    found = may_spend(left(points=1_000))
    assert (found.left, found.is_left_estimated) == (2 * BILLION, True)
    assert found.warning == "All teams together may still spend about $10.00, more than what is left, $2.00."

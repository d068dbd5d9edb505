"""Teams created many at once: all or none, as one change, and quickly."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import TESTER, Member
from flask import Flask
from sqlalchemy import event

from tokenrouter import changes, ledger, teams
from tokenrouter.database.tables import db
from tokenrouter.periods import Renewal
from tokenrouter.teams import NewTeam, NotCreated

pytestmark = pytest.mark.both_databases


def names() -> list[str]:
    return [team.name for team in teams.living()]


def reasons(refused: NotCreated) -> list[tuple[int, str | None]]:
    return [(refusal.position, refusal.error.param) for refusal in refused.refusals]


def test_many_are_created_in_their_order_as_one_change(app: Flask):
    teams.create_group("Year 9", by=TESTER)
    new = [
        NewTeam("9b", 5000, "GPT-5-nano", group="Year 9", label="9b’s laptop"),
        NewTeam("9a", renewal=Renewal("monthly", 31), limits={"calls_at_once": 3, "budget": 12_500_000_000}),
    ]
    created = teams.create_several(new, by=TESTER)
    (first, _), (second, _) = created
    assert (first.name, first.quota_tokens, first.models, first.group_name) == ("9b", 5000, "GPT-5-nano", "Year 9")
    assert (second.name, second.renewal, second.calls_at_once, second.budget) == (
        "9a",
        Renewal("monthly", 31),
        3,
        12_500_000_000,
    )
    assert second.renews_at is not None and first.renews_at is None
    recorded = changes.page().rows[:2]
    assert {change.action for change in recorded} == {"team.create"} and len({change.batch for change in recorded}) == 1
    assert {change.team_name: change.after.get("label") for change in recorded} == {"9b": "9b’s laptop", "9a": None}
    assert [teams.tokens(team.id)[0].prefix for team, _ in created] == [token[:8] for _, token in created]
    assert ledger.verify(db.engine).problems == []


def test_everything_wrong_is_told_and_nothing_is_created(team: Member):
    new = [
        NewTeam("blue", place="line 1"),
        NewTeam("", -1, models="gpt-4", group="Year 9", label="x" * 201, limits={"calls_at_once": -1, "budget": -1}),
        NewTeam("team"),
        NewTeam("  blue "),
    ]
    with pytest.raises(NotCreated) as refused:
        teams.create_several(new, by=TESTER)
    own = ["name", "models", "label", "quota_tokens", "calls_at_once", "budget", "group"]
    assert reasons(refused.value) == [*((1, param) for param in own), (2, "name"), (3, "name")]
    assert str(refused.value.refusals[-1].error) == "line 1 has the name 'blue' too."
    assert names() == ["team"] and teams.why_not(new) != []


def test_hundreds_ask_the_database_no_more_than_two(app: Flask):
    def asked(size: int) -> int:
        statements: list[str] = []
        event.listen(db.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
        teams.create_several([NewTeam(f"{size}-{number}", 1000) for number in range(size)], by=TESTER)
        return len([statement for statement in statements if not statement.startswith("INSERT")])

    assert asked(500) == asked(2)
    assert len(names()) == 502


def test_of_two_who_take_the_same_names_at_once_one_wins(app: Flask):
    both = threading.Barrier(2)

    def create(order: int) -> int | NotCreated:
        new = [NewTeam(f"team {number}") for number in range(100)][::order]
        with app.app_context():
            both.wait()
            try:
                return len(teams.create_several(new, by=TESTER))
            except NotCreated as refused:
                return refused

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(create, (1, -1)), key=lambda outcome: outcome != 100)
    assert outcomes[0] == 100
    assert [refusal.error.code for refusal in outcomes[1].refusals] == ["name_taken"] * 100
    assert len(names()) == 100

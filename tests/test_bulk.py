"""Several teams changed at once: as it was shown, all or none, recorded as one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from conftest import TESTER, Member, chat, stored
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update

from tokenrouter import changes, ledger, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Team, db
from tokenrouter.errors import InvalidRequest
from tokenrouter.periods import Renewal
from tokenrouter.teams import Edit, Step, parse_budget_change, parse_quota_change

pytestmark = pytest.mark.both_databases
NewTeam = Callable[..., Member]
MORE = Edit(quota=parse_quota_change("+100k"))


def shown(steps: Sequence[Step]) -> dict[int, str]:
    return {step.team_id: step.print for step in steps if step.does_something}


def change(members: Sequence[Member], edit: Edit) -> list[Step]:
    steps = teams.plan([member.team.id for member in members], edit)
    teams.change_several(shown(steps), edit, by=TESTER)
    return steps


@pytest.fixture
def three(new_team: NewTeam) -> list[Member]:
    return [new_team(name, quota_tokens=quota) for name, quota in (("one", 1000), ("two", None), ("three", 3))]


@pytest.mark.parametrize(
    ("typed", "before", "after"),
    [
        ("2.5M", 7, 2_500_000),
        ("unlimited", 7, None),
        ("+100k", 7, 100_007),
        ("-5", 7, 2),
        ("x1.5", 1000, 1500),
        ("×2", 1000, 2000),
        ("150 %", 1000, 1500),
        ("by 150%", 3, 5),
        ("x0", 3, 0),
    ],
)
def test_quota_changes_as_people_write_it(typed: str, before: int, after: int | None):
    assert teams.change_of_quota(parse_quota_change(typed), before) == after


@pytest.mark.parametrize("typed", ["", "+", "+-5", "x", "x-2", "1.5x2", "+unlimited", "-10", "x1000000000", "+1G"])
def test_what_is_no_change_of_a_quota_is_refused(typed: str):
    with pytest.raises(InvalidRequest):
        teams.change_of_quota(parse_quota_change(typed), 7)


def test_several_are_changed_as_shown_and_recorded_as_one(three: list[Member]):
    steps = change(three, MORE)
    assert [(step.before, step.after) for step in steps] == [
        ({"quota_tokens": 1000}, {"quota_tokens": 101_000}),
        ({}, {}),
        ({"quota_tokens": 3}, {"quota_tokens": 100_003}),
    ]
    assert steps[1].problem == "It has no quota to add to."
    assert [stored(member).quota_tokens for member in three] == [101_000, None, 100_003]
    rows = changes.page(limit=2).rows
    assert [(row.action, row.team_name) for row in rows] == [("team.update", "three"), ("team.update", "one")]
    assert rows[0].batch == rows[1].batch and rows[0].batch
    teams.undo([row.id for row in rows], by=TESTER)
    assert [stored(member).quota_tokens for member in three] == [1000, None, 3]


def test_all_fields_are_changed_and_taken_back_at_once(three: list[Member]):
    group = teams.create_group("Year 9", by=TESTER)
    before = [stored(member) for member in three]
    edit = Edit(
        quota=parse_quota_change("2M"),
        budget=parse_budget_change("12.50"),
        extra_tokens=500,
        extra_budget=10**9,
        group=group.id,
        models="GPT-5-nano",
        renewal=Renewal("monthly", 15),
        paces={"calls_at_once": 4, "requests_per_minute": None},
    )
    change(three, edit)
    for member in three:
        row = stored(member)
        assert (row.quota_tokens, row.extra_tokens) == (2_000_000, 500)
        assert (row.budget, row.extra_budget) == (12_500_000_000, 1_000_000_000)
        assert (row.group_id, row.models, row.renews, row.renews_on) == (group.id, "GPT-5-nano", "monthly", 15)
        assert (row.calls_at_once, row.renews_at is not None) == (4, True)
    made = changes.page(limit=6).rows
    assert [row.action for row in made] == ["team.extra"] * 3 + ["team.update"] * 3
    assert len({row.batch for row in made}) == 1
    assert change(three, Edit(group=group.id))[0].does_something is False
    teams.undo([row.id for row in made], by=TESTER)
    assert [stored(member) for member in three] == before
    change(three, Edit(budget=parse_budget_change("0.5")))
    change(three, Edit(budget=parse_budget_change("x1.000001")))
    assert teams.find("one").budget == 500_000_000  # to six decimals, halves to even
    assert ledger.verify(db.engine).problems == []


@pytest.mark.parametrize("how", ["changed", "deleted", "renamed"])
def test_what_another_changed_meanwhile_is_not_changed_unseen(three: list[Member], how: str):
    steps = teams.plan([member.team.id for member in three], MORE)
    if how == "deleted":
        teams.delete("one", by=TESTER)
    else:
        teams.update("one", **{"quota_tokens": 7} if how == "changed" else {"rename": "uno"}, by=TESTER)
    with pytest.raises(teams.PlanChanged) as refusal:
        teams.change_several(shown(steps), MORE, by=TESTER)
    assert refusal.value.team_ids == [three[0].team.id]
    assert stored(three[2]).quota_tokens == 3
    assert changes.page(limit=1).rows[0].team_name == "one"


def test_additions_of_two_at_once_are_both_made_or_asked_again(app: Flask, three: list[Member]):
    ids = [member.team.id for member in three]

    def add(_: int) -> int:
        with app.app_context():
            try:
                return len(teams.change_several(shown(teams.plan(ids, MORE)), MORE, by=TESTER))
            except teams.PlanChanged:
                return 0

    with ThreadPoolExecutor(4) as pool:
        made = sum(pool.map(add, range(6)))
    assert stored(three[0]).quota_tokens == 1000 + 100_000 * made // 2
    assert made >= 2


def test_extras_are_of_the_running_period(client: FlaskClient, new_team: NewTeam):
    member = new_team("daily", quota_tokens=10**6, renewal=Renewal("daily"))
    edit = Edit(extra_tokens=100)
    change([member], edit)
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(renews_at=1))
    change([member], edit)
    assert stored(member).extra_tokens == 100
    chat(client, member)
    (step,) = teams.plan([member.team.id], Edit(extra_tokens=-200))
    assert "it would be -100" in (step.problem or "")
    assert ledger.verify(db.engine).problems == []


def test_two_thousand_teams_are_changed_and_taken_back_at_once(app: Flask):
    with writing(db.engine) as connection:
        row = {"created_at": datetime.now(UTC), "quota_tokens": 5}
        connection.execute(Team.__table__.insert(), [row | {"name": f"team {number}"} for number in range(2000)])
    ids = [team.id for team in teams.living()]
    done = teams.change_several(shown(teams.plan(ids, MORE)), MORE, by=TESTER)
    assert len(done) == 2000
    teams.undo([row.id for row in changes.page(limit=2000).rows], by=TESTER)
    assert {team.quota_tokens for team in teams.living()} == {5}

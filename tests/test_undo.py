"""Changes taken back: each once, never over a later change, and proven like all else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from functools import partial

import pytest
from conftest import HELLO, TESTER, Member, chat, stored
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from test_prices import ok, settle

from tokenrouter import changes, ledger, prices, runtime, teams
from tokenrouter.changes import Actor, CannotUndo
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Change, Group, Team, db
from tokenrouter.periods import UTC_ZONE, Renewal

pytestmark = pytest.mark.both_databases
NewTeam = Callable[..., Member]


def last_ids(count: int = 1) -> list[int]:
    return [row.id for row in changes.page(limit=count).rows]


def undo_last(count: int = 1) -> list[Change]:
    return teams.undo(last_ids(count), by=TESTER)


def problems() -> list[str]:
    return ledger.verify(db.engine).problems


def models(client: FlaskClient, member: Member) -> int:
    return client.get("/v1/models", headers=member.headers).status_code


def reset(member: Member) -> None:
    assert ledger.reset(db.engine, [member.team.id], by=TESTER) == 1


def renew(member: Member) -> None:
    """Have the time of a renewal come."""
    with writing(db.engine) as connection:
        connection.execute(update(Team).where(Team.id == member.team.id).values(renews_at=1))


# Fields


def test_update_is_undone_and_that_too(new_team: NewTeam):
    teams.create_group("Year 9", by=TESTER)
    teams.create_group("Year 10", by=TESTER)
    member = new_team("blue", quota_tokens=5, renewal=Renewal("monthly", 15), group="Year 9", budget=2_500_000_000)
    before = stored(member)
    changed = {"rename": "red", "quota_tokens": None, "active": False, "models": "GPT-5-nano", "budget": None}
    teams.update("blue", **changed, renewal=Renewal("daily"), group="Year 10", calls_at_once=3, by=TESTER)
    teams.update_group("Year 9", rename="Class 9", by=TESTER)
    (update_id,) = last_ids(2)[1:]
    teams.undo([update_id], by=Actor("panel", "192.0.2.7"))
    assert stored(member) == before
    (row,) = changes.page(limit=1).rows
    assert (row.action, row.undoes_id, row.actor_kind, row.after["group"]) == (
        "team.update",
        update_id,
        "panel",
        "Class 9",
    )
    undo_last()
    team = teams.find("red")
    assert (team.group_name, team.active, team.renews, team.calls_at_once) == ("Year 10", False, "daily", 3)


def test_change_is_not_undone_over_a_later_one(team: Member):
    teams.update("team", quota_tokens=5, calls_at_once=2, by=TESTER)
    (first,) = last_ids()
    teams.update("team", quota_tokens=7, by=TESTER)
    with pytest.raises(CannotUndo, match="Its quota was changed since"):
        teams.undo([first], by=TESTER)
    assert (stored(team).quota_tokens, stored(team).calls_at_once) == (7, 2)
    undo_last()
    teams.undo([first], by=TESTER)
    assert stored(team).quota_tokens == 100_000


def test_change_is_undone_once(team: Member):
    teams.update("team", quota_tokens=5, by=TESTER)
    (first,) = last_ids()
    teams.undo([first], by=TESTER)
    with pytest.raises(CannotUndo, match="taken back already"):
        teams.undo([first], by=TESTER)


@pytest.mark.parametrize("number", [0, -1, 10**20])
def test_number_that_no_change_has_is_told(app: Flask, number: int):
    with pytest.raises(CannotUndo, match="no such change"):
        teams.undo([number], by=TESTER)


@pytest.mark.parametrize("what", ["update", "reset", "delete"])
def test_of_two_who_undo_at_once_one_does(app: Flask, client: FlaskClient, team: Member, what: str):
    chat(client, team)
    used = teams.find("team").used_tokens
    if what == "update":
        teams.update("team", quota_tokens=5, by=TESTER)
    elif what == "reset":
        reset(team)
    else:
        teams.delete("team", by=TESTER)
    ids = last_ids()

    def take_back(_: int) -> bool:
        with app.app_context():
            try:
                return bool(teams.undo(ids, by=TESTER))
            except CannotUndo:
                return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take_back, range(4))) == 1
    found = teams.find("team")
    assert (found.quota_tokens, found.used_tokens) == (100_000, used)
    assert problems() == []


def test_batch_is_undone_as_a_whole_or_not_at_all(new_team: NewTeam):
    members = [new_team(name) for name in ("one", "two", "three")]
    teams.set_active([member.team.id for member in members], False, by=TESTER)
    ids = last_ids(3)
    teams.update("two", active=True, by=TESTER)
    with pytest.raises(teams.NotAllUndone) as refusal:
        teams.undo(ids, by=TESTER)
    assert [(row.team_name, why) for row, why in refusal.value.reasons] == [("two", "Its state was changed since.")]
    assert [team.active for team in teams.living()] == [False, False, True]
    teams.undo(refusal.value.possible, by=TESTER)
    assert all(team.active for team in teams.living())
    done = changes.page(limit=2).rows
    assert {row.undoes_id for row in done} == set(refusal.value.possible)
    assert len({row.batch for row in done}) == 1 and done[0].batch


def test_old_changes_and_those_of_other_kinds_stay(team: Member):
    with pytest.raises(CannotUndo, match="cannot be taken back"):
        teams.undo(last_ids(), by=TESTER)  # the creation
    teams.update("team", quota_tokens=5, by=TESTER)
    with writing(db.engine) as connection:
        connection.execute(update(Change).values(at=datetime.now(UTC) - timedelta(days=31)))
    with pytest.raises(CannotUndo, match="for 30 days"):
        teams.undo(last_ids(), by=TESTER)
    with pytest.raises(CannotUndo, match="no such change"):
        teams.undo([10**6], by=TESTER)


# Deletions and tokens


def test_deleted_team_comes_back_with_its_tokens_and_its_use(client: FlaskClient, new_team: NewTeam):
    group = teams.create_group("Year 9", by=TESTER)
    member = new_team("9a", quota_tokens=5000, group="Year 9")
    revoked, bearer = teams.create_token("9a", by=TESTER)
    teams.revoke_token("9a", revoked.id, by=TESTER)
    chat(client, member)
    before = stored(member)
    teams.delete("9a", by=TESTER)
    assert models(client, member) == 401
    undo_last()
    assert stored(member) == before and stored(member).group_id == group.id
    assert models(client, member) == 200
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {bearer}"}).status_code == 401
    undo_last()
    assert models(client, member) == 401
    assert problems() == []


def test_team_comes_back_without_a_group_that_is_gone(new_team: NewTeam):
    teams.create_group("Year 9", by=TESTER)
    new_team("9a", group="Year 9")
    teams.delete("9a", by=TESTER)
    (deletion,) = last_ids()
    teams.delete_group("Year 9", by=TESTER)
    teams.undo([deletion], by=TESTER)
    assert teams.find("9a").group_name is None
    assert problems() == []


def test_team_whose_name_is_taken_stays_deleted(new_team: NewTeam, team: Member):
    teams.delete("team", by=TESTER)
    (deletion,) = last_ids()
    new_team("team")
    with pytest.raises(CannotUndo, match="Another team is called 'team' by now"):
        teams.undo([deletion], by=TESTER)
    teams.update("team", rename="other", by=TESTER)
    (renaming,) = last_ids()
    teams.undo([deletion], by=TESTER)
    with pytest.raises(CannotUndo, match="Another team"):
        teams.undo([renaming], by=TESTER)


def test_deleted_group_comes_back_with_its_teams_that_are_in_no_other(new_team: NewTeam):
    group = teams.create_group("Year 9", 1000, by=TESTER)
    teams.create_group("Year 10", by=TESTER)
    for name in ("9a", "9b", "9c"):
        new_team(name, group="Year 9")
    teams.delete_group("Year 9", by=TESTER)
    (deletion,) = last_ids()
    teams.update("9b", group="Year 10", by=TESTER)
    teams.delete("9c", by=TESTER)
    teams.undo([deletion], by=TESTER)
    assert teams.find_group("Year 9").quota_tokens == 1000
    assert [(team.name, team.group_name) for team in teams.living()] == [("9a", "Year 9"), ("9b", "Year 10")]
    undo_last()
    assert teams.find("9a").group_id is None
    with db.engine.connect() as connection:
        assert connection.execute(select(Group.deleted_at).where(Group.id == group.id)).scalar() is not None


def test_revoked_token_works_again_unless_it_expired(client: FlaskClient, team: Member):
    (token,) = teams.tokens("team")
    teams.revoke_token("team", token.id, by=TESTER)
    undo_last()
    assert models(client, team) == 200
    undo_last()
    assert models(client, team) == 401
    short, _ = teams.create_token("team", expires_at=datetime.now(UTC) + timedelta(seconds=0.3), by=TESTER)
    teams.revoke_token("team", short.id, by=TESTER)
    while datetime.now(UTC) < short.expires_at:
        pass
    with pytest.raises(CannotUndo, match="expired"):
        undo_last()


# Resets and extras


def test_undone_reset_counts_what_was_used_before_and_since(client: FlaskClient, team: Member):
    chat(client, team)
    used = teams.find("team").used_tokens
    reset(team)
    chat(client, team)
    undo_last()
    assert teams.find("team").used_tokens == 2 * used
    (row,) = changes.page(limit=1).rows
    told = {"used_tokens": used}, {"used_tokens": 2 * used}
    assert (row.action, row.before, row.after) == ("usage.restore", *told)
    assert problems() == []
    chat(client, team)
    undo_last()
    assert teams.find("team").used_tokens == 2 * used
    reset(team)
    assert teams.find("team").used_tokens == 0
    assert problems() == []


def test_reset_of_a_group_is_undone_by_itself(client: FlaskClient, new_team: NewTeam):
    group = teams.create_group("Year 9", by=TESTER)
    member = new_team("9a", group="Year 9")
    chat(client, member)
    ledger.reset(db.engine, [member.team.id], [group.id], by=TESTER)
    (of_team, of_group) = last_ids(2)
    teams.undo([of_group], by=TESTER)
    assert teams.find_group("Year 9").used_tokens > teams.find("9a").used_tokens == 0
    teams.undo([of_team], by=TESTER)
    assert teams.find_group("Year 9").used_tokens == teams.find("9a").used_tokens
    assert problems() == []


def test_reset_is_undone_only_while_it_is_the_last(client: FlaskClient, team: Member):
    chat(client, team)
    reset(team)
    (first,) = last_ids()
    chat(client, team)
    reset(team)
    (second,) = last_ids()
    with pytest.raises(CannotUndo, match="reset again"):
        teams.undo([first], by=TESTER)
    teams.undo([second], by=TESTER)
    (redo,) = last_ids()
    teams.undo([first], by=TESTER)
    with pytest.raises(CannotUndo, match="since"):
        teams.undo([redo], by=TESTER)
    assert teams.find("team").used_tokens == stored(team).settled_tokens
    assert problems() == []


@pytest.mark.parametrize("is_found", [True, False])
def test_reset_is_not_undone_once_the_quota_renewed(client: FlaskClient, new_team: NewTeam, is_found: bool):
    member = new_team("daily", quota_tokens=10**6, renewal=Renewal("daily"))
    chat(client, member)
    reset(member)
    resetting = last_ids()
    renew(member)
    if is_found:
        chat(client, member)
    with pytest.raises(CannotUndo, match="renewed since"):
        teams.undo(resetting, by=TESTER)
    assert problems() == []


def test_undone_reset_renews_with_all_that_was_used(client: FlaskClient, new_team: NewTeam):
    member = new_team("daily", quota_tokens=10**6, renewal=Renewal("daily"))
    chat(client, member)
    reset(member)
    undo_last()
    renew(member)
    chat(client, member)
    assert teams.find("daily").used_tokens < stored(member).settled_tokens
    assert problems() == []


@pytest.mark.parametrize("price", [0, 3 * 10**9])
def test_costs_corrected_between_reset_and_undo_are_paid_by_their_period(app: Flask, new_team: NewTeam, price: int):
    teams.create_group("Year 9", by=TESTER)
    member, books = new_team("9a", group="Year 9"), runtime.of(app).ledger
    prices.set_price("GPT-5-nano", 10**9, 10**9, by=TESTER)
    for _ in range(2):
        settle(books, member, ok(1000, 0))
        reset(member)
    settle(books, member, ok(1000, 0))
    prices.set_price("GPT-5-nano", price, price, by=TESTER)
    correct = partial(ledger.correct_costs, db.engine, "GPT-5-nano", date(2020, 1, 1), by=TESTER)
    (resetting,) = [row.id for row in changes.page(limit=9).rows if row.action == "usage.reset"][:1]
    correct()
    teams.undo([resetting], by=TESTER)
    assert teams.find("9a").cost == 2 * price // 1000
    assert problems() == []
    prices.set_price("GPT-5-nano", 10**9, 10**9, by=TESTER)
    correct()
    assert teams.find("9a").cost == 2_000_000
    assert problems() == []
    (undoing,) = [row.id for row in changes.page(limit=9).rows if row.action == "usage.restore"]
    teams.undo([undoing], by=TESTER)
    assert teams.find("9a").cost == 1_000_000
    assert problems() == []


def test_reset_is_undone_under_calls_in_flight(app: Flask, client: FlaskClient, team: Member):
    def call(_: int) -> int:
        return app.test_client().post("/v1/chat/completions", json=HELLO, headers=team.headers).status_code

    chat(client, team)
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(call, number) for number in range(24)]
        for _ in range(3):
            if ledger.reset(db.engine, [team.team.id], by=TESTER):
                undo_last()
        assert [each.result() for each in calls] == [200] * 24
    assert teams.find("team").used_tokens == stored(team).settled_tokens
    assert problems() == []


def test_extra_is_set_back_within_its_period_alone(new_team: NewTeam):
    member = new_team("daily", quota_tokens=1000, renewal=Renewal("daily"), budget=10**9)
    ledger.add_extra(db.engine, member.team, 500, UTC_ZONE, budget=10**9, by=TESTER)
    (first,) = last_ids()
    ledger.add_extra(db.engine, member.team, 100, UTC_ZONE, by=TESTER)
    with pytest.raises(CannotUndo, match="extra was changed since"):
        teams.undo([first], by=TESTER)
    undo_last()
    assert stored(member).extra_tokens == 500
    teams.undo([first], by=TESTER)
    assert (stored(member).extra_tokens, stored(member).extra_budget) == (0, 0)
    undo_last()
    assert (stored(member).extra_tokens, stored(member).extra_budget) == (500, 10**9)
    renew(member)
    with pytest.raises(CannotUndo, match="renewed since"):
        undo_last()
    assert problems() == []


def test_reset_leaves_what_is_deleted_as_it_is(client: FlaskClient, new_team: NewTeam):
    group = teams.create_group("Year 9", by=TESTER)
    member = new_team("9a", group="Year 9")
    chat(client, member)
    teams.delete("9a", by=TESTER)
    teams.delete_group("Year 9", by=TESTER)
    newest, before = last_ids(), stored(member)
    assert ledger.reset(db.engine, [member.team.id], [group.id], by=TESTER) == 0
    assert (last_ids(), stored(member)) == (newest, before)
    with db.engine.connect() as connection:
        assert connection.execute(select(Group.reset_mark_tokens)).scalars().all() == [0]

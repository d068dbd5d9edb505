"""The record of changes: every change is written down with who made it, in its own transaction, and no secret is."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import TESTER, Member
from flask import Flask
from flask.testing import FlaskCliRunner
from sqlalchemy import select, text

from tokenrouter import changes, ledger, teams
from tokenrouter.changes import Actor, listing
from tokenrouter.changes.listing import ChangeFilter
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Change, Team, db
from tokenrouter.errors import APIError

both_databases = pytest.mark.both_databases

PANEL = Actor("panel", "192.0.2.7")
NO_PACE = {"requests_per_minute": None, "tokens_per_minute": None, "calls_at_once": None, "budget": None}


def recorded() -> list[tuple[str, str | None, Any, Any]]:
    """Return what was recorded since the team was made, oldest first."""
    rows = [row for row in changes.page(limit=500).rows[::-1] if row.action != "team.create"]
    return [(row.action, row.team_name, row.before, row.after) for row in rows]


def use(member: Member, tokens: int) -> None:
    with writing(db.engine) as connection:
        connection.execute(
            text("UPDATE teams SET settled_tokens = :n WHERE id = :i"), {"n": tokens, "i": member.team.id}
        )


@both_databases
def test_creation_tells_who_when_and_what(app: Flask):
    before = datetime.now(UTC)
    team, bearer_token = teams.create("blue", 2_500_000, "GPT-5-nano", by=PANEL)
    (row,) = changes.page().rows
    assert (row.actor_kind, row.actor_detail, row.action) == ("panel", "192.0.2.7", "team.create")
    assert (row.team_id, row.team_name, row.before) == (team.id, "blue", None)
    made = {
        "name": "blue",
        "quota_tokens": 2_500_000,
        "group": None,
        "active": True,
        "models": "GPT-5-nano",
        "renews": "never",
    } | NO_PACE
    assert row.after == made | NO_PACE | {"token": bearer_token[:8]}
    assert before <= row.at <= datetime.now(UTC)


@both_databases
def test_update_tells_the_changed_fields_alone(team: Member):
    teams.update("team", rename="red", quota_tokens=5, active=True, by=TESTER)
    before, after = {"name": "team", "quota_tokens": 100_000}, {"name": "red", "quota_tokens": 5}
    assert recorded() == [("team.update", "team", before, after)]


def test_update_that_changes_nothing_is_not_recorded(team: Member):
    teams.update("team", rename="team", quota_tokens=100_000, active=True, models=None, by=TESTER)
    assert recorded() == []


@pytest.mark.parametrize("fields", [{"rename": "taken"}, {"rename": "ok", "quota_tokens": -1}])
def test_refused_update_is_not_recorded(new_team: Callable[..., Member], team: Member, fields: dict[str, Any]):
    new_team("taken")
    with pytest.raises(APIError):
        teams.update("team", **fields, by=TESTER)
    assert recorded() == []


def test_change_whose_record_fails_is_not_made(team: Member, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(changes, "record", fail)
    for change in (
        lambda: teams.update("team", quota_tokens=1, by=TESTER),
        lambda: teams.create("other", by=TESTER),
        lambda: teams.delete("team", by=TESTER),
        lambda: teams.create_token("team", by=TESTER),
    ):
        with pytest.raises(OSError):
            change()
    assert [(each.name, each.quota_tokens) for each in teams.living()] == [("team", 100_000)]
    assert len(teams.tokens("team")) == 1


@both_databases
def test_reset_tells_what_had_been_used(team: Member):
    use(team, 4711)
    assert ledger.reset(db.engine, [team.team.id], by=TESTER) == 1
    assert recorded() == [("usage.reset", "team", {"used_tokens": 4711}, {"used_tokens": 0})]


def test_reset_of_what_was_not_used_is_not_recorded(team: Member):
    assert ledger.reset(db.engine, [team.team.id], by=TESTER) == 0
    assert recorded() == []


@both_databases
def test_reset_passes_over_deleted_and_unknown_teams(team: Member, new_team: Callable[..., Member]):
    gone = new_team("gone")
    for member in (team, gone):
        use(member, 10)
    teams.delete("gone", by=TESTER)
    assert ledger.reset(db.engine, [team.team.id, gone.team.id, 999], by=TESTER) == 1
    assert [each[:2] for each in recorded() if each[0] == "usage.reset"] == [("usage.reset", "team")]


def test_deletion_tells_what_is_lost(team: Member):
    use(team, 12)
    teams.delete(team.team.id, by=TESTER)
    lost = {"name": "team", "quota_tokens": 100_000, "group": None, "active": True, "models": None, "renews": "never"}
    lost |= NO_PACE | {"used_tokens": 12}
    assert recorded() == [("team.delete", "team", lost, None)]


def test_tokens_are_told_by_first_characters_and_label(team: Member):
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    token, bearer_token = teams.create_token("team", "laptop", expires_at, by=TESTER)
    teams.revoke_token("team", token.id, by=TESTER)
    told = {
        "token": bearer_token[:8],
        "label": "laptop",
        "expires_at": expires_at.isoformat().replace("+00:00", "Z"),
    }
    revoked = told | {"token_id": token.id}
    assert recorded() == [("token.create", "team", None, told), ("token.revoke", "team", revoked, None)]


@both_databases
def test_rotation_tells_both_tokens_and_the_end_of_the_old_one(team: Member):
    (old,) = teams.tokens("team")
    new, _ = teams.rotate_token("team", old.id, timedelta(hours=1), by=TESTER)
    ((action, _, before, after),) = recorded()
    assert (action, before["token"], after["token"]) == ("token.rotate", old.prefix, new.prefix)
    until = new.created_at + timedelta(hours=1)
    assert after["old_token_until"] == until.isoformat(timespec="seconds").replace("+00:00", "Z")


def test_no_secret_is_ever_recorded(team: Member):
    (first,) = teams.tokens("team")
    secrets = [team.bearer_token, teams.create_token("team", "laptop", by=TESTER)[1]]
    secrets.append(teams.rotate_token("team", first.id, timedelta(0), by=TESTER)[1])
    teams.delete("team", by=TESTER)
    with db.engine.connect() as connection:
        hashes = connection.execute(text("SELECT token_hash FROM api_tokens")).scalars().all()
        written = json.dumps([list(map(str, row)) for row in connection.execute(select(Change.__table__))])
    assert len(secrets) == len(hashes) == 3
    assert not any(secret[8:] in written for secret in secrets)
    assert not any(each in written for each in hashes)


def test_commands_are_recorded_with_user_and_host(runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setattr("socket.gethostname", lambda: "gateway")
    for command in (
        "teams create blue",
        "teams update blue --quota 5",
        "tokens create blue --label x",
        "usage reset blue --yes",
        "teams delete blue --yes",
    ):
        assert runner.invoke(args=command.split()).exit_code == 0
    rows = changes.page().rows[::-1]
    assert {(row.actor_kind, row.actor_detail) for row in rows} == {("cli", "ada@gateway")}
    assert [row.action for row in rows] == ["team.create", "team.update", "token.create", "team.delete"]


def test_user_without_a_name_is_recorded_by_number(runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch):
    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert runner.invoke(args=["teams", "create", "blue"]).exit_code == 0
    assert changes.page().rows[0].actor_detail.startswith(f"{os.getuid()}@")


# Pages


@pytest.fixture
def seven(team: Member) -> list[int]:
    """Seven changes beside the team's creation, which is the oldest; their ids, newest first."""
    for quota in range(7):
        teams.update("team", quota_tokens=quota, by=TESTER)
    return [row.id for row in changes.page(limit=100).rows]


def ids(page: changes.ChangesPage) -> list[int]:
    return [row.id for row in page.rows]


@both_databases
def test_pages_lead_to_the_oldest_and_back(seven: list[int]):
    pages = [changes.page(limit=3)]
    while pages[-1].before_id is not None:
        pages.append(changes.page(before_id=pages[-1].before_id, limit=3))
    assert [ids(page) for page in pages] == [seven[:3], seven[3:6], seven[6:]]
    back = changes.page(after_id=pages[-1].after_id, limit=3)
    assert ids(back) == seven[3:6]
    newest = changes.page(after_id=back.after_id, limit=3)
    assert (ids(newest), newest.after_id) == (seven[:3], None)


def test_last_full_page_leads_no_further(seven: list[int]):
    assert changes.page(limit=8).before_id is None
    assert changes.page(before_id=seven[4], limit=3).before_id is None


def test_page_may_be_of_one_team(seven: list[int], new_team: Callable[..., Member]):
    other = new_team("other")
    assert ids(changes.page(limit=100, team_id=other.team.id)) == [max(seven) + 1]
    with db.engine.connect() as connection:
        team_id = connection.execute(select(Team.id).where(Team.name == "team")).scalar_one()
    assert ids(changes.page(limit=100, team_id=team_id)) == seven


@both_databases
def test_what_was_done_at_once_is_one_entry_on_every_page(new_team: Callable[..., Member], team: Member):
    members = [team, *(new_team(f"team {number}") for number in range(4))]
    ids_of_teams = [member.team.id for member in members]
    for active in (False, True, False):
        teams.update("team", quota_tokens=int(active), by=TESTER)
        teams.set_active(ids_of_teams, active, by=TESTER)
    teams.undo([row.id for row in changes.page(limit=5).rows], by=PANEL)
    update = ChangeFilter(action="team.update")
    first = listing.entries(update, limit=3)
    assert [(entry.total, len(entry.rows)) for entry in first.entries] == [(5, 5), (5, 5), (1, 1)]
    assert {row.id for row in first.entries[1].rows} == first.undone
    second = listing.entries(update, before_id=first.before_id, limit=3)
    assert [entry.total for entry in second.entries] == [5, 1, 5]
    back = listing.entries(update, after_id=second.after_id, limit=3)
    assert [entry.head.id for entry in back.entries] == [entry.head.id for entry in first.entries]
    of_team = listing.entries(ChangeFilter(team_id=team.team.id))
    assert [entry.total for entry in of_team.entries] == [1] * 8
    batch = first.entries[0].head.batch
    assert len(listing.entries(ChangeFilter(batch=batch)).entries) == len(listing.ids_of_batch(batch)) == 5


@both_databases
@pytest.mark.parametrize("number", [0, -5, 10**30, -(10**30)])
def test_impossible_ids_find_nothing_and_break_nothing(seven: list[int], number: int):
    changes.page(before_id=number, limit=3)
    changes.page(after_id=number, limit=3)
    assert changes.page(team_id=number).rows == []
    assert listing.entries(ChangeFilter(team_id=number, name="\0", batch="\0"), before_id=number).entries == []

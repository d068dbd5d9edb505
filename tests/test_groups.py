"""Teams that share limits: what a team calls has to fit its own and its group's, and counts in both, exactly."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import HELLO, TESTER, Member, chat, eventually, hello, leases
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import text, update

from tokenrouter import changes, ledger, reports, runtime, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Group, Team, db
from tokenrouter.errors import InvalidRequest, NameTaken, NotFound
from tokenrouter.periods import UTC_ZONE, Renewal
from tokenrouter.standin import StandInProvider

both_databases = pytest.mark.both_databases

CHAT = "/v1/chat/completions"
PROMPT, OUTPUT = 20, 80
COSTS = PROMPT + OUTPUT
BODY = hello(f"prompt_tokens={PROMPT} words={OUTPUT}", max_tokens=OUTPUT)
NewTeam = Callable[..., Member]


def ask(client: FlaskClient, member: Member, body: dict[str, Any] = BODY) -> Any:
    return client.post(CHAT, json=body, headers=member.headers)


def stream(client: FlaskClient, member: Member, words: int = OUTPUT) -> Any:
    """Begin a stream, and leave it where it is."""
    body = hello(f"prompt_tokens={PROMPT} words={words}", max_tokens=words, stream=True)
    return client.post(CHAT, json=body, headers=member.headers)


def new_group(name: str = "year 9", quota_tokens: int | None = None, **limits: Any) -> Group:
    return teams.create_group(name, quota_tokens, **limits, by=TESTER)


def used(name: str = "year 9") -> int:
    return teams.find_group(name).used_tokens


def held(name: str = "year 9") -> int:
    return teams.find_group(name).held_tokens


def problems() -> list[str]:
    return ledger.verify(db.engine).problems


@pytest.fixture
def group(app: Flask) -> Group:
    """A group with a quota of 1,000 tokens."""
    return new_group(quota_tokens=1000)


@pytest.fixture
def member(group: Group, new_team: NewTeam) -> Member:
    """A team of it, whose own quota is ten times as large."""
    return new_team("9a", quota_tokens=10_000, group="year 9")


@pytest.fixture
def other(group: Group, new_team: NewTeam) -> Member:
    return new_team("9b", group=group.id)


@both_databases
def test_call_counts_in_team_and_group(client: FlaskClient, member: Member, other: Member):
    assert ask(client, member).status_code == ask(client, other).status_code == 200
    assert (teams.find("9a").used_tokens, teams.find("9b").used_tokens, used()) == (COSTS, COSTS, 2 * COSTS)
    assert held() == 0
    assert problems() == []


@both_databases
def test_call_is_held_in_both_while_it_runs(client: FlaskClient, member: Member):
    running = stream(client, member)
    assert teams.find("9a").held_tokens == held() > OUTPUT
    assert teams.find_group("year 9").calls_in_flight == 1
    assert running.data.endswith(b"data: [DONE]\n\n")
    assert (held(), used(), teams.find_group("year 9").calls_in_flight) == (0, COSTS, 0)


@both_databases
def test_used_up_group_refuses_all_its_teams_and_says_whose_quota_it_is(
    client: FlaskClient, member: Member, other: Member, provider: StandInProvider
):
    for _ in range(10):
        assert ask(client, other).status_code == 200
    reply = ask(client, member)
    error = reply.json["error"]
    assert (reply.status_code, error["code"], reply.headers["x-should-retry"]) == (429, "insufficient_quota", "false")
    assert error["message"].startswith("Quota exceeded: 1,000 used and 0 held")
    assert "quota of 1,000 tokens that the group “year 9” has" in error["message"]
    assert len(provider.calls) == 10


@both_databases
def test_used_up_team_is_refused_though_its_group_has_room(client: FlaskClient, new_team: NewTeam, group: Group):
    poor = new_team("poor", quota_tokens=COSTS, group="year 9")
    assert ask(client, poor).status_code == 200
    assert "of the quota of 100 tokens that this team has" in ask(client, poor).json["error"]["message"]
    assert used() == COSTS


def test_refusal_takes_nothing_from_either(client: FlaskClient, member: Member):
    teams.update_group("year 9", quota_tokens=1, requests_per_minute=5, by=TESTER)
    assert ask(client, member).status_code == 429
    row = teams.find_group("year 9")
    assert (row.used_tokens, row.held_tokens, row.calls_in_flight, row.requests_full_at) == (0, 0, 0, 0)
    assert (teams.find("9a").held_tokens, teams.find("9a").calls_in_flight) == (0, 0)


def test_answer_is_limited_to_what_the_tighter_one_leaves(client: FlaskClient, member: Member, new_team: NewTeam):
    body = hello("prompt_tokens=19 words=5000", max_tokens=5000)
    assert ask(client, member, body).headers["x-tokenrouter-output-limit"] == str(1000 - 19)
    tight = new_team("tight", quota_tokens=519, group=new_group("vast", 10**6).id)
    assert ask(client, tight, body).headers["x-tokenrouter-output-limit"] == "500"


@both_databases
def test_group_that_others_hold_asks_to_come_back(client: FlaskClient, member: Member, other: Member):
    running = stream(client, other, words=970)
    refused = ask(client, member)
    assert (refused.json["error"]["code"], refused.headers["Retry-After"]) == ("quota_reserved", "1")
    assert "the group “year 9”" in refused.json["error"]["message"]
    teams.update("9a", quota_tokens=1, by=TESTER)  # now waiting would not help
    refused = ask(client, member)
    assert refused.json["error"]["code"] == "insufficient_quota"
    assert "the quota of 1 tokens that this team has" in refused.json["error"]["message"]
    running.close()


@both_databases
def test_team_that_moves_leaves_its_running_calls_where_they_are_held(client: FlaskClient, member: Member):
    new_group("year 10", 1000)
    running = stream(client, member)
    teams.update("9a", group="year 10", by=TESTER)
    assert held("year 9") > held("year 10") == 0
    assert ask(client, member).status_code == 200
    assert running.data.endswith(b"data: [DONE]\n\n")
    assert (used("year 9"), used("year 10"), held("year 9")) == (COSTS, COSTS, 0)
    assert teams.find("9a").used_tokens == 2 * COSTS
    assert problems() == []


@both_databases
def test_team_without_a_group_counts_in_none(client: FlaskClient, member: Member):
    ask(client, member)
    teams.update("9a", group=None, by=TESTER)
    ask(client, member)
    assert (used(), teams.find("9a").used_tokens) == (COSTS, 2 * COSTS)
    assert problems() == []


@both_databases
def test_deleted_group_leaves_its_teams_and_books_what_runs(client: FlaskClient, member: Member, other: Member):
    running = stream(client, member)
    group = teams.delete_group("year 9", by=TESTER)
    assert [team.group_name for team in teams.living()] == [None, None]
    assert running.data.endswith(b"data: [DONE]\n\n")
    assert ask(client, member).status_code == 200
    with db.engine.connect() as connection:
        gone = connection.execute(db.select(Group.settled_tokens, Group.held_tokens).where(Group.id == group.id)).one()
    assert tuple(gone) == (COSTS, 0)
    assert problems() == []
    new_group("year 9")  # its name is free again
    with pytest.raises(NotFound):
        teams.delete_group(group.id, by=TESTER)


@both_databases
def test_group_changed_by_hand_holds_from_the_next_call(client: FlaskClient, member: Member):
    assert ask(client, member).status_code == 200
    vast = new_group("vast")
    with writing(db.engine) as connection:
        connection.execute(update(Team).where(Team.id == member.team.id).values(group_id=vast.id))
    assert ask(client, member).status_code == 200
    assert (used("year 9"), used("vast")) == (COSTS, COSTS)
    with writing(db.engine) as connection:
        connection.execute(update(Group).where(Group.id == vast.id).values(quota_tokens=0))
    assert ask(client, member).json["error"]["code"] == "insufficient_quota"


@both_databases
def test_calls_go_on_while_teams_move_and_every_call_is_in_one_group(app: Flask, new_team: NewTeam):
    names = [new_group(f"group {number}", requests_per_minute=10**6).name for number in range(3)]
    members = [new_team(f"team {number}", group=names[0]) for number in range(2)]
    moves = [(member, name) for name in (*names, None) * 4 for member in members]

    def call(at: int) -> int:
        with app.test_client() as client:
            return ask(client, members[at % 2]).status_code

    def move(member: Member, name: str | None) -> None:
        with app.app_context():
            teams.update(member.team.id, group=name, by=TESTER)

    with ThreadPoolExecutor(8) as pool:
        moving = [pool.submit(move, *each) for each in moves]
        codes = Counter(pool.map(call, range(80)))
        assert [each.result() for each in moving] == [None] * len(moves)
    assert codes == {200: 80}
    rows = reports.usage("group")[0]
    assert sum(row["requests"] for row in rows) == 80
    assert sum(team.used_tokens for team in teams.living()) == 80 * COSTS
    assert problems() == []


@both_databases
def test_pace_of_a_group_is_shared_and_the_tighter_one_is_told(client: FlaskClient, member: Member, other: Member):
    teams.update_group("year 9", requests_per_minute=3, by=TESTER)
    teams.update("9a", requests_per_minute=60, by=TESTER)
    assert ask(client, member).headers["x-ratelimit-remaining-requests"] == "2"
    assert ask(client, other).headers["x-ratelimit-limit-requests"] == "3"
    assert ask(client, other).status_code == 200
    refused = ask(client, member)
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "the group “year 9” may make 3 a minute" in refused.json["error"]["message"]
    assert 18 <= float(refused.headers["Retry-After"]) <= 20
    teams.update("9a", requests_per_minute=1, by=TESTER)
    assert ask(client, member).headers["x-ratelimit-limit-requests"] in ("1", "3")


def test_tokens_a_minute_of_a_group(client: FlaskClient, member: Member, other: Member):
    teams.update_group("year 9", tokens_per_minute=2 * COSTS, by=TESTER)
    assert ask(client, member).status_code == ask(client, other).status_code == 200
    refused = ask(client, member)
    assert refused.json["error"]["type"] == "tokens"
    assert "the group “year 9” may use 200 a minute" in refused.json["error"]["message"]


@both_databases
def test_calls_at_once_of_a_group(client: FlaskClient, member: Member, other: Member):
    teams.update_group("year 9", calls_at_once=1, by=TESTER)
    running = stream(client, other)
    refused = ask(client, member)
    assert refused.json["error"]["message"].startswith("Too many calls at once: the group “year 9” may have 1, and has")
    assert running.data
    assert ask(client, member).status_code == 200
    with writing(db.engine) as connection:  # a count that leaked refuses nobody
        connection.execute(update(Group).values(calls_in_flight=7))
    assert ask(client, member).status_code == 200


@both_databases
def test_group_renews_by_itself(client: FlaskClient, member: Member):
    teams.update_group("year 9", renewal=Renewal("weekly"), by=TESTER)
    ask(client, member)
    with writing(db.engine) as connection:
        connection.execute(update(Group).values(renews_at=int(datetime.now(UTC).timestamp()) - 1))
    assert (used(), teams.find("9a").used_tokens) == (0, COSTS)
    ask(client, member)
    assert (used(), teams.find("9a").used_tokens) == (COSTS, 2 * COSTS)
    assert teams.find_group("year 9").renews_at > datetime.now(UTC).timestamp()
    found = ledger.verify(db.engine)
    assert (found.problems, found.renewals) == ([], 1)
    teams.update_group("year 9", quota_tokens=1, by=TESTER)
    assert "It renews on" in ask(client, member).json["error"]["message"]


@both_databases
def test_extra_and_reset_of_a_group(client: FlaskClient, member: Member):
    teams.update_group("year 9", quota_tokens=COSTS, by=TESTER)
    assert [ask(client, member).status_code for _ in range(2)] == [200, 429]
    ledger.add_extra(db.engine, teams.find_group("year 9"), COSTS, UTC_ZONE, by=TESTER)
    assert [ask(client, member).status_code for _ in range(2)] == [200, 429]
    assert ledger.reset(db.engine, (), [teams.find_group("year 9").id], by=TESTER) == 1
    assert (used(), teams.find("9a").used_tokens) == (0, 2 * COSTS)
    assert problems() == []
    rows = changes.page(group_id=teams.find_group("year 9").id).rows
    assert [row.action for row in rows] == ["usage.reset", "group.extra", "group.update", "group.create"]
    assert rows[0].before == {"used_tokens": 2 * COSTS}


@both_databases
def test_calls_of_a_dead_worker_are_settled_in_the_group(client: FlaskClient, member: Member):
    stream(client, member)
    ledger.recover(db.engine, leases())
    assert held() == 0
    assert used() == teams.find("9a").used_tokens > 0
    assert problems() == []


@both_databases
def test_refusals_and_their_repeats_are_counted_with_the_group(client: FlaskClient, member: Member):
    for _ in range(3):
        assert ask(client, member, {**HELLO, "model": "no-such"}).status_code == 404
    teams.update_group("year 9", quota_tokens=0, by=TESTER)
    for _ in range(2):
        assert ask(client, member).status_code == 429
    own = runtime.current().ledger
    own._write_repeats()
    assert eventually(lambda: reports.usage("group")[0] and reports.usage("group")[0][0]["requests"] == 5)
    assert problems() == []
    teams.update("9a", group=None, by=TESTER)
    assert ask(client, member, {**HELLO, "model": "no-such"}).status_code == 404  # has a row of its own now
    assert {row["group"]: row["requests"] for row in reports.usage("group")[0]} == {"year 9": 5, None: 1}
    assert problems() == []


TAMPERED = [
    ("UPDATE groups SET settled_tokens = settled_tokens + 1", "101 settled, and 100 charged in the log"),
    ("UPDATE groups SET held_tokens = 5", "5 held, and 0 held by pending calls"),
    ("UPDATE groups SET calls_in_flight = 2", "2 calls in flight, and 0 pending"),
    ("UPDATE groups SET reset_mark_tokens = 7", "reset at 7, and 0 in the resets"),
    ("UPDATE group_usage_daily SET total_tokens = 99", "99 in the daily totals"),
    ("DELETE FROM group_usage_daily", "0 in the daily totals"),
]


@both_databases
@pytest.mark.parametrize(("statement", "complaint"), TAMPERED)
def test_verify_finds_and_repair_mends_what_is_wrong_with_a_group(
    client: FlaskClient, member: Member, statement: str, complaint: str
):
    ask(client, member)
    with writing(db.engine) as connection:
        connection.execute(text(statement))
    (problem,) = problems()
    assert problem.startswith("group year 9: ")
    assert complaint in problem
    (told,) = ledger.repair(db.engine, by=TESTER)
    assert told.startswith("group year 9: ")
    assert problems() == []


def test_call_of_a_group_that_is_not_there_is_found(client: FlaskClient, member: Member):
    chat(client, member)
    with writing(db.engine) as connection:
        connection.execute(text("UPDATE request_logs SET group_id = 999"))
    assert any("is of a group that is not there" in problem for problem in problems())


def test_group_that_cannot_be_read_refuses_its_teams_alone(client: FlaskClient, member: Member, new_team: NewTeam):
    with writing(db.engine) as connection:
        connection.execute(text("DROP TRIGGER groups_quota_tokens_update"))
        connection.execute(text("UPDATE groups SET quota_tokens = 'much'"))
    refused = ask(client, member)
    assert (refused.status_code, refused.json["error"]["code"]) == (403, "team_disabled")
    assert "group" in refused.json["error"]["message"] and "quota_tokens" in refused.json["error"]["message"]
    assert ask(client, new_team("free")).status_code == 200
    assert any("group year 9: quota_tokens is 'much'" in problem for problem in problems())
    teams.update_group("year 9", quota_tokens=1000, by=TESTER)
    assert ask(client, member).status_code == 200


@both_databases
@pytest.mark.parametrize("column", ["quota_tokens", "extra_tokens", "requests_per_minute", "calls_at_once"])
def test_database_takes_no_limit_below_zero(group: Group, column: str):
    with pytest.raises(Exception, match=r"accepted|whole number"), writing(db.engine) as connection:
        connection.execute(text(f"UPDATE groups SET {column} = -1"))


def test_team_whose_group_is_not_there_is_refused_and_named(client: FlaskClient, member: Member):
    with closing(sqlite3.connect(db.engine.url.database, isolation_level=None)) as by_hand:
        by_hand.execute("UPDATE teams SET group_id = 999")
    assert ask(client, member).json["error"]["code"] == "team_disabled"
    assert any("its group is 999, which is not there" in problem for problem in problems())


@pytest.mark.parametrize("name", ["", " ", "none", "None", "a\nb", "x" * 201])
def test_names_of_groups(app: Flask, name: str):
    with pytest.raises(InvalidRequest):
        new_group(name)


def test_groups_have_names_of_their_own(group: Group, new_team: NewTeam):
    new_team("year 9")
    with pytest.raises(NameTaken, match="There is a group 'year 9' already"):
        new_group("year 9")
    new_group("year 10")
    with pytest.raises(NameTaken):
        teams.update_group("year 10", rename="year 9", by=TESTER)


def test_team_is_put_into_no_group_that_is_not_there(member: Member):
    with pytest.raises(InvalidRequest, match="There is no group 'year 11'"):
        teams.update("9a", group="year 11", by=TESTER)
    with pytest.raises(InvalidRequest):
        teams.create("9c", group=999, by=TESTER)


def test_changes_tell_the_group(member: Member):
    teams.update("9a", group=None, by=TESTER)
    (row,) = changes.page(team_id=member.team.id, limit=1).rows
    in_group = {"group": "year 9", "group_id": teams.find_group("year 9").id}
    assert (row.before, row.after) == (in_group, {"group": None})
    teams.delete_group("year 9", by=TESTER)
    (row,) = changes.page(limit=1).rows
    assert (row.action, row.group_name, row.before["teams"]) == ("group.delete", "year 9", [])


@both_databases
def test_commands(runner: FlaskCliRunner, client: FlaskClient):
    def run(*arguments: str) -> str:
        done = runner.invoke(args=list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    assert "flask groups create" in run("groups", "list")
    run("groups", "create", "year 9", "--quota", "1M", "--renews", "monthly:15", "--calls-at-once", "4")
    token = run("teams", "create", "9a", "--group", "year 9").splitlines()[-1]
    assert client.post(CHAT, json=BODY, headers={"Authorization": f"Bearer {token}"}).status_code == 200
    head, _, row = run("groups", "list").splitlines()
    assert head.split() == ["id", "name", "teams", "quota", "used", "held", "remaining"]
    assert row.split()[1:] == ["year", "9", "1", "1,000,000", "100", "0", "999,900"]
    shown = run("groups", "show", "year 9")
    assert ["teams", "9a"] in [line.split() for line in shown.splitlines()]
    assert "renews_on" in run("groups", "update", "year 9", "--rename", "class 9", "--quota", "unlimited")
    assert "extra_tokens         5,000" in run("groups", "extra", "class 9", "--tokens", "5k")
    run("groups", "reset", "class 9", "--yes")
    assert used("class 9") == 0
    assert "group                -" in run("teams", "update", "9a", "--group", "none")
    assert "group                class 9" in run("teams", "update", "9a", "--group", "class 9")
    run("usage", "reset", "--all", "--yes")
    assert teams.find("9a").used_tokens == 0
    run("groups", "delete", "class 9", "--yes")
    assert teams.find("9a").group_name is None
    for wrong, status in [
        (["groups", "update", "class 9", "--rename", "x"], 1),
        (["groups", "update", "class 9"], 2),
        (["groups", "create", "x", "--quota", "much"], 2),
        (["teams", "update", "9a", "--group", "nowhere"], 1),
    ]:
        assert runner.invoke(args=wrong).exit_code == status


def test_reset_of_all_resets_groups_too(runner: FlaskCliRunner, client: FlaskClient, member: Member):
    ask(client, member)
    done = runner.invoke(args=["usage", "reset", "--all"], input="y\n")
    assert "all teams (1) and groups (1)" in done.output
    assert (used(), teams.find("9a").used_tokens) == (0, 0)
    assert problems() == []


@both_databases
def test_use_is_reported_by_group(client: FlaskClient, member: Member, other: Member, new_team: NewTeam):
    for each in (member, other, new_team("alone")):
        ask(client, each)
    by_group = {row["group"]: row["total_tokens"] for row in reports.usage("group")[0]}
    assert by_group == {"year 9": 2 * COSTS, None: COSTS}
    group_id = teams.find_group("year 9").id
    assert [row["team"] for row in reports.usage("team", group_id=group_id)[0]] == ["9a", "9b"]
    assert [row["total_tokens"] for row in reports.usage("day", group_id=group_id)[0]] == [2 * COSTS]
    assert reports.usage("group", team_id=member.team.id)[0][0]["total_tokens"] == COSTS


def test_log_is_filtered_by_group(client: FlaskClient, member: Member, new_team: NewTeam):
    ask(client, member)
    ask(client, new_team("alone"))
    (row,) = reports.calls_page(reports.CallFilter(group_id=member.team.group_id)).rows
    assert (row.team_name, row.group_name, reports.log_view(row)["group"]) == ("9a", "year 9", "year 9")


def test_team_is_told_its_group(client: FlaskClient, member: Member):
    told = client.get("/v1/usage", headers=member.headers).json
    assert (told["group"], told["remaining_tokens"]) == ("year 9", 10_000)

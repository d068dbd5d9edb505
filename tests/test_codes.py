"""Codes to join with: made, counted exactly, refused with the reason, throttled where wrong, and revoked."""

import json
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import TESTER
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import func, select, update
from sqlalchemy.exc import TimeoutError

from tokenrouter import attempts, changes, reports, teams
from tokenrouter.admin import password
from tokenrouter.config import load
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import JoinCode, SignInAttempt, db
from tokenrouter.errors import APIError
from tokenrouter.periods import Renewal
from tokenrouter.teams import codes

both_databases = pytest.mark.both_databases

CLASSROOM = "192.0.2.1"
WRONG = "2222-3333-4444"


@pytest.fixture
def new_code(app: Flask) -> Callable[..., JoinCode]:
    def make(**fields: Any) -> JoinCode:
        return codes.create(**fields, by=TESTER)

    return make


def join(code: JoinCode | str, name: str = "blue", address: str = CLASSROOM) -> str:
    """Return the new team's token, or the code or status of the refusal, or "wait"."""
    try:
        _, bearer_token = codes.join(code if isinstance(code, str) else code.code, name, address=address)
    except APIError as error:
        return error.code or str(error.status)
    except attempts.TooManyGuesses:
        return "wait"
    return bearer_token


def let_pass(code: JoinCode, seconds: float) -> None:
    """Have the code end so many seconds earlier."""
    with writing(db.engine) as connection:
        ends = code.expires_at - timedelta(seconds=seconds)
        connection.execute(update(JoinCode).where(JoinCode.id == code.id).values(expires_at=ends))


def kept_attempts() -> int:
    with db.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(SignInAttempt)).scalar_one()


# The code


def test_code_has_at_least_50_bits_and_no_characters_that_look_alike(new_code):
    code = new_code().code
    assert [len(part) for part in code.split("-")] == [4, 4, 4]
    assert codes.LENGTH * math.log2(len(codes.ALPHABET)) > 50
    for alike in ("0O", "1IL", "8B", "5S", "2Z", "6G", "UV"):
        assert len(set(alike) & set(codes.ALPHABET)) <= 1
    assert new_code().code != code


@pytest.mark.parametrize(
    "typed",
    ["K7QM-4XWP-2HTD", "k7qm4xwp2htd", " k7qm 4xwp 2htd ", "K7QM–4XWP–2HTD", "K7-QM4_XW.P2HTD\n", "k7qm-4xwp-zhtd"],
)
def test_code_is_read_however_it_is_typed(typed: str):
    assert codes.read_code(typed) == "K7QM-4XWP-2HTD"


@pytest.mark.parametrize("typed", ["K7QM-4XWP-2HTD", "k7qm4xwp2htd", "K7QM – 4XWP – zhtd "])
def test_browser_lets_what_may_be_a_code_through(typed: str):
    assert re.fullmatch(codes.TYPED, typed)


@pytest.mark.parametrize("typed", ["", "K7QM-4XWP-2HT", "K7QM-4XWP-2HTDD", "K7QM-4XWP-2HTO", "K7QM-4XWP-1HTD"])
def test_browser_keeps_slips_back(typed: str):
    assert not re.fullmatch(codes.TYPED, typed)


@pytest.mark.parametrize("typed", ["", "K7QM-4XWP-2HT", "K7QM-4XWP-2HTDD", "K7QM-4XWP-2HT1", "２" * 12, "x" * 10_000])
def test_what_cannot_be_a_code_is_none(typed: str):
    assert codes.read_code(typed) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"uses": 0}, "uses"),
        ({"uses": codes.MOST_USES + 1}, "uses"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
        ({"label": "a\nb"}, "label"),
        ({"group": "nobody's"}, "group"),
        ({"models": "unheard-of"}, "models"),
        ({"quota_tokens": -1}, "quota_tokens"),
        ({"calls_at_once": -1}, "calls_at_once"),
    ],
)
def test_code_with_what_no_team_could_have_is_refused(new_code, fields: dict[str, Any], param: str):
    with pytest.raises(APIError) as refusal:
        new_code(**fields)
    assert refusal.value.param == param
    assert reports.codes(datetime.now(UTC)) == []


# Joining


@both_databases
def test_who_joins_has_a_team_with_the_limits_and_the_group_of_the_code(new_code):
    teams.create_group("Year 9", by=TESTER)
    limits = {"quota_tokens": 50_000, "budget": 2 * 10**9, "requests_per_minute": 20}
    code = new_code(label="9b", group="Year 9", renewal=Renewal("monthly", 15), models="GPT-5-nano", **limits)
    team, bearer_token = codes.join(code.code, " blue ", address=CLASSROOM)
    assert bearer_token.startswith("tr-")
    row = teams.find("blue")
    assert (row.id, row.join_code_id, row.group_name, row.models) == (team.id, code.id, "Year 9", "GPT-5-nano")
    assert (row.quota_tokens, row.budget, row.requests_per_minute) == (50_000, 2 * 10**9, 20)
    assert (row.renews, row.renews_on, row.calls_at_once) == ("monthly", 15, None)
    assert row.renews_at is not None
    assert [each.name for each in reports.code_detail(code.id).teams] == ["blue"]


@both_databases
def test_code_is_used_exactly_as_often_as_it_may_be(app: Flask, new_code):
    code, together = new_code(uses=30), threading.Barrier(100)

    def one(number: int) -> str:
        with app.app_context():
            together.wait(30)
            while True:
                with suppress(TimeoutError):  # a slow machine has no connection for all at once: they press again
                    return join(code, f"pupil {number}")

    with ThreadPoolExecutor(100) as pool:
        outcomes = list(pool.map(one, range(100)))
    assert outcomes.count("403") == 70
    assert len({each for each in outcomes if each.startswith("tr-")}) == 30
    assert (codes.get(code.id).used, len(teams.living())) == (30, 30)


@both_databases
def test_taken_name_is_told_and_costs_no_use(new_code):
    code = new_code(uses=1)
    teams.create("blue", by=TESTER)
    assert [join(code), join(code, "a\u202eb"), join(code, "")] == ["name_taken", "400", "400"]
    assert codes.get(code.id).used == 0
    assert join(code, "red").startswith("tr-")


@both_databases
def test_closed_code_says_why_to_who_holds_it(new_code):
    used_up, expired = new_code(uses=1), new_code(expires_at=datetime.now(UTC) + timedelta(hours=1))
    teams.create_group("gone", by=TESTER)
    revoked, groupless = new_code(), new_code(group="gone")
    join(used_up, "first")
    let_pass(expired, 3600)
    codes.revoke(revoked.id, by=TESTER)
    teams.delete_group("gone", by=TESTER)
    for code, why in ((used_up, "used up"), (expired, "expired"), (revoked, "revoked"), (groupless, "was deleted")):
        with pytest.raises(APIError, match=why) as refusal:
            codes.join(code.code, "late", address=CLASSROOM)
        assert refusal.value.status == 403
    assert [team.name for team in teams.living()] == ["first"]
    assert {code.state_at(datetime.now(UTC)) for code in reports.codes(datetime.now(UTC))} == set(codes.CLOSED)


@both_databases
def test_revoked_code_leaves_its_teams(client: FlaskClient, new_code):
    code = new_code()
    bearer_token = join(code)
    codes.revoke(code.code.lower().replace("-", ""), by=TESTER)
    usage = client.get("/v1/usage", headers={"Authorization": f"Bearer {bearer_token}"})
    assert usage.json["team"] == "blue"
    with pytest.raises(APIError, match="revoked already"):
        codes.revoke(code.id, by=TESTER)


@both_databases
def test_codes_and_joining_are_recorded_without_the_code_itself(new_code):
    teams.create_group("Year 9", by=TESTER)
    code = new_code(label="9b", uses=30, group="Year 9", quota_tokens=5)
    join(code)
    codes.revoke(code.id, by=TESTER)
    revoked, joined, created, _ = changes.page().rows
    assert (created.action, created.group_name, created.actor_kind) == ("code.create", "Year 9", "cli")
    assert (created.after["label"], created.after["uses"], created.after["quota_tokens"]) == ("9b", 30, 5)
    assert (joined.action, joined.team_name, joined.actor_kind) == ("team.create", "blue", "join")
    assert (joined.actor_detail, joined.after["code"]) == (CLASSROOM, code.code[:4] + "…")
    assert (revoked.action, revoked.before["used"]) == ("code.revoke", 1)
    assert code.code not in json.dumps([(row.before, row.after) for row in (revoked, joined, created)])


# Wrong codes


@both_databases
def test_sixth_wrong_code_within_a_minute_is_not_looked_at_nor_the_right_one(new_code):
    code = new_code()
    assert [join(WRONG) for _ in range(6)] == ["not_found"] * 5 + ["wait"]
    assert [join(code), join(code, address="192.0.2.2")[:3]] == ["wait", "tr-"]


@both_databases
def test_thirty_wrong_codes_a_minute_are_looked_at_wherever_they_come_from(new_code):
    outcomes = [join(WRONG, address=f"192.0.2.{number}") for number in range(31)]
    assert outcomes == ["not_found"] * 30 + ["wait"]
    assert join(new_code(), address="198.51.100.1") == "wait"


def test_wrong_codes_and_wrong_passwords_are_counted_apart(new_code):
    own = load({"ADMIN_PASSWORD": "right"})
    for number in range(29):
        join(WRONG, address=f"192.0.2.{number}")
    guesses = ["wrong"] * 4 + ["right"]
    assert [password.try_password(own, guess, CLASSROOM) for guess in guesses] == [False] * 4 + [True]
    assert join(new_code()).startswith("tr-")


def test_real_code_is_no_guess_whatever_became_of_it(new_code):
    code = new_code(uses=1)
    assert [join(code, f"pupil {number}")[:2] for number in range(20)] == ["tr"] + ["40"] * 19
    assert kept_attempts() == 0


# The commands


@both_databases
def test_command_prints_the_code_alone_on_the_last_line(runner: FlaskCliRunner):
    teams.create_group("Year 9", by=TESTER)
    options = ["--group", "Year 9", "--quota", "250k", "--renews", "weekly", "--uses", "30", "--expires", "2099-12-31"]
    made = runner.invoke(args=["codes", "create", *options, "--label", "9b"])
    first, code = made.stdout.splitlines()
    assert first == "Created a code for 30 teams. Each has: quota 250,000 tokens, renewed weekly. The code:"
    (view,) = json.loads(runner.invoke(args=["codes", "list", "--json"]).stdout)
    assert (view["code"], view["label"], view["state"], view["uses"], view["used"]) == (code, "9b", "open", 30, 0)
    assert (view["group"], view["quota_tokens"], view["renews"]) == ("Year 9", 250_000, "weekly")
    assert view["expires_at"] == "2100-01-01T00:00:00.000Z"
    assert code in runner.invoke(args=["codes", "list"]).stdout


def test_command_revokes_a_code_and_says_that_its_teams_stay(runner: FlaskCliRunner, new_code):
    code = new_code()
    join(code)
    done = runner.invoke(args=["codes", "revoke", code.code.lower()])
    assert (done.exit_code, done.stdout) == (0, f"Revoked the code {code.code}. Teams that it made, which stay: 1.\n")
    again = runner.invoke(args=["codes", "revoke", code.code])
    assert (again.exit_code, again.stderr) == (1, f"Error: The code {code.code} is revoked already.\n")


@pytest.mark.parametrize(("arguments", "status"), [(["revoke", WRONG], 1), (["create", "--uses", "0"], 2)])
def test_command_says_in_one_line_what_is_wrong(runner: FlaskCliRunner, arguments: list[str], status: int):
    done = runner.invoke(args=["codes", *arguments])
    assert (done.exit_code, done.stdout) == (status, "")
    assert "Error: " in done.stderr

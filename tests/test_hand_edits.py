"""What people write into the database by hand: it takes effect, is refused with a sentence, or stops nobody else."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from adminclient import Panel
from conftest import Member, hello
from flask.testing import FlaskClient, FlaskCliRunner

from tokenrouter import ledger
from tokenrouter.database.tables import db

CHAT = "/v1/chat/completions"


def by_hand(statement: str) -> None:
    """Edit as a database browser does."""
    with closing(sqlite3.connect(db.engine.url.database, isolation_level=None)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ("quota_tokens = '2.5M'", "quota_tokens is a whole number"),
        ("quota_tokens = 2.5", "quota_tokens is a whole number"),
        ("quota_tokens = -1", "quota_tokens is a whole number"),
        ("active = 'no'", "active is 1"),
        ("active = 7", "active is 1"),
        ("models = 5.5, name = x'00'", "name is a text"),
        ("name = ''", "name is a text"),
    ],
)
def test_edit_that_cannot_be_read_is_refused_with_a_sentence(team: Member, edit: str, sentence: str):
    with pytest.raises(sqlite3.IntegrityError, match=sentence):
        by_hand(f"UPDATE teams SET {edit}")


@pytest.mark.parametrize("edit", ["quota_tokens = '250000'", "quota_tokens = NULL", "active = '1'", "models = 'A,B'"])
def test_edit_that_can_be_read_is_taken(team: Member, edit: str):
    by_hand(f"UPDATE teams SET {edit}")


@pytest.fixture
def unreadable(team: Member, new_team: Callable[..., Member]) -> Callable[[str], Member]:
    """Write a value that was there before anything refused it; return another team."""

    def write(edit: str) -> Member:
        with closing(sqlite3.connect(db.engine.url.database, isolation_level=None)) as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            connection.execute(f"UPDATE teams SET {edit} WHERE name = 'team'")
        return new_team("other", quota_tokens=100_000)

    return write


@pytest.mark.parametrize(
    ("edit", "field"), [("quota_tokens = '2.5M'", "quota_tokens"), ("quota_tokens = -5", "quota_tokens"),
                        ("active = 'no'", "active")]
)  # fmt: skip
def test_team_that_cannot_be_read_is_refused_and_named_while_all_else_goes_on(
    client: FlaskClient,
    panel: Panel,
    runner: FlaskCliRunner,
    team: Member,
    unreadable: Callable[[str], Member],
    edit: str,
    field: str,
):
    other = unreadable(edit)
    refused = client.post(CHAT, json=hello(), headers=team.headers)
    assert (refused.status_code, refused.json["error"]["code"]) == (403, "team_disabled")
    assert f"{field} cannot be read" in refused.json["error"]["message"]
    assert client.post(CHAT, json=hello(), headers=other.headers).status_code == 200
    assert [re.search(f"team: {field} is", problem) is not None for problem in ledger.verify(db.engine).problems] == [
        True
    ]
    for path in ("/admin/", "/admin/teams/", f"/admin/teams/{team.team.id}", "/admin/logs/"):
        assert panel.get(path, follow_redirects=True).status_code == 200, path
    for command in (["teams", "list"], ["teams", "list", "--json"], ["teams", "show", "team"], ["usage", "show"]):
        assert runner.invoke(args=command).exit_code == 0, command
    assert runner.invoke(args=["teams", "update", "team", "--quota", "5k", "--enable"]).exit_code == 0
    assert client.post(CHAT, json=hello(), headers=team.headers).status_code == 200


def test_value_that_cannot_be_read_is_shown_as_it_stands(
    panel: Panel, runner: FlaskCliRunner, unreadable: Callable[[str], Member]
):
    unreadable("quota_tokens = '2.5M'")
    assert "'2.5M', not a number" in runner.invoke(args=["teams", "list"]).output
    assert "2.5M" in panel.get("/admin/teams/", follow_redirects=True).text


def test_state_that_cannot_be_read_is_named_by_the_panel(
    panel: Panel, team: Member, unreadable: Callable[[str], Member]
):
    unreadable("active = 'no'")
    for path in ("/admin/teams/", f"/admin/teams/{team.team.id}"):
        assert "cannot be read: &#39;no&#39;, neither 1 nor 0" in panel.get(path, follow_redirects=True).text


@pytest.mark.parametrize(("edit", "option"), [("active = 'no'", "--disable"), ("quota_tokens = '2.5M'", "--quota=0")])
def test_value_that_cannot_be_read_is_replaced_by_what_it_counted_as(
    runner: FlaskCliRunner, unreadable: Callable[[str], Member], edit: str, option: str
):
    unreadable(edit)
    assert runner.invoke(args=["teams", "update", "team", option]).exit_code == 0
    assert ledger.verify(db.engine).problems == []

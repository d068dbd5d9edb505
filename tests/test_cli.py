"""The `flask` commands: what they print, what they change, and how they refuse."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import HELLO, TEAM_FIELDS, Member
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import text

from tokenrouter.database.tables import db
from tokenrouter.standin import StandInProvider

CHAT = "/v1/chat/completions"
TOKEN_FIELDS = ["id", "label", "prefix", "created_at", "last_used_at", "expires_at"]
LOG_FIELDS = [
    "request_id",
    "team",
    "group",
    "token",
    "model",
    "endpoint",
    "status",
    "status_code",
    "repeats",
    "stream",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "total_tokens",
    "held_tokens",
    "charged_tokens",
    "cost",
    "cost_source",
    "usage_source",
    "reason",
    "latency_ms",
    "first_byte_ms",
    "created_at",
]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")  # RFC 3339 in UTC
AWKWARD_NAMES = [
    "x" * 200,
    "漢" * 200,
    'it\'s "quoted" \\ `$HOME`',
    "Blaue Gruppe 👩‍💻🇺🇳",
    "صف العلوم",
    "007",
    "null",
    "-",
    "a, b",
]


def run(runner: FlaskCliRunner, *arguments: str, answer: str | None = None) -> str:
    """Run a command that succeeds, and return what it prints."""
    done = runner.invoke(args=arguments, input=answer)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return done.stdout


def refused(runner: FlaskCliRunner, *arguments: str, status: int = 1) -> str:
    """Run a command that is refused, and return the line that says why."""
    done = runner.invoke(args=arguments)
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert (done.exit_code, done.stdout) == (status, "")
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert status == 2 or len(lines) == 1
    return lines[-1]


def document(runner: FlaskCliRunner, *arguments: str) -> Any:
    """Return the one JSON document that a command prints."""
    return json.loads(run(runner, *arguments, "--json"))


def execute(statement: str, **values: object) -> None:
    with db.engine.begin() as connection:
        connection.execute(text(statement), values)


def call(client: FlaskClient, bearer_token: str) -> tuple[int, str | None]:
    """Return the status and the error code of a chat with this token."""
    reply = client.post(CHAT, json=HELLO, headers={"Authorization": f"Bearer {bearer_token}"})
    return reply.status_code, reply.json.get("error", {}).get("code")


# teams


def test_create_ends_with_the_token_alone(runner: FlaskCliRunner):
    shown = run(runner, "teams", "create", "blue", "--quota", "250k")
    assert "'blue'" in shown
    assert "250,000" in shown
    assert re.fullmatch(r"tr-[\w-]{43}", shown.splitlines()[-1], re.ASCII)


def test_created_token_works_at_once(runner: FlaskCliRunner, client: FlaskClient):
    bearer_token = run(runner, "teams", "create", "blue").splitlines()[-1]
    assert call(client, bearer_token) == (200, None)


def test_only_hash_and_first_characters_of_a_token_are_stored(runner: FlaskCliRunner, tmp_path):
    bearer_token = run(runner, "teams", "create", "blue").splitlines()[-1]
    with db.engine.connect() as connection:
        row = connection.execute(text("SELECT prefix, token_hash FROM api_tokens")).one()
    assert row == (bearer_token[:8], hashlib.sha256(bearer_token.encode()).hexdigest())
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("tokenrouter.db*"))
    assert bearer_token[:8].encode() in stored
    assert bearer_token[:9].encode() not in stored


@pytest.mark.parametrize(
    ("spelling", "quota"),
    [
        ("2.5M", 2_500_000),
        ("2.5m", 2_500_000),
        ("250k", 250_000),
        ("1B", 10**9),
        ("2,500,000", 2_500_000),
        ("2_500_000", 2_500_000),
        ("2 500 000", 2_500_000),
        ("0", 0),
        ("0.001k", 1),
        ("unlimited", None),
        ("Unlimited", None),
    ],
)
def test_quota_is_read_as_people_write_it(runner: FlaskCliRunner, spelling: str, quota: int | None):
    run(runner, "teams", "create", "made", "--quota", spelling)
    run(runner, "teams", "create", "changed", "--quota", "7")
    run(runner, "teams", "update", "changed", "--quota", spelling)
    assert [team["quota_tokens"] for team in document(runner, "teams", "list")] == [quota, quota]


def test_quota_that_is_no_number_is_a_usage_error(runner: FlaskCliRunner):
    for spelling in ("lots", "", "k", ".", "1.5", "0.0001k", "1e6", "٣", "²", "1kk", "0x10", "2.5.1M", "9" * 5000):
        refused(runner, "teams", "create", "blue", "--quota", spelling, status=2)
    assert document(runner, "teams", "list") == []


@pytest.mark.parametrize("spelling", ["-1", "-2.5M", "2000000b", "1000000000000001"])
def test_quota_out_of_range_is_refused(runner: FlaskCliRunner, team: Member, spelling: str):
    assert "quota" in refused(runner, "teams", "update", "team", "--quota", spelling)
    assert document(runner, "teams", "show", "team")["quota_tokens"] == 100_000


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "a\nb", "a\tb", "a\x00b", "a\x7fb", "a\x85b", "a\x1b[31mb"])
def test_bad_name_is_refused(runner: FlaskCliRunner, team: Member, name: str):
    assert "1 to 200 characters" in refused(runner, "teams", "create", name)
    assert "1 to 200 characters" in refused(runner, "teams", "update", "team", "--rename", name)
    assert [team["name"] for team in document(runner, "teams", "list")] == ["team"]


@pytest.mark.both_databases
@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_awkward_name_is_kept_as_it_is(runner: FlaskCliRunner, name: str):
    run(runner, "teams", "create", "--", name)
    assert json.loads(run(runner, "teams", "show", "--json", "--", name))["name"] == name
    assert name in run(runner, "teams", "list")
    run(runner, "teams", "delete", "--yes", "--", name)
    assert document(runner, "teams", "list") == []


@pytest.mark.both_databases
def test_taken_name_is_refused(runner: FlaskCliRunner, team: Member):
    run(runner, "teams", "create", "other")
    assert "'team'" in refused(runner, "teams", "create", "team")
    assert "'team'" in refused(runner, "teams", "update", "other", "--rename", "team")


def test_list_shows_a_table(runner: FlaskCliRunner, team: Member):
    run(runner, "teams", "create", "free")
    head, _, free, limited = run(runner, "teams", "list").splitlines()
    assert head.split() == ["id", "name", "group", "quota", "used", "held", "remaining", "active"]
    assert limited.split() == [str(team.team.id), "team", "-", "100,000", "0", "0", "100,000", "yes"]
    assert free.split()[1:] == ["free", "-", "unlimited", "0", "0", "unlimited", "yes"]
    for command in (["teams", "show"], ["usage", "show"]):
        told = dict(line.split(None, 1) for line in run(runner, *command, "free").splitlines())
        assert told["quota_tokens"] == told["remaining_tokens"] == "unlimited"


def test_empty_list_says_what_to_do(runner: FlaskCliRunner):
    assert "flask teams create" in run(runner, "teams", "list")
    assert document(runner, "teams", "list") == []


def test_list_as_json_is_an_array_of_teams(runner: FlaskCliRunner, team: Member):
    run(runner, "teams", "create", "free")
    free, limited = document(runner, "teams", "list")
    assert list(free) == list(limited) == TEAM_FIELDS
    assert (free["quota_tokens"], free["remaining_tokens"], free["models"]) == (None, None, None)
    assert (limited["quota_tokens"], limited["remaining_tokens"], limited["active"]) == (100_000, 100_000, True)


def test_show_tells_one_team(runner: FlaskCliRunner, team: Member):
    shown = run(runner, "teams", "show", "team")
    assert [line.split()[0] for line in shown.splitlines()] == TEAM_FIELDS
    assert list(document(runner, "teams", "show", "team")) == TEAM_FIELDS


def test_update_changes_only_what_is_given(runner: FlaskCliRunner, team: Member):
    before = document(runner, "teams", "show", "team")
    run(runner, "teams", "update", "team", "--models", "GPT-5-nano, Gemini-*")
    assert document(runner, "teams", "show", "team") == before | {"models": ["GPT-5-nano", "Gemini-*"]}
    run(runner, "teams", "update", "team", "--models", "default", "--rename", "red", "--quota", "unlimited")
    changed = {"name": "red", "quota_tokens": None, "remaining_tokens": None}
    assert document(runner, "teams", "show", "red") == before | changed


def test_models_that_fit_nothing_in_allowed_models_are_refused_by_name(runner: FlaskCliRunner, team: Member):
    told = refused(runner, "teams", "update", "team", "--models", "gpt-5-nano,claude,gemini*,o1*")
    assert "claude, o1*" in told and "gpt-5-nano" not in told


@pytest.mark.parametrize("models", ["", ",", "a*b", "*a"])
def test_bad_list_of_models_is_refused(runner: FlaskCliRunner, team: Member, models: str):
    assert "models" in refused(runner, "teams", "update", "team", "--models", models)


def test_team_keeps_its_own_name_on_rename_to_it(runner: FlaskCliRunner, team: Member):
    assert "team" in run(runner, "teams", "update", "team", "--rename", "team")


def test_disabled_team_gets_403_until_it_is_enabled(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    run(runner, "teams", "update", "team", "--disable")
    assert call(client, team.bearer_token) == (403, "team_disabled")
    assert document(runner, "teams", "show", "team")["active"] is False
    run(runner, "teams", "update", "team", "--enable")
    assert call(client, team.bearer_token) == (200, None)


def test_renamed_team_keeps_its_token_and_use(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    call(client, team.bearer_token)
    used = document(runner, "teams", "show", "team")["used_tokens"]
    run(runner, "teams", "update", "team", "--rename", "red")
    assert document(runner, "teams", "show", "red")["used_tokens"] == used > 0
    assert call(client, team.bearer_token) == (200, None)


@pytest.mark.both_databases
def test_delete_refuses_the_token_keeps_the_log_and_frees_the_name(
    runner: FlaskCliRunner, client: FlaskClient, team: Member
):
    call(client, team.bearer_token)
    run(runner, "teams", "delete", "team", "--yes")
    assert call(client, team.bearer_token) == (401, "invalid_api_key")
    assert [row["team"] for row in document(runner, "logs", "list")] == ["team"]
    run(runner, "teams", "create", "team")
    assert document(runner, "teams", "show", "team")["used_tokens"] == 0
    assert "The counters equal the log." in run(runner, "usage", "verify")


@pytest.mark.parametrize(
    "command", [("teams", "delete", "team"), ("usage", "reset", "team"), ("usage", "reset", "--all")]
)
@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_changes_unless_the_question_is_answered_by_yes(
    runner: FlaskCliRunner, client: FlaskClient, team: Member, command: tuple[str, ...], answer: str
):
    call(client, team.bearer_token)
    before = document(runner, "teams", "list")
    assert runner.invoke(args=command, input=answer).exit_code == 1
    assert document(runner, "teams", "list") == before


def test_yes_to_the_question_deletes(runner: FlaskCliRunner, team: Member):
    assert "Deleted the team 'team'." in run(runner, "teams", "delete", "team", answer="y\n")
    assert document(runner, "teams", "list") == []


# tokens


def test_second_token_is_printed_alone_and_works(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    bearer_token = run(runner, "tokens", "create", "team", "--label", "laptop").splitlines()[-1]
    assert re.fullmatch(r"tr-[\w-]{43}", bearer_token, re.ASCII)
    assert call(client, bearer_token) == call(client, team.bearer_token) == (200, None)


@pytest.mark.both_databases
def test_tokens_are_listed_by_their_first_characters(runner: FlaskCliRunner, team: Member):
    shown = run(runner, "tokens", "create", "team", "--label", "laptop", "--expires", "2100-01-02")
    first, second = document(runner, "tokens", "list", "team")
    assert list(first) == list(second) == TOKEN_FIELDS
    assert (first["prefix"], first["label"], first["expires_at"]) == (team.bearer_token[:8], None, None)
    assert (second["prefix"], second["label"]) == (shown.splitlines()[-1][:8], "laptop")
    assert second["expires_at"].startswith("2100-01-03T00:00:00")  # valid through that day
    assert all(MOMENT.fullmatch(moment) for moment in (first["created_at"], second["expires_at"]))


@pytest.mark.parametrize("text", ["2100-01-01T12:30:00", "2100-01-01T12:30:00Z"])
def test_token_ends_at_the_moment_that_was_named(runner: FlaskCliRunner, team: Member, text: str):
    run(runner, "tokens", "create", "team", "--expires", text)
    assert document(runner, "tokens", "list", "team")[1]["expires_at"].startswith("2100-01-01T12:30:00")


def test_token_that_ends_today_works_today(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    bearer_token = run(runner, "tokens", "create", "team", "--expires", today).splitlines()[-1]
    assert call(client, bearer_token) == (200, None)


@pytest.mark.parametrize("text", ["2026-02-30", "31.12.2026", "2026-1-1", "٢٠٢٦-12-31", "2026-12-31T25:00:00", "9999"])
def test_no_date_is_told_as_people_write_dates(runner: FlaskCliRunner, team: Member, text: str):
    told = refused(runner, "tokens", "create", "team", "--expires", text, status=2)
    assert "2026-12-31" in told and "%" not in told


def test_help_shows_dates_as_people_write_them(runner: FlaskCliRunner):
    shown = run(runner, "tokens", "create", "--help")
    assert "2026-12-31" in shown and "%" not in shown


def test_list_of_tokens_is_a_table_without_any_token(runner: FlaskCliRunner, team: Member):
    shown = run(runner, "tokens", "list", "team")
    assert team.bearer_token[:8] in shown
    assert team.bearer_token[:9] not in shown
    assert shown.splitlines()[0].split() == TOKEN_FIELDS


@pytest.mark.parametrize("characters", [8, 46])
def test_revoked_token_is_refused_at_its_next_call(
    runner: FlaskCliRunner, client: FlaskClient, team: Member, characters: int
):
    other = run(runner, "tokens", "create", "team").splitlines()[-1]
    assert call(client, other) == (200, None)
    run(runner, "tokens", "revoke", "team", other[:characters])
    assert call(client, other) == (401, "invalid_api_key")
    assert call(client, team.bearer_token) == (200, None)
    assert len(document(runner, "tokens", "list", "team")) == 1


@pytest.mark.parametrize("prefix", ["tr-", "tr-nothing", ""])
def test_prefix_that_fits_no_one_token_revokes_none(runner: FlaskCliRunner, team: Member, prefix: str):
    run(runner, "tokens", "create", "team")
    refused(runner, "tokens", "revoke", "team", prefix)
    assert len(document(runner, "tokens", "list", "team")) == 2


def test_whole_token_with_a_wrong_end_is_not_revoked(runner: FlaskCliRunner, team: Member):
    message = refused(runner, "tokens", "revoke", "team", team.bearer_token[:-1] + "!")
    assert team.bearer_token[:9] not in message


def test_token_of_another_team_is_not_revoked(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    run(runner, "teams", "create", "other")
    refused(runner, "tokens", "revoke", "other", team.bearer_token[:8])
    assert call(client, team.bearer_token) == (200, None)


def test_expired_token_is_refused_at_its_next_call(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    bearer_token = run(runner, "tokens", "create", "team", "--expires", "2100-01-01T12:30:00").splitlines()[-1]
    assert call(client, bearer_token) == (200, None)
    execute("UPDATE api_tokens SET expires_at = '2020-01-01' WHERE expires_at IS NOT NULL")
    assert call(client, bearer_token) == (401, "invalid_api_key")


def test_token_cannot_expire_in_the_past(runner: FlaskCliRunner, team: Member):
    assert "past" in refused(runner, "tokens", "create", "team", "--expires", "2020-01-01")


@pytest.mark.parametrize("label", ["x" * 201, "a\nb", "a\x1b[31mb"])
def test_bad_label_is_refused(runner: FlaskCliRunner, team: Member, label: str):
    assert "label" in refused(runner, "tokens", "create", "team", "--label", label)


# usage


def test_usage_shows_what_was_used(
    runner: FlaskCliRunner, client: FlaskClient, team: Member, provider: StandInProvider
):
    call(client, team.bearer_token)
    one, (only,) = document(runner, "usage", "show", "team"), document(runner, "usage", "show")
    assert one == only
    assert list(one) == TEAM_FIELDS
    assert one["used_tokens"] == provider.tokens_served > 0
    assert one["remaining_tokens"] == 100_000 - one["used_tokens"]
    assert f"{one['used_tokens']:,}" in run(runner, "usage", "show", "team")
    assert f"{one['used_tokens']:,}" in run(runner, "usage", "show")


def test_reset_counts_from_zero_and_keeps_the_log(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    call(client, team.bearer_token)
    log = document(runner, "logs", "list")
    run(runner, "usage", "reset", "team", answer="y\n")
    assert document(runner, "usage", "show", "team")["used_tokens"] == 0
    assert document(runner, "usage", "show", "team")["remaining_tokens"] == 100_000
    assert document(runner, "logs", "list") == log


def test_reset_of_all_resets_every_team(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    call(client, team.bearer_token)
    call(client, run(runner, "teams", "create", "other").splitlines()[-1])
    run(runner, "usage", "reset", "--all", "--yes")
    assert [team["used_tokens"] for team in document(runner, "usage", "show")] == [0, 0]


@pytest.mark.both_databases
def test_verify_finds_counters_equal_to_the_log(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    call(client, team.bearer_token)
    run(runner, "usage", "reset", "team", "--yes")
    call(client, team.bearer_token)
    assert "The counters equal the log." in run(runner, "usage", "verify")


@pytest.mark.both_databases
@pytest.mark.parametrize(
    "corruption",
    [
        "UPDATE teams SET settled_tokens = settled_tokens + 1 WHERE name = 'team'",
        "UPDATE teams SET held_tokens = 5 WHERE name = 'team'",
        "UPDATE teams SET reset_mark_tokens = settled_tokens + 1 WHERE name = 'team'",
        "UPDATE request_logs SET charged_tokens = charged_tokens - 1",
        "DELETE FROM request_logs",
    ],
)
def test_verify_names_the_team_whose_counters_differ(
    runner: FlaskCliRunner, client: FlaskClient, team: Member, corruption: str
):
    run(runner, "teams", "create", "sound")
    call(client, team.bearer_token)
    execute(corruption)
    done = runner.invoke(args=["usage", "verify"])
    assert done.exit_code == 1
    named = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert {name.split(",")[0] for name in named} == {"team"}  # and not the sound one
    assert "Traceback" not in done.stderr


# logs


def test_log_row_has_every_field(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    call(client, team.bearer_token)
    (row,) = document(runner, "logs", "list")
    assert list(row) == LOG_FIELDS
    assert (row["team"], row["token"], row["status"]) == ("team", team.bearer_token[:8], "ok")
    assert MOMENT.fullmatch(row["created_at"])


def test_log_is_a_table_of_the_newest_first(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    ids = [client.post(CHAT, json=HELLO, headers=team.headers).headers["x-request-id"] for _ in range(3)]
    assert [row["request_id"] for row in document(runner, "logs", "list")] == ids[::-1]
    shown = run(runner, "logs", "list").splitlines()
    assert [line.split()[-1] for line in shown] == ["request", shown[1].split()[-1], *ids[::-1]]


@pytest.mark.both_databases
def test_log_is_limited_and_narrowed_to_a_team(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    other = run(runner, "teams", "create", "other").splitlines()[-1]
    for bearer_token in (team.bearer_token, other, team.bearer_token):
        call(client, bearer_token)
    assert [row["team"] for row in document(runner, "logs", "list", "--limit", "2")] == ["team", "other"]
    assert [row["team"] for row in document(runner, "logs", "list", "--team", "team")] == ["team", "team"]
    assert [row["team"] for row in document(runner, "logs", "list", "--team", "team", "--limit", "1")] == ["team"]


def test_empty_log_says_so(runner: FlaskCliRunner, team: Member):
    assert run(runner, "logs", "list") == "No calls yet.\n"
    assert document(runner, "logs", "list") == []


def test_refused_calls_stand_in_the_log(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    run(runner, "teams", "update", "team", "--quota", "0")
    call(client, team.bearer_token)
    (row,) = document(runner, "logs", "list")
    assert (row["status"], row["status_code"], row["charged_tokens"]) == ("rejected", 429, 0)


# refusals


OF_NOBODY = [
    "teams show nobody",
    "teams show nobody --json",
    "teams update nobody --quota 5",
    "teams delete nobody --yes",
    "tokens create nobody",
    "tokens list nobody",
    "tokens revoke nobody tr-12345",
    "usage show nobody",
    "usage reset nobody --yes",
    "logs list --team nobody",
]


def test_unknown_team_is_named_in_one_line(runner: FlaskCliRunner, team: Member):
    for command in OF_NOBODY:
        assert refused(runner, *command.split()) == "Error: There is no team 'nobody'."


MISTAKES = [
    "teams create",
    "teams create a b",
    "teams list --nonsense",
    "teams update team",
    "teams nonsense",
    "tokens create",
    "tokens create team --expires tomorrow",
    "tokens revoke team",
    "usage reset",
    "usage reset team --all",
    "logs list --limit 0",
    "logs list --limit many",
    "nonsense",
]


def test_usage_error_has_status_2(runner: FlaskCliRunner, team: Member):
    for command in MISTAKES:
        refused(runner, *command.split(), status=2)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    "command",
    [
        ("teams", "show", "a\nb"),
        ("teams", "show", "\udcff"),  # a byte that is not UTF-8 on the command line
        ("teams", "create", "\udcff"),
        ("tokens", "revoke", "team", "tr-\udcff"),
        ("tokens", "revoke", "team", "tr-long-and-\udcff"),
    ],
)
def test_odd_argument_is_refused_in_one_line(runner: FlaskCliRunner, team: Member, command: tuple[str, ...]):
    refused(runner, *command)


@pytest.mark.both_databases
def test_limit_larger_than_a_database_takes_breaks_nothing(runner: FlaskCliRunner):
    done = runner.invoke(args=["logs", "list", "--limit", "9" * 20])
    assert done.exit_code in (0, 2)


@pytest.mark.both_databases
@pytest.mark.parametrize("command", ["teams list", "logs list", "usage verify"])
def test_failing_database_is_told_in_one_line(runner: FlaskCliRunner, command: str):
    execute("ALTER TABLE teams RENAME TO lost_teams")
    execute("ALTER TABLE request_logs RENAME TO lost_logs")
    assert refused(runner, *command.split()).startswith("Error: The database failed: ")


def test_database_of_a_later_version_is_told_in_one_line(app: Flask, runner: FlaskCliRunner):
    execute("UPDATE alembic_version SET version_num = '9999'")
    assert "later version" in refused(runner, "teams", "list")


@pytest.mark.parametrize("group", ["teams", "tokens", "usage", "logs"])
def test_every_command_explains_itself(app: Flask, runner: FlaskCliRunner, group: str):
    assert run(runner, group, "--help").startswith("Usage:")
    for name in app.cli.commands[group].commands:
        assert run(runner, group, name, "--help").startswith("Usage:")


def test_commands_are_those_of_the_contract(app: Flask):
    groups = {name: set(command.commands) for name, command in app.cli.commands.items() if hasattr(command, "commands")}
    assert groups["teams"] == {"create", "list", "show", "update", "extra", "import", "delete"}
    assert groups["tokens"] == {"create", "list", "revoke"}
    assert groups["codes"] == {"create", "list", "revoke"}
    assert groups["usage"] == {"show", "report", "reset", "verify", "repair"}
    assert groups["logs"] == {"list", "prune"}
    assert set(app.cli.commands) >= {"backup", "restore", "copy-to", "setup", "demo"}


# management tokens


def test_management_token_stands_alone_on_the_last_line_and_opens_the_api(runner: FlaskCliRunner, client: FlaskClient):
    bearer_token = run(runner, "management-tokens", "create", "--label", "billing").splitlines()[-1]
    assert re.fullmatch(r"trm-[\w-]{43}", bearer_token, re.ASCII)
    assert client.get("/api/teams", headers={"Authorization": f"Bearer {bearer_token}"}).status_code == 200


def test_management_tokens_are_listed_without_the_tokens(runner: FlaskCliRunner):
    bearer_token = run(runner, "management-tokens", "create", "--label", "billing").splitlines()[-1]
    (row,) = document(runner, "management-tokens", "list")
    assert list(row) == TOKEN_FIELDS[:-1]
    assert (row["label"], row["prefix"], row["last_used_at"]) == ("billing", bearer_token[:8], None)
    shown = run(runner, "management-tokens", "list")
    assert bearer_token[:8] in shown and bearer_token not in shown


def test_management_token_is_stored_as_its_hash_alone(runner: FlaskCliRunner, tmp_path):
    bearer_token = run(runner, "management-tokens", "create").splitlines()[-1]
    with db.engine.connect() as connection:
        row = connection.execute(text("SELECT prefix, token_hash FROM management_tokens")).one()
    assert row == (bearer_token[:8], hashlib.sha256(bearer_token.encode()).hexdigest())
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("tokenrouter.db*"))
    assert bearer_token[:9].encode() not in stored


def test_revoked_management_token_is_refused_and_no_longer_listed(runner: FlaskCliRunner, client: FlaskClient):
    bearer_token = run(runner, "management-tokens", "create").splitlines()[-1]
    assert bearer_token[:8] in run(runner, "management-tokens", "revoke", bearer_token[:8])
    assert client.get("/api/teams", headers={"Authorization": f"Bearer {bearer_token}"}).status_code == 401
    assert document(runner, "management-tokens", "list") == []


def test_management_token_that_is_not_told_apart_is_not_revoked(runner: FlaskCliRunner):
    for _ in range(2):
        run(runner, "management-tokens", "create")
    assert "several" in refused(runner, "management-tokens", "revoke", "trm-")
    assert "no management token" in refused(runner, "management-tokens", "revoke", "tr-")
    assert len(document(runner, "management-tokens", "list")) == 2


def test_changes_of_management_tokens_are_recorded(runner: FlaskCliRunner):
    prefix = run(runner, "management-tokens", "create", "--label", "billing").splitlines()[-1][:8]
    run(runner, "management-tokens", "revoke", prefix)
    with db.engine.connect() as connection:
        rows = connection.execute(text("SELECT action, team_id FROM changes ORDER BY id")).all()
    assert rows == [("management_token.create", None), ("management_token.revoke", None)]

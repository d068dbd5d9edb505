"""Teams and tokens by their ids, several teams at once, tokens that are replaced, and quotas as people read them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from conftest import HELLO, TESTER, Member
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from tokenrouter import changes, reports, teams
from tokenrouter.database import tables
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import MOST_QUOTA_TOKENS, ApiToken, Team, db
from tokenrouter.errors import InvalidRequest, NameTaken, NotFound

HOUR = timedelta(hours=1)


def status(client: FlaskClient, bearer_token: str) -> int:
    headers = {"Authorization": f"Bearer {bearer_token}"}
    return client.post("/v1/chat/completions", json=HELLO, headers=headers).status_code


def token_of(member: Member) -> ApiToken:
    return teams.tokens(member.team.id)[0]


def stored_token(token_id: int) -> ApiToken:
    with db.engine.connect() as connection:
        return connection.execute(select(ApiToken.__table__).where(ApiToken.id == token_id)).one()


def set_expiry(token: ApiToken, expires_at: datetime) -> None:
    with writing(db.engine) as connection:
        connection.execute(tables.db.update(ApiToken).where(ApiToken.id == token.id).values(expires_at=expires_at))


def names() -> list[str]:
    return [team.name for team in teams.living()]


# Names

COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"


@pytest.mark.both_databases
def test_names_that_look_the_same_are_the_same(app: Flask):
    assert teams.create(DECOMPOSED, by=TESTER)[0].name == COMPOSED
    for name in (COMPOSED, DECOMPOSED, f" {DECOMPOSED} "):
        with pytest.raises(NameTaken):
            teams.create(name, by=TESTER)
    other, _ = teams.create("other", by=TESTER)
    with pytest.raises(NameTaken):
        teams.update(other.id, rename=DECOMPOSED, by=TESTER)


@pytest.mark.both_databases
def test_name_is_found_however_it_is_composed(new_team: Callable[..., Member]):
    member = new_team(COMPOSED)
    assert teams.find(DECOMPOSED).id == member.team.id
    assert teams.ids_ever_named(DECOMPOSED) == [member.team.id]
    assert [row.id for row in reports.teams_page(search="fe\u0301").rows] == [member.team.id]
    assert [row.id for row in reports.teams_after(0, 9, DECOMPOSED)[0]] == [member.team.id]
    teams.create_token(DECOMPOSED, "laptop", by=TESTER)
    teams.delete(DECOMPOSED, by=TESTER)
    assert names() == []


def test_length_of_a_name_is_that_of_what_is_kept(app: Flask):
    assert teams.check_name("e\u0301" * 200) == "\u00e9" * 200
    with pytest.raises(InvalidRequest):
        teams.check_name("\u00e9" * 201)


HIDING = [*"\0\t\n\r\x1b\x7f\x85\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ud800"]


@pytest.mark.parametrize("character", HIDING, ids=ascii)
def test_text_that_hides_or_turns_others_is_no_name_and_no_label(app: Flask, character: str):
    with pytest.raises(InvalidRequest) as refusal:
        teams.check_name(f"a{character}b")
    assert refusal.value.param == "name"
    with pytest.raises(InvalidRequest) as refusal:
        teams.check_label(f"a{character}b")
    assert refusal.value.param == "label"


@pytest.mark.parametrize("name", ["\u200b", "\u200e\u200f", "\u2060 \ufeff"], ids=ascii)
def test_name_that_nobody_sees_is_refused(name: str):
    for check in (teams.check_name, teams.check_label):
        with pytest.raises(InvalidRequest):
            check(name)


@pytest.mark.parametrize(
    "name",
    ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u200fabc", "👩\u200d💻", "a\u00a0b", "\u3042", "\ue000"],
)
def test_joiners_and_marks_that_scripts_need_are_kept(name: str):
    assert teams.check_name(name) == teams.check_label(name) == name


# By id


@pytest.mark.both_databases
def test_team_is_found_and_changed_by_its_id(team: Member):
    assert teams.update(team.team.id, rename="7", by=TESTER).name == teams.get(team.team.id).name == "7"
    teams.delete(team.team.id, by=TESTER)
    assert names() == []


def test_text_of_digits_is_a_name_and_a_number_an_id(new_team: Callable[..., Member], team: Member):
    other = new_team(str(team.team.id))
    assert teams.find(str(team.team.id)).id == other.team.id
    assert teams.get(team.team.id).name == "team"


@pytest.mark.both_databases
@pytest.mark.parametrize("team_id", [0, -1, 999, 10**30, -(10**30)])
def test_unknown_id_is_not_found(team: Member, team_id: int):
    for call in (
        lambda: teams.get(team_id),
        lambda: teams.update(team_id, quota_tokens=5, by=TESTER),
        lambda: teams.delete(team_id, by=TESTER),
        lambda: teams.create_token(team_id, by=TESTER),
        lambda: teams.revoke_token(team_id, 1, by=TESTER),
        lambda: teams.rotate_token(team_id, 1, HOUR, by=TESTER),
    ):
        with pytest.raises(NotFound, match="no such team"):
            call()


@pytest.mark.both_databases
def test_name_that_no_database_takes_is_not_found(team: Member):
    with pytest.raises(NotFound):
        teams.find("te\0am")


def test_deleted_team_is_not_found_by_its_id(team: Member):
    teams.delete("team", by=TESTER)
    with pytest.raises(NotFound):
        teams.get(team.team.id)


def test_token_is_revoked_by_its_id(client: FlaskClient, team: Member):
    assert teams.revoke_token(team.team.id, token_of(team).id, by=TESTER).prefix == team.bearer_token[:8]
    assert status(client, team.bearer_token) == 401


def test_token_of_another_team_is_not_found_by_its_id(client: FlaskClient, team: Member, new_team):
    other = new_team("other")
    for change in (
        lambda: teams.revoke_token(other.team.id, token_of(team).id, by=TESTER),
        lambda: teams.rotate_token(other.team.id, token_of(team).id, timedelta(0), by=TESTER),
    ):
        with pytest.raises(NotFound, match="no such token"):
            change()
    assert status(client, team.bearer_token) == 200


# Several at once


@pytest.mark.both_databases
def test_several_teams_are_disabled_and_enabled(new_team: Callable[..., Member], client: FlaskClient):
    members = [new_team(name) for name in ("a", "b", "c")]
    ids = [member.team.id for member in members[:2]]
    assert [team.name for team in teams.set_active(ids, False, by=TESTER)] == ["a", "b"]
    assert [status(client, member.bearer_token) for member in members] == [403, 403, 200]
    teams.set_active(ids, True, by=TESTER)
    assert [status(client, member.bearer_token) for member in members] == [200, 200, 200]


def test_only_teams_that_change_are_told_and_recorded(new_team: Callable[..., Member]):
    ids = [new_team(name).team.id for name in ("a", "b")]
    teams.update("a", active=False, by=TESTER)
    assert [team.name for team in teams.set_active([*ids, 999], False, by=TESTER)] == ["b"]
    updates = [row.team_name for row in changes.page().rows if row.action == "team.update"]
    assert updates == ["b", "a"]


@pytest.mark.both_databases
def test_several_teams_are_deleted_with_their_tokens(new_team: Callable[..., Member], client: FlaskClient):
    members = [new_team(name) for name in ("a", "b", "c")]
    ids = [member.team.id for member in members[:2]]
    assert [team.name for team in teams.delete_several(ids, by=TESTER)] == ["a", "b"]
    assert [status(client, member.bearer_token) for member in members] == [401, 401, 200]
    assert teams.delete_several(ids, by=TESTER) == []


def test_several_teams_are_changed_all_or_none(new_team: Callable[..., Member], monkeypatch: pytest.MonkeyPatch):
    ids = [new_team(name).team.id for name in ("a", "b", "c")]
    record = changes.record

    def fail_at_b(*arguments: object, **more: object) -> None:
        if any(each.team_name == "b" for each in arguments[3:]):
            raise OSError
        record(*arguments, **more)

    monkeypatch.setattr(changes, "record", fail_at_b)
    for change in (lambda: teams.delete_several(ids, by=TESTER), lambda: teams.set_active(ids, False, by=TESTER)):
        with pytest.raises(OSError):
            change()
    assert [(team.name, team.active) for team in teams.living()] == [("a", True), ("b", True), ("c", True)]


def test_two_thousand_teams_are_changed_and_deleted_at_once(app: Flask):
    with writing(db.engine) as connection:
        rows = [{"name": f"team {number}", "created_at": datetime.now(UTC)} for number in range(2000)]
        connection.execute(tables.db.insert(Team), rows)
    ids = [team.id for team in teams.living()]
    assert len(teams.set_active(ids, False, by=TESTER)) == len(teams.delete_several(ids, by=TESTER)) == 2000


# Tokens that are replaced


@pytest.mark.both_databases
def test_both_tokens_work_within_the_grace_and_the_new_one_alone_after_it(client: FlaskClient, team: Member):
    old = token_of(team)
    new, bearer_token = teams.rotate_token("team", old.id, HOUR, by=TESTER)
    assert status(client, team.bearer_token) == status(client, bearer_token) == 200
    assert stored_token(old.id).expires_at == new.created_at + HOUR
    assert stored_token(old.id).replaced_by_id == new.id
    set_expiry(old, datetime.now(UTC))
    assert (status(client, team.bearer_token), status(client, bearer_token)) == (401, 200)


def test_without_grace_the_old_token_is_refused_at_once(client: FlaskClient, team: Member):
    _, bearer_token = teams.rotate_token("team", token_of(team).id, timedelta(0), by=TESTER)
    assert (status(client, team.bearer_token), status(client, bearer_token)) == (401, 200)
    assert [token.prefix for token in teams.tokens("team")] == [bearer_token[:8]]


def test_new_token_takes_over_label_and_expiry(team: Member):
    expires_at = datetime.now(UTC) + timedelta(days=10)
    old, _ = teams.create_token("team", "laptop", expires_at, by=TESTER)
    new, _ = teams.rotate_token("team", old.id, HOUR, by=TESTER)
    assert (new.label, new.expires_at) == ("laptop", expires_at)
    assert stored_token(old.id).expires_at < expires_at


def test_grace_does_not_outlast_the_old_tokens_own_expiry(team: Member):
    expires_at = datetime.now(UTC) + HOUR
    old, _ = teams.create_token("team", expires_at=expires_at, by=TESTER)
    teams.rotate_token("team", old.id, timedelta(days=3), by=TESTER)
    assert stored_token(old.id).expires_at == expires_at


def test_token_in_its_grace_is_not_replaced_again(team: Member):
    old = token_of(team)
    teams.rotate_token("team", old.id, HOUR, by=TESTER)
    with pytest.raises(teams.NotUsable, match="been replaced"):
        teams.rotate_token("team", old.id, HOUR, by=TESTER)
    assert len(teams.tokens("team")) == 2


def test_token_in_its_grace_can_be_revoked(client: FlaskClient, team: Member):
    old = token_of(team)
    teams.rotate_token("team", old.id, HOUR, by=TESTER)
    teams.revoke_token("team", old.id, by=TESTER)
    assert status(client, team.bearer_token) == 401


def test_expired_token_is_not_replaced(team: Member):
    old = token_of(team)
    set_expiry(old, datetime.now(UTC))
    with pytest.raises(teams.NotUsable, match="expired"):
        teams.rotate_token("team", old.id, HOUR, by=TESTER)


def test_revoked_token_is_not_replaced(team: Member):
    old = token_of(team)
    teams.revoke_token("team", old.id, by=TESTER)
    with pytest.raises(NotFound):
        teams.rotate_token("team", old.id, HOUR, by=TESTER)


@pytest.mark.parametrize("grace", [timedelta(seconds=-1), timedelta(days=90, seconds=1), timedelta.max])
def test_grace_out_of_range_is_refused(client: FlaskClient, team: Member, grace: timedelta):
    with pytest.raises(InvalidRequest) as refusal:
        teams.rotate_token("team", token_of(team).id, grace, by=TESTER)
    assert refusal.value.param == "grace"
    assert status(client, team.bearer_token) == 200


# Quotas as people read them


@pytest.mark.parametrize(
    ("quota", "shown"),
    [
        (None, "unlimited"),
        (0, "0"),
        (950, "950"),
        (1_000, "1k"),
        (1_500, "1.5k"),
        (1_234, "1,234"),
        (100_000, "100k"),
        (2_500_000, "2.5M"),
        (2_550_000, "2.55M"),
        (2_555_000, "2,555,000"),
        (2_500_001, "2,500,001"),
        (999_999, "999,999"),
        (10**9, "1B"),
        (10**15, "1,000T"),
    ],
)
def test_quota_is_shown_short_where_that_is_exact(quota: int | None, shown: str):
    assert teams.format_quota(quota) == shown


@pytest.mark.parametrize(
    ("typed", "quota"),
    [
        ("2500000", 2_500_000),
        ("2,500,000", 2_500_000),
        ("2_500_000", 2_500_000),
        ("2 500 000", 2_500_000),
        ("25,00,000", 2_500_000),
        (" 2.5 m ", 2_500_000),
        ("1,500k", 1_500_000),
        ("2,5M", 2_500_000),
        ("0,25 m", 250_000),
        ("Unlimited", None),
    ],
)
def test_quota_is_read_as_people_write_it(typed: str, quota: int | None):
    assert teams.parse_quota(typed) == quota


@pytest.mark.parametrize(
    "typed",
    ["2,5", "1,50", "1,500,5k", "2,5555M", "250.000", "1.5", "1e6", "+5", "２", "2.5MM", "0x10", "5 tokens", ""],
)
def test_quota_that_could_mean_another_number_is_none(typed: str):
    with pytest.raises(teams.NotANumber):
        teams.parse_quota(typed)


@given(st.one_of(st.none(), st.integers(0, MOST_QUOTA_TOKENS)))
def test_shown_quota_reads_back_as_the_same(quota: int | None):
    assert teams.parse_quota(teams.format_quota(quota)) == quota

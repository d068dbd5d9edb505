"""Those turned away at the door: counted by minute, address and token, without growing."""

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from conftest import HELLO, TESTER, Member, eventually
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, insert, select

from tokenrouter import reports, runtime, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ApiToken, DoorRefusal, db
from tokenrouter.ledger import door
from tokenrouter.ledger.door import Door

CHAT = "/v1/chat/completions"


def lines(app: Flask) -> set[tuple[str, str, int, int]]:
    """Return what stands in the database once all is written: reason, address, token and count."""
    runtime.of(app).ledger._write_refusals()
    assert eventually(lambda: not runtime.of(app).ledger.door._is_writing)
    columns = DoorRefusal.reason, DoorRefusal.address, DoorRefusal.token_id
    query = select(*columns, func.sum(DoorRefusal.requests)).group_by(*columns)
    with db.engine.connect() as connection:
        return {(*row[:3], int(row[3])) for row in connection.execute(query)}


def token_of(member: Member) -> int:
    with db.engine.connect() as connection:
        return connection.execute(select(ApiToken.id).where(ApiToken.team_id == member.team.id)).scalar_one()


@pytest.mark.both_databases
def test_each_is_counted_by_reason_address_and_the_token_that_it_once_was(
    app: Flask, client: FlaskClient, new_team: Callable[..., Member]
):
    revoked, deleted, living = new_team("revoked"), new_team("deleted"), new_team("living")
    tokens = [token_of(member) for member in (revoked, deleted, living)]
    teams.revoke_token(revoked.team.id, tokens[0], by=TESTER)
    teams.delete(deleted.team.id, by=TESTER)
    assert client.get("/v1/nothing").status_code == 404
    for headers in ({}, {"Authorization": "Bearer tr-guess"}, revoked.headers, revoked.headers, deleted.headers):
        assert client.post(CHAT, json=HELLO, headers=headers).status_code == 401
    away = {"REMOTE_ADDR": "2001:db8:1:2:3:4:5:6"}
    assert client.post(CHAT, data="{", headers=living.headers, environ_overrides=away).status_code == 400
    assert lines(app) == {
        ("no_token", "127.0.0.1", 0, 1),
        ("unknown_token", "127.0.0.1", 0, 1),
        ("revoked_token", "127.0.0.1", tokens[0], 2),
        ("token_of_deleted_team", "127.0.0.1", tokens[1], 1),
        ("bad_request", "2001:db8:1:2::/64", tokens[2], 1),
        ("unknown_url", "127.0.0.1", 0, 1),
    }
    client.post(CHAT, json=HELLO, headers=revoked.headers)
    assert ("revoked_token", "127.0.0.1", tokens[0], 3) in lines(app)  # added to the same minute, or one of the next


def test_what_has_a_row_of_the_log_is_not_counted(app: Flask, client: FlaskClient, new_team: Callable[..., Member]):
    for fields in ({"quota_tokens": 0}, {"active": False}, {"models": "GPT-5-mini"}):
        member = new_team(str(fields), **fields)
        for _ in range(2):
            assert client.post(CHAT, json=HELLO, headers=member.headers).status_code in (403, 404, 429)
    assert client.post(CHAT, json=HELLO | {"messages": "x"}, headers=member.headers).status_code == 400
    assert {line[0] for line in lines(app)} == {"bad_request"}


def test_management_api_counts_wrong_tokens_alone(app: Flask, client: FlaskClient, bearers: dict[str, str]):
    client.get("/api/teams")
    client.get("/api/teams/999", headers={"Authorization": f"Bearer {bearers['/api/']}"})
    assert lines(app) == {("no_management_token", "127.0.0.1", 0, 1)}


def test_stranger_with_ever_new_tokens_and_addresses_fills_neither_memory_nor_rows(app: Flask, client: FlaskClient):
    counted = runtime.of(app).ledger.door
    for number in range(3 * door.MOST_OF_STRANGERS):
        headers = {"Authorization": f"Bearer tr-{secrets.token_urlsafe(32)}"}
        from_there = {"REMOTE_ADDR": f"10.0.{number // 250}.{number % 250}"}
        client.post(CHAT, json=HELLO, headers=headers, environ_overrides=from_there)
    assert len(counted._counts) <= 2 * door.MOST_OF_STRANGERS + 4  # should a minute end meanwhile
    counts = lines(app)
    assert sum(count for *_, count in counts) == 3 * door.MOST_OF_STRANGERS
    assert (others := {line for line in counts if line[1] == door.OTHERS})
    assert {line[2] for line in others} == {0}


def test_strangers_do_not_crowd_out_a_teams_token():
    counted = Door()
    for number in range(door.MOST_OF_STRANGERS + 10):
        counted.count(f"10.0.0.{number}", "unknown_token")
    counted.count("192.0.2.1", "revoked_token", token_id=7)
    taken = counted.take()
    assert [line[1:] for line, _ in taken.counts if line.token_id] == [("192.0.2.1", "revoked_token", 7)]


def test_what_cannot_be_written_waits_within_bounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(door, "MOST_WAITING", 20)
    counted = Door()
    counted.count("192.0.2.1", "unknown_token")
    assert counted.take() is not None
    for number in range(100):
        counted.count(f"10.0.0.{number}", "unknown_token")
    assert counted.take() is None  # the first is not written yet
    assert len(counted._counts) <= 22
    counted.note_written()
    assert sum(count for _, count in counted.take().counts) == 100


def test_threads_that_count_at_once_lose_nothing():
    counted = Door()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [counted.count("192.0.2.1", "no_token") for _ in range(500)], range(8)))
    assert sum(count for _, count in counted.take().counts) == 4000


@pytest.mark.both_databases
def test_what_is_older_than_thirty_days_is_forgotten(app: Flask, client: FlaskClient):
    now = int(datetime.now(UTC).timestamp()) // 60
    old = [{"minute": now - days * 1440, "address": "old", "reason": "no_token", "token_id": 0} for days in (29, 31)]
    with writing(db.engine) as connection:
        connection.execute(insert(DoorRefusal), [{**each, "requests": 5} for each in old])
    client.get("/v1/models")
    assert lines(app) == {("no_token", "old", 0, 5), ("no_token", "127.0.0.1", 0, 1)}


@pytest.mark.both_databases
def test_report_has_the_last_day_and_names_the_team(app: Flask, client: FlaskClient, team: Member):
    teams.revoke_token(team.team.id, token_of(team), by=TESTER)
    for _ in range(3):
        client.get("/v1/models", headers=team.headers)
    client.get("/v1/models")
    lines(app)
    found = reports.turned_away(datetime.now(UTC))
    assert (found.requests, found.has_more) == (4, False)
    first, second = found.lines
    assert (first.reason, first.team_name, first.prefix) == ("revoked_token", "team", team.bearer_token[:8])
    assert (second.reason, second.team_name) == ("no_token", None)
    assert reports.turned_away(datetime.now(UTC) + timedelta(hours=25)).lines == []

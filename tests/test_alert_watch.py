"""What is looked at by the clock, and what is told when the database itself cannot be written."""

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rivals
from conftest import TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient
from receiver import Receiver, running_receiver
from sqlalchemy import insert, select, update

from tokenrouter import account, alerts, ledger, runtime, runway, teams
from tokenrouter.alerts import watch
from tokenrouter.alerts.outbox import KEPT, prune
from tokenrouter.alerts.watch import check_balance, check_disk, check_paces, check_provider, check_revoked_tokens
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import AccountCheck, Alert, Delivery, RequestLog, UsageDaily, db
from tokenrouter.errors import StorageUnavailable
from tokenrouter.standin import StandInProvider

NOW = datetime.now(UTC)


def told() -> list[tuple[str, bool]]:
    """What was told, and whether it is over."""
    with db.engine.connect() as connection:
        rows = connection.execute(select(Alert.kind, Alert.ended_at).order_by(Alert.id))
        return [(kind, ended_at is not None) for kind, ended_at in rows]


def words() -> list[str]:
    speaker = alerts.Speaker(runtime.current().settings.timezone, "USD")
    return [str(alert.words) for alert in reversed(alerts.alerts_page(speaker).alerts)]


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe"}


def look_at_provider() -> None:
    check_provider(db.engine, runtime.current().account, datetime.now(UTC))


def test_empty_account_and_refused_key_are_told_until_a_call_is_answered(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    for status, kind in (("402", "account_empty"), ("401", "key_refused")):
        provider.defaults = {"status": status}
        chat(client, team)
        for _ in range(2):
            look_at_provider()
        assert told()[-1] == (kind, False)
        provider.defaults = {}
        chat(client, team)
        look_at_provider()
        assert told()[-1] == (kind, True)
    assert len(told()) == 2


def test_provider_is_told_to_be_down_after_a_minute_if_it_still_is(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    provider.defaults = provider.account.faults = {"drop": "1"}
    chat(client, team)
    look_at_provider()
    assert told() == []
    with writing(db.engine) as connection:
        connection.execute(update(RequestLog).values(created_at=datetime.now(UTC) - timedelta(minutes=2)))
    look_at_provider()
    assert told() == [("provider_down", False)]
    provider.account.faults = {}
    provider.defaults = {}
    chat(client, team)
    look_at_provider()
    assert told() == [("provider_down", True)]


def test_call_that_failed_a_while_ago_tells_nothing_where_the_provider_answers_by_now(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    provider.defaults = {"drop": "1"}
    chat(client, team)
    with writing(db.engine) as connection:
        connection.execute(update(RequestLog).values(created_at=datetime.now(UTC) - timedelta(minutes=2)))
    look_at_provider()
    assert told() == []


def test_provider_that_is_away_is_told_without_any_call(app: Flask, provider: StandInProvider):
    provider.account.faults = {"drop": "1"}
    account.refresh(db.engine, runtime.current().account)
    with writing(db.engine) as connection:
        connection.execute(update(AccountCheck).values(at=datetime.now(UTC) - timedelta(minutes=5)))
    look_at_provider()
    assert told() == [("provider_down", False)]


def test_balance_that_will_not_last_is_told_once(app: Flask, monkeypatch: pytest.MonkeyPatch):
    left = runway.Runway(NOW, 10, None, "USD", None, None, False, NOW + timedelta(days=2))
    monkeypatch.setattr(runway, "runway", lambda *_: left)
    for _ in range(2):
        check_balance(db.engine, NOW)
    assert told() == [("balance_ends", False)] and "the account lasts until" in words()[0]
    monkeypatch.setattr(runway, "runway", lambda *_: None)
    check_balance(db.engine, NOW)
    assert told() == [("balance_ends", True)]


def test_disk_that_fills_is_told_and_that_it_is_emptier(app: Flask, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    for free in (50, 9, 11, 13):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(100 * 10**9, 0, free * 10**9))
        check_disk(db.engine)
        assert told() == {50: [], 9: [("disk", False)], 11: [("disk", False)], 13: [("disk", True)]}[free]
    assert "9.0 GB of 100.0 GB are free" in words()[0]


@pytest.mark.both_databases
def test_revoked_token_in_use_is_told_once_and_again_after_a_quiet_day(client: FlaskClient, team: Member):
    (token,) = teams.tokens(team.team.id)
    teams.revoke_token(team.team.id, token.id, by=TESTER)
    assert client.get("/v1/models", headers=team.headers).status_code == 401
    runtime.current().ledger._write_refusals()
    runtime.current().ledger.check_writing()
    now = datetime.now(UTC)
    for _ in range(2):
        check_revoked_tokens(db.engine, now)
    assert told() == [("revoked_token", False)]
    assert words()[0].startswith("A revoked token of the team “team” is still in use.")
    check_revoked_tokens(db.engine, now + timedelta(days=2))
    assert told() == [("revoked_token", True)]
    check_revoked_tokens(db.engine, now)
    assert told() == [("revoked_token", True), ("revoked_token", False)]


@pytest.mark.both_databases
def test_team_that_will_run_out_early_is_told_once_in_its_period(new_team: Callable[..., Member], client: FlaskClient):
    member = new_team("nine", quota_tokens=10_000, renewal=teams.parse_renewal("monthly"))
    now = datetime.now(UTC).replace(day=10)
    chat(client, member, "prompt_tokens=100 words=1")
    with writing(db.engine) as connection:
        connection.execute(update(UsageDaily).values(day=now.date(), total_tokens=6000))
        connection.execute(update(alerts.listing.db.metadata.tables["teams"]).values(settled_tokens=6000))
    for _ in range(2):
        check_paces(db.engine, now)
    assert told() == [("runs_out", False)]
    assert words()[0].startswith("The team “nine” will run out before it renews. At its pace what is left lasts until")
    teams.update("nine", quota_tokens=10**9, by=TESTER)
    check_paces(db.engine, now)
    assert told() == [("runs_out", True)]


@pytest.mark.both_databases
def test_what_verify_finds_is_told_until_it_is_repaired(app: Flask, client: FlaskClient, team: Member):
    chat(client, team)
    watch.check_books(app)
    assert told() == []
    with writing(db.engine) as connection:
        connection.exec_driver_sql("UPDATE teams SET settled_tokens = settled_tokens + 7")
    watch.check_books(app)
    assert told() == [("books", False)] and words()[0].startswith("Counters and log do not agree. team: ")
    ledger.repair(db.engine, by=TESTER)
    watch.check_books(app)
    assert told() == [("books", True)]


def test_one_thing_that_cannot_be_looked_at_keeps_nothing_else_from_it(app: Flask, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError("no such folder")

    looked: list[object] = []
    monkeypatch.setattr(watch, "check_shares", fail)
    monkeypatch.setattr(watch, "check_revoked_tokens", lambda *_: looked.append(1))
    with pytest.raises(ExceptionGroup, match="could be looked at"):
        watch.look(app, runtime.current().account)
    assert looked == [1]


def test_jobs_have_both(app: Flask):
    assert {"alerts", "alerts ahead", "verify"} <= set(runtime.current().jobs.names)


def test_old_alerts_are_forgotten_and_those_that_last_are_not(app: Flask):
    old = NOW - KEPT - timedelta(days=1)
    row = {"kind": "disk", "at": old, "details": {}}
    with writing(db.engine) as connection:
        connection.execute(insert(Alert), [{"uid": "1", "ended_at": old, **row}, {"uid": "2", "ended_at": None, **row}])
        told = {"alert_id": 1, "says": "begun", "channel": "mail", "address": "a", "state": "delivered"}
        connection.execute(insert(Delivery).values(**told, created_at=0, due_at=0, attempts=1))
    prune(db.engine)
    with db.engine.connect() as connection:
        assert connection.execute(select(Alert.uid)).scalars().all() == ["2"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


class FrailLedger:
    """A ledger that may have stopped writing, as an OutageWatch sees one."""

    written_at = 0.0
    is_broken = False

    def check_writing(self) -> None:
        if self.is_broken:
            raise StorageUnavailable from OSError("disk full")


def outage_watch(receiver: Receiver, own: FrailLedger) -> tuple[alerts.OutageWatch, Any]:
    made = alerts.OutageWatch(db.engine, own, rivals.sender_to(receiver.url, db.engine).receivers)
    clock = [1000.0]
    made.clock = lambda: clock[0]
    own.written_at = 1000.0
    return made, clock


def test_database_that_cannot_be_written_for_a_minute_is_told_all_the_same(app: Flask, receiver: Receiver):
    own = FrailLedger()
    outage, clock = outage_watch(receiver, own)
    own.is_broken = True
    receiver.answers = [(500, {})]
    for passed in (30, 31, 10, 60, 60):
        clock[0] += passed
        outage.look()
    assert len(receiver.came) == 2 and len(set(receiver.ids)) == 1  # once in vain, then once more
    assert "The database cannot be written. OSError: disk full, on " in receiver.texts[1]
    own.is_broken, own.written_at = False, clock[0]
    outage.look()
    rivals.sender_to(receiver.url, db.engine).deliver_due()
    assert receiver.texts[2].startswith("TokenRouter: Over: the database cannot be written.")
    assert told() == [("database", True)] and receiver.ids[2] == f"{receiver.ids[0]}-over"
    outage.close()


def test_short_outage_is_not_told(app: Flask, receiver: Receiver):
    own = FrailLedger()
    outage, clock = outage_watch(receiver, own)
    for passed, written in ((59, False), (1, True), (59, False)):
        clock[0] += passed
        own.written_at = clock[0] if written else own.written_at
        outage.look()
    assert receiver.came == [] and told() == []
    outage.close()

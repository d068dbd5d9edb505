"""Quotas that begin anew: every reader and every call sees the same, whenever they look and however many there are."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import HELLO, TESTER, Member, hello, stored
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import select, update

from tokenrouter import changes, ledger, reports, runtime, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import QuotaRenewal, RequestLog, Team, db
from tokenrouter.errors import InvalidRequest, NotFound
from tokenrouter.periods import Renewal
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.both_databases

CHAT = "/v1/chat/completions"
UTC_ZONE, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
DAILY = Renewal("daily")


def seconds_now() -> float:
    return datetime.now(UTC).timestamp()


def make_due(member: Member, seconds_ago: float = 1) -> int:
    """Have the time to renew come, so long ago."""
    due_at = int(seconds_now() - seconds_ago)
    with writing(db.engine) as connection:
        connection.execute(update(Team).where(Team.id == member.team.id).values(renews_at=due_at))
    return due_at


def call(client: FlaskClient, member: Member, body: dict[str, Any] = HELLO) -> int:
    return client.post(CHAT, json=body, headers=member.headers).status_code


def seen(member: Member) -> dict[str, Any]:
    """Return what people see of a team."""
    return reports.team_view(teams.get(member.team.id))


def renewals() -> list[Any]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(QuotaRenewal.__table__).order_by(QuotaRenewal.id)))


def is_proven() -> bool:
    return ledger.verify(db.engine).problems == []


@pytest.fixture
def daily(new_team: Callable[..., Member]) -> Member:
    return new_team("daily", quota_tokens=100_000, renewal=DAILY)


def test_first_call_after_the_time_renews(client: FlaskClient, daily: Member, provider: StandInProvider):
    assert call(client, daily) == 200
    before = seen(daily)["used_tokens"]
    assert before > 0
    due_at = make_due(daily)
    assert call(client, daily) == 200
    assert seen(daily)["used_tokens"] == provider.tokens_served - before
    (renewal,) = renewals()
    assert (renewal.team_id, renewal.due_at, renewal.used_tokens) == (daily.team.id, due_at, before)
    assert stored(daily).renews_at == DAILY.next_after(seconds_now(), UTC_ZONE)
    assert is_proven()


def test_views_are_right_before_any_call(client: FlaskClient, daily: Member, runner: FlaskCliRunner):
    assert call(client, daily) == 200
    ledger.add_extra(db.engine, daily.team, 5, UTC_ZONE, by=TESTER)
    make_due(daily)
    view = seen(daily)
    assert (view["used_tokens"], view["extra_tokens"], view["remaining_tokens"]) == (0, 0, 100_000)
    following = datetime.fromtimestamp(DAILY.next_after(seconds_now(), UTC_ZONE), UTC)
    assert view["renews_at"] == reports.timestamp(following)
    (row,) = reports.teams_page().rows
    assert (row.used_tokens, row.remaining_tokens, row.share, row.renews_at) == (0, 100_000, 0, following)
    own = client.get("/v1/usage", headers=daily.headers).json
    assert (own["used_tokens"], own["renews_at"]) == (0, view["renews_at"])
    assert stored(daily).settled_tokens > stored(daily).reset_mark_tokens  # nobody had to touch it
    assert is_proven()


def test_sums_in_the_database_know_that_the_time_has_come(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    teams.update("daily", quota_tokens=1, by=TESTER)
    assert reports.teams_page(near_quota="exhausted").total == 1
    make_due(daily)
    assert reports.teams_page(near_quota="exhausted").total == 0
    assert ledger.reset(db.engine, [daily.team.id], by=TESTER) == 0  # nothing is used that could be reset
    ledger.add_extra(db.engine, daily.team, 5, UTC_ZONE, by=TESTER)
    assert [row.allowance_tokens for row in reports.teams_page().rows] == [6]
    teams.update("daily", quota_tokens=0, by=TESTER)
    assert reports.teams_page(near_quota="exhausted").total == 0
    make_due(daily)
    assert reports.teams_page(near_quota="exhausted").total == 1  # the extra has ended


def test_used_up_quota_lets_calls_through_again(client: FlaskClient, daily: Member):
    teams.update("daily", quota_tokens=60, by=TESTER)
    while (reply := client.post(CHAT, json=hello(max_tokens=16), headers=daily.headers)).status_code == 200:
        pass
    tomorrow = datetime.fromtimestamp(DAILY.next_after(seconds_now(), UTC_ZONE), UTC)
    assert f"It renews on {tomorrow.day} {tomorrow:%B %Y} at 00:00 UTC." in reply.json["error"]["message"]
    make_due(daily)
    assert call(client, daily, hello(max_tokens=16)) == 200
    assert is_proven()


def test_stream_over_the_instant_counts_into_the_new_period(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    stream = client.post(CHAT, json=hello("words=5", stream=True), headers=daily.headers)
    make_due(daily)
    assert stream.data.endswith(b"data: [DONE]\n\n")
    with db.engine.connect() as connection:
        charged = list(connection.execute(select(RequestLog.charged_tokens).order_by(RequestLog.id)).scalars())
    assert [row.used_tokens for row in renewals()] == [charged[0]]
    assert seen(daily)["used_tokens"] == charged[1]
    assert stored(daily).held_tokens == 0
    assert is_proven()


def test_service_that_was_down_over_several_instants_renews_once(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    make_due(daily, seconds_ago=3 * 86400)
    assert seen(daily)["used_tokens"] == 0
    assert call(client, daily) == 200
    assert len(renewals()) == 1
    assert stored(daily).renews_at == DAILY.next_after(seconds_now(), UTC_ZONE)


def test_many_calls_over_the_instant_are_counted_in_one_period_or_the_other(app: Flask, daily: Member):
    def calls(count: int) -> int:
        with app.test_client() as own:
            return sum(call(own, daily, hello(max_tokens=8)) == 200 for _ in range(count))

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(calls, 25) for _ in range(8)]
        for _ in range(20):
            make_due(daily)
        assert sum(each.result() for each in running) == 200
    used = seen(daily)["used_tokens"]
    assert sum(row.used_tokens for row in renewals()) + used == stored(daily).settled_tokens
    with db.engine.connect() as connection:
        charged = sum(connection.execute(select(RequestLog.charged_tokens)).scalars())
    assert stored(daily).settled_tokens == charged
    assert is_proven()


def test_reset_in_the_middle_leaves_the_next_renewal_where_it_is(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    at = stored(daily).renews_at
    ledger.reset(db.engine, [daily.team.id], by=TESTER)
    assert call(client, daily) == 200
    assert stored(daily).renews_at == at
    make_due(daily)
    assert call(client, daily) == 200
    assert is_proven()


def test_other_period_holds_from_now_on(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    used = seen(daily)["used_tokens"]
    teams.update("daily", renewal=Renewal("monthly", 31), by=TESTER)
    assert stored(daily).renews_at == Renewal("monthly", 31).next_after(seconds_now(), UTC_ZONE)
    assert seen(daily)["used_tokens"] == used
    teams.update("daily", renewal=Renewal("never"), by=TESTER)
    assert (stored(daily).renews_at, seen(daily)["renews_at"]) == (None, None)
    assert [row.after for row in changes.page(limit=2).rows] == [{"renews": "never"}, {"renews": "monthly:31"}]


def test_renewal_that_was_due_still_counts_where_the_period_is_changed(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    make_due(daily)
    teams.update("daily", renewal=Renewal("never"), by=TESTER)
    assert seen(daily)["used_tokens"] == 0
    assert call(client, daily) == 200
    assert len(renewals()) == 1
    assert stored(daily).renews_at is None
    assert is_proven()


def test_period_changed_by_hand_holds_from_the_next_call(client: FlaskClient, team: Member):
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(renews="weekly"))
    following = Renewal("weekly").next_after(seconds_now(), UTC_ZONE)
    assert seen(team)["renews_at"] == reports.timestamp(datetime.fromtimestamp(following, UTC))
    assert call(client, team) == 200
    assert stored(team).renews_at == following
    assert is_proven()


def test_other_time_zone_holds_from_the_next_call(client: FlaskClient, app: Flask, daily: Member):
    app.config["TIMEZONE"] = BERLIN
    runtime.of(app).ledger._zone = BERLIN
    following = DAILY.next_after(seconds_now(), BERLIN)
    assert seen(daily)["renews_at"] == reports.timestamp(datetime.fromtimestamp(following, UTC))
    assert call(client, daily) == 200
    assert stored(daily).renews_at == following


def test_extra_ends_with_the_period(client: FlaskClient, daily: Member):
    ledger.add_extra(db.engine, daily.team, 50_000, UTC_ZONE, by=TESTER)
    assert seen(daily)["remaining_tokens"] == 150_000
    assert call(client, daily, hello(max_tokens=120_000)) == 200
    make_due(daily)
    assert call(client, daily) == 200
    assert (stored(daily).extra_tokens, seen(daily)["remaining_tokens"] < 100_000) == (0, True)
    ledger.add_extra(db.engine, daily.team, 7, UTC_ZONE, by=TESTER)  # is of the new one
    assert (seen(daily)["extra_tokens"], [row.extra_tokens for row in renewals()]) == (7, [50_000])
    assert [row.after for row in changes.page(limit=1).rows] == [{"extra_tokens": 7}]
    assert is_proven()


def test_extra_raises_what_a_blocked_team_may_use(client: FlaskClient, new_team: Callable[..., Member]):
    blocked = new_team("blocked", quota_tokens=0)
    assert call(client, blocked) == 429
    ledger.add_extra(db.engine, blocked.team, 10_000, UTC_ZONE, by=TESTER)
    assert call(client, blocked) == 200


@pytest.mark.parametrize("tokens", [-1, 10**15 + 1])
def test_extra_is_from_nothing_to_the_largest_quota(team: Member, tokens: int):
    with pytest.raises(InvalidRequest):
        ledger.add_extra(db.engine, team.team, tokens, UTC_ZONE, by=TESTER)
    assert stored(team).extra_tokens == 0


def test_no_extra_for_a_team_that_is_gone(team: Member):
    teams.delete("team", by=TESTER)
    with pytest.raises(NotFound):
        ledger.add_extra(db.engine, team.team, 1, UTC_ZONE, by=TESTER)


def test_recovery_renews_too(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    make_due(daily)
    with writing(db.engine) as connection:
        connection.execute(update(RequestLog).values(status="pending", charged_tokens=0, worker_id=10**6))
        connection.execute(update(Team).values(held_tokens=0, settled_tokens=0))
    assert ledger.recover(db.engine, {}) == 1
    assert [row.used_tokens for row in renewals()] == [0]
    assert seen(daily)["used_tokens"] == stored(daily).settled_tokens > 0


def test_repair_keeps_what_was_renewed(client: FlaskClient, daily: Member):
    for _ in range(2):
        assert call(client, daily) == 200
        make_due(daily)
    assert call(client, daily) == 200
    used = seen(daily)["used_tokens"]
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(reset_mark_tokens=0))
    assert not is_proven()
    assert ledger.repair(db.engine, by=TESTER) != []
    assert seen(daily)["used_tokens"] == used
    make_due(daily)
    assert call(client, daily) == 200
    assert is_proven()


def test_forgotten_renewal_is_found(client: FlaskClient, daily: Member):
    assert call(client, daily) == 200
    make_due(daily)
    assert call(client, daily) == 200
    with writing(db.engine) as connection:
        connection.execute(QuotaRenewal.__table__.delete())
    assert "in the resets and renewals" in ledger.verify(db.engine).problems[0]


def test_verify_counts_renewals(client: FlaskClient, daily: Member, runner: FlaskCliRunner):
    make_due(daily)
    assert call(client, daily) == 200
    assert " and 1 renewal in " in runner.invoke(args=["usage", "verify"]).output


def test_commands_set_periods_and_give_extras(runner: FlaskCliRunner):
    def run(*arguments: str) -> str:
        done = runner.invoke(args=arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "renewed monthly:15" in run("teams", "create", "blue", "--quota", "1M", "--renews", "monthly:15")
    assert "weekly" in run("teams", "update", "blue", "--renews", "weekly")
    assert "250,000" in run("teams", "extra", "blue", "--tokens", "250k")
    assert "150,000" in run("teams", "extra", "blue", "--tokens", "-100k")
    for wrong in ("yearly", "monthly:32", "weekly:1", "monthly:x", ""):
        assert runner.invoke(args=["teams", "update", "blue", "--renews", wrong]).exit_code == 2, wrong
    assert runner.invoke(args=["teams", "extra", "blue", "--tokens", "unlimited"]).exit_code == 2
    assert runner.invoke(args=["teams", "extra", "blue", "--tokens=-1M"]).exit_code == 1


def test_date_of_renewal_is_in_the_services_zone(app: Flask, new_team: Callable[..., Member]):
    app.config["TIMEZONE"] = BERLIN
    member = new_team("berlin", renewal=DAILY)
    at = datetime.fromtimestamp(stored(member).renews_at, BERLIN)
    assert (at.hour, at.minute) == (0, 0)
    assert timedelta(0) < at - datetime.now(UTC) <= timedelta(hours=25)


class Skewed(datetime):
    """The clock of a machine that is a minute off."""

    skew = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + cls.skew


@pytest.mark.parametrize("seconds", [-60, 60])
def test_clock_of_the_database_decides_and_not_the_machines(
    client: FlaskClient, daily: Member, monkeypatch: pytest.MonkeyPatch, seconds: int
):
    monkeypatch.setattr(Skewed, "skew", timedelta(seconds=seconds))
    monkeypatch.setattr("tokenrouter.relay.handler.datetime", Skewed)
    monkeypatch.setattr(time, "time", lambda: datetime.now(UTC).timestamp() + seconds)
    assert call(client, daily) == 200
    make_due(daily, seconds_ago=-30)  # which is past for a machine that is ahead
    assert call(client, daily) == 200
    assert renewals() == []
    assert seen(daily)["used_tokens"] == stored(daily).settled_tokens
    make_due(daily, seconds_ago=30)  # and is to come for one that is behind
    assert seen(daily)["used_tokens"] == 0
    assert call(client, daily) == 200
    (renewal,) = renewals()
    assert abs(renewal.renewed_at - seconds_now()) < 20
    assert is_proven()

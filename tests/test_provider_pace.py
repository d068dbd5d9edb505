"""The pace of the whole service at the provider: exact, fair among teams, and honest to those that it sends away."""

import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
import rivals
import warm
from adminclient import Panel
from conftest import HELLO, Member, eventually, hello, running_server, stored
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from rawhttp import chat_request, connect
from sqlalchemy import insert, select, update
from werkzeug.test import TestResponse

from tokenrouter import account_pace, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ProviderPace, RequestLog, WaitingCall, db
from tokenrouter.ledger import Ledger, operations, worker
from tokenrouter.ledger.pace import MINUTE_NS
from tokenrouter.ledger.provider_pace import SECOND_NS, Waiting, serving_order
from tokenrouter.provider.rate_limits import RateLimits, requested_wait_s
from tokenrouter.standin import StandInProvider

CHAT = "/v1/chat/completions"
TESTER = Actor("cli", "tester@tests")

both_databases = pytest.mark.both_databases


def ask(client: FlaskClient, member: Member, directives: str = "", **fields: object) -> TestResponse:
    return client.post(CHAT, json=hello(directives, **fields), headers=member.headers, buffered=True)


def set_pace(full_in_s: float, *, blocked_s: float = 0.0, **values: int) -> None:
    """Leave the pace so that it is whole again in so many seconds: of one of 60 a minute, 60 - that is free."""
    now = time.time_ns()
    values |= {"full_at": now + round(full_in_s * SECOND_NS), "blocked_until": now + round(blocked_s * SECOND_NS)}
    with writing(db.engine) as connection:
        if connection.execute(update(ProviderPace).values(**values)).rowcount == 0:
            connection.execute(insert(ProviderPace).values(**{"id": 1, "waiting": 0, **values}))


def let_wait(worker_name: str, team_ids: Iterable[int], *, ago_s: float = 0.0) -> None:
    """Have calls wait, as those of another worker do."""
    now = time.time_ns() - round(ago_s * SECOND_NS)
    calls = [
        {"worker": worker_name, "team_id": team_id, "tokens": 10, "since": now + number, "seen_at": now}
        for number, team_id in enumerate(team_ids)
    ]
    with writing(db.engine) as connection:
        connection.execute(insert(WaitingCall), calls)
        connection.execute(update(ProviderPace).values(waiting=ProviderPace.waiting + len(calls)))


def pace_row() -> Any:
    with db.engine.connect() as connection:
        return connection.execute(select(ProviderPace.__table__)).first()


def waiting_calls() -> list[Any]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(WaitingCall.__table__)))


def rows(status: str) -> list[Any]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(RequestLog.__table__).where(RequestLog.status == status)))


@pytest.fixture
def pace() -> str:
    return "60"


@pytest.fixture
def settings(settings: dict[str, str], pace: str) -> dict[str, str]:
    return settings | {"PROVIDER_REQUESTS_PER_MINUTE": pace}


# whose turn it is


def test_nine_teams_are_served_between_the_first_and_the_second_call_of_one_that_sends_fifty():
    many = [Waiting(number, "w", 1, 1000, number) for number in range(50)]
    nine = [Waiting(100 + team, "w", team, 1000, 100) for team in range(2, 11)]
    order = [call.team_id for call in serving_order([*many, *nine], {})]
    assert order[:10] == [1, *range(2, 11)]
    assert order[10:] == [1] * 49


def test_team_with_fewest_tokens_of_the_last_minute_is_first_and_calls_that_hold_none_take_turns():
    calls = [Waiting(number, "w", team, 0, number) for number, team in enumerate([1, 1, 1, 2, 2, 3])]
    assert [call.team_id for call in serving_order(calls, {1: 5, 3: 1})] == [2, 2, 3, 1, 1, 1]


# exact, and taken by nothing that was refused


def test_without_the_setting_nothing_of_it_happens(settings: dict[str, str], request: pytest.FixtureRequest):
    settings["PROVIDER_REQUESTS_PER_MINUTE"] = ""
    client, member = request.getfixturevalue("client"), request.getfixturevalue("team")
    assert ask(client, member).status_code == 200
    assert ask(client, member, "status=429 retry_after=30").status_code == 429
    assert (ask(client, member).status_code, pace_row(), waiting_calls()) == (200, None, [])


@pytest.mark.slow
@both_databases
def test_four_processes_get_as_many_places_as_the_pace_has(app: Flask, database_url: str, team: Member):
    """On a clock that stands still, as the database tells it."""
    processes = [(database_url, str(number), 40, 100) for number in range(4)]
    assert sum(warm.at_once(rivals.reserve_calls, *processes)) == 100
    assert len({row.request_id for row in rows("rejected")}) == 1


@both_databases
@pytest.mark.parametrize("pace", ["2"])
def test_call_that_another_limit_refuses_takes_no_place(client: FlaskClient, new_team: Callable[..., Member]):
    poor, rich = new_team("poor", quota_tokens=0), new_team("rich")
    assert [ask(client, poor).status_code for _ in range(3)] == [429, 429, 429]
    assert ask(client, rich, model="no such").status_code == 404
    assert [ask(client, rich).status_code for _ in range(3)] == [200, 200, 429]


@both_databases
def test_call_waits_for_its_place_with_nothing_held(client: FlaskClient, team: Member, provider: StandInProvider):
    set_pace(68)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(ask, client, team)
        assert eventually(lambda: len(waiting_calls()) == 1)
        assert (stored(team).held_tokens, provider.calls) == (0, [])
        set_pace(0)
        assert reply.result().status_code == 200
    assert (waiting_calls(), pace_row().waiting, rows("rejected")) == ([], 0, [])


@both_databases
def test_call_that_its_quota_refuses_after_the_wait_gives_its_place_back(client: FlaskClient, team: Member):
    set_pace(68)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(ask, client, team)
        assert eventually(lambda: len(waiting_calls()) == 1)
        teams.update("team", quota_tokens=0, by=TESTER)
        set_pace(30)
        full_at = pace_row().full_at
        assert reply.result().json["error"]["code"] == "insufficient_quota"
    assert (waiting_calls(), pace_row().waiting, pace_row().full_at) == ([], 0, full_at)


# sent away


def test_call_that_waited_in_vain_is_told_when_its_turn_would_be(
    client: FlaskClient, new_team: Callable[..., Member], provider: StandInProvider, monkeypatch: pytest.MonkeyPatch
):
    member = new_team("patient")
    monkeypatch.setattr(worker, "PATIENCE_S", 0.2)
    set_pace(68)  # a place in 9 s
    first, again = ask(client, member), ask(client, member)
    error = first.json["error"]
    assert (first.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "provider_busy")
    assert 5000 < int(first.headers["retry-after-ms"]) < 9000
    assert int(first.headers["Retry-After"]) == -(-int(first.headers["retry-after-ms"]) // 1000)
    assert "x-should-retry" not in first.headers
    assert "60 requests a minute, and 0 other calls wait. Try again in " in error["message"]
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    (row,) = rows("rejected")
    assert (row.status_code, row.error_code, row.charged_tokens) == (429, "provider_busy", 0)
    assert row.reason.startswith("0 other calls wait for 60 requests a minute of the whole account; a place in ")
    assert (provider.calls, stored(member).held_tokens, waiting_calls(), pace_row().waiting) == ([], 0, [], 0)


def test_told_wait_counts_those_whose_turn_is_before(
    client: FlaskClient, new_team: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker, "PATIENCE_S", 0.2)
    heavy, light = new_team("heavy"), new_team("light")
    assert ask(client, heavy, "prompt_tokens=500 words=500").status_code == 200
    set_pace(66)  # a place in 7 s
    let_wait("another", [light.team.id] * 3)
    refused = ask(client, heavy)
    assert "3 other calls wait" in refused.json["error"]["message"]
    assert 8000 < int(refused.headers["retry-after-ms"]) < 10_000


def test_where_no_place_gets_free_in_time_nobody_waits(client: FlaskClient, team: Member):
    set_pace(0, blocked_s=30)
    refused = ask(client, team)
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "provider_busy")
    assert 20 < int(refused.headers["Retry-After"]) <= 30


def test_provider_that_wants_to_be_left_alone_is(client: FlaskClient, team: Member, provider: StandInProvider):
    relayed = ask(client, team, "status=429 retry_after=20")
    assert (relayed.status_code, relayed.headers["Retry-After"]) == (429, "20")
    assert "provider_busy" not in relayed.text
    assert eventually(lambda: pace_row().blocked_until > time.time_ns())
    refused = ask(client, team)
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "provider_busy")
    assert 10 <= int(refused.headers["Retry-After"]) <= 20
    assert len(provider.calls) == 1


def test_a_model_that_is_busy_for_a_day_stops_the_service_for_a_minute_at_most(client: FlaskClient, team: Member):
    ask(client, team, "status=429 retry_after=86400")
    assert eventually(lambda: pace_row().blocked_until > time.time_ns())
    assert pace_row().blocked_until < time.time_ns() + MINUTE_NS


# those who are gone


@both_databases
def test_calls_of_a_dead_worker_are_forgotten(client: FlaskClient, team: Member):
    set_pace(59)
    let_wait("dead", [99, 99], ago_s=8)
    assert ask(client, team).status_code == 200
    assert (waiting_calls(), pace_row().waiting) == ([], 0)


def test_newcomer_takes_no_place_from_those_who_wait(client: FlaskClient, team: Member):
    set_pace(59)
    let_wait("another", [99])
    assert ask(client, team).status_code == 200
    (other,) = waiting_calls()
    assert (other.team_id, other.granted_at is None) == (99, False)


def test_count_of_those_who_wait_that_is_wrong_stops_nobody(client: FlaskClient, team: Member):
    set_pace(0, waiting=7)
    assert ask(client, team).status_code == 200
    assert pace_row().waiting == 0


def test_pace_that_was_written_before_the_clock_was_set_back_stops_nobody_for_long(client: FlaskClient, team: Member):
    set_pace(86400, blocked_s=86400)
    refused = ask(client, team)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) <= 61


# fair


@both_databases
def test_nine_teams_are_served_within_one_round_of_one_that_sends_fifty(app: Flask):
    """Two workers give out one place after the other, by turns."""
    workers = [Ledger(db.engine, 100, requests_per_minute=1) for _ in range(2)]
    set_pace(60)
    let_wait("first", [1] * 50, ago_s=-3600)  # so that none is forgotten, however long this takes
    granted: list[int] = []
    for place in range(13):
        if place == 2:
            let_wait("second", range(2, 11), ago_s=-3600)
        set_pace(-1, blocked_s=-1)  # SQLite's clock lags behind by up to a millisecond
        workers[place % 2].give_out_places()
        known = {call.id for call in waiting_calls() if call.granted_at is not None}
        (new,) = known - set(granted)
        granted.append(new)
    for each in workers:
        each.close()
    team_of = {call.id: call.team_id for call in waiting_calls()}
    assert [team_of[each] for each in granted] == [1, 1, *range(2, 11), 1, 1]
    assert pace_row().waiting == 46


# what is told of it


def test_limits_that_the_provider_tells_are_kept_for_all(app: Flask):
    limits = RateLimits()
    keeper = account_pace.Keeper(db.engine, limits)
    limits.note(
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "413",
            "x-ratelimit-reset-requests": "9",
        }
    )
    keeper.keep()
    limits.note(
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "412",
            "x-ratelimit-reset-requests": "9",
        }
    )
    limits.note({"x-ratelimit-remaining-tokens": "98000", "x-ratelimit-reset-tokens": "2h30m"})
    keeper.keep()
    requests, tokens = account_pace.reported_limits(db.engine)
    assert (requests.most, requests.remaining, tokens.remaining) == (500, 412, 98000)
    words = account_pace.limits_words([requests], ZoneInfo("UTC"))
    assert words == "412 of 500 requests left this minute"
    assert "and 98,000 tokens left until " in account_pace.limits_words([requests, tokens], ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("12ms", 0.012), ("1s", 1), ("6m0s", 360), ("2m59.56s", 179.56), ("30", 30), ("1h2m", 3720), ("soon", None),
     ("-1", None)],
)  # fmt: skip
def test_resets_are_read_as_providers_write_them(reset: str, seconds: float | None):
    limits = RateLimits()
    limits.note({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": reset})
    (limit,) = limits.newest()
    told = None if limit.resets_at is None else (limit.resets_at - limit.at).total_seconds()
    assert told == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7), ({"Retry-After": "7", "Retry-After-Ms": "1500"}, 1.5), ({}, None),
     ({"Retry-After": "nan"}, None), ({"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0)],
)  # fmt: skip
def test_waits_are_read_as_providers_write_them(headers: dict[str, str], seconds: float | None):
    assert requested_wait_s(headers) == seconds


def test_limits_are_read_from_answers_and_seen_on_the_page_and_by_the_command(
    client: FlaskClient, team: Member, panel: Panel, runner: FlaskCliRunner
):
    assert ask(client, team).status_code == 200
    told = runtime.current().provider.rate_limits.newest()
    assert told
    words = account_pace.limits_words(told, ZoneInfo("UTC"))
    assert f"The provider says: {words}, as of " in runner.invoke(args=["provider", "check"]).output
    assert f"the provider says: {words}, as of <time" in panel.get("/admin/account/").text


def test_who_waits_is_seen_on_dashboard_and_account(client: FlaskClient, team: Member, panel: Panel):
    assert "No call waits for the provider’s pace" in panel.get("/admin/").text
    set_pace(60)
    let_wait("another", [98, 99, 99])
    assert "3 calls of 2 teams wait for the provider’s pace" in panel.get("/admin/").text
    assert re.search(
        r"Waiting</dt><dd><span class=\"num\">3</span><small>of 2 teams", panel.get("/admin/account/").text
    )


@pytest.mark.parametrize("pace", [""])
def test_without_a_pace_the_dashboard_says_nothing_of_it(client: FlaskClient, panel: Panel):
    assert "pace" not in panel.get("/admin/").text
    assert "No pace is set" in panel.get("/admin/account/").text


def test_openai_sdk_waits_as_long_as_it_is_told_and_succeeds(
    app: Flask, team: Member, monkeypatch: pytest.MonkeyPatch, openai: ModuleType
):
    """A place would be free in 21 s, for which nobody waits here; the SDK's sleep frees one."""
    monkeypatch.setattr(operations, "PATIENCE_S", 0.0)
    pauses: list[float] = []
    clock = SimpleNamespace(time=time.time, sleep=lambda seconds: (pauses.append(seconds), set_pace(0)))
    monkeypatch.setattr(openai._base_client, "time", clock)
    options = {"api_key": team.bearer_token, "base_url": "http://localhost/v1"}
    with (
        httpx.Client(transport=httpx.WSGITransport(app=app)) as http,
        openai.OpenAI(**options, http_client=http) as sdk,
    ):
        set_pace(80)
        with pytest.raises(openai.RateLimitError) as refused:
            sdk.with_options(max_retries=0).chat.completions.create(**HELLO)
        assert (refused.value.code, refused.value.type) == ("provider_busy", "rate_limit_error")
        sdk.chat.completions.create(**HELLO)
    assert len(pauses) == 1
    assert 10 < pauses[0] < 21


@pytest.mark.slow
def test_caller_who_leaves_gives_up_its_turn(
    settings: dict[str, str], app: Flask, team: Member, tmp_path: Path, provider: StandInProvider
):
    with running_server(settings, tmp_path) as server:
        set_pace(69)
        connection = connect(server)
        connection.sendall(chat_request(team.bearer_token, HELLO))
        assert eventually(lambda: len(waiting_calls()) == 1, 8)
        connection.close()
        assert eventually(lambda: waiting_calls() == [])
    assert (pace_row().waiting, provider.calls, rows("rejected")) == (0, [], [])

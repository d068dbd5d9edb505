"""How fast a team may call: exact over processes, told as OpenAI tells it, and never taken by what was refused."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import rivals
import warm
from conftest import HELLO, TESTER, Member, Server, eventually, hello, stored
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from werkzeug.test import TestResponse

from tokenrouter import ledger, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Team, db
from tokenrouter.ledger.pace import MINUTE_NS, Bucket, duration

CHAT = "/v1/chat/completions"
NOW = 1_800_000_000 * 10**9

both_databases = pytest.mark.both_databases

# buckets


@given(st.integers(1, 200_000))
def test_full_bucket_gives_exactly_its_limit_at_once(limit: int):
    bucket = Bucket(limit, 0)
    bucket.take(limit - 1, NOW) if limit > 1 else None
    assert bucket.wait_ns(1, NOW) == 0
    bucket.take(1, NOW)
    assert bucket.wait_ns(1, NOW) > 0
    assert bucket.remaining(NOW) == 0


@pytest.mark.parametrize("limit", [1, 7, 60, 100, 999, 100_000])
def test_requests_one_by_one_are_as_many_as_the_limit(limit: int):
    bucket, taken = Bucket(limit, 0), 0
    while bucket.wait_ns(1, NOW) == 0:
        assert bucket.remaining(NOW) == limit - taken
        bucket.take(1, NOW)
        taken += 1
    assert taken == limit


@given(st.integers(1, 10**6), st.lists(st.integers(1, 10**6), max_size=20))
def test_after_the_told_wait_there_is_room_and_not_before(limit: int, amounts: list[int]):
    bucket, now = Bucket(limit, 0), NOW
    for amount in amounts:
        wait_ns = bucket.wait_ns(amount, now)
        if wait_ns is None:
            assert amount > limit
            continue
        if wait_ns:
            assert bucket.wait_ns(amount, now + wait_ns - 1) == 1
        now += wait_ns
        assert bucket.wait_ns(amount, now) == 0
        bucket.take(amount, now)


def test_what_is_put_back_can_be_taken_again_and_what_does_not_fit_flows_over():
    bucket = Bucket(100, 0)
    bucket.take(80, NOW)
    bucket.correct(-50, NOW)
    assert bucket.remaining(NOW) == 70
    bucket.correct(-1000, NOW)
    bucket.take(1, NOW)
    assert bucket.remaining(NOW) == 99


def test_bucket_refills_steadily():
    bucket = Bucket(60, 0)
    bucket.take(60, NOW)
    assert [bucket.remaining(NOW + seconds * 10**9) for seconds in (0, 1, 30, 60, 600)] == [0, 1, 30, 60, 60]
    assert Bucket(0, 0).wait_ns(1, NOW) is None


@pytest.mark.parametrize(
    ("nanoseconds", "told"),
    [(0, "0ms"), (1, "1ms"), (12 * 10**6, "12ms"), (999 * 10**6, "999ms"), (10**9, "1s"), (1001 * 10**6, "2s"),
     (MINUTE_NS, "1m0s"), (6 * MINUTE_NS, "6m0s")],
)  # fmt: skip
def test_durations_are_told_as_openai_tells_them(nanoseconds: int, told: str):
    assert duration(nanoseconds) == told


# calls


def ask(client: FlaskClient, member: Member, **fields: object) -> TestResponse:
    return client.post(CHAT, json={**HELLO, "max_tokens": 100, **fields}, headers=member.headers)


def refusal(reply: TestResponse) -> tuple[int, str, str]:
    error = reply.json["error"]
    return reply.status_code, error["type"], error["code"]


TOO_FAST = (429, "requests", "rate_limit_exceeded")


@both_databases
def test_requests_beyond_the_pace_are_told_how_long_to_wait(client: FlaskClient, new_team: Callable[..., Member]):
    member = new_team("slow", requests_per_minute=2)
    first, second, third = (ask(client, member) for _ in range(3))
    assert (first.status_code, second.status_code, refusal(third)) == (200, 200, TOO_FAST)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "30s"
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert 29_000 < int(third.headers["retry-after-ms"]) <= 30_000
    assert third.headers["Retry-After"] == "30"
    assert "may make 2 a minute" in third.json["error"]["message"]
    assert stored(member).held_tokens == 0


@both_databases
def test_tokens_are_taken_as_held_and_corrected_once_the_call_has_ended(
    client: FlaskClient, new_team: Callable[..., Member]
):
    member = new_team("slow", tokens_per_minute=1000)
    reply = ask(client, member, max_tokens=900)
    assert reply.status_code == 200
    used = reply.json["usage"]["total_tokens"]
    again = ask(client, member, max_tokens=900)  # fits only since most of the first was put back
    assert again.status_code == 200
    assert int(again.headers["x-ratelimit-limit-tokens"]) == 1000
    assert int(again.headers["x-ratelimit-remaining-tokens"]) <= 1000 - 900 - used
    refused = ask(client, member, max_tokens=960)
    assert refusal(refused) == (429, "tokens", "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after-ms"]) < 60_000
    never = ask(client, member, max_tokens=1001)
    assert never.headers["x-should-retry"] == "false"
    assert "It can never fit." in never.json["error"]["message"]


@both_databases
def test_refusal_takes_nothing_from_any_limit(client: FlaskClient, new_team: Callable[..., Member]):
    member = new_team("slow", quota_tokens=100_000, requests_per_minute=2, tokens_per_minute=1000)
    for _ in range(5):
        assert refusal(ask(client, member, max_tokens=1000)) == (429, "tokens", "rate_limit_exceeded")
        assert ask(client, member, model="no such").status_code == 404
    assert [ask(client, member).status_code for _ in range(2)] == [200, 200]


@both_databases
def test_calls_at_once(app: Flask, client: FlaskClient, new_team: Callable[..., Member]):
    member = new_team("few", calls_at_once=2)
    streams = [ask(client, member, **hello("words=1 hang=1", stream=True)) for _ in range(2)]
    third = ask(client, member)
    assert refusal(third) == TOO_FAST
    assert "may have 2, and has 2" in third.json["error"]["message"]
    assert third.headers["Retry-After"] == "1"
    for stream in streams:
        stream.close()
    assert eventually(lambda: stored(member).calls_in_flight == 0)
    assert ask(client, member).status_code == 200


@both_databases
def test_leaked_count_of_calls_refuses_nobody_and_is_mended(client: FlaskClient, new_team: Callable[..., Member]):
    member = new_team("few", calls_at_once=1)
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(calls_in_flight=7))
    assert "7 calls in flight, and 0 pending" in ledger.verify(db.engine).problems[0]
    assert ask(client, member).status_code == 200
    assert stored(member).calls_in_flight == 0
    assert ledger.verify(db.engine).problems == []


@both_databases
def test_repair_sets_the_count_of_calls(client: FlaskClient, team: Member):
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(calls_in_flight=-3))
    assert ledger.repair(db.engine, by=TESTER) != []
    assert stored(team).calls_in_flight == 0


@both_databases
@pytest.mark.parametrize("pace", ["requests_per_minute", "tokens_per_minute", "calls_at_once"])
def test_zero_blocks_and_none_does_not(client: FlaskClient, new_team: Callable[..., Member], pace: str):
    member = new_team("blocked", **{pace: 0})
    blocked = ask(client, member)
    assert blocked.status_code == 429
    assert blocked.headers["x-should-retry"] == "false"
    teams.update("blocked", **{pace: None}, by=TESTER)
    reply = ask(client, member)
    assert reply.status_code == 200
    assert not [name for name in dict(reply.headers) if name.lower().startswith("x-ratelimit")]


@both_databases
def test_lowered_pace_never_bursts_the_column(client: FlaskClient, new_team: Callable[..., Member]):
    member = new_team("vast", tokens_per_minute=10**12)
    stream = ask(client, member, **hello("words=2", stream=True), max_tokens=2**31 - 1)
    teams.update("vast", tokens_per_minute=1, by=TESTER)
    assert stream.data.endswith(b"data: [DONE]\n\n")
    assert eventually(lambda: stored(member).held_tokens == 0)
    assert 0 <= stored(member).tokens_full_at < 2**63
    assert ask(client, member).status_code == 429


@both_databases
def test_group_that_puts_back_and_takes_is_as_exact_as_one_by_one(
    app: Flask, client: FlaskClient, new_team: Callable[..., Member]
):
    member = new_team("many", tokens_per_minute=2000)
    body = hello("prompt_tokens=20 words=80", max_tokens=80)

    def call(_: int) -> int:
        with app.test_client() as own:
            return own.post(CHAT, json=body, headers=member.headers).status_code

    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        codes = Counter(pool.map(call, range(60)))
    refilled = 2000 * (time.monotonic() - began) / 60
    used = stored(member).settled_tokens
    assert used <= 2000 + refilled
    assert codes[200] >= 15
    assert codes.keys() == {200, 429}


@pytest.mark.slow
@both_databases
def test_eight_processes_are_admitted_as_often_as_the_limit(database_url: str, new_team: Callable[..., Member]):
    """On a clock that stands still, as the database tells it."""
    member = new_team("slow", requests_per_minute=100)
    processes = [(database_url, str(number), 40) for number in range(8)]
    assert sum(warm.at_once(rivals.reserve_calls, *processes)) == 100
    assert stored(member).calls_in_flight in (0, 100)


def test_openai_sdk_waits_as_long_as_it_is_told_and_succeeds(server: Server, openai: ModuleType):
    token = server.create_team()
    server.flask("teams", "update", "team", "--requests-per-minute", "30")
    with openai.OpenAI(api_key=token, base_url=f"{server.url}/v1", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as refused:
            for _ in range(60):  # 30 are let through at once, and one more for two seconds that those take
                client.chat.completions.create(**HELLO)
        assert refused.value.code == "rate_limit_exceeded"
    began = time.monotonic()
    with openai.OpenAI(api_key=token, base_url=f"{server.url}/v1", max_retries=2) as client:
        client.chat.completions.create(**HELLO)
    assert 0.5 < time.monotonic() - began < 20


def test_commands_set_and_end_a_pace(runner: FlaskCliRunner, app: Flask):
    def shown(*arguments: str) -> str:
        done = runner.invoke(args=["teams", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    shown("create", "blue", "--requests-per-minute", "60", "--calls-at-once", "8")
    told = shown("update", "blue", "--tokens-per-minute", "100k", "--calls-at-once", "none")
    assert [line.split()[1] for line in told.splitlines() if "per_minute" in line or "at_once" in line] == [
        "60", "100,000", "-",
    ]  # fmt: skip
    assert runner.invoke(args=["teams", "update", "blue", "--requests-per-minute", "many"]).exit_code == 2
    assert runner.invoke(args=["teams", "update", "blue", "--calls-at-once=-1"]).exit_code == 2
    vast = runner.invoke(args=["teams", "update", "blue", "--tokens-per-minute", "9999999999999999"])
    assert "such as 60 or 10k" in vast.output

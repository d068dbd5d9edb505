"""Real processes: a quota under concurrency, and workers that die."""

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from conftest import Server, eventually, hello, running_server
from rawhttp import chat_request
from serving import answers, post, settings_for
from sqlalchemy import create_engine, text

from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.slow


def shown(server: Server, team: str = "team") -> dict[str, object]:
    return json.loads(server.flask("teams", "show", team, "--json").stdout)


def logged_calls(database_url: str) -> dict[str, int]:
    """Return how many calls the log tells of by status; refusals that repeat share a row."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT status, sum(repeats) FROM request_logs GROUP BY status")).all()
    engine.dispose()
    return {status: int(calls) for status, calls in rows}


class Sampler:
    """Watch the counters of all teams from outside, as often as the machine allows."""

    def __init__(self, database_url: str) -> None:
        self.worst = float("-inf")
        self.samples = 0
        self._engine = create_engine(database_url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.dispose()

    def _watch(self) -> None:
        query = text("SELECT max(settled_tokens - reset_mark_tokens + held_tokens - quota_tokens) FROM teams")
        while not self._stop.is_set():
            with self._engine.connect() as connection:
                self.worst = max(self.worst, connection.execute(query).scalar())
            self.samples += 1
            time.sleep(0.002)


def test_quota_for_ten_calls_lets_exactly_ten_of_fifty_through(server: Server, database_url: str):
    token = server.create_team("team", 1)
    prompt = 23  # what the reservation will hold for this prompt; the provider reports the same
    body = hello(f"prompt_tokens={prompt} words=100 delay=0.3", max_tokens=100)
    assert f"needs about {prompt} tokens for its prompt" in post(server, token, body).json()["error"]["message"]
    server.flask("teams", "update", "team", "--quota", str(10 * (prompt + 100)))

    with Sampler(database_url) as sampler, ThreadPoolExecutor(50) as pool:
        codes = Counter(pool.map(lambda _: post(server, token, body).status_code, range(50)))

    assert codes == {200: 10, 429: 40}
    assert sampler.samples > 10
    assert sampler.worst <= 0
    assert shown(server)["used_tokens"] == 10 * (prompt + 100)
    assert shown(server)["held_tokens"] == 0
    assert server.flask("usage", "verify").returncode == 0
    assert "locked" not in server.log.read_text()


FIFTY_OF_A_THOUSAND = {200: 50, 429: 950}
CROWD = {"WEB_CONCURRENCY": "4", "THREADS": "1000", "TEAM_CALLS": "1000"}


async def call_a_thousand_times(server: Server, tokens: list[str], body: dict[str, object]) -> Counter[int]:
    """Make all calls at once, the teams in turn; return how many got which status."""
    of_teams = [chat_request(token, body, "Connection: close") for token in tokens]
    calls = (status_of_call(server, of_teams[number % len(of_teams)]) for number in range(1000))
    async with asyncio.timeout(60):
        return Counter(await asyncio.gather(*calls))


async def status_of_call(server: Server, request: bytes) -> int:
    """Read the answer to its end; OpenAI's SDK would take more time for that than the service."""
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(maxsplit=2)[1])


@pytest.mark.both_databases
def test_quota_for_fifty_calls_lets_exactly_fifty_of_a_thousand_through(settings, tmp_path):
    prompt, output = 23, 100
    body = hello(f"prompt_tokens={prompt} words={output} delay=0.3", max_tokens=output)
    with running_server(settings | CROWD, tmp_path) as server:
        token = server.create_team("team", 50 * (prompt + output))
        assert asyncio.run(call_a_thousand_times(server, [token], body)) == FIFTY_OF_A_THOUSAND
        assert shown(server)["used_tokens"] == 50 * (prompt + output)
        assert shown(server)["held_tokens"] == 0
        assert eventually(lambda: logged_calls(settings["DATABASE_URL"]) == {"ok": 50, "rejected": 950})
        assert server.flask("usage", "verify").returncode == 0


@pytest.mark.both_databases
def test_groups_quota_for_fifty_calls_lets_exactly_fifty_of_a_thousand_through(settings, tmp_path):
    prompt, output = 23, 100
    body = hello(f"prompt_tokens={prompt} words={output} delay=0.3", max_tokens=output)
    with running_server(settings | CROWD, tmp_path) as server:
        server.flask("groups", "create", "year 9", "--quota", str(50 * (prompt + output)))
        tokens = [server.create_team(f"9{letter}", group="year 9") for letter in "abcde"]
        assert asyncio.run(call_a_thousand_times(server, tokens, body)) == FIFTY_OF_A_THOUSAND
        group = json.loads(server.flask("groups", "show", "year 9", "--json").stdout)
        assert (group["used_tokens"], group["held_tokens"]) == (50 * (prompt + output), 0)
        assert sum(shown(server, name)["used_tokens"] for name in group["teams"]) == group["used_tokens"]
        assert eventually(lambda: logged_calls(settings["DATABASE_URL"]) == {"ok": 50, "rejected": 950})
        assert server.flask("usage", "verify").returncode == 0


@pytest.mark.both_databases
def test_budget_for_fifty_calls_lets_exactly_fifty_of_a_thousand_through(settings, tmp_path):
    prompt, output = 23, 100
    body = hello(f"prompt_tokens={prompt} words={output} delay=0.3", max_tokens=output)
    with running_server(settings | CROWD, tmp_path) as server:
        server.flask("prices", "set", "*", "--input", "1000", "--output", "10000")
        cost = Decimal(prompt) / 1000 + Decimal(output) / 100
        token = server.create_team("team")
        server.flask("teams", "update", "team", "--budget", str(50 * cost))
        assert asyncio.run(call_a_thousand_times(server, [token], body)) == FIFTY_OF_A_THOUSAND
        assert Decimal(shown(server)["cost"]) == Decimal(shown(server)["budget"]) == 50 * cost
        assert eventually(lambda: logged_calls(settings["DATABASE_URL"]) == {"ok": 50, "rejected": 950})
        assert server.flask("usage", "verify").returncode == 0


@pytest.mark.sqlite_only
def test_quota_holds_though_one_of_four_workers_is_stopped_in_the_middle(settings, database_url, tmp_path):
    """Its calls are settled by another worker; once it goes on they are answered, and change nothing."""
    prompt, output = 23, 100
    quota = 50 * (prompt + output)
    body = hello(f"prompt_tokens={prompt} words={output} delay=12", max_tokens=output)
    options = {"WEB_CONCURRENCY": "4", "THREADS": "100", "TEAM_CALLS": "100"}
    with running_server(settings | options, tmp_path) as server:
        token = server.create_team("team", quota)
        with Sampler(database_url) as sampler, ThreadPoolExecutor(200) as pool:
            calls = [pool.submit(post, server, token, body) for _ in range(200)]
            # all others are refused by then, so that nobody is stopped while he writes and keeps all from writing
            assert eventually(lambda: logged_calls(database_url).get("pending", 0) >= 40)
            assert eventually(lambda: sum(call.done() for call in calls) >= 150)
            stopped = busiest_worker(database_url)
            os.kill(stopped, signal.SIGSTOP)
            try:
                assert eventually(lambda: logged_calls(database_url).get("interrupted"), 60)
                assert eventually(lambda: "pending" not in logged_calls(database_url), 10)
                assert post(server, token, hello(max_tokens=1)).status_code == 200
            finally:
                os.kill(stopped, signal.SIGCONT)
            codes = Counter(code_of(call.result()) for call in calls)
        # who was stopped while he waited to be admitted, or to be booked, is told that nothing was done
        assert codes.keys() <= {"ok", "quota_reserved", "insufficient_quota", "storage_unavailable"}
        assert codes["ok"] + codes["storage_unavailable"] >= 50, codes  # and what found room once those were settled
        assert sampler.worst <= 0
        assert shown(server)["held_tokens"] == 0
        assert shown(server)["used_tokens"] <= quota
        assert server.flask("usage", "verify").returncode == 0


@pytest.fixture
def running_streams(server: Server) -> Iterator[tuple[str, list[requests.Response]]]:
    """Twelve streams, so that both workers have some: half a minute long, their first chunk read."""
    token = server.create_team()
    body = hello("words=300 gap=0.1", stream=True)
    with ThreadPoolExecutor(12) as pool:
        streams = list(pool.map(lambda _: post(server, token, body, stream=True), range(12)))
        list(pool.map(lambda stream: stream.raw.read1(64), streams))
    yield token, streams
    for stream in streams:
        stream.close()


def code_of(answer: requests.Response) -> str:
    return "ok" if answer.status_code == 200 else answer.json()["error"]["code"]


def busiest_worker(database_url: str) -> int:
    """Return the process that has the most calls under way."""
    engine = create_engine(database_url)
    query = text(
        "SELECT workers.name FROM workers JOIN request_logs ON worker_id = workers.id WHERE status = 'pending' "
        "GROUP BY workers.name ORDER BY count(*) DESC"
    )
    with engine.connect() as connection:
        name = connection.execute(query).scalar()
    engine.dispose()
    return int(name.rpartition(":")[2])


def test_killed_workers_calls_are_settled_by_another(
    server: Server, database_url: str, running_streams: tuple[str, list[requests.Response]]
):
    token, streams = running_streams
    time.sleep(6)  # a heartbeat saves how far the streams have come
    os.kill(busiest_worker(database_url), signal.SIGKILL)
    killed_at = time.monotonic()

    assert post(server, token, hello()).status_code == 200
    for stream in streams:
        stream.close()

    def interrupted() -> list[dict[str, object]]:
        rows = json.loads(server.flask("logs", "list", "--json").stdout)
        return [row for row in rows if row["status"] == "interrupted"]

    assert eventually(interrupted, 60)
    assert time.monotonic() - killed_at < 60
    assert eventually(lambda: shown(server)["held_tokens"] == 0, 10)
    for row in interrupted():
        assert row["usage_source"] == "estimated"
        assert row["completion_tokens"] > 10
        assert row["charged_tokens"] == row["prompt_tokens"] + row["completion_tokens"]
    assert server.flask("usage", "verify").returncode == 0
    assert post(server, token, hello()).status_code == 200


def test_several_instances_start_at_once_on_a_new_database(
    provider: StandInProvider, empty_database_url: str, tmp_path: Path
):
    settings = settings_for(provider, empty_database_url, WEB_CONCURRENCY="4")
    with (
        running_server(settings, tmp_path, ready=False) as first,
        running_server(settings, tmp_path) as second,
    ):
        token = second.create_team()
        assert eventually(lambda: answers(first), 60), first.log.read_text()
        assert [post(server, token, hello()).status_code for server in (first, second)] == [200, 200]
        assert "Error" not in first.log.read_text() + second.log.read_text()

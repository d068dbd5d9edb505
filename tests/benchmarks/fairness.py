"""Let one team send fifty calls at once and nine teams one each, at a pace of all; exit 1 if that is unfair.

Two workers on SQLite and a stand-in provider. The bucket of the pace is empty when the first call comes, so that places
get free one by one. Then what the pace costs a call where a place is free, against a service without the setting: both
in turn, several times.
"""

import argparse
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from load import Load, request_bytes, run
from rawhttp import chat_request, connect, read_answer
from serving import Server, running_server

from tokenrouter.config import default_settings
from tokenrouter.standin import StandInProvider

KEY = "key-of-the-benchmark"
MANY, FEW = 50, 9
PLENTY = 1_000_000
CONNECTIONS = 4


@dataclass
class Served:
    """A call: whose it was, and when it was answered, in seconds since the first was sent."""

    team: int
    sent_s: float
    answered_s: float
    status: int

    @property
    def waited_s(self) -> float:
        """How long its caller waited."""
        return self.answered_s - self.sent_s


def empty_bucket(database: Path) -> None:
    """Leave nothing of the pace."""
    now = time.time_ns()
    with sqlite3.connect(database, timeout=10) as connection:
        connection.execute(
            "INSERT INTO provider_pace VALUES (1, ?, 0, 0) ON CONFLICT DO UPDATE SET full_at = excluded.full_at",
            (now + 60 * 10**9,),
        )


def call(server: Server, token: str, team: int, together: threading.Barrier, began: float) -> Served:
    """Make a call of a team, whose last byte is sent when those of the others are."""
    body = {"model": "GPT-5-nano", "messages": [{"role": "user", "content": "Hello! [[words=5]]"}], "max_tokens": 100}
    request = chat_request(token, body)
    with connect(server, 60) as connection:
        connection.sendall(request[:-1])
        together.wait()
        sent = time.monotonic()
        connection.sendall(request[-1:])
        head, _ = read_answer(connection)
    return Served(team, sent - began, time.monotonic() - began, int(head.split()[1]))


def crowd(server: Server, database: Path) -> list[Served]:
    """Let team 1 send many calls and, a moment later, the others one each; return all in the order of their answers."""
    tokens = [server.create_team(f"team {number}") for number in range(1, FEW + 2)]
    together = threading.Barrier(MANY + 1, action=lambda: empty_bucket(database))
    few = threading.Barrier(FEW + 1)
    with ThreadPoolExecutor(MANY + FEW) as pool:
        began = time.monotonic()
        calls = [pool.submit(call, server, token, team, few, began) for team, token in enumerate(tokens[1:], 2)]
        calls += [pool.submit(call, server, tokens[0], 1, together, began) for _ in range(MANY)]
        together.wait()
        time.sleep(1)
        few.wait()
        return sorted((each.result() for each in calls), key=lambda served: served.answered_s)


def places_after_coming(served: Sequence[Served]) -> list[int]:
    """Return as which of all that were answered after the last of the nine had come each of the nine was."""
    came = max(each.sent_s for each in served if each.team > 1)
    after = [each for each in served if each.answered_s > came]
    return [place for place, each in enumerate(after, 1) if each.team > 1]


def waits(served: Sequence[Served]) -> str:
    """Say how long callers waited."""
    all_s = sorted(each.waited_s for each in served)
    return f"{all_s[0]:.2f} s to {all_s[-1]:.2f} s, median {statistics.median(all_s):.2f} s"


def cpu_s(server: Server) -> float:
    """Return the CPU seconds that a service's processes have taken."""
    pids = [server.process.pid, *server.worker_pids()]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def compare(plain: Server, paced: Server, rounds: int, seconds: float) -> tuple[float, float, float]:
    """Return the CPU of a call without and with a pace, in µs, and the median of the rounds' ratios."""
    times_us: tuple[list[float], list[float]] = [], []
    loads = [request_bytes(each.url, each.create_team("load"), "Hello!", stream=False) for each in (plain, paced)]
    for round_ in range(rounds + 1):
        for at, server in enumerate((plain, paced)):
            before = cpu_s(server)
            load: Load = run(server.url, loads[at], connections=CONNECTIONS, seconds=seconds)
            if load.failures:
                raise SystemExit(f"{load.failures} calls failed: {load.first_failure!r}")
            if round_:
                times_us[at].append((cpu_s(server) - before) * 1e6 / load.calls)
    ratio = statistics.median(mine / other for other, mine in zip(*times_us, strict=True))
    return statistics.median(times_us[0]), statistics.median(times_us[1]), ratio


def main() -> int:
    """Print the order, the waits and the cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace", type=int, default=480, help="requests a minute of the whole account")
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(StandInProvider(api_key=KEY, record_calls=False))

        def serve(name: str, **more: str) -> Server:
            database = {"DATABASE_URL": f"sqlite:///{folder / name}.db", "SECRET_KEY": "benchmark"}
            own = {"PROVIDER_API_KEY": KEY, "PROVIDER_BASE_URL": provider.base_url, "ADMIN_PASSWORD": "benchmark"}
            (folder / name).mkdir()
            return stack.enter_context(running_server(default_settings() | own | database | more, folder / name))

        served = crowd(serve("crowd", PROVIDER_REQUESTS_PER_MINUTE=str(options.pace)), folder / "crowd.db")
        print("answered, by team:", " ".join(str(each.team) if each.status == 200 else "429" for each in served))
        places = places_after_coming(served)
        print(f"the nine were served as number {places} of those answered after they had come")
        print("the nine waited ", waits([each for each in served if each.team > 1]))
        print("the fifty waited", waits([each for each in served if each.team == 1]))
        if options.rounds:
            plain, paced = serve("plain"), serve("paced", PROVIDER_REQUESTS_PER_MINUTE=str(PLENTY))
            without_us, with_us, ratio = compare(plain, paced, options.rounds, options.seconds)
            print(f"CPU a call: {without_us:.0f} µs without a pace, {with_us:.0f} µs with one: {ratio:.3f} times")
        all_answered = all(each.status == 200 for each in served)
        return 0 if all_answered and max(places) <= FEW + 2 else 1


if __name__ == "__main__":
    sys.exit(main())

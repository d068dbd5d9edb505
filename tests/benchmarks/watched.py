"""Measure what JSON lines and metrics cost a call, side by side with a service that has neither; exit 1 over the bar.

One worker each on SQLite, pinned to one core, loaded in turn, several times; medians of CPU and of latency, and what an
answer of /metrics takes. On a noisy machine the same is told by what one line and one count take by themselves.
"""

import argparse
import os
import statistics
import time
import timeit
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from unittest.mock import patch

import requests
from load import quantile
from run import JSON_CALL, PACED, Bench, Figure, Server, compared, print_table

from tokenrouter import call_lines, logs
from tokenrouter.ledger import CallRequest, Outcome
from tokenrouter.ledger.endings import Ending
from tokenrouter.monitoring.tally import Overhead, Tally

TOKEN = "token-of-the-benchmark"
KINDS = {
    "JSON lines": {"LOG_FORMAT": "json"},
    "metrics": {"METRICS_TOKEN": TOKEN},
    "JSON lines and metrics": {"LOG_FORMAT": "json", "METRICS_TOKEN": TOKEN},
}
BAR = 1.03
GROUP = 20
"""Of how many calls lines are written and counts are made at once, under some load."""


def measure(bench: Bench, text: str, what: str, *, connections: int, stream: bool) -> list[Figure]:
    """Compare each kind with a service that has neither."""
    cpu_us: dict[str, list[float]] = {}
    median_ms: dict[str, list[float]] = {}
    with ExitStack() as stack:
        servers = {
            kind: stack.enter_context(bench.ours(f"sqlite:///{bench.folder}/{what}-{at}.db", **settings))
            for at, (kind, settings) in enumerate({"neither": {}, **KINDS}.items())
        }
        for round_ in range((bench.rounds // 4 if stream else bench.rounds) + 1):  # a stream takes three seconds
            in_turn = list(servers.items())
            for kind, server in in_turn if round_ % 2 else reversed(in_turn):
                before = server.cpu_s()
                load = bench.load(server, text, connections=connections, stream=stream)
                if round_:
                    cpu_us.setdefault(kind, []).append((server.cpu_s() - before) * 1e6 / load.calls)
                    median_ms.setdefault(kind, []).append(quantile(load.latencies_s, 0.5) * 1000)
        scrape = Figure(
            "an answer of /metrics", statistics.median(scraped_ms(servers["metrics"])), None, "ms", None, None
        )
    figures = []
    for kind in KINDS:
        bar = BAR if kind == "JSON lines and metrics" and not stream else None
        figures.append(compared(f"CPU {what}, {kind}", cpu_us[kind], cpu_us["neither"], "µs", bar, None))
        figures.append(compared(f"p50 of {what}, {kind}", median_ms[kind], median_ms["neither"], "ms", None, None))
    return [*figures, scrape]


def measure_parts() -> list[Figure]:
    """Return what a call's line and its counts take, behind its answer: the least of several times."""
    request = CallRequest(
        request_id="req_019ac7b3ab12ab12ab12ab12ab12ab12ab",
        team_id=1,
        team_name="Physics 9a",
        token_id=3,
        token_prefix="tr-abcde",
        model="GPT-5-nano",
        endpoint="/v1/chat/completions",
        stream=False,
        created_at=datetime.now(UTC),
    )
    tokens = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33, "charged_tokens": 33}
    ending = Ending(request, Outcome(status="ok", status_code=200, latency_ms=812, first_byte_ms=90, **tokens), 27_600)
    tally = Tally(None, ["GPT-5-nano"])
    ended, counted = [ending] * GROUP, [ending, Overhead(0.001, 0.002)] * GROUP
    with patch.object(logs, "STANDARD_OUTPUT", os.open(os.devnull, os.O_WRONLY)):
        parts = {
            "the line of a call": lambda: call_lines.write(ended),
            "the counts of a call": lambda: tally._count_all(counted),
        }
        return [Figure(name, least_us(work) / GROUP, None, "µs", None, None) for name, work in parts.items()]


def least_us(work: Callable[[], None]) -> float:
    """Return the least time that it takes, of several."""
    return min(timeit.repeat(work, number=200, repeat=9)) / 200 * 1e6


def scraped_ms(server: Server) -> list[float]:
    """Ask for the metrics some times, and return how long it took."""
    took = []
    for _ in range(20):
        began = time.monotonic()
        requests.get(
            f"{server.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
        ).raise_for_status()
        took.append((time.monotonic() - began) * 1000)
    return took


def main() -> None:
    """Measure, print the table, and exit with 1 if the bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=1.5, help="of each load")
    arguments.add_argument("--rounds", type=int, default=16)
    options = arguments.parse_args()
    with ExitStack() as stack:
        bench = Bench(stack, options.seconds, options.rounds)
        figures = measure(bench, JSON_CALL, "a JSON call", connections=16, stream=False)
        figures += measure_parts()
        figures += measure(bench, PACED, "a stream", connections=16, stream=True)
    print_table(figures)
    raise SystemExit(any(figure.verdict == "MISSED" for figure in figures))


if __name__ == "__main__":
    main()

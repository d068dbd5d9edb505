"""Measure what the panel shows on a database of 2,000 teams and five million calls; exit 1 if a median misses the bar.

`python tests/benchmarks/panel.py [FILE]` takes a file that logrows.py made, or makes one and throws it away.
"""

import argparse
import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from adminclient import PASSWORD, Panel
from flask import Flask
from logrows import RARE_MODEL, fill

from tokenrouter import (
    changes,
    create_app,
    ledger,
    reports,
    runtime,
)
from tokenrouter.database.tables import db
from tokenrouter.periods import UTC_ZONE
from tokenrouter.reports import CallFilter

BAR_MS = 300
RUNS = 11
ROWS, TEAMS = 5_000_000, 2_000
BIG, SMALL = 1, TEAMS - 1  # the numbers of a team with very many calls, and of one with few
Measured = dict[str, Callable[[], object]]


def report_functions(now: datetime) -> Measured:
    """Return what the pages ask of the domain, by name."""
    month_ago, day = now - timedelta(days=30), timedelta(days=1)
    middle = reports.calls_page(CallFilter(until=month_ago)).rows[0].id
    some = reports.calls_page(CallFilter(team_id=BIG)).rows[0]

    def page(before_id: int | None = None, after_id: int | None = None, **fields: object) -> Callable[[], object]:
        return lambda: reports.calls_page(CallFilter(**fields), before_id, after_id)

    return {
        "dashboard: all of it": lambda: [call() for name, call in dashboard(now).items()],
        **dashboard(now),
        "teams: by name": reports.teams_page,
        "teams: by tokens, the last page": lambda: reports.teams_page(sort="tokens", descending=True, page=TEAMS // 50),
        "teams: by last use": lambda: reports.teams_page(sort="last_used", descending=True),
        "teams: search, nearly used up": lambda: reports.teams_page(search="LED 1", near_quota="over80", sort="share"),
        "team: a big one": lambda: reports.team_detail(BIG),
        "team: chart": lambda: reports.use_per_day(30, now, team_id=BIG),
        "team: last calls": page(team_id=SMALL),
        "team: changes": lambda: changes.page(team_id=BIG),
        "changes": changes.page,
        "logs: choices": lambda: (reports.model_names(), reports.endpoint_names()),
        "logs: newest": page(),
        "logs: older": page(before_id=middle),
        "logs: newer": page(after_id=middle),
        "logs: of a day": page(since=month_ago - day, until=month_ago),
        "logs: of a day, the next page": page(since=month_ago - day, until=month_ago, before_id=middle - 1000),
        "logs: of a status": page(status="interrupted"),
        "logs: pending": page(status="pending"),
        "logs: of a team and a status": page(team_id=BIG, status="interrupted"),
        "logs: of a small team, nothing there": page(team_id=SMALL, endpoint="/v1/nothing"),
        "logs: of a token": page(token_prefix=some.token_prefix),
        "logs: of a token that is seldom used": page(token_id=2 * BIG, model="Gemini-2.5-pro"),
        "logs: of a model": page(model="GPT-5-nano"),
        "logs: of a model that is seldom used": page(model=RARE_MODEL),
        "logs: of an endpoint, a month ago": page(endpoint="/v1/embeddings", until=month_ago),
        "logs: any failure": page(status="failed"),
        "logs: any failure of a kind": page(status="failed", error_code="nothing"),
        "logs: of twenty teams": page(team_ids=tuple(range(1, 21))),
        "logs: of many teams, slow ones": page(team_ids=tuple(range(1, TEAMS)), slower_than_ms=9_400),
        "logs: sums of a team": lambda: reports.call_sums(CallFilter(team_id=BIG)),
        "logs: sums of any failure": lambda: reports.call_sums(CallFilter(status="failed")),
        "logs: by request id": page(request_id=some.request_id),
        "logs: one call": lambda: reports.call(some.id),
    }


def pages(app: Flask, now: datetime) -> Measured:
    """Return the panel's pages, from request to rendered page, by name."""
    panel = Panel(app.test_client())
    assert panel.sign_in().status_code == 302
    month_ago = (now - timedelta(days=30)).date()
    paths = {
        "dashboard": "/admin/",
        "teams": "/admin/teams/",
        "teams by use, the last page": f"/admin/teams/?sort=share&descending=1&page={TEAMS // 50}",
        "teams searched": "/admin/teams/?search=led+1&near_quota=over80",
        "a team": f"/admin/teams/{BIG}/",
        "teams by end": "/admin/teams/?sort=lasts",
        "logs": "/admin/logs/",
        "logs of a day a month ago": f"/admin/logs/?since={month_ago}&until={month_ago}",
        "logs of failures": "/admin/logs/?status=provider_error",
        "logs of any failure of teams": "/admin/logs/?status=failed&team=led+1",
        "at the door": "/admin/logs/door/",
        "changes": "/admin/changes/",
        "settings": "/admin/settings/",
        **usage_paths(now.date()),
    }

    def get(path: str) -> Callable[[], object]:
        def checked() -> None:
            assert panel.get(path).status_code == 200, path

        return checked

    return {f"page: {name}": get(path) for name, path in paths.items()}


def usage_paths(today: date) -> dict[str, str]:
    """Return the reports of use: by each of what they can be by, and by two, of each usual period."""
    periods = {words.lower(): f"period={key}" for key, words in reports.PERIODS.items()}
    periods["a year"] = f"since={today - timedelta(days=364)}&until={today}"
    return {
        f"usage by {' and '.join(by)}, {words}": f"/admin/usage/?{period}&by={by[0]}&and={''.join(by[1:])}"
        for by in groupings()
        for words, period in periods.items()
    }


def groupings() -> Iterator[tuple[str, ...]]:
    """Yield what a report can be by, in one order of two: a page of days has these in its rows."""
    for first, second in itertools.combinations_with_replacement(reports.DIMENSIONS, 2):
        if first == second:
            yield (first,)
        elif {first, second} != {"group", "token"}:
            yield first, second


def dashboard(now: datetime) -> Measured:
    """Return the parts of the first page."""
    return {
        "dashboard: figures": lambda: reports.overview(now),
        "dashboard: chart": lambda: reports.use_per_day(30, now),
        "dashboard: failures": lambda: reports.recent_failures(now),
        "dashboard: running out next": lambda: reports.running_out(8, now),
    }


def median_ms(call: Callable[[], object]) -> float:
    """Call it once to warm up, then several times."""
    call()
    durations = []
    for _ in range(RUNS):
        started = time.perf_counter()
        call()
        durations.append((time.perf_counter() - started) * 1000)
    return statistics.median(durations)


def print_medians(measured: Measured) -> bool:
    """Print a line each; return whether all are under the bar."""
    medians = {name: median_ms(call) for name, call in measured.items()}
    for name, median in medians.items():
        print(f"{name:<48}{median:>8.1f} ms{'' if median < BAR_MS else '  MISSED'}", flush=True)
    return max(medians.values()) < BAR_MS


def print_export(now: datetime) -> None:
    """Read all calls of a day, as an export does, and tell how much memory that took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    filter = CallFilter(since=now - timedelta(days=2), until=now - timedelta(days=1))
    rows = sum(1 for _ in reports.iterate_calls(filter))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"a day's {rows:,} calls in {time.perf_counter() - started:.1f} s, {grown:.1f} MiB more memory")


def print_search() -> None:
    """Follow a search for what is seldom found to its end."""
    pages, before_id, found = itertools.count(), None, 0
    while next(pages) == 0 or before_id is not None:
        page = reports.calls_page(CallFilter(model=RARE_MODEL), before_id)
        found, before_id = found + len(page.rows), page.before_id
    print(f"a search through all of the log for {found} calls of a model: {next(pages) - 1} pages")


def measure(app: Flask) -> bool:
    """Measure everything; return whether the bar is met."""
    now = datetime.now(UTC)
    with app.app_context():
        met = print_medians(report_functions(now) | pages(app, now))
        print_export(now)
        print_search()
    return met


def main() -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="what logrows.py made")
    given = parser.parse_args().file
    with tempfile.TemporaryDirectory(prefix="panel-") as folder:
        url = f"sqlite:///{(given or Path(folder) / 'filled.db').resolve()}"
        if given is None:
            fill(url, rows=ROWS, teams=TEAMS)
        app = create_app(
            {"DATABASE_URL": url, "PROVIDER_API_KEY": "unused", "SECRET_KEY": "unused", "ADMIN_PASSWORD": PASSWORD}
        )
        try:
            with app.app_context():
                ledger.sum_up(db.engine, UTC_ZONE)  # as the night does
            return 0 if measure(app) else 1
        finally:
            runtime.close(app)


if __name__ == "__main__":
    sys.exit(main())

"""Measure what each further limit of a team adds to the booking of its calls.

    python tests/benchmarks/limits.py [--rounds 12]

Calls are reserved and settled by the ledger alone, in one thread, in groups as a busy worker makes them. All kinds of
teams take turns; of each the least CPU a call of its rounds counts, since a machine only ever adds to that.
"""

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from rows import ENDED, call_request, settings

from tokenrouter import create_app, prices, runtime, teams
from tokenrouter.changes import Actor
from tokenrouter.database.tables import Team, db
from tokenrouter.ledger import Ledger
from tokenrouter.ledger.operations import Reserve, Settle
from tokenrouter.periods import Renewal

BY = Actor("cli", "benchmark")
QUOTA, AMOUNT = 10**12, 10**14
GROUPS, CALLS_A_GROUP = 40, 4
ALONE = "a quota alone"
LIMITS = {
    ALONE: {},
    "its renewal": {"renewal": Renewal("monthly", 1)},
    "requests a minute": {"requests_per_minute": 10**6},
    "tokens a minute": {"tokens_per_minute": 10**12},
    "calls at once": {"calls_at_once": 10**5},
    "a budget": {"budget": AMOUNT},
    "the quota of its group": {"group": "group"},
}
"""What a team may have beside a quota, by the name that the table gives it."""


def added_us(rounds: int) -> dict[str, float]:
    """Return the CPU of a call of a team with a quota alone, and what each further limit adds, in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(settings(f"sqlite:///{folder}/limits.db"))
        with app.app_context():
            teams.create_group("group", QUOTA, by=BY)
            prices.set_price("GPT-5*", 10**9, 10**9, by=BY)
            made = {name: teams.create(name, QUOTA, by=BY, **limit)[0] for name, limit in LIMITS.items()}
            books = Ledger(db.engine, output_reserve_tokens=1024)
            taken_us = [{name: booked_us(books, team) for name, team in made.items()} for _ in range(rounds)]
            books.close()
        runtime.close(app)
    least = {name: min(each[name] for each in taken_us) for name in LIMITS}
    return {name: us if name == ALONE else us - least[ALONE] for name, us in least.items()}


def booked_us(books: Ledger, team: Team) -> float:
    """Reserve and settle calls of a team, and return the CPU of each."""
    before = time.thread_time()
    for _ in range(GROUPS):
        calls = [call_request(team.id, team.group_id, secrets.token_hex(8)) for _ in range(CALLS_A_GROUP)]
        reservations = books._run_group([Reserve(call) for call in calls])
        books._run_group([Settle(reservation, ENDED) for reservation in reservations])
    return (time.thread_time() - before) * 1e6 / (GROUPS * CALLS_A_GROUP)


def main() -> None:
    """Print a line a limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    for name, us in added_us(options.rounds).items():
        print(f"{name:<26}{us:>8.1f} µs{'' if name == ALONE else ' more'}")


if __name__ == "__main__":
    main()

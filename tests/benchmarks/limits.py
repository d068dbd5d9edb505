"""Measure what each further limit of a team adds to the booking of its calls.

    python tests/benchmarks/limits.py [--rounds 12] [--instructions]

Calls are reserved and settled by the ledger alone, in one thread, in groups as a busy worker makes them. All kinds of
teams take turns; of each the least CPU a call of its rounds counts, since a machine only ever adds to that. How many
instructions that takes is the same on a busy machine: valgrind counts them, and a C compiler makes what tells it when.
"""

import argparse
import ctypes
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


COUNTER = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; }
void forget(void) { CALLGRIND_ZERO_STATS; }
void tell(const char *what) { CALLGRIND_DUMP_STATS_AT(what); }
"""
KIND = re.compile(r"^desc: Trigger: Client Request: (.*)$", re.MULTILINE)
INSTRUCTIONS = re.compile(r"^summary: ([0-9]+)$", re.MULTILINE)


@contextmanager
def ledger_and_teams() -> Iterator[tuple[Ledger, dict[str, Team]]]:
    """Yield the ledger of a new database, and a team for each of LIMITS."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(settings(f"sqlite:///{folder}/limits.db"))
        with app.app_context():
            teams.create_group("group", QUOTA, by=BY)
            prices.set_price("GPT-5*", 10**9, 10**9, by=BY)
            made = {name: teams.create(name, QUOTA, by=BY, **limit)[0] for name, limit in LIMITS.items()}
            books = Ledger(db.engine, output_reserve_tokens=1024)
            yield books, made
            books.close()
        runtime.close(app)


def added_us(rounds: int) -> dict[str, float]:
    """Return the CPU of a call of a team with a quota alone, and what each further limit adds, in microseconds."""
    with ledger_and_teams() as (books, made):
        taken_us = [{name: booked_us(books, team) for name, team in made.items()} for _ in range(rounds)]
    return added({name: min(each[name] for each in taken_us) for name in LIMITS})


def added(costs: dict[str, float]) -> dict[str, float]:
    """Return the cost of a call with a quota alone, and what others cost beyond it."""
    return {name: cost if name == ALONE else cost - costs[ALONE] for name, cost in costs.items()}


def booked_us(books: Ledger, team: Team) -> float:
    """Reserve and settle calls of a team, and return the CPU of each."""
    before = time.thread_time()
    book(books, team, GROUPS)
    return (time.thread_time() - before) * 1e6 / (GROUPS * CALLS_A_GROUP)


def book(books: Ledger, team: Team, groups: int) -> None:
    """Reserve and settle so many groups of calls."""
    for _ in range(groups):
        calls = [call_request(team.id, team.group_id, secrets.token_hex(8)) for _ in range(CALLS_A_GROUP)]
        reservations = books._run_group([Reserve(call) for call in calls])
        books._run_group([Settle(reservation, ENDED) for reservation in reservations])


def count_instructions(counter: ctypes.CDLL) -> None:
    """Book calls of each kind of team, and have valgrind, under which this runs, write down what that took."""
    with ledger_and_teams() as (books, made):
        for team in made.values():
            book(books, team, 12)
        counter.begin()
        for name, team in made.items():
            book(books, team, 2)
            counter.forget()
            book(books, team, GROUPS)
            counter.tell(name.encode())


def added_instructions() -> dict[str, float]:
    """Return the instructions of a call of a team with a quota alone, and how many each further limit adds."""
    with tempfile.TemporaryDirectory() as folder:
        source, library, written = (Path(folder, name) for name in ("counter.c", "counter.so", "instructions"))
        source.write_text(COUNTER)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={written}", "-q"]
        counting = [sys.executable, __file__, "--counter", library]
        subprocess.run(["valgrind", *options, *counting], check=True)
        texts = [each.read_text() for each in Path(folder).glob("instructions.*")]
    found = {kind[1]: int(INSTRUCTIONS.search(text)[1]) for text in texts if (kind := KIND.search(text))}
    return added({name: found[name] / (GROUPS * CALLS_A_GROUP) for name in LIMITS})


def main() -> None:
    """Print a line a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--instructions", action="store_true", help="count these, in some minutes, by valgrind")
    parser.add_argument("--counter", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.counter:
        count_instructions(ctypes.CDLL(options.counter))
        return
    os.sched_setaffinity(0, {0})
    costs, unit = (added_instructions(), "instructions") if options.instructions else (added_us(options.rounds), "µs")
    for name, cost in costs.items():
        print(f"{name:<26}{cost:>12,.1f} {unit}{'' if name == ALONE else f' more, {cost / costs[ALONE]:.1%}'}")


if __name__ == "__main__":
    main()

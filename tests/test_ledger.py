"""The ledger by itself: reserve, settle, recover, reset, verify."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from conftest import TESTER, Member, eventually, leases, stored
from flask import Flask
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from tokenrouter import ledger, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import RequestLog, UsageDaily, Worker, db
from tokenrouter.errors import QuotaExceeded, QuotaReserved, StorageUnavailable
from tokenrouter.ledger import CallRequest, Ledger, Outcome, Reservation
from tokenrouter.ledger import books as books_module
from tokenrouter.ledger.operations import Reserve, Settle
from tokenrouter.ledger.transaction import Moving, Transaction

pytestmark = pytest.mark.both_databases

_numbers = iter(range(10**9))


def call_request(member: Member, prompt: int = 10, output: int = 90, choices: int = 1) -> CallRequest:
    return CallRequest(
        request_id=f"req_{next(_numbers)}",
        team_id=member.team.id,
        team_name=member.team.name,
        token_id=1,
        token_prefix="tr-abcde",
        model="GPT-5-nano",
        endpoint="/v1/chat/completions",
        stream=False,
        created_at=datetime.now(UTC),
        prompt_tokens=prompt,
        output_tokens=output,
        choices=choices,
    )


def ok(tokens: int) -> Outcome:
    return Outcome(
        status="ok",
        status_code=200,
        charged_tokens=tokens,
        prompt_tokens=tokens,
        total_tokens=tokens,
        usage_source="provider",
    )


def row(reservation: Reservation) -> RequestLog:
    with db.engine.connect() as connection:
        return connection.execute(select(RequestLog.__table__).where(RequestLog.id == reservation.call_id)).one()


def execute(statement: object) -> None:
    with writing(db.engine) as connection:
        connection.execute(statement)


def recover() -> int:
    """Settle the calls of all workers, as whoever saw that none of them lives."""
    return ledger.recover(db.engine, leases())


@pytest.fixture
def new_ledger(app: Flask) -> Iterator[Callable[[], Ledger]]:
    made: list[Ledger] = []

    def make() -> Ledger:
        made.append(Ledger(db.engine, output_reserve_tokens=1024))
        made[-1].start()
        assert eventually(lambda: made[-1]._lease is not None)  # its first heartbeat must not come later by surprise
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def books(new_ledger: Callable[[], Ledger]) -> Ledger:
    return new_ledger()


def test_reservation_is_held_and_pending(books: Ledger, team: Member):
    reservation = books.reserve(call_request(team))
    assert stored(team).held_tokens == 100
    assert row(reservation).status == "pending"
    assert row(reservation).prompt_tokens == 10


def test_settling_charges_gives_back_and_completes_the_row(books: Ledger, team: Member):
    reservation = books.reserve(call_request(team))
    books.settle(reservation, ok(42))
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (42, 0)
    assert (row(reservation).status, row(reservation).charged_tokens) == ("ok", 42)


def test_groups_that_settle_for_one_team_and_reserve_for_another_do_not_wait_in_a_circle(
    new_ledger: Callable[[], Ledger], new_team: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
):
    members = [new_team("one"), new_team("two")]
    ledgers = [new_ledger(), new_ledger()]
    reserved = [each.reserve(call_request(member)) for each, member in zip(ledgers, members, strict=True)]
    both_have_locked, lock = threading.Barrier(2), Transaction.lock

    def lock_and_wait(tx: Transaction, operations: Sequence[Moving], requests: Sequence[CallRequest]) -> None:
        lock(tx, operations, requests)
        if requests:
            with suppress(threading.BrokenBarrierError):
                both_have_locked.wait(0.5)

    monkeypatch.setattr(Transaction, "lock", lock_and_wait)

    def run(at: int) -> None:
        group = [Settle(reserved[at], ok(42)), Reserve(call_request(members[1 - at]))]
        settled, reservation = ledgers[at]._run_group(group)
        assert settled
        assert isinstance(reservation, Reservation)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert [(stored(member).settled_tokens, stored(member).held_tokens) for member in members] == [(42, 100)] * 2


def test_settlement_makes_room_for_a_reservation_of_its_group(books: Ledger, new_team: Callable[..., Member]):
    member = new_team("poor", quota_tokens=100)
    reserved = books.reserve(call_request(member))
    _, next_one = books._run_group([Reserve(call_request(member, output=8)), Settle(reserved, ok(42))])[::-1]
    assert isinstance(next_one, Reservation)
    assert (stored(member).settled_tokens, stored(member).held_tokens) == (42, 18)


def test_settling_twice_changes_nothing_and_warns(books: Ledger, team: Member, caplog: pytest.LogCaptureFixture):
    reservation = books.reserve(call_request(team))
    books.settle(reservation, ok(42))
    books.settle(reservation, ok(50))
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (42, 0)
    assert eventually(lambda: "nothing changed" in caplog.text)


def test_refusal_is_logged_and_holds_nothing(books: Ledger, new_team: Callable[..., Member]):
    poor = new_team(quota_tokens=20)
    with pytest.raises(QuotaExceeded):
        books.reserve(call_request(poor))
    with db.engine.connect() as connection:
        logged = connection.execute(select(RequestLog.status, RequestLog.status_code, RequestLog.error_code)).all()
    assert logged == [("rejected", 429, "insufficient_quota")]
    assert stored(poor).held_tokens == 0


def test_call_that_may_fit_later_is_told_so(books: Ledger, new_team: Callable[..., Member]):
    busy = new_team(quota_tokens=120)
    reservation = books.reserve(call_request(busy))
    with pytest.raises(QuotaReserved):
        books.reserve(call_request(busy))
    books.settle(reservation, ok(5))
    assert books.reserve(call_request(busy)).held_tokens == 100


def test_output_is_limited_to_what_is_left(books: Ledger, new_team: Callable[..., Member]):
    short = new_team(quota_tokens=60)
    reservation = books.reserve(call_request(short, prompt=10, output=1000, choices=2))
    assert (reservation.output_limit, reservation.held_tokens) == (25, 60)


@pytest.mark.parametrize("threads", [50])
def test_threads_together_never_reserve_more_than_the_quota(
    books: Ledger, new_team: Callable[..., Member], threads: int
):
    member = new_team(quota_tokens=1000)

    def try_one(_: int) -> bool:
        try:
            books.settle(books.reserve(call_request(member)), ok(100))
        except (QuotaExceeded, QuotaReserved):
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(try_one, range(100)))
    assert sum(results) == 10
    assert stored(member).settled_tokens == 1000
    assert ledger.verify(db.engine).problems == []


def test_dead_workers_calls_are_settled_at_the_estimate_and_what_arrived(
    new_ledger: Callable[[], Ledger], team: Member
):
    dead = new_ledger()
    dead.start = lambda: None  # its heartbeats are the test's alone
    reservation = dead.reserve(call_request(team))
    reservation.progress = lambda: 7
    dead._writer.run(dead._heartbeat())
    assert recover() == 1
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (17, 0)
    assert (row(reservation).status, row(reservation).usage_source) == ("interrupted", "estimated")
    assert recover() == 0


def test_living_workers_calls_are_left_alone(books: Ledger, team: Member):
    """One whose lease was renewed after it was looked at lives."""
    reservation = books.reserve(call_request(team))
    assert ledger.recover(db.engine, {row(reservation).worker_id: 1.0}) == 0
    assert row(reservation).status == "pending"


def test_worker_that_wakes_after_recovery_changes_nothing(
    new_ledger: Callable[[], Ledger], team: Member, caplog: pytest.LogCaptureFixture
):
    asleep = new_ledger()
    reservation = asleep.reserve(call_request(team))
    recover()
    asleep.settle(reservation, ok(99))
    assert stored(team).settled_tokens == 10
    assert eventually(lambda: "was settled by recovery" in caplog.text)
    assert ledger.verify(db.engine).problems == []


def test_worker_taken_for_dead_joins_again_under_another_number(new_ledger: Callable[[], Ledger], team: Member):
    asleep = new_ledger()
    first = row(asleep.reserve(call_request(team))).worker_id
    recover()
    asleep._writer.run(asleep._heartbeat())
    again = asleep.reserve(call_request(team))
    assert row(again).worker_id > first
    assert ledger.recover(db.engine, {first: 1.0}) == 0


def test_heartbeats_write_the_tokens_in_one_order(new_ledger: Callable[[], Ledger], team: Member):
    """Those of two workers, each in its own order, would wait for each other until PostgreSQL ends one."""
    books = new_ledger()
    books._heartbeat()
    for token_id in (3, 1, 2):
        books.reserve(replace(call_request(team), token_id=token_id))
    assert [used["token"] for used in books._heartbeat().tokens_used] == [1, 2, 3]


def test_recovery_by_several_at_once_settles_each_call_once(new_ledger: Callable[[], Ledger], team: Member):
    dead = new_ledger()
    for _ in range(20):
        dead.reserve(call_request(team))
    with ThreadPoolExecutor(4) as pool:
        settled = list(pool.map(ledger.recover, [db.engine] * 4, [leases()] * 4))
    assert sum(settled) == 20
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (200, 0)


def test_team_that_cannot_be_recovered_stops_no_other_and_is_tried_again(
    new_ledger: Callable[[], Ledger], new_team: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
):
    dead, members = new_ledger(), [new_team("a"), new_team("b"), new_team("c")]
    for member in members:
        dead.reserve(call_request(member))
    real = books_module._recover_team

    def fail(engine: object, team_id: int, *others: object) -> object:
        if team_id == members[0].team.id:
            raise ArithmeticError("a counter that nobody can read")
        return real(engine, team_id, *others)

    monkeypatch.setattr(books_module, "_recover_team", fail)
    assert [recover(), recover()] == [2, 0]
    assert [stored(member).held_tokens for member in members] == [100, 0, 0]
    monkeypatch.undo()
    assert recover() == 1
    assert [(stored(member).settled_tokens, stored(member).held_tokens) for member in members] == [(10, 0)] * 3


def test_closing_gives_the_lease_back(new_ledger: Callable[[], Ledger], team: Member):
    leaving = new_ledger()
    leaving.settle(leaving.reserve(call_request(team)), ok(1))
    leaving.close()
    with db.engine.connect() as connection:
        assert connection.execute(select(Worker.id)).all() == []


def test_reset_counts_from_now_and_charges_running_calls_to_the_new_count(books: Ledger, team: Member):
    books.settle(books.reserve(call_request(team)), ok(40))
    running = books.reserve(call_request(team))
    ledger.reset(db.engine, [team.team.id], by=TESTER)
    assert stored(team).settled_tokens - stored(team).reset_mark_tokens == 0
    assert stored(team).held_tokens == 100
    books.settle(running, ok(30))
    assert stored(team).settled_tokens - stored(team).reset_mark_tokens == 30
    assert ledger.verify(db.engine).problems == []


def test_raised_quota_lets_the_next_call_through(books: Ledger, new_team: Callable[..., Member]):
    member = new_team(quota_tokens=0)
    with pytest.raises(QuotaExceeded):
        books.reserve(call_request(member))
    teams.update("team", quota_tokens=1000, by=TESTER)
    assert books.reserve(call_request(member)).held_tokens == 100


def test_lowered_quota_refuses_new_calls_and_lets_running_ones_end(books: Ledger, team: Member):
    running = books.reserve(call_request(team))
    teams.update("team", quota_tokens=1, by=TESTER)
    with pytest.raises(QuotaExceeded):
        books.reserve(call_request(team))
    books.settle(running, ok(100))
    assert stored(team).settled_tokens == 100


def test_deleted_teams_running_calls_are_booked(books: Ledger, team: Member):
    running = books.reserve(call_request(team))
    teams.delete("team", by=TESTER)
    books.settle(running, ok(100))
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (100, 0)
    assert row(running).team_name == "team"
    assert ledger.verify(db.engine).problems == []


def test_counters_stay_right_while_the_administrator_changes_everything(app: Flask, books: Ledger, team: Member):
    stop = threading.Event()

    def meddle() -> None:
        with app.app_context():
            while not stop.is_set():
                teams.update("team", quota_tokens=90_000, active=False, by=TESTER)
                ledger.reset(db.engine, [team.team.id], by=TESTER)
                teams.update("team", quota_tokens=None, active=True, by=TESTER)
                ledger.verify(db.engine)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: books.settle(books.reserve(call_request(team)), ok(70)), range(100)))
    stop.set()
    meddler.join()
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (7000, 0)
    assert ledger.verify(db.engine).problems == []


def test_days_sum_up_what_was_settled_and_what_failed(books: Ledger, new_team: Callable[..., Member]):
    member = new_team(quota_tokens=250)
    books.settle(books.reserve(call_request(member)), ok(40))
    books.settle(books.reserve(call_request(member)), Outcome(status="provider_error", status_code=502))
    with pytest.raises(QuotaExceeded):
        books.reserve(call_request(member, prompt=500))
    books.reject(call_request(member), 404, "model_not_found")
    with db.engine.connect() as connection:
        days = connection.execute(select(UsageDaily.__table__).order_by(UsageDaily.model)).all()
    assert [(d.model, d.requests, d.errors, d.prompt_tokens, d.total_tokens) for d in days] == [
        ("", 1, 1, 0, 0),
        ("GPT-5-nano", 3, 2, 40, 40),
    ]


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE teams SET settled_tokens = settled_tokens + 1", "41 settled, and 40 charged"),
        ("UPDATE teams SET held_tokens = 7", "7 held, and 0 held"),
        ("UPDATE teams SET held_tokens = -7", "below zero"),
        ("UPDATE teams SET reset_mark_tokens = 1000", "reset at 1000"),
        ("UPDATE request_logs SET charged_tokens = 41", "40 settled, and 41 charged"),
        ("DELETE FROM request_logs", "40 settled, and 0 charged"),
        ("UPDATE usage_daily SET total_tokens = 39", "39 in the daily totals"),
        ("UPDATE request_logs SET status = 'pending', worker_id = 99", "has been dead"),
    ],
)
def test_verify_names_what_does_not_add_up(books: Ledger, team: Member, statement: str, complaint: str):
    books.settle(books.reserve(call_request(team)), ok(40))
    assert ledger.verify(db.engine).problems == []
    execute(text(statement))
    problems = ledger.verify(db.engine).problems
    assert any(complaint in problem and problem.startswith("team:") for problem in problems), problems


def test_reservation_whose_commit_was_lost_is_given_back(books: Ledger, team: Member, monkeypatch: pytest.MonkeyPatch):
    """The group commits, and the news of it is lost on the way: the caller is told 503, so nothing may stay held."""
    run_group = books._run_group

    def lose_the_answer(operations: list[object]) -> list[object]:
        monkeypatch.setattr(books._writer, "_run", run_group)
        run_group(operations)
        raise OperationalError("COMMIT", {}, Exception("connection lost"))

    books.settle(books.reserve(call_request(team)), ok(1))
    monkeypatch.setattr(books._writer, "_run", lose_the_answer)
    with pytest.raises(StorageUnavailable):
        books.reserve(call_request(team))
    assert eventually(lambda: stored(team).held_tokens == 0)
    assert ledger.verify(db.engine).problems == []


def test_settlement_whose_commit_was_lost_is_booked_once_without_a_warning(
    books: Ledger, team: Member, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run_group = books._run_group

    def lose_the_answer(operations: list[object]) -> list[object]:
        monkeypatch.setattr(books._writer, "_run", run_group)
        run_group(operations)
        raise OperationalError("COMMIT", {}, Exception("connection lost"))

    reservation = books.reserve(call_request(team))
    monkeypatch.setattr(books._writer, "_run", lose_the_answer)
    books.settle(reservation, ok(40))
    assert stored(team).settled_tokens == 40
    assert "nothing changed" not in caplog.text


def test_one_broken_operation_does_not_fail_its_group(books: Ledger, team: Member):
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(books.reserve, call_request(team)) for _ in range(4)]
        twice = call_request(team)
        bad = [
            pool.submit(books.reserve, twice) for _ in range(2)
        ]  # the same request id: the second breaks a constraint
        assert all(future.result() for future in good)
    failures = [future.exception() for future in bad if future.exception()]
    assert len(failures) == 1
    assert stored(team).held_tokens == 500
    assert ledger.verify(db.engine).problems == []

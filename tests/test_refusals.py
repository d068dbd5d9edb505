"""Refusals that repeat: one row of the log a minute, with how many calls it stands for, and no write for each."""

import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from adminclient import Panel
from conftest import HELLO, Member, eventually, hello
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from test_ledger import call_request

from tokenrouter import ledger, reports, runtime
from tokenrouter.admin import calls_csv
from tokenrouter.database.tables import RequestLog, UsageDaily, db
from tokenrouter.errors import QuotaExceeded
from tokenrouter.ledger import Ledger
from tokenrouter.ledger import refusals as known_refusals

BOTH = pytest.mark.both_databases
CHAT = "/v1/chat/completions"


@pytest.fixture
def new_ledger(app: Flask) -> Iterator[Callable[[], Ledger]]:
    made: list[Ledger] = []

    def make() -> Ledger:
        made.append(Ledger(db.engine, output_reserve_tokens=1024))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def poor(new_team: Callable[..., Member]) -> Member:
    return new_team("poor", quota_tokens=0)


def logged() -> list[tuple[str, str | None, int]]:
    query = select(RequestLog.request_id, RequestLog.error_code, RequestLog.repeats).order_by(RequestLog.id)
    with db.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def days() -> list[tuple[str, int, int]]:
    query = select(UsageDaily.model, UsageDaily.requests, UsageDaily.errors).order_by(UsageDaily.model)
    with db.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def refuse(books: Ledger, member: Member, **changes: object) -> str:
    """Ask for more than the quota leaves, and return the id of the row that says so."""
    with pytest.raises(QuotaExceeded) as refusal:
        books.reserve(replace(call_request(member), **changes))
    return refusal.value.request_id


@BOTH
def test_same_refusal_within_a_minute_is_one_row_that_counts_them(new_ledger: Callable[[], Ledger], poor: Member):
    books = new_ledger()
    ids = {refuse(books, poor) for _ in range(37)}
    books.close()
    assert logged() == [(*ids, "insufficient_quota", 37)]
    assert days() == [("GPT-5-nano", 37, 37)]
    assert ledger.verify(db.engine).problems == []


@BOTH
def test_refusals_at_once_by_two_workers_are_one_row(new_ledger: Callable[[], Ledger], poor: Member):
    workers = [new_ledger(), new_ledger()]
    with ThreadPoolExecutor(10) as pool:
        ids = set(pool.map(lambda number: refuse(workers[number % 2], poor), range(60)))
    for each in workers:
        each.close()
    assert logged() == [(*ids, "insufficient_quota", 60)]
    assert days() == [("GPT-5-nano", 60, 60)]


@BOTH
def test_model_refused_again_is_counted_likewise_under_no_model(new_ledger: Callable[[], Ledger], team: Member):
    books = new_ledger()
    first, *others = [books.reject(call_request(team), 404, "model_not_found") for _ in range(5)]
    books.close()
    assert set(others) == {first}
    assert (logged(), days()) == ([(first, "model_not_found", 5)], [("", 5, 5)])


@pytest.mark.parametrize("change", [{"token_id": 2}, {"model": "GPT-5-mini"}, {"endpoint": "/v1/responses"}])
def test_refusal_that_differs_has_a_row_of_its_own(new_ledger: Callable[[], Ledger], poor: Member, change: dict):
    books = new_ledger()
    assert refuse(books, poor) != refuse(books, poor, **change)
    books.close()
    assert [repeats for *_, repeats in logged()] == [1, 1]


@BOTH
@pytest.mark.parametrize("restarts", [False, True])
def test_refusal_a_minute_later_has_a_row_of_its_own(new_ledger: Callable[[], Ledger], poor: Member, restarts: bool):
    books = new_ledger()
    early = datetime.now(UTC).replace(hour=12)
    assert refuse(books, poor, created_at=early) == refuse(books, poor, created_at=early + timedelta(seconds=59))
    if restarts:
        books.close()
        books = new_ledger()
    assert refuse(books, poor, created_at=early) != refuse(books, poor, created_at=early + timedelta(seconds=61))
    books.close()
    assert [repeats for *_, repeats in logged()] == [3, 1]


def test_refusals_around_midnight_are_of_their_own_days(new_ledger: Callable[[], Ledger], poor: Member):
    books = new_ledger()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for seconds in (-2, -1, 0, 1):
        refuse(books, poor, created_at=midnight + timedelta(seconds=seconds))
    books.close()
    assert [repeats for *_, repeats in logged()] == [2, 2]
    assert [requests for _, requests, _ in days()] == [2, 2]


@pytest.mark.slow
def test_repeats_are_written_soon_while_serving(client: FlaskClient, poor: Member):
    for _ in range(3):
        client.post(CHAT, json=HELLO, headers=poor.headers)
    assert eventually(lambda: [repeats for *_, repeats in logged()] == [3], within_s=10)


def test_nothing_is_lost_where_more_refusals_are_known_than_are_kept(
    new_ledger: Callable[[], Ledger], poor: Member, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(known_refusals, "MOST_KNOWN", 1)
    books = new_ledger()
    for _ in range(3):
        for model in ("one", "two", "three"):
            refuse(books, poor, model=model)
    books.close()
    assert [repeats for *_, repeats in logged()] == [3, 3, 3]


@pytest.mark.parametrize("model", ["GPT-5-nano", "unknown"])
def test_flood_of_refusals_writes_nothing_but_its_row(client: FlaskClient, poor: Member, model: str):
    client.post(CHAT, json={**HELLO, "model": model}, headers=poor.headers)
    connection = runtime.current().ledger._connection._connection
    before = connection.total_changes
    for _ in range(50):
        assert client.post(CHAT, json={**HELLO, "model": model}, headers=poor.headers).status_code in (429, 404)
    assert connection.total_changes - before <= 12  # of a heartbeat or two


@pytest.mark.parametrize("fields", [{}, {"model": "unknown"}])
def test_repeated_refusal_bears_the_id_of_its_row(client: FlaskClient, poor: Member, fields: dict[str, str]):
    ids = {client.post(CHAT, json=HELLO | fields, headers=poor.headers).headers["x-request-id"] for _ in range(3)}
    assert ids == {row[0] for row in logged()}


def test_disabled_teams_refusals_are_counted_likewise(client: FlaskClient, new_team: Callable[..., Member]):
    off = new_team("off", active=False)
    ids = {client.post(CHAT, headers=off.headers).headers["x-request-id"] for _ in range(3)}
    assert [row[:2] for row in logged()] == [(*ids, "team_disabled")]


def test_repeats_are_shown_in_panel_json_and_csv(client: FlaskClient, poor: Member, panel: Panel):
    for _ in range(37):
        client.post(CHAT, json=HELLO, headers=poor.headers)
    runtime.current().ledger._write_repeats()
    assert eventually(lambda: [repeats for *_, repeats in logged()] == [37])
    assert "× 37" in panel.get("/admin/logs/").text
    (row,) = reports.newest_calls(None, 5)
    assert reports.log_view(row)["repeats"] == 37
    (line,) = csv.DictReader("".join(calls_csv.lines([row])).splitlines())
    assert line["repeats"] == "37"


UNKNOWN_MODEL = [
    "status=404 code=model_not_found",
    "status=404 message=The_model_x_does_not_exist_or_you_do_not_have_access_to_it.",
    "status=400 message=x_is_not_a_valid_model_ID",
    "status=400 message=Model_Not_Exist",
    "status=400 message=Invalid_model:_x",
]


@pytest.mark.parametrize("directives", UNKNOWN_MODEL)
def test_model_that_the_provider_does_not_know_is_counted_under_none(
    client: FlaskClient, team: Member, directives: str
):
    reply = client.post(CHAT, json=hello(directives), headers=team.headers)
    assert reply.status_code in (400, 404)
    assert days() == [("", 1, 1)]
    (row,) = reports.newest_calls(None, 2)
    error = reply.json["error"]
    assert (row.status, row.status_code, row.model) == ("provider_error", reply.status_code, "GPT-5-nano")
    assert row.error_code == (error["code"] or error["type"])  # as the caller saw it
    assert row.reason.startswith(f"unknown model: HTTP {reply.status_code}")
    assert ledger.verify(db.engine).problems == []


@pytest.mark.parametrize(
    "directives", ["status=400 message=This_model_does_not_support_images", "status=429 message=model_not_available"]
)
def test_other_refusals_of_the_provider_are_counted_under_their_model(
    client: FlaskClient, team: Member, directives: str
):
    client.post(CHAT, json=hello(directives), headers=team.headers)
    assert days() == [("GPT-5-nano", 1, 1)]


def test_models_and_endpoints_to_choose_from_are_few_and_the_most_used_first(new_ledger, team: Member, monkeypatch):
    monkeypatch.setattr(reports.calls, "MOST_OPTIONS", 2)
    books = new_ledger()
    for name, calls in (("a", 1), ("b", 3), ("c", 2)):
        for _ in range(calls):
            books.reserve(replace(call_request(team, 1, 1), model=name, endpoint=f"/v1/{name}"))
    for reservation in list(books._calls.values()):
        books.settle(reservation, ledger.Outcome(status="ok", status_code=200))
    assert reports.model_names() == ["b", "c"]
    assert reports.endpoint_names() == ["/v1/b", "/v1/c"]

"""The log of calls in pages: every call once, however it is filtered, and no page that goes through all of it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import TESTER, Member
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import BOTH_DATABASES, by_pairs
from sqlalchemy import delete, event, insert, text

from tokenrouter import reports, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import CostCorrection, RequestLog, db
from tokenrouter.ledger import CallRequest, Ledger
from tokenrouter.reports import CallFilter, CallsPage, calls
from tokenrouter.standin import StandInProvider

both_databases = pytest.mark.both_databases

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
COLUMNS = [column.key for column in RequestLog.__table__.columns if column.key != "id"]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few calls be what thousands are in earnest."""
    monkeypatch.setattr(calls, "WINDOW_ROWS", 4)
    monkeypatch.setattr(calls, "SCATTERED_ROWS", 2)
    monkeypatch.setattr(calls, "CHUNK_ROWS", 3)


def log(*calls_: dict[str, Any]) -> list[int]:
    """Write rows of the log, each a minute after the one before, and return their ids, oldest first."""
    rows = []
    for number, fields in enumerate(calls_):
        row = dict.fromkeys(COLUMNS)
        row |= dict.fromkeys(("held_tokens", "prompt_tokens", "completion_tokens", "total_tokens", "charged_tokens"), 0)
        row |= {"repeats": 1, "cached_tokens": 0, "held_cost": 0, "cost_source": "none"}
        row |= {"request_id": f"req_{number}", "team_id": 1, "team_name": "team", "token_id": 1, "stream": False}
        row |= {"token_prefix": "tr-first", "model": "m", "endpoint": "/v1/e", "status": "ok", "usage_source": "none"}
        rows.append(row | {"created_at": BEGIN + number * MINUTE} | fields)
    if not rows:
        return []
    with writing(db.engine) as connection:
        return list(connection.execute(insert(RequestLog).returning(RequestLog.id), rows).scalars())


def ids(page: CallsPage) -> list[int]:
    return [row.id for row in page.rows]


def all_pages(filter: CallFilter, limit: int = 3, **more: Any) -> list[CallsPage]:
    """Follow the pages from the newest to the end."""
    pages = [reports.calls_page(filter, limit=limit, **more)]
    while pages[-1].before_id is not None:
        pages.append(reports.calls_page(filter, before_id=pages[-1].before_id, limit=limit, **more))
        assert len(pages) < 200
    return pages


def found(filter: CallFilter) -> list[int]:
    """Return the ids that fit, which page by page and all at once are the same."""
    paged = [id_ for page in all_pages(filter) for id_ in ids(page)]
    assert paged == [row.id for row in reports.iterate_calls(filter)]
    return paged


@pytest.fixture
def ten(team: Member) -> list[int]:
    """Ten like calls; their ids, newest first."""
    return log(*[{}] * 10)[::-1]


# Pages


@both_databases
def test_pages_lead_to_the_oldest_call_and_back(ten: list[int]):
    pages = all_pages(CallFilter())
    assert [ids(page) for page in pages] == [ten[:3], ten[3:6], ten[6:9], ten[9:]]
    assert pages[0].after_id is None
    back = reports.calls_page(CallFilter(), after_id=pages[3].after_id, limit=3)
    assert ids(back) == ten[6:9]
    back = reports.calls_page(CallFilter(), after_id=back.after_id, limit=3)
    assert (ids(back), back.before_id) == (ten[3:6], ten[5])


def test_newest_page_reached_by_going_back_is_a_full_one(ten: list[int]):
    page = reports.calls_page(CallFilter(), after_id=ten[2], limit=3)
    assert (ids(page), page.after_id, page.before_id) == (ten[:3], None, ten[2])


def test_full_page_at_the_end_leads_no_further(ten: list[int]):
    assert reports.calls_page(CallFilter(), limit=10).before_id is None
    assert reports.calls_page(CallFilter(), before_id=ten[4], limit=5).before_id is None
    assert reports.calls_page(CallFilter(), before_id=ten[4], limit=4).before_id == ten[8]


def test_empty_log_has_one_empty_page(app: Flask):
    page = reports.calls_page(CallFilter())
    assert (page.rows, page.before_id, page.after_id, page.searched_back_to) == ([], None, None, None)
    assert list(reports.iterate_calls(CallFilter(model="m"))) == []


@both_databases
@pytest.mark.parametrize("number", [0, -1, 10**30, -(10**30)])
def test_impossible_ids_find_nothing_and_break_nothing(ten: list[int], number: int):
    for filter in (CallFilter(), CallFilter(model="m"), CallFilter(team_id=1)):
        assert set(ids(reports.calls_page(filter, before_id=number))) <= set(ten)
        assert set(ids(reports.calls_page(filter, after_id=number))) <= set(ten)
    assert found(CallFilter(team_id=number)) == found(CallFilter(token_id=number)) == []
    assert reports.call(number) is None


def test_calls_that_come_meanwhile_do_not_move_the_pages(ten: list[int]):
    first = reports.calls_page(CallFilter(), limit=3)
    new = log({"request_id": "new"})
    assert ids(reports.calls_page(CallFilter(), before_id=first.before_id, limit=3)) == ten[3:6]
    page = reports.calls_page(CallFilter(), after_id=ten[3], limit=3)
    assert (ids(page), page.after_id) == (ten[:3], ten[0])
    assert ids(reports.calls_page(CallFilter(), limit=3)) == [*new, *ten[:2]]


# Filters


@pytest.fixture
def mixed(team: Member, new_team: Callable[..., Member]) -> list[int]:
    """Twenty calls of two teams, newest first; the first of them are rare ones."""
    new_team("other")
    with db.engine.connect() as connection:
        tokens = connection.execute(text("SELECT id, prefix FROM api_tokens ORDER BY id")).all()
    callers = [
        {"team_id": team_id, "token_id": token_id, "token_prefix": prefix}
        for team_id, (token_id, prefix) in enumerate(tokens, start=1)
    ]
    rare = [
        {"model": "rare", "latency_ms": 501},
        {"status": "rejected", "latency_ms": 500},
        {"status": "provider_error", "endpoint": "/v1/rare", "error_code": "broken", "latency_ms": 9000},
        {"status": "interrupted"},
        {"status": "client_closed"},
        {"status": "pending"},
        {"model": "rare", "status": "rejected", "team_id": 2},
    ]
    return log(*[callers[number % 2] | (rare[number] if number < len(rare) else {}) for number in range(20)])[::-1]


@pytest.mark.parametrize(
    ("filter", "numbers"),
    [
        (CallFilter(model="rare"), [6, 0]),
        (CallFilter(model="nothing"), []),
        (CallFilter(endpoint="/v1/rare"), [2]),
        (CallFilter(status="ok"), [*range(19, 6, -1), 0]),
        (CallFilter(status="rejected"), [6, 1]),
        (CallFilter(status="provider_error"), [2]),
        (CallFilter(status="interrupted"), [3]),
        (CallFilter(status="client_closed"), [4]),
        (CallFilter(status="pending"), [5]),
        (CallFilter(status="no such status"), []),
        (CallFilter(team_id=2), [19, 17, 15, 13, 11, 9, 7, 6, 5, 3, 1]),
        (CallFilter(team_id=2, status="rejected"), [6, 1]),
        (CallFilter(team_id=2, status="pending"), [5]),
        (CallFilter(team_id=1, status="pending"), []),
        (CallFilter(team_id=2, model="rare"), [6]),
        (CallFilter(team_id=99), []),
        (CallFilter(status="failed"), [6, 3, 2, 1]),
        (CallFilter(status="failed", team_id=2), [6, 3, 1]),
        (CallFilter(status="failed", team_ids=(1, 2), model="m"), [3, 2, 1]),
        (CallFilter(status="failed", since=BEGIN + 2 * MINUTE, until=BEGIN + 6 * MINUTE), [3, 2]),
        (CallFilter(team_ids=(2, 1)), list(range(19, -1, -1))),
        (CallFilter(team_ids=(2, 99)), [19, 17, 15, 13, 11, 9, 7, 6, 5, 3, 1]),
        (CallFilter(team_ids=(2, 1), model="rare", since=BEGIN + MINUTE), [6]),
        (CallFilter(team_ids=()), []),
        (CallFilter(error_code="broken"), [2]),
        (CallFilter(error_code="broken", status="failed"), [2]),
        (CallFilter(error_code="broken", status="ok"), []),
        (CallFilter(slower_than_ms=500), [2, 0]),
        (CallFilter(slower_than_ms=501, status="failed"), [2]),
        (CallFilter(token_id=2), [19, 17, 15, 13, 11, 9, 7, 5, 3, 1]),
        (CallFilter(token_id=2, team_id=1), []),
        (CallFilter(token_id=99), []),
        (CallFilter(request_id="req_7"), [7]),
        (CallFilter(request_id="req_7", status="rejected"), []),
        (CallFilter(request_id="req_99"), []),
        (CallFilter(status="rejected", model="rare", team_id=2, endpoint="/v1/e", request_id="req_6"), [6]),
    ],
)
def test_filter_finds_all_that_fits_and_nothing_else(mixed: list[int], filter: CallFilter, numbers: list[int]):
    assert found(filter) == [mixed[19 - number] for number in numbers]


@both_databases
@pytest.mark.parametrize("field", ["model", "token_prefix", "endpoint", "status", "request_id"])
def test_text_that_no_database_takes_fits_nothing(mixed: list[int], field: str):
    assert found(CallFilter(**{field: "m\0"})) == []


@both_databases
def test_token_is_found_by_its_first_characters(mixed: list[int], team: Member):
    expected = [mixed[19 - number] for number in range(18, -1, -2) if number != 6]
    assert [id_ for id_ in found(CallFilter(token_prefix=team.bearer_token[:8])) if id_ != mixed[13]] == expected


@both_databases
def test_first_characters_that_two_teams_tokens_share_find_both(mixed: list[int]):
    with writing(db.engine) as connection:
        for table, column in (("api_tokens", "prefix"), ("request_logs", "token_prefix")):
            connection.execute(text(f"UPDATE {table} SET {column} = 'x'"))
    assert found(CallFilter(token_prefix="x")) == mixed


@both_databases
def test_deleted_teams_calls_are_found(mixed: list[int]):
    before = found(CallFilter(team_id=1))
    teams.delete(1, by=TESTER)
    assert found(CallFilter(team_id=1)) == before != []


@both_databases
@pytest.mark.parametrize("most", [1, 20])
def test_calls_of_several_teams_are_found_by_index_or_without(
    mixed: list[int], monkeypatch: pytest.MonkeyPatch, most: int
):
    monkeypatch.setattr(calls, "MOST_ALTERNATIVES", most)
    assert found(CallFilter(team_ids=(1, 2))) == mixed
    assert found(CallFilter(team_ids=(1, 2), status="failed")) == [mixed[19 - number] for number in (6, 3, 2, 1)]
    page = reports.calls_page(CallFilter(team_ids=(1, 2)), after_id=mixed[9], limit=3, search_s=60)
    assert ids(page) == mixed[6:9]


# Sums


def sums_of(**fields: object) -> reports.CallSums:
    """Add up all calls that fit, however slow the machine is."""
    return reports.call_sums(CallFilter(**fields), search_s=60.0)


@both_databases
def test_sums_are_of_all_that_fits(team: Member, new_team: Callable[..., Member]):
    new_team("other")
    log(
        {"charged_tokens": 10, "cost": 5, "repeats": 1},
        {"charged_tokens": 7, "cost": None},
        {"charged_tokens": 0, "cost": 0, "status": "rejected", "repeats": 30},
        {"charged_tokens": 100, "cost": 50, "team_id": 2},
    )
    assert sums_of(team_id=1) == reports.CallSums(32, 17, 5, 1, None)
    assert sums_of(team_ids=(1, 2)) == reports.CallSums(33, 117, 55, 1, None)
    assert sums_of() == reports.CallSums(33, 117, 55, 1, None)
    assert sums_of(status="failed") == reports.CallSums(30, 0, 0, 0, None)
    assert sums_of(model="none") == reports.CallSums(0, 0, 0, 0, None)


@both_databases
def test_sums_have_what_was_corrected_since(team: Member):
    priced, unpriced = log({"charged_tokens": 10, "cost": 5}, {"charged_tokens": 7, "cost": None})
    of_call = {
        "at": BEGIN,
        "team_id": 1,
        "day": BEGIN.date(),
        "model": "m",
        "is_past": False,
        "is_past_of_group": False,
    }
    with writing(db.engine) as connection:
        for call_id, cost in ((priced, -2), (unpriced, 4), (unpriced, 1)):
            connection.execute(insert(CostCorrection).values(call_id=call_id, cost=cost, priced_tokens=0, **of_call))
    assert sums_of(team_id=1) == reports.CallSums(2, 17, 8, 0, None)


def test_sums_that_take_too_long_tell_how_far_they_came(team: Member):
    log(*[{"charged_tokens": 1, "cost": 1}] * 10)
    sums = reports.call_sums(CallFilter(), search_s=0)
    assert (sums.calls, sums.searched_back_to) == (4, BEGIN + 6 * MINUTE)


# Dates


@pytest.mark.parametrize(
    ("since", "until", "numbers"),
    [
        (None, None, range(10)),
        (3, None, range(3, 10)),
        (None, 3, range(3)),
        (3, 6, range(3, 6)),
        (2.5, 6.5, range(3, 7)),
        (6, 3, []),
        (-100, 100, range(10)),
        (100, None, []),
        (None, -100, []),
    ],
)
def test_calls_are_found_from_one_date_on_and_before_another(
    ten: list[int], since: float | None, until: float | None, numbers: range
):
    filter = CallFilter(
        since=None if since is None else BEGIN + since * MINUTE, until=None if until is None else BEGIN + until * MINUTE
    )
    expected = [ten[9 - number] for number in numbers][::-1]
    assert found(filter) == expected
    assert found(CallFilter(since=filter.since, until=filter.until, model="m", team_id=1)) == expected


@by_pairs(
    ("moment", [datetime.min, datetime.max]),
    ("zone", [UTC, datetime.fromisoformat("2026-01-01T00:00+14:00").tzinfo]),
    BOTH_DATABASES,
)
def test_dates_at_the_ends_of_time_are_dates_like_others(ten: list[int], moment: datetime, zone: Any):
    moment = moment.replace(tzinfo=zone)
    assert found(CallFilter(since=moment)) == (ten if moment.year == 1 else [])
    assert found(CallFilter(until=moment)) == ([] if moment.year == 1 else ten)


@pytest.mark.slow
@both_databases
def test_no_call_is_lost_where_ids_have_gaps_and_times_are_out_of_order(team: Member):
    """Machines' clocks differ, and rows may have been taken out."""
    late = [{"created_at": BEGIN + (number + (4 if number % 3 == 0 else 0)) * MINUTE} for number in range(40)]
    rows = dict(zip(log(*late), [row["created_at"] for row in late], strict=True))
    gone = [id_ for id_ in rows if id_ % 7 in (1, 2, 3)]
    with writing(db.engine) as connection:
        connection.execute(delete(RequestLog).where(RequestLog.id.in_(gone)))
    kept = {id_: at for id_, at in rows.items() if id_ not in gone}
    for minutes in range(-1, 46):
        moment = BEGIN + minutes * MINUTE
        assert found(CallFilter(since=moment)) == sorted((i for i, at in kept.items() if at >= moment), reverse=True)
        assert found(CallFilter(until=moment)) == sorted((i for i, at in kept.items() if at < moment), reverse=True)


# A search that takes long


def test_search_stops_in_time_tells_where_and_is_resumed(team: Member):
    found_ids = log(*[{"model": "rare"} if number in (1, 2, 25) else {} for number in range(30)])
    pages = all_pages(CallFilter(model="rare"), search_s=0)
    assert [id_ for page in pages for id_ in ids(page)] == [found_ids[25], found_ids[2], found_ids[1]]
    assert len(pages) == 8  # of four rows each
    assert [page.searched_back_to for page in pages] == [
        *(BEGIN + (30 - 4 * number) * MINUTE for number in range(1, 8)),
        None,
    ]


@both_databases
def test_search_for_newer_calls_stops_in_time_and_is_resumed(team: Member):
    rows = log(*[{"model": "rare"} if number in (5, 20, 21) else {} for number in range(30)])
    after_id, seen, steps = rows[0], [], 0
    while after_id is not None and steps < 20:
        page = reports.calls_page(CallFilter(model="rare"), after_id=after_id, limit=2, search_s=0)
        seen += [id_ for id_ in ids(page) if id_ not in seen]
        after_id, steps = page.after_id, steps + 1
    assert sorted(seen) == [rows[5], rows[20], rows[21]]
    assert 5 < steps < 10


def test_search_goes_on_while_there_is_time(team: Member):
    rows = log({"model": "rare"}, *[{}] * 50)
    page = reports.calls_page(CallFilter(model="rare"), search_s=60)
    assert (ids(page), page.before_id, page.searched_back_to) == (rows[:1], None, None)


@pytest.mark.slow
@both_databases
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["ok", "rejected", "pending"]), st.integers(1, 2))),
    model=st.sampled_from([None, "a", "b"]),
    status=st.sampled_from([None, "ok", "rejected", "pending"]),
    team_id=st.sampled_from([None, 1, 2]),
    limit=st.integers(1, 7),
    search_s=st.sampled_from([0, 60]),
)
def test_pages_of_any_filter_hold_every_call_once(
    two_teams: None, rows: list[tuple[str, str, int]], limit: int, search_s: float, **fields: Any
):
    with writing(db.engine) as connection:
        connection.execute(delete(RequestLog))
    logged = log(*[{"model": model, "status": status, "team_id": team_id} for model, status, team_id in rows])
    wanted = {name: value for name, value in fields.items() if value is not None}
    fitting = [
        id_
        for id_, row in zip(logged, rows, strict=True)
        if wanted.items() <= dict(zip(("model", "status", "team_id"), row, strict=True)).items()
    ]
    filter = CallFilter(**fields)
    pages = all_pages(filter, limit=limit, search_s=search_s)
    assert [id_ for page in pages for id_ in ids(page)] == fitting[::-1]
    assert [row.id for row in reports.iterate_calls(filter)] == fitting[::-1]


@pytest.fixture
def two_teams(team: Member, new_team: Callable[..., Member]) -> None:
    new_team("other")


# What the database is asked


@pytest.fixture
def statements(app: Flask) -> Iterator[list[tuple[str, Any]]]:
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        asked.append((statement, values))

    event.listen(db.engine, "before_cursor_execute", note)
    yield asked
    event.remove(db.engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("ask", "index"),
    [
        (lambda: reports.calls_page(CallFilter(status="rejected")), "ix_request_logs_rare"),
        (lambda: reports.calls_page(CallFilter(status="pending")), "ix_request_logs_pending"),
        (lambda: reports.calls_page(CallFilter(team_id=1)), "ix_request_logs_team_id_id"),
        (lambda: reports.calls_page(CallFilter(team_id=1, model="m")), "ix_request_logs_team_id_id"),
        (lambda: reports.calls_page(CallFilter(token_id=1)), "ix_request_logs_team_id_id"),
        (lambda: reports.calls_page(CallFilter(request_id="req_1")), "request_id=?"),
        (lambda: reports.calls_page(CallFilter(model="m", since=BEGIN)), "PRIMARY KEY"),
        (lambda: reports.recent_failures(BEGIN + MINUTE), "ix_request_logs_rare"),
        (lambda: reports.calls_page(CallFilter(status="failed")), "ix_request_logs_rare"),
        (lambda: reports.calls_page(CallFilter(error_code="e")), "ix_request_logs_rare"),
        (lambda: reports.calls_page(CallFilter(team_ids=(1, 2))), "ix_request_logs_team_id_id"),
        (lambda: reports.call_sums(CallFilter(team_ids=(1, 2), status="failed")), "ix_request_logs_rare"),
        (lambda: reports.overview(BEGIN), "ix_request_logs_pending"),
    ],
)
def test_an_index_serves_each_page(
    mixed: list[int], statements: list[tuple[str, Any]], ask: Callable[[], object], index: str
):
    ask()
    asked = [each for each in statements if "FROM request_logs" in each[0]]
    with db.engine.connect() as connection:
        plans = [
            " / ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values))
            for statement, values in asked
        ]
    assert any(index in plan for plan in plans), plans
    whole = [plan for plan in plans if "SCAN request_logs" in plan and index not in plan]
    assert whole == []


def test_nothing_is_counted_or_skipped_and_the_export_holds_no_transaction(
    mixed: list[int], statements: list[tuple[str, Any]]
):
    all_pages(CallFilter(model="m"))
    rows = reports.iterate_calls(CallFilter(model="m"))
    next(rows)
    assert db.engine.pool.checkedout() == 0
    assert len(list(rows)) > 10
    assert not any("count(" in statement for statement, _ in statements)
    assert max(values[-1] for statement, values in statements if statement.endswith("OFFSET ?")) < calls.WINDOW_ROWS


@both_databases
def test_export_leaves_out_what_comes_meanwhile(ten: list[int]):
    rows = reports.iterate_calls(CallFilter())
    seen = [next(rows).id]
    log({"request_id": "new"})
    assert seen + [row.id for row in rows] == ten


# One call


@both_databases
def test_call_is_told_in_full(client: FlaskClient, team: Member, provider: StandInProvider):
    token, bearer_token = teams.create_token("team", "laptop", by=TESTER)
    headers = {"Authorization": f"Bearer {bearer_token}"}
    body = {"model": "GPT-5-nano", "messages": [{"role": "user", "content": "Hello!"}]}
    request_id = client.post("/v1/chat/completions", json=body, headers=headers).headers["x-request-id"]
    (row,) = reports.calls_page(CallFilter(request_id=request_id)).rows
    detail = reports.call(row.id)
    assert (detail.row.request_id, detail.token_label, detail.team_lives) == (request_id, "laptop", True)
    assert (detail.row.charged_tokens, detail.row.token_id) == (provider.tokens_served, token.id)
    teams.delete("team", by=TESTER)
    assert reports.call(row.id).team_lives is False


@both_databases
def test_pending_call_tells_how_far_it_has_come(app: Flask, team: Member):
    books = Ledger(db.engine, output_reserve_tokens=1024)
    fields = {"request_id": "req", "team_id": team.team.id, "team_name": "team", "token_id": 1, "token_prefix": "tr-x"}
    fields |= {"model": "m", "endpoint": "/v1/e", "stream": True, "created_at": BEGIN}
    books.start = lambda: None  # its heartbeats are the test's alone
    reservation = books.reserve(CallRequest(**fields, prompt_tokens=10, output_tokens=90, choices=1))
    reservation.progress = lambda: 7
    books._writer.run(books._heartbeat())
    row = reports.call(reservation.call_id).row
    books.close()
    assert (row.status, row.prompt_tokens, row.completion_tokens, row.held_tokens) == ("pending", 10, 7, 100)


def test_call_that_does_not_exist_is_none(app: Flask):
    assert reports.call(1) is None


@both_databases
def test_endpoints_to_choose_from_are_those_of_the_newest_calls(mixed: list[int], monkeypatch: pytest.MonkeyPatch):
    assert reports.endpoint_names() == ["/v1/e", "/v1/rare"]
    monkeypatch.setattr(calls, "RECENT_ROWS", 10)
    assert reports.endpoint_names() == ["/v1/e"]

"""What the dashboard and the pages of teams tell: sums by day, nearness to quotas, failures, tokens."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from conftest import TESTER, Member
from flask import Flask
from sqlalchemy import insert, update

from tokenrouter import reports, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import ApiToken, Team, UsageDaily, db
from tokenrouter.ledger import CallRequest, Ledger, Outcome

both_databases = pytest.mark.both_databases

TODAY = date(2026, 11, 25)  # a Wednesday
NOW = datetime(2026, 11, 25, 13, 45, tzinfo=UTC)


def write(statement: object) -> None:
    with writing(db.engine) as connection:
        connection.execute(statement)


def use(member: Member, day: date | str, tokens: int, requests: int = 1, errors: int = 0, model: str = "m") -> None:
    day = date.fromisoformat(day) if isinstance(day, str) else day
    sums = {"requests": requests, "errors": errors, "total_tokens": tokens, "prompt_tokens": 0, "completion_tokens": 0}
    write(insert(UsageDaily).values(team_id=member.team.id, day=day, model=model, **sums))


def set_counters(member: Member, **counters: int) -> None:
    write(update(Team).where(Team.id == member.team.id).values(**counters))


# Figures


@both_databases
def test_periods_are_today_since_monday_and_since_the_first(team: Member):
    for day, tokens in (("2026-11-25", 1), ("2026-11-23", 10), ("2026-11-22", 100), ("2026-11-01", 1000)):
        use(team, day, tokens, requests=2, errors=1)
    found = reports.overview(NOW)
    periods = found.today, found.week, found.month
    assert [period.current.total_tokens for period in periods] == [1, 11, 1111]
    assert [period.current.requests for period in periods] == [2, 4, 8]
    assert [period.since for period in periods] == [TODAY, date(2026, 11, 23), date(2026, 11, 1)]


def test_each_period_is_compared_with_as_many_days_of_the_one_before(team: Member):
    within = {"2026-11-24": 1, "2026-11-16": 10, "2026-11-18": 20, "2026-10-01": 100, "2026-10-25": 200}
    outside = {"2026-11-19": 5000, "2026-10-26": 5000, "2026-09-30": 5000}
    for day, tokens in (within | outside).items():
        use(team, day, tokens)
    found = reports.overview(NOW)
    assert [
        (period.previous.total_tokens, period.previous_label) for period in (found.today, found.week, found.month)
    ] == [
        (1, "all of yesterday"),
        (30, "Mon–Wed last week"),
        (300, "1–25 October"),
    ]


@pytest.mark.parametrize(
    ("now", "week", "month", "last_day"),
    [
        (datetime(2026, 3, 31, tzinfo=UTC), "Mon–Tue last week", "1–28 February", "2026-02-28"),
        (datetime(2028, 3, 31, tzinfo=UTC), "Mon–Fri last week", "1–29 February", "2028-02-29"),
        (datetime(2026, 6, 1, tzinfo=UTC), "Monday last week", "1 May", "2026-05-01"),
        (datetime(2027, 1, 3, tzinfo=UTC), "Mon–Sun last week", "1–3 December", "2026-12-03"),
        # it is still the 28th in UTC
        (
            datetime.fromisoformat("2026-03-01T01:00+02:00"),
            "Mon–Sat last week",
            "1–28 January",
            "2026-01-28",
        ),
    ],
)
def test_month_and_week_before_end_where_they_should(team: Member, now: datetime, week: str, month: str, last_day: str):
    use(team, last_day, 7)
    use(team, date.fromisoformat(last_day) + timedelta(days=1), 5000)
    found = reports.overview(now)
    assert (found.week.previous_label, found.month.previous_label) == (week, month)
    assert found.month.previous.total_tokens == 7


def test_error_rate_is_that_of_today(team: Member):
    assert reports.overview(NOW).error_rate is None
    use(team, "2026-11-24", 1, requests=10, errors=10)
    use(team, TODAY, 1, requests=8, errors=2)
    assert reports.overview(NOW).error_rate == 0.25


def test_figures_hold_what_deleted_teams_used(team: Member):
    use(team, TODAY, 40)
    teams.delete("team", by=TESTER)
    assert reports.overview(NOW).today.current.total_tokens == 40


@both_databases
def test_calls_in_flight_and_what_they_hold(app: Flask, new_team: Callable[..., Member]):
    books = Ledger(db.engine, output_reserve_tokens=1024)
    for number in range(3):
        member = new_team(f"team {number}")
        reservation = books.reserve(call_request(member, number))
    books.settle(reservation, Outcome(status="ok", status_code=200))
    found = reports.overview(NOW)
    books.close()
    assert (found.in_flight, found.held_tokens) == (2, 200)


def call_request(member: Member, number: int, status: str = "ok") -> CallRequest:
    return CallRequest(
        request_id=f"req_{number}",
        team_id=member.team.id,
        team_name=member.team.name,
        token_id=1,
        token_prefix="tr-abcde",
        model="m",
        endpoint="/v1/chat/completions",
        stream=False,
        created_at=NOW,
        prompt_tokens=10,
        output_tokens=90,
        choices=1,
    )


# The chart


@both_databases
def test_days_without_calls_count_zero(team: Member):
    use(team, "2026-11-23", 5, model="a")
    use(team, "2026-11-23", 6, model="b")
    use(team, TODAY, 7)
    use(team, "2026-11-20", 5000)
    found = reports.use_per_day(4, NOW)
    assert found.days == [date(2026, 11, day) for day in (22, 23, 24, 25)]
    assert [(each.team_id, each.name, each.amounts) for each in found.series] == [
        (team.team.id, "team", [0, 11, 0, 7]),
    ]


@both_databases
def test_eight_teams_are_shown_the_others_and_the_deleted_together(new_team: Callable[..., Member]):
    members = [new_team(f"team {number}") for number in range(12)]
    for number, member in enumerate(members):
        use(member, TODAY, 100 - number)
        use(member, "2026-11-24", 1)
    teams.delete_several([members[0].team.id, members[11].team.id], by=TESTER)
    found = reports.use_per_day(2, NOW)
    assert [(each.name, each.amounts) for each in found.series] == [
        *((f"team {number}", [1, 100 - number]) for number in range(1, 9)),
        ("Other teams", [2, 91 + 90]),
        ("Deleted teams", [2, 100 + 89]),
    ]
    assert [each.team_id for each in found.series[-2:]] == [None, None]


def test_chart_without_use_has_no_series(team: Member):
    found = reports.use_per_day(30, NOW)
    assert (len(found.days), found.series) == (30, [])


def test_chart_of_one_team_has_its_series_also_without_use(team: Member, new_team: Callable[..., Member]):
    other = new_team("other")
    use(other, TODAY, 5)
    assert reports.use_per_day(2, NOW, team.team.id).series == [reports.Series(team.team.id, "team", [0, 0])]
    assert reports.use_per_day(2, NOW, other.team.id).series == [reports.Series(other.team.id, "other", [0, 5])]


# Who is about to run out


# What failed


@both_databases
def test_newest_failures_come_first_and_nothing_else(app: Flask, team: Member):
    books = Ledger(db.engine, output_reserve_tokens=1024)
    statuses = ["provider_error", "ok", "interrupted", "client_closed", "provider_error", "ok"]
    for number, status in enumerate(statuses):
        books.settle(books.reserve(call_request(team, number)), Outcome(status=status, status_code=200))
    books.reject(call_request(team, 100), 404, "model_not_found")
    books.close()
    found = reports.recent_failures(NOW)
    assert [(each.status, each.calls) for each in found.groups] == [
        ("rejected", 1),
        ("provider_error", 2),
        ("interrupted", 1),
    ]
    assert (found.groups[0].error_code, found.groups[0].team_name) == ("model_not_found", "team")
    assert not found.is_partial
    assert reports.recent_failures(NOW + timedelta(hours=25)).groups == []


@both_databases
def test_failures_beyond_counting_are_told_to_be_more(app: Flask, team: Member, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reports.failures, "MOST_ROWS", 2)
    books = Ledger(db.engine, output_reserve_tokens=1024)
    for number in range(3):
        books.settle(books.reserve(call_request(team, number)), Outcome(status="provider_error", status_code=502))
    books.close()
    found = reports.recent_failures(NOW)
    assert ([each.calls for each in found.groups], found.is_partial) == ([2], True)


# The list of teams


@pytest.fixture
def several(new_team: Callable[..., Member]) -> dict[str, Member]:
    """Four teams that differ in everything."""
    members = {
        "Anna": new_team("Anna", quota_tokens=100),
        "bert": new_team("bert", quota_tokens=1000),
        "Ärzte": new_team("Ärzte"),
        "100%_x": new_team("100%_x", quota_tokens=50),
    }
    for member, used, last_used_at in zip(members.values(), (81, 10, 20, 50), (NOW, None, NOW, None), strict=True):
        set_counters(member, settled_tokens=used)
        write(update(ApiToken).where(ApiToken.team_id == member.team.id).values(last_used_at=last_used_at))
    write(
        update(ApiToken)
        .where(ApiToken.team_id == members["Ärzte"].team.id)
        .values(last_used_at=NOW - timedelta(hours=1))
    )
    use(members["bert"], TODAY, 500, requests=5)
    use(members["bert"], "2026-11-19", 7, requests=1)
    use(members["bert"], "2026-11-18", 5000, requests=50)
    use(members["Anna"], TODAY, 900, requests=2)
    teams.update("bert", active=False, by=TESTER)
    teams.delete(new_team("gone").team.id, by=TESTER)
    return members


def listed(**asked: object) -> list[str]:
    return [row.name for row in reports.teams_page(**asked, now=NOW).rows]


@both_databases
def test_row_tells_all_of_a_team(several: dict[str, Member]):
    (row,) = reports.teams_page(search="bert", now=NOW).rows
    assert (row.id, row.active, row.quota_tokens, row.used_tokens, row.held_tokens, row.remaining_tokens) == (
        several["bert"].team.id, False, 1000, 10, 0, 990,
    )  # fmt: skip
    assert (row.requests_7d, row.tokens_7d, row.last_used_at, row.models) == (6, 507, None, None)
    assert type(row.tokens_7d) is int


def test_last_use_is_that_of_the_tokens_used_last(several: dict[str, Member]):
    token, _ = teams.create_token("Anna", by=TESTER)
    write(update(ApiToken).where(ApiToken.id == token.id).values(last_used_at=NOW + timedelta(minutes=1)))
    assert reports.teams_page(search="Anna", now=NOW).rows[0].last_used_at == NOW + timedelta(minutes=1)


@both_databases
@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("", ["100%_x", "Anna", "Ärzte", "bert"]),
        ("  nn ", ["Anna"]),
        ("ANNA", ["Anna"]),
        ("ärZ", ["Ärzte"]),
        ("%_", ["100%_x"]),
        ("%", ["100%_x"]),
        ("n_a", []),
        ("\\", []),
        ("'; DROP TABLE teams", []),
        ("a\0", []),
        ("gone", []),
    ],
)
def test_search_is_for_a_part_of_the_name(several: dict[str, Member], search: str, names: list[str]):
    assert listed(search=search) == names


@both_databases
@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"state": "active"}, ["100%_x", "Anna", "Ärzte"]),
        ({"state": "disabled"}, ["bert"]),
        ({"near_quota": "exhausted"}, ["100%_x"]),
        ({"near_quota": "over80"}, ["100%_x", "Anna"]),
        ({"near_quota": "over80", "state": "active", "search": "a"}, ["Anna"]),
    ],
)
def test_list_is_narrowed_by_state_and_nearness(several: dict[str, Member], asked: dict[str, str], names: list[str]):
    assert listed(**asked) == names
    assert reports.teams_page(**asked, now=NOW).total == len(names)


@both_databases
@pytest.mark.parametrize(
    ("sort", "up", "down"),
    [
        ("quota", ["100%_x", "Anna", "bert", "Ärzte"], ["bert", "Anna", "100%_x", "Ärzte"]),
        ("used", ["bert", "Ärzte", "100%_x", "Anna"], ["Anna", "100%_x", "Ärzte", "bert"]),
        ("remaining", ["100%_x", "Anna", "bert", "Ärzte"], ["bert", "Anna", "100%_x", "Ärzte"]),
        ("share", ["bert", "Anna", "100%_x", "Ärzte"], ["100%_x", "Anna", "bert", "Ärzte"]),
        ("requests", ["Ärzte", "100%_x", "Anna", "bert"], ["bert", "Anna", "Ärzte", "100%_x"]),
        ("tokens", ["Ärzte", "100%_x", "bert", "Anna"], ["Anna", "bert", "Ärzte", "100%_x"]),
        ("last_used", ["Ärzte", "Anna", "bert", "100%_x"], ["Anna", "Ärzte", "bert", "100%_x"]),
        ("created", ["Anna", "bert", "Ärzte", "100%_x"], ["100%_x", "Ärzte", "bert", "Anna"]),
        ("name", ["100%_x", "Anna", "Ärzte", "bert"], ["bert", "Ärzte", "Anna", "100%_x"]),
    ],
)
def test_list_is_sorted_with_what_has_no_value_last(
    several: dict[str, Member], sort: str, up: list[str], down: list[str]
):
    assert (listed(sort=sort), listed(sort=sort, descending=True)) == (up, down)


def test_sorts_tested_here_are_all_there_are():
    assert set(reports.SORTS) == {
        "name", "quota", "used", "remaining", "share", "requests", "tokens", "last_used", "created",
    }  # fmt: skip


@both_databases
def test_list_is_paged(several: dict[str, Member]):
    pages = [reports.teams_page(page=number, per_page=3, now=NOW) for number in (1, 2, 3, 10**30)]
    assert [[row.name for row in page.rows] for page in pages] == [["100%_x", "Anna", "Ärzte"], ["bert"], [], []]
    assert [page.total for page in pages] == [4, 4, 4, 4]


# One team


@both_databases
def test_team_that_is_not_there_has_no_page(team: Member):
    teams.delete("team", by=TESTER)
    assert reports.team_detail(team.team.id) is None
    assert reports.team_detail(10**30) is None


@both_databases
def test_tokens_of_a_team_are_told_with_their_state(team: Member):
    for label in ("in its grace", "expired", "revoked", "expired long ago", "revoked long ago"):
        teams.create_token("team", label, by=TESTER)
    ids = {token.label: token.id for token in teams.tokens("team")}
    new, _ = teams.rotate_token("team", ids["in its grace"], timedelta(hours=1), by=TESTER)
    now = datetime.now(UTC)
    recently, long_ago = now - timedelta(minutes=1), now - timedelta(days=31)
    for label, values in {
        "expired": {"expires_at": recently},
        "revoked": {"revoked_at": recently},
        "expired long ago": {"expires_at": long_ago},
        "revoked long ago": {"revoked_at": long_ago},
    }.items():
        write(update(ApiToken).where(ApiToken.id == ids[label]).values(**values))
    tokens = reports.team_detail(team.team.id).tokens
    assert [(token.label, token.state, token.replaced_by) for token in tokens] == [
        (None, "active", None),
        ("in its grace", "replaced", new.prefix),
        ("expired", "expired", None),
        ("revoked", "revoked", None),
        ("in its grace", "active", None),
    ]


@both_databases
def test_use_by_model_is_of_thirty_days_the_most_first(team: Member, new_team: Callable[..., Member]):
    use(team, TODAY, 10, model="small", errors=1)
    use(team, "2026-10-27", 500, model="big", requests=2)
    use(team, TODAY, 20, model="big")
    use(team, "2026-10-26", 5000, model="old")
    use(team, TODAY, 0, model="")
    use(new_team("other"), TODAY, 99, model="small")
    found = reports.team_detail(team.team.id, NOW)
    assert [(use.model, use.requests, use.errors, use.tokens) for use in found.models] == [
        ("big", 3, 0, 520),
        ("small", 1, 1, 10),
        ("", 1, 0, 0),
    ]
    assert (found.team.name, found.team.tokens_7d) == ("team", 30)


@both_databases
def test_models_to_choose_from_are_those_used_lately(team: Member):
    today = datetime.now(UTC).date()
    for model, days in (("new", 0), ("older", 29), ("old", 40), ("", 0)):
        use(team, today - timedelta(days=days), 1, model=model)
    assert reports.model_names() == ["new", "older"]

"""Until when quotas last, by the pace of days that had calls and to the renewal; and who is told to run out."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from adminclient import Panel
from conftest import TESTER, Member
from flask import Flask
from sqlalchemy import insert, update

from tokenrouter import reports, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Group, GroupUsageDaily, Team, UsageDaily, db
from tokenrouter.reports.running_out import Amount, Pace, _last_day

pytestmark = pytest.mark.both_databases

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)  # a Friday
FRIDAY = NOW.date()
MONDAY = date(2026, 11, 30)
NewTeam = Callable[..., Member]


def school_days(tokens: float, weeks: int = 4, today: float = 0) -> Pace:
    pace = Pace(today=Amount(today))
    for back in range(1, 7 * weeks):
        day = FRIDAY - timedelta(days=back)
        if day.weekday() < 5:
            pace.add(day, Amount(tokens))
    return pace


def last_day(left: float, pace: Pace, renews: date = date(2036, 1, 1)) -> date | None:
    takes = [each.tokens for each in pace.expected(FRIDAY)]
    return _last_day(left, takes, pace.today.tokens, FRIDAY, renews)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("left", "today", "ends"),
    [
        (50, 0, FRIDAY),  # the rest of today takes as much as other days
        (101, 0, MONDAY),  # and no weekend takes any
        (101, 100, date(2026, 12, 1)),
        (600, 0, date(2026, 12, 4)),
        (5000, 0, date(2027, 2, 4)),
        (10**9, 0, None),  # in ten years
    ],
)
def test_weekends_without_calls_do_not_count(left: int, today: int, ends: date | None):
    assert last_day(left, school_days(100, today=today)) == ends


@pytest.mark.sqlite_only
def test_whole_weeks_are_passed_over_to_the_same_day():
    pace = school_days(100)
    day, left = FRIDAY, 12_345.0
    while (takes := pace.expected(FRIDAY)[day.weekday()].tokens) < left:
        day, left = day + timedelta(days=1), left - takes
    assert last_day(12_345, pace) == day


@pytest.mark.sqlite_only
def test_what_renews_before_lasts():
    assert last_day(600, school_days(100), renews=date(2026, 12, 4)) is None
    assert last_day(600, school_days(100), renews=date(2026, 12, 5)) == date(2026, 12, 4)


@pytest.mark.sqlite_only
def test_weekday_that_has_not_come_yet_may_be_as_the_others():
    pace = Pace()
    pace.add(FRIDAY - timedelta(days=1), Amount(100))
    assert last_day(150, pace) == FRIDAY + timedelta(days=1)
    assert last_day(150, Pace(today=Amount(100))) == FRIDAY + timedelta(days=2)
    assert last_day(150, Pace()) is None


# in the database


def use_days(kind: type[Team | Group], id_: int, tokens: int, days: int = 3, cost: int = 0) -> None:
    """Have a team, or a group with it, use so much on each of the last days, yesterday the last."""
    sums = {
        "requests": 1,
        "errors": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": tokens,
        "cost": cost,
    }
    table, key = (UsageDaily, {"team_id": id_}) if kind is Team else (GroupUsageDaily, {"group_id": id_, "team_id": 1})
    today = reports.day_of(datetime.now(UTC))
    rows = [{**key, "day": today - timedelta(days=back), "model": "m", **sums} for back in range(1, days + 1)]
    with writing(db.engine) as connection:
        connection.execute(insert(table), rows)


def use_up(name: str) -> None:
    with writing(db.engine) as connection:
        connection.execute(update(Team).where(Team.name == name).values(settled_tokens=Team.quota_tokens))


@pytest.fixture
def school(new_team: NewTeam) -> date:
    """Today; teams that run out today, in some days, after years, and those of which nothing is to be told."""
    for name, quota, tokens in (
        ("soon", 100, 60),
        ("sooner", 10, 60),
        ("later", 1000, 50),
        ("blocked", 0, 60),
        ("disabled", 10, 60),
        ("unlimited", None, 60),
        ("idle", 100, 0),
        ("gone", 100, 60),
    ):
        team = new_team(name, quota_tokens=quota).team
        if tokens:
            use_days(Team, team.id, tokens)
    teams.update("disabled", active=False, by=TESTER)
    use_up("gone")
    return reports.day_of(datetime.now(UTC))


def test_list_is_sorted_and_filtered_by_the_end(school: date):
    found = reports.teams_page(sort="lasts").rows
    assert [row.name for row in found[:4]] == ["gone", "sooner", "soon", "later"]
    assert [row.end is None for row in found] == [False] * 4 + [True] * 4
    assert found[1].end.day == school
    assert found[2].end.day == school + timedelta(days=1)
    assert found[3].end.day == school + timedelta(days=19)
    page = reports.teams_page(sort="lasts", descending=True, page=2, per_page=2)
    assert ([row.name for row in page.rows], page.total) == (["sooner", "gone"], 8)
    assert {row.name for row in reports.teams_page(lasts="soon").rows} == {"gone", "sooner", "soon"}
    assert [row.name for row in reports.teams_page(lasts="used-up", state="active").rows] == ["gone"]


def test_dashboard_names_the_next_and_counts_those_that_are_used_up(school: date, panel: Panel):
    group = teams.create_group("year", quota_tokens=70, by=TESTER)
    use_days(Group, group.id, 60)
    found = reports.running_out(3)
    assert [use.name for use, _ in found.next] == ["sooner", "year", "soon"]
    assert (found.used_up_teams, found.used_up_groups) == (1, 0)
    page = panel.get("/admin/").text
    assert 'href="/admin/teams/?lasts=used-up&amp;state=active">1 team</a> has used it up.' in page
    assert "blocked" not in page.split("Running out next")[1]
    assert "tomorrow" in panel.get(f"/admin/groups/{group.id}/").text


def test_budget_counts_too_and_the_earlier_end_is_told(app: Flask, new_team: NewTeam):
    team = new_team("spender", quota_tokens=10**6, budget=100_000).team
    use_days(Team, team.id, 10, cost=60_000)
    today = reports.day_of(datetime.now(UTC))
    assert reports.team_detail(team.id).team.end.day == today + timedelta(days=1)


def test_team_whose_quota_renews_before_lasts(new_team: NewTeam, panel: Panel):
    team = new_team("daily", quota_tokens=100, renewal=teams.parse_renewal("daily")).team
    use_days(Team, team.id, 60)
    assert reports.team_detail(team.id).team.end is None
    page = panel.get("/admin/teams/?sort=lasts")
    assert page.status_code == 200
    assert ">lasts</span>" in page.text

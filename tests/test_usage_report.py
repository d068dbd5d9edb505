"""The report of use: its periods, its sums by one thing and two, and what page, command and API say of them."""

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta

import pytest
from adminclient import NASTY_NAMES, Panel
from conftest import TESTER
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import insert

from tokenrouter import reports, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import GroupUsageDaily, TokenUsageDaily, UsageDaily, db
from tokenrouter.errors import InvalidRequest
from tokenrouter.reports import Days, check_dimensions, period_days
from tokenrouter.reports.usage_report import days_before
from tokenrouter.teams import management_tokens

pytestmark = pytest.mark.both_databases

FRIDAY = date(2026, 11, 27)


def add_use(
    team_id: int, day: date, tokens: int, model: str = "m", group: int = 0, token: int = 0, **more: int
) -> None:
    """Add to the daily totals, as calls of so many tokens in all would."""
    sums = {"requests": 1, "errors": 0, "prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens} | more
    with writing(db.engine) as connection:
        connection.execute(insert(UsageDaily).values(team_id=team_id, day=day, model=model, **sums))
        if group:
            whose = {"group_id": group, "team_id": team_id}
            connection.execute(insert(GroupUsageDaily).values(**whose, day=day, model=model, **sums))
        if token:
            connection.execute(insert(TokenUsageDaily).values(token_id=token, day=day, model=model, **sums))


@pytest.fixture
def used(app: Flask) -> date:
    """Today; two teams, one of them in a group, used some of two models today and long before."""
    today = reports.day_of(datetime.now(UTC))
    group = teams.create_group("year", by=TESTER)
    in_group, _ = teams.create("in group", group=group.id, by=TESTER)
    alone, _ = teams.create("alone", by=TESTER)
    (token,) = teams.tokens("in group")
    priced = {"cost": 4_000_000, "priced_tokens": 30}
    add_use(in_group.id, today, 30, "big", group.id, token.id, **priced)
    add_use(in_group.id, today, 5, "small", group.id, token.id, errors=1)
    add_use(alone.id, today, 7, "small")  # of a time in which tokens were not kept
    add_use(alone.id, today - timedelta(days=1), 2, "small")
    return today


def sums(report: reports.Report) -> dict[tuple[str, ...], int]:
    return {tuple(each.name for each in line.subjects): line.sums.total_tokens for line in report.lines}


@pytest.mark.parametrize(
    ("period", "days", "before"),
    [
        ("this-week", (date(2026, 11, 23), FRIDAY), (date(2026, 11, 16), date(2026, 11, 20))),
        ("last-week", (date(2026, 11, 16), date(2026, 11, 22)), (date(2026, 11, 9), date(2026, 11, 15))),
        ("this-month", (date(2026, 11, 1), FRIDAY), (date(2026, 10, 1), date(2026, 10, 27))),
        ("last-month", (date(2026, 10, 1), date(2026, 10, 31)), (date(2026, 9, 1), date(2026, 9, 30))),
        ("90-days", (date(2026, 8, 30), FRIDAY), (date(2026, 6, 1), date(2026, 8, 29))),
    ],
)
def test_periods_are_compared_with_those_before(period: str, days: tuple[date, date], before: tuple[date, date]):
    found = period_days(period, FRIDAY)
    assert (found.since, found.until) == days
    assert days_before(found, FRIDAY) == Days(*before)


@pytest.mark.parametrize(
    ("since", "until", "before"),
    [
        ("2026-03-10", "2026-03-12", ("2026-03-07", "2026-03-09")),
        ("2026-01-01", "2026-03-31", ("2025-10-01", "2025-12-31")),
        ("2026-03-01", "2026-03-31", ("2026-02-01", "2026-02-28")),
    ],
)
def test_typed_days_are_compared_with_as_many_and_months_with_months(since: str, until: str, before: tuple[str, str]):
    days = Days(date.fromisoformat(since), date.fromisoformat(until))
    assert days_before(days, FRIDAY) == Days(*map(date.fromisoformat, before))


def test_each_combination_adds_up_to_all(used: date):
    days = Days(used, used)
    for first in reports.DIMENSIONS:
        for by in [(first,)] + [(first, second) for second in reports.DIMENSIONS if second != first]:
            if set(by) == {"group", "token"}:
                with pytest.raises(InvalidRequest, match="not kept by token"):
                    check_dimensions(by)
                continue
            report, table = reports.usage_report(days, by, used), reports.usage_table(days, by, used)
            assert (report.total.total_tokens, report.total.requests) == (42, 3), by
            assert table.total == report.total._replace(prompt_tokens=0)  # which the page does not show
            assert sum(row.sums.total_tokens for row in table.rows) == 42
            assert all(
                sum(part.total_tokens for part in row.parts) == row.sums.total_tokens for row in table.rows if row.parts
            )
            assert sum(map(sum, (each.amounts for each in table.chart.series))) == 42
            assert report.before.total_tokens == table.before.total_tokens == 2


def test_rows_are_named_and_what_belongs_to_none_has_its_own(used: date):
    days = Days(used, used)
    assert sums(reports.usage_report(days, ("team", "model"), used)) == {
        ("in group", "big"): 30, ("alone", "small"): 7, ("in group", "small"): 5,
    }  # fmt: skip
    assert sums(reports.usage_report(days, ("group",), used)) == {("year",): 35, ("In no group",): 7}
    (token,) = teams.tokens("in group")
    assert sums(reports.usage_report(days, ("token",), used)) == {(f"{token.prefix}…",): 35, ("Not kept by token",): 7}


def test_deleted_team_keeps_its_row_and_is_named_so(used: date, runner: FlaskCliRunner):
    teams.delete("alone", by=TESTER)
    done = runner.invoke(args=["usage", "report", "--since", used.isoformat(), "--json"])
    rows = {row["team"]: row["total_tokens"] for row in json.loads(done.stdout)["rows"]}
    assert rows == {"in group": 35, "alone (deleted)": 7}


def test_only_ten_columns_are_shown_and_the_rest_is_one(used: date):
    (team,) = [team for team in teams.living() if team.name == "alone"]
    for number in range(12):
        add_use(team.id, used, 100 + number, f"model {number}")
    table = reports.usage_table(Days(used, used), ("team", "model"), used, limit=1)
    assert (len(table.rows), table.all_rows, len(table.columns), table.other_columns) == (1, 2, 10, 4)
    assert table.rows[0].parts[-1].total_tokens == 100 + 101 + 7
    drawn = reports.usage_table(Days(used, used), ("model",), used).chart.series
    assert [each.name for each in drawn][-1] == "4 others"
    assert len(drawn) == 11


def test_many_days_are_drawn_by_month(used: date):
    chart = reports.usage_table(Days(used - timedelta(days=400), used), ("team",), used).chart
    assert chart.step == "month"
    assert chart.days[-1] == used.replace(day=1)
    assert sum(map(sum, (each.amounts for each in chart.series))) == 44


def test_days_of_a_term_are_drawn_by_week(used: date):
    chart = reports.usage_table(Days(used - timedelta(days=89), used), ("model",), used).chart
    assert chart.step == "week"
    assert {day.weekday() for day in chart.days} == {0}
    assert sum(map(sum, (each.amounts for each in chart.series))) == 44


def test_biggest_are_drawn_as_one_where_the_rest_is_most_of_it(used: date, panel: Panel):
    for number in range(30):
        team, _ = teams.create(f"of many {number}", by=TESTER)
        add_use(team.id, used, 100 + number)
    table = reports.usage_table(Days(used, used), ("team",), used)
    assert [(each.name, sum(each.amounts)) for each in table.chart.series] == [
        ("The 10 biggest", sum(range(120, 130))), ("22 others", 42 + sum(range(100, 120))),
    ]  # fmt: skip
    assert [each.name for each in table.biggest] == [f"of many {number}" for number in range(29, 19, -1)]
    assert '<h3 id="biggest-title">The 10 biggest</h3>' in panel.get("/admin/usage/?period=this-week").text


# the doors


def test_command_prints_table_csv_and_json(used: date, runner: FlaskCliRunner):
    since = ["--since", used.isoformat()]
    shown = runner.invoke(args=["usage", "report", *since]).stdout
    assert "42 tokens, 3 calls, 1 failed, cost 0.004 USD and 12 tokens without a price." in shown
    printed = runner.invoke(args=["usage", "report", *since, "--by", "day,model", "--csv"]).stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [(row["day"], row["model"], row["total_tokens"], row["cost"]) for row in rows] == [
        (used.isoformat(), "big", "30", "0.004"),
        (used.isoformat(), "small", "12", ""),
    ]
    told = json.loads(runner.invoke(args=["usage", "report", *since, "--until", used.isoformat(), "--json"]).stdout)
    assert (told["total"]["errors"], told["before"]["total_tokens"]) == (1, 2)
    assert told["rows"][0] | {"team": "in group", "total_tokens_before": 0, "cost": "0.004"} == told["rows"][0]


@pytest.mark.parametrize(
    "arguments", [["--by", "group,token"], ["--by", "planet"], ["--until", "2001-01-01", "--since", "2002-01-01"]]
)
def test_command_refuses_what_cannot_be(app: Flask, runner: FlaskCliRunner, arguments: list[str]):
    done = runner.invoke(args=["usage", "report", *arguments])
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1


def test_api_groups_by_token(used: date, client: FlaskClient):
    _, bearer = management_tokens.create(None, by=TESTER)
    headers = {"Authorization": f"Bearer {bearer}"}
    until = {"since": used.isoformat(), "until": (used + timedelta(days=1)).isoformat()}
    answer = client.get("/api/usage", query_string={"group_by": "token", **until}, headers=headers).json
    (token,) = teams.tokens("in group")
    assert [(row["token"], row["total_tokens"]) for row in answer["data"]] == [(token.prefix, 35), (None, 7)]
    of_team = client.get("/api/usage?group_by=token&team=in group", headers=headers).json["data"]
    assert [row["total_tokens"] for row in of_team] == [35]
    refused = client.get("/api/usage?group_by=token&group=year", headers=headers)
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "group_by")


def test_page_shows_what_its_address_asks_for(used: date, panel: Panel):
    page = panel.get(f"/admin/usage/?since={used}&until={used}&by=team&and=model&sort=name")
    assert page.status_code == 200
    assert page.text.index(">alone</bdi></a></th>") < page.text.index(">in group</bdi></a></th>")
    assert 'title="42 tokens"' in page.text
    assert f"since={used}" in page.text.split("sort=calls")[0]
    assert "12</span> tokens without a price" in page.text
    swapped = panel.get("/admin/usage/?period=this-month&by=model&and=day").text
    assert '<option value="day" selected>' in swapped.split('id="and"')[0]


def test_page_tells_what_cannot_be_and_shows_the_standard(used: date, panel: Panel):
    for query, words in (
        ("since=yesterday", "2026-01-31"),
        ("by=group&and=token", "not kept"),
        ("by=x", "none of them"),
    ):
        page = panel.get(f"/admin/usage/?{query}")
        assert page.status_code == 400
        assert words in page.text


def test_page_and_csv_take_any_name_as_text(app: Flask, panel: Panel):
    today = reports.day_of(datetime.now(UTC))
    for name in NASTY_NAMES:
        team, _ = teams.create(name, by=TESTER)
        add_use(team.id, today, 5, name[:20])
    page = panel.get("/admin/usage/?by=team&and=model").text
    assert "<img src=x" not in page
    assert "49</title>" not in page
    answer = panel.get("/admin/usage/export/csv/?by=team&separator=semicolon")
    assert answer.text.startswith("\ufeffteam;requests;errors;")
    assert "'=HYPERLINK(1);" in answer.text
    assert "by-team.csv" in answer.headers["Content-Disposition"]


def test_page_of_no_use_says_so(panel: Panel):
    page = panel.get("/admin/usage/").text
    assert "Nothing was used on these days." in page
    assert "No call ended on these days." in page

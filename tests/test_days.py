"""The days of reports and charts begin at midnight in TIMEZONE."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import HELLO, TESTER, Member, chat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tokenrouter import create_app, ledger, reports, runtime
from tokenrouter.database.tables import RequestLog, UsageDaily, db
from tokenrouter.ledger import CallRequest, Outcome
from tokenrouter.teams import management_tokens

pytestmark = pytest.mark.both_databases

EAST, WEST = "Pacific/Kiritimati", "Pacific/Pago_Pago"  # at any moment one of them has another day than UTC


@pytest.fixture(params=[EAST, WEST])
def zone(request: pytest.FixtureRequest, settings: dict[str, str]) -> ZoneInfo:
    settings["TIMEZONE"] = request.param
    return ZoneInfo(request.param)


def day_of_call(call_id: int, zone: ZoneInfo) -> date:
    with db.engine.connect() as connection:
        at: datetime = connection.execute(select(RequestLog.created_at).where(RequestLog.id == call_id)).scalar_one()
    return at.astimezone(zone).date()


def days() -> list[date]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(UsageDaily.day)).scalars())


def test_call_counts_to_its_day_wherever_that_is_shown(zone: ZoneInfo, client: FlaskClient, team: Member):
    day = day_of_call(chat(client, team), zone)
    assert days() == [day]
    assert reports.usage("day")[0][0]["day"] == day.isoformat()
    told = client.get("/v1/usage", headers=team.headers).json["by_day"]
    assert [row["date"] for row in told if row["requests"]] == [day.isoformat()]
    now = datetime.now(UTC)
    assert reports.overview(now).today.since == now.astimezone(zone).date()
    assert reports.use_per_day(30, now).days[-1] == now.astimezone(zone).date()
    assert ledger.verify(db.engine).problems == []


def test_api_takes_days_of_the_zone(zone: ZoneInfo, client: FlaskClient, team: Member):
    headers = {"Authorization": f"Bearer {management_tokens.create('tests', by=TESTER)[1]}"}

    def rows(query: str) -> list[Any]:
        return client.get(f"/api/{query}", headers=headers).json["data"]

    day = day_of_call(chat(client, team), zone)
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone).isoformat().replace("+", "%2B")
    for beginning in (day.isoformat(), midnight):
        assert len(rows(f"usage?since={beginning}")) == len(rows(f"logs?since={beginning}")) == 1
        assert rows(f"usage?until={beginning}") == rows(f"logs?until={beginning}") == []
    wrong = client.get(f"/api/usage?since={day.isoformat()}T07:30:00Z", headers=headers)
    assert (wrong.status_code, wrong.json["error"]["param"]) == (400, "since")
    assert zone.key in wrong.json["error"]["message"]


def test_call_over_midnight_counts_to_the_day_on_which_it_began(app: Flask, team: Member):
    """By the zone, whatever day it is in UTC."""
    books = runtime.of(app).ledger
    books._zone = ZoneInfo("Europe/Berlin")
    for at in (datetime(2026, 3, 28, 22, 59, 59, tzinfo=UTC), datetime(2026, 3, 28, 23, 0, tzinfo=UTC)):
        reservation = books.reserve(request(team, at))
        books.settle(reservation, Outcome(status="ok", total_tokens=5, charged_tokens=5, usage_source="provider"))
    assert sorted(days()) == [date(2026, 3, 28), date(2026, 3, 29)]


def request(member: Member, at: datetime) -> CallRequest:
    return CallRequest(
        request_id=f"req_{at.timestamp()}",
        team_id=member.team.id,
        team_name="team",
        token_id=1,
        token_prefix="tr-abcde",
        model="m",
        endpoint="/v1/chat/completions",
        stream=False,
        created_at=at,
    )


def test_other_zone_leaves_earlier_days_as_they_were(
    zone: ZoneInfo, client: FlaskClient, new_team: Callable[..., Member], settings: dict[str, str]
):
    team = new_team()
    before = day_of_call(chat(client, team), zone)
    other = create_app(settings | {"TIMEZONE": "UTC"})
    with other.app_context():
        reply = other.test_client().post("/v1/chat/completions", json=HELLO, headers=team.headers)
        assert reply.status_code == 200
        runtime.close(other)
    with db.engine.connect() as connection:
        kept = list(connection.execute(select(RequestLog.day).order_by(RequestLog.id)).scalars())
    assert kept[0] == before
    assert sorted(days()) == sorted(set(kept))
    assert ledger.verify(db.engine).problems == []
    assert ledger.repair(db.engine, by=TESTER) == []

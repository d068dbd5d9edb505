"""An hour of traffic with faults, of which the provider's bill tells: balance, runway, and each token of the gap."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from adminclient import Panel
from conftest import Member, chat, eventually, hello
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import select, update

from tokenrouter import account, runtime
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import AccountCheck, RequestLog, db
from tokenrouter.matching import Reason
from tokenrouter.provider_record import fetch
from tokenrouter.reconciliation import Reconciliation, reconcile
from tokenrouter.standin import StandInProvider
from tokenrouter.standin.values import Served

pytestmark = pytest.mark.both_databases
UTC_ZONE = ZoneInfo("UTC")
HOUR = timedelta(hours=1)
UNEXPLAINED = 34

FAULTS = (
    ("prompt_tokens=100 words=50 usage=none", {}, Reason.ESTIMATED),
    ("prompt_tokens=70 words=40 cut=6", {"stream": True}, Reason.BROKE_OFF),
    ("prompt_tokens=60 words=30 cut=0", {}, Reason.FAILED),
    ("prompt_tokens=80 words=20 silent=1", {}, Reason.TIMED_OUT),
)
GOOD = [(f"prompt_tokens={10 * number} words={7 * number}", {}, None) for number in range(1, 9)]
TWINS = [("prompt_tokens=11 words=11", {}, None)] * 2  # of the same model, in the same second


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"PROVIDER_ACCOUNT": "poe", "PROVIDER_READ_TIMEOUT": "1"}


class Traffic:
    """Calls that were made one after the other, and what the provider truly served for each."""

    def __init__(self, client: FlaskClient, provider: StandInProvider) -> None:
        self.client, self.provider = client, provider
        self.calls: list[tuple[int, Served, Reason | None]] = []

    def make(self, member: Member, directives: str, fields: dict[str, object], reason: Reason | None) -> None:
        call_id = chat(self.client, member, directives, **fields)
        self.calls.append((call_id, self._newest(), reason))

    def leave(self, member: Member) -> None:
        """Go away in the middle of a stream."""
        body = hello("prompt_tokens=40 words=90 gap=0.1", stream=True)
        reply = self.client.post("/v1/chat/completions", json=body, headers=member.headers)
        next(reply.response)
        reply.close()
        assert eventually(lambda: len(self._served()) > len(self.calls))
        query = select(RequestLog.id).where(RequestLog.request_id == reply.headers["x-request-id"])
        with db.engine.connect() as connection:
            self.calls.append((connection.execute(query).scalar_one(), self._newest(), Reason.LEFT))

    def spread(self, begin: datetime) -> None:
        """Lay the calls over an hour, the last two in the same second, in our log and in the provider's record."""
        moved = []
        for number, (call_id, served, reason) in enumerate(self.calls):
            at = begin + HOUR * min(number, len(self.calls) - 2) / len(self.calls)
            with writing(db.engine) as connection:
                connection.execute(update(RequestLog).where(RequestLog.id == call_id).values(created_at=at))
            moved.append((call_id, replace(served, at=at.timestamp() + 1.5), reason))
        self.calls = moved
        self.provider.finished[:] = [served for _, served, _ in moved]
        self.provider.broken.clear()

    def charged(self, call_id: int) -> int:
        with db.engine.connect() as connection:
            return connection.execute(select(RequestLog.charged_tokens).where(RequestLog.id == call_id)).scalar_one()

    def _served(self) -> list[Served]:
        return [*self.provider.finished, *self.provider.broken]

    def _newest(self) -> Served:
        return max(self._served(), key=lambda served: served.at)


@pytest.fixture
def traffic(client: FlaskClient, new_team: Callable[..., Member], provider: StandInProvider) -> Traffic:
    """An hour of calls of three teams, some cut, timed out, left or estimated, all of which the provider charges."""
    made = Traffic(client, provider)
    members = [new_team(f"team {number}", quota_tokens=100_000) for number in range(3)]
    account.refresh(db.engine, runtime.current().account)
    made.leave(members[0])
    for number, (directives, fields, reason) in enumerate((*GOOD, *FAULTS, *FAULTS[:3], *TWINS)):
        made.make(members[number % 3], directives, fields, reason)
    made.spread(datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 3 * HOUR)
    return made


def expected_gaps(traffic: Traffic) -> Counter[Reason]:
    """Bend the provider's record, and return what the gap has to be made of."""
    gaps: Counter[Reason] = Counter()
    for call_id, served, reason in traffic.calls:
        if reason is not None:
            gaps[reason] += served.total_tokens - traffic.charged(call_id)
    finished = traffic.provider.finished
    lost, bent, kept = finished[2], finished[4], finished[1]
    finished[4] = replace(bent, completion_tokens=bent.completion_tokens + UNEXPLAINED)
    gaps[Reason.OTHERWISE] = UNEXPLAINED
    finished.append(replace(kept, response_id="chatcmpl-foreign", at=kept.at - 600, prompt_tokens=999))
    gaps[Reason.THEIRS_ALONE] = finished[-1].total_tokens
    finished.remove(lost)
    gaps[Reason.OURS_ALONE] = -lost.total_tokens
    return gaps


def compared() -> Reconciliation:
    fetch(db.engine, runtime.current().account)
    today = datetime.now(UTC).date()
    return reconcile(db.engine, today - timedelta(days=2), today, UTC_ZONE)


def test_every_token_of_the_gap_is_named(
    traffic: Traffic, provider: StandInProvider, panel: Panel, runner: FlaskCliRunner
):
    expected = expected_gaps(traffic)
    found = compared()
    assert {reason: sums.tokens for reason, sums in found.gaps} == dict(expected)
    ours = sum(traffic.charged(call_id) for call_id, _, _ in traffic.calls)
    assert found.gap_tokens == sum(served.total_tokens for served in provider.finished) - ours
    assert Reason.OTHERWISE in dict(found.gaps)
    page = panel.get("/admin/account/reconciliation/?period=90-days").text
    told = runner.invoke(args=["provider", "reconcile"]).output
    for reason, tokens in expected.items():
        assert f"{tokens:+,}" in page and f"{tokens:+,} tokens of" in told
        assert reason.value[1:] in page and reason.value in told


def test_balance_and_runway_of_that_hour_are_shown(
    traffic: Traffic, provider: StandInProvider, panel: Panel, runner: FlaskCliRunner
):
    used = sum(served.total_tokens for served in provider.finished)
    provider.account.points = 4 * used
    in_twenty_days = datetime.now(UTC) + timedelta(days=20)
    provider.account.grant = (1_000_000, in_twenty_days.timestamp())
    with writing(db.engine) as connection:  # the first check, from before that hour, is a day old
        day_ago = datetime.now(UTC) - timedelta(days=1)
        connection.execute(update(AccountCheck).values(at=day_ago, points=4 * used))
    lasts_until = datetime.now(UTC) + timedelta(days=3)
    told = runner.invoke(args=["provider", "balance"]).output
    assert f"Left: {3 * used:,} points" in told
    sentence = f"At the pace of the last 7 days the account lasts until {lasts_until:%A}, 16 days before"
    assert sentence in told and "The next monthly grant comes on" in told and "1,000,000 points" in told
    page = panel.get("/admin/account/").text
    assert sentence in page and "1,000,000 points" in page
    assert sentence in panel.get("/admin/").text

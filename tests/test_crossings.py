"""Crossings of 80, 95 and 100 % of quotas and budgets: told once each, in the transaction that settles."""

from collections.abc import Callable
from typing import Any

import pytest
import rivals
import warm
from conftest import TESTER, Member, eventually, leases
from flask import Flask
from sqlalchemy import select, update

from tokenrouter import ledger, prices, teams
from tokenrouter.alerts.watch import check_shares
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Alert, Group, Team, db
from tokenrouter.ledger import Ledger, Outcome
from tokenrouter.ledger.crossings import Counted, Share, shares

pytestmark = pytest.mark.both_databases


def alerts() -> list[Any]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(Alert.__table__).order_by(Alert.id)))


def told() -> list[tuple[str, int | None]]:
    return [(alert.kind, alert.percent) for alert in alerts()]


def lasting() -> list[int | None]:
    return [alert.percent for alert in alerts() if alert.ended_at is None]


@pytest.fixture
def use(app: Flask) -> Callable[..., None]:
    """Make a call of a team that takes so many tokens."""
    own, numbers = Ledger(db.engine, 1024), iter(range(1000))

    def settle(member: Member, tokens: int, **fields: Any) -> None:
        held = own.reserve(rivals.call_request(f"req_{next(numbers)}", member.team.id, **fields))
        own.settle(held, Outcome(status="ok", status_code=200, charged_tokens=tokens, prompt_tokens=tokens))

    yield settle
    own.close()


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("used", "change", "percent"),
    [(79, 79, 0), (80, 1, 80), (81, 1, 0), (99, 20, 95), (100, 100, 100), (130, 1, 0), (95, 15, 95)],
)
def test_highest_share_that_was_crossed_is_told(used: int, change: int, percent: int):
    assert Share("quota", used, 100, 0).crossed_by(change) == percent


def test_each_share_is_told_once_and_of_several_the_highest(new_team: Callable[..., Member], use: Callable[..., None]):
    slow, fast = new_team("slow", quota_tokens=10_000), new_team("fast", quota_tokens=10_000)
    for tokens in (7_999, 1, 999, 800, 1, 300):
        use(slow, tokens)
    assert told() == [("quota", 80), ("quota", 95), ("quota", 100)]
    use(fast, 10_500)
    assert told()[3:] == [("quota", 100)]
    assert alerts()[3].details == {"name": "fast", "used": 10_500, "allowance": 10_000, "renews_at": None}


def test_share_is_told_again_after_a_reset_a_renewal_and_with_another_quota(
    new_team: Callable[..., Member], use: Callable[..., None]
):
    member = new_team("nine", quota_tokens=10_000, renewal=teams.parse_renewal("daily"))
    use(member, 8_100)
    ledger.reset(db.engine, [member.team.id], by=TESTER)
    use(member, 8_200)
    assert told() == [("quota", 80)] * 2
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(renews_at=1))
    use(member, 8_300)
    assert told() == [("quota", 80)] * 3
    teams.update("nine", quota_tokens=20_000, by=TESTER)
    use(member, 8_000)
    assert told() == [("quota", 80)] * 4


def test_group_and_budget_have_shares_of_their_own(new_team: Callable[..., Member], use: Callable[..., None]):
    prices.set_price("m", 10**9, 10**9, by=TESTER)
    group = teams.create_group("Year 9", quota_tokens=10_000, by=TESTER)
    member = new_team("nine", quota_tokens=100_000, budget=11 * 10**6, group="Year 9")
    use(member, 9_600, group_id=group.id)
    found = [(alert.kind, alert.group_id, alert.team_id, alert.percent) for alert in alerts()]
    assert found == [("quota", group.id, None, 95), ("budget", None, member.team.id, 80)]


def test_recovery_tells_of_crossings_too(app: Flask, new_team: Callable[..., Member]):
    member = new_team("nine", quota_tokens=1_000)
    own = Ledger(db.engine, 1024)
    own.start()
    assert eventually(lambda: own.worker_id is not None)  # its first heartbeat must not renew the lease by surprise
    held = own.reserve(rivals.call_request("req_lost", member.team.id, output_tokens=10))
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(quota_tokens=1))
    ledger.recover(db.engine, leases())
    own.close()
    assert held.call_id and told() == [("quota", 100)]


def test_lower_quota_tells_within_a_minute_and_a_higher_one_ends_it(
    app: Flask, new_team: Callable[..., Member], use: Callable[..., None]
):
    member = new_team("nine", quota_tokens=10_000)
    use(member, 5_000)
    teams.update("nine", quota_tokens=6_000, by=TESTER)
    for _ in range(2):
        check_shares(db.engine)
    assert told() == [("quota", 80)]
    teams.update("nine", quota_tokens=5_000, by=TESTER)
    check_shares(db.engine)
    assert lasting() == [80, 100]
    teams.update("nine", quota_tokens=10_000, by=TESTER)
    check_shares(db.engine)
    assert lasting() == [] and len(told()) == 2
    teams.update("nine", quota_tokens=5_000, by=TESTER)
    check_shares(db.engine)
    assert lasting() == [100] and len(told()) == 2  # the same again


@pytest.mark.sqlite_only
@pytest.mark.parametrize("limit", ["many", 1.5, None, -5, 0])
def test_limit_that_cannot_be_read_or_blocks_has_no_shares(limit: object):
    assert list(shares(Counted(990, 0, limit, 0, 0, 0, None, 0))) == []


@pytest.mark.slow
def test_eight_processes_that_cross_at_once_tell_it_once(
    database_url: str, app: Flask, new_team: Callable[..., Member]
):
    teams.create_group("Year 9", quota_tokens=2_000, by=TESTER)
    new_team("nine", quota_tokens=1_000, group="Year 9")
    warm.at_once(rivals.use_tokens, *[(database_url, str(number), 103) for number in range(8)])
    assert [(alert.team_id, alert.percent) for alert in alerts()] == [(1, 80)]
    with db.engine.connect() as connection:
        assert connection.execute(select(Group.settled_tokens)).scalar_one() == 824

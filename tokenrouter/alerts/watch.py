"""Checks that run by the clock, for whatever no settlement of a call can notice."""

import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flask import Flask, current_app
from sqlalchemy import func, or_, select
from sqlalchemy.engine import Connection, Engine

from tokenrouter import account, ledger, reports, runway
from tokenrouter.alerts.kinds import MINUTES_LOOKED_BACK, Kind
from tokenrouter.alerts.outbox import begin, end, end_quietly, open_alerts, prune, reopen
from tokenrouter.database.connections import driver_connection
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Alert, AnyRow, ApiToken, DoorRefusal, Group, Team, db
from tokenrouter.ledger.crossings import Counted, Share, add_crossing, counted_columns, shares
from tokenrouter.ledger.crossings import Kind as Owner
from tokenrouter.provider.account import Account, State
from tokenrouter.reports.running_out import SOON_DAYS

LOOK_S, LOOK_AHEAD_S = 60.0, 600.0
DOWN_FOR = timedelta(minutes=1)
LEAST_FREE, ENOUGH_FREE = 0.10, 0.12
HALF = 0.5  # before that, a pace says little about when all is used
QUIET_FOR = timedelta(days=1)  # after which a revoked token is not in use any more
SHOWN_PROBLEMS = 3
ANSWERS = (State.GOOD, State.UNPROVEN, State.LIMITED, State.SLOW)
DOWN = (State.UNREACHABLE, State.BROKEN)

OWNERS: tuple[Owner, ...] = (Team, Group)


def look(app: Flask, paid: Account) -> None:
    """Check what can fail from one minute to the next."""
    with app.app_context():
        engine, now = db.engine, datetime.now(UTC)
        _each(
            lambda: check_shares(engine),
            lambda: check_provider(engine, paid, now),
            lambda: check_disk(engine),
            lambda: check_revoked_tokens(engine, now),
        )


def look_ahead(app: Flask) -> None:
    """Check what will run out within days."""
    with app.app_context():
        engine, now = db.engine, datetime.now(UTC)
        _each(lambda: check_paces(engine, now), lambda: check_balance(engine, now))


def _each(*checks: Callable[[], None]) -> None:
    """Run each check; one that fails does not keep the others from running.

    Raises an ExceptionGroup of what went wrong.
    """
    failures: list[Exception] = []
    for check in checks:
        try:
            check()
        except Exception as error:  # whatever it is, the other checks have to run
            failures.append(error)
    if failures:
        raise ExceptionGroup("Not all could be looked at that alerts are of", failures)


def check_books(app: Flask) -> None:
    """Verify the counters and report what is found; delete old alerts."""
    with app.app_context():
        engine = db.engine
        found = ledger.verify(engine)
        if found.problems:
            details = {"problems": found.problems[:SHOWN_PROBLEMS], "count": len(found.problems)}
            begin(engine, Kind.BOOKS, Kind.BOOKS, details)
        else:
            end(engine, Kind.BOOKS)
        prune(engine)


def check_shares(engine: Engine) -> None:
    """Report shares reached without a settlement, as by a lower quota; end those that are no longer reached."""
    known = open_alerts(engine, Alert.percent.is_not(None))  # first, so that alerts raised meanwhile are not ended
    reached = {(kind, id_, share.what): share for kind in OWNERS for id_, share in _reached(engine, kind)}
    highest: dict[tuple[Owner, int, str], int] = {}
    over = []
    for alert in known:
        key = (Team, alert.team_id, alert.kind) if alert.group_id is None else (Group, alert.group_id, alert.kind)
        if key not in reached or reached[key].percent < alert.percent:
            over.append(alert.id)
        else:
            highest[key] = max(highest.get(key, 0), alert.percent)
    end_quietly(engine, over)
    new = {key: share for key, share in reached.items() if share.percent > highest.get(key, 0)}
    if new:
        with writing(engine) as connection:
            for (kind, id_, _), share in new.items():
                add_crossing(driver_connection(connection), kind, id_, share, share.percent)
        reopen(engine, [share.once(kind, id_, share.percent) for (kind, id_, _), share in new.items()])


def _reached(engine: Engine, kind: Owner) -> Iterator[tuple[int, Share]]:
    """Yield the shares of quotas and budgets that have been reached and are reported."""
    has_limit = or_(kind.quota_tokens.is_not(None), kind.budget.is_not(None))
    is_meant: list[Any] = [kind.deleted_at.is_(None), ~kind.is_due, has_limit]
    if kind is Team:
        is_meant.append(Team.active)
    with engine.connect() as connection:
        rows = connection.execute(select(kind.id, *counted_columns(kind)).where(*is_meant)).all()
    for id_, *counted in rows:
        yield from ((id_, share) for share in shares(Counted(*counted)) if share.percent)


def check_paces(engine: Engine, now: datetime) -> None:
    """Report who will run out before the renewal: once a period, within a week, and only after half is used."""
    soon = reports.day_of(now) + timedelta(days=SOON_DAYS)
    found = [
        (use, ending)
        for use, ending in reports.running_out(10**6, now).next
        if ending.day <= soon and (use.share or 0) >= HALF
    ]
    lasting = {alert.once for alert in open_alerts(engine, Alert.kind == Kind.RUNS_OUT)}
    marks = {(kind.__name__.lower(), id_): mark for kind in OWNERS for id_, mark in _marks(engine, kind)}
    named = set()
    for use, ending in found:
        renews_at = None if use.renews_at is None else int(use.renews_at.timestamp())
        once = f"{use.kind}:{use.id}:{Kind.RUNS_OUT}:{marks[use.kind, use.id]}:{renews_at}"
        if once not in lasting:
            details = {"name": use.name, "day": ending.day.isoformat(), "renews_at": renews_at}
            begin(engine, Kind.RUNS_OUT, once, details, **{f"{use.kind}_id": use.id})
        named.add(once)
    end(engine, Kind.RUNS_OUT, but=named, keep=True)


def _marks(engine: Engine, kind: Owner) -> Sequence[AnyRow]:
    """Return the marks from which the use of each team or group is counted."""
    with engine.connect() as connection:
        return connection.execute(select(kind.id, kind.reset_mark_tokens)).all()


def check_provider(engine: Engine, paid: Account, now: datetime) -> None:
    """Report an empty account, a refused key, or that no call was answered for a minute."""
    stands = account.standing(engine, now)
    is_down = stands.state in DOWN and stands.since is not None and now - stands.since >= DOWN_FOR
    if is_down:  # still? the last failed call may be long ago
        account.refresh(engine, paid)
        stands = account.standing(engine)
    for kind, is_so in (
        (Kind.ACCOUNT_EMPTY, stands.state is State.EMPTY),
        (Kind.KEY_REFUSED, stands.state is State.KEY_REFUSED),
        (Kind.PROVIDER_DOWN, is_down and stands.state in DOWN),
    ):
        if is_so:
            begin(engine, kind, kind, {})
        elif stands.state in ANSWERS or (kind is Kind.PROVIDER_DOWN and stands.state not in DOWN):
            end(engine, kind)


def check_balance(engine: Engine, now: datetime) -> None:
    """Report that the balance will not last: once until the next grant, or once a week if none is known."""
    left = runway.runway(engine, now)
    if left is None or not left.ends_soon(now):
        end(engine, Kind.BALANCE_ENDS, keep=True)
        return
    until = left.next_grant_at.date().isoformat() if left.next_grant_at else "{}-{}".format(*now.isocalendar())
    words = left.words(current_app.config["TIMEZONE"], now)
    begin(engine, Kind.BALANCE_ENDS, f"{Kind.BALANCE_ENDS}:{until}", {"words": words})


def check_disk(engine: Engine) -> None:
    """Report that the disk of an SQLite file is nearly full; a database server's disk cannot be seen from here."""
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path:
        return
    folder = Path(path).parent
    use = shutil.disk_usage(folder)
    if use.free < LEAST_FREE * use.total:
        details = {"free": use.free, "size": use.total, "folder": str(folder), "host": socket.gethostname()}
        begin(engine, Kind.DISK, Kind.DISK, details)
    elif use.free > ENOUGH_FREE * use.total:
        end(engine, Kind.DISK)


def check_revoked_tokens(engine: Engine, now: datetime) -> None:
    """Report recent use of revoked tokens; one unused for a day is reported again when it is used."""
    with engine.connect() as connection:
        rows = list(_revoked(connection, now - timedelta(minutes=MINUTES_LOOKED_BACK)))
        lately = {row.token_id for row in _revoked(connection, now - QUIET_FOR)}
    for row in rows:
        names = "prefix", "label", "address", "requests"
        details = {"name": row.name, **{name: getattr(row, name) for name in names}, "requests": int(row.requests)}
        begin(engine, Kind.REVOKED_TOKEN, _of_token(row.token_id), details, team_id=row.team_id)
    end(engine, Kind.REVOKED_TOKEN, but=[_of_token(token_id) for token_id in lately])


def _of_token(token_id: int) -> str:
    return f"{Kind.REVOKED_TOKEN}:{token_id}"


def _revoked(connection: Connection, since: datetime) -> Iterator[AnyRow]:
    """Yield the revoked tokens that were tried, with the number of tries and one of the addresses."""
    is_meant = DoorRefusal.reason == "revoked_token", DoorRefusal.minute >= int(since.timestamp()) // 60
    named: tuple[Any, ...] = DoorRefusal.token_id, ApiToken.prefix, ApiToken.label, Team.name, ApiToken.team_id
    sums = func.sum(DoorRefusal.requests).label("requests"), func.max(DoorRefusal.address).label("address")
    joined = select(*named, *sums).join(ApiToken, ApiToken.id == DoorRefusal.token_id)
    query = joined.join(Team, Team.id == ApiToken.team_id).where(*is_meant, Team.deleted_at.is_(None))
    yield from connection.execute(query.group_by(*named))

"""The state of the paid account, by its own API and by the calls that were made.

Only `refresh` asks the provider, which one worker of all does on schedule; all else reads what that stored.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import func, insert, literal_column, select
from sqlalchemy.engine import Connection, Engine

from tokenrouter import provider_days, troubles
from tokenrouter.database.engine import writing
from tokenrouter.database.log_status import OK, PROVIDER_ERROR
from tokenrouter.database.tables import REASON_LENGTH, AccountCheck, AnyRow, RequestLog, Team
from tokenrouter.provider.account import STATES_BY_ERROR, UNREACHABLE, Account, Balance, State
from tokenrouter.provider.account import AccountCheck as Found

REFRESH_S = 600.0
LOOKED_BACK = timedelta(days=1)
LATELY = timedelta(minutes=10)
LATE_MS = 10_000
NEWEST_ROWS = 20_000  # of the log, among which the last successful call is searched
PACED_CALLS = 20
KEPT = ("points", "money", "currency", "next_grant_at", "next_grant_points")
"""The fields of a balance that the row of a check stores."""

STATES = STATES_BY_ERROR | {"provider_bad_response": State.BROKEN}
"""The state of the account by the error code of a failed call."""
NEEDS_PROOF = (State.EMPTY, State.KEY_REFUSED)
REFUSALS = (*NEEDS_PROOF, State.LIMITED)
WORDS = {
    State.EMPTY: "The provider’s account is empty",
    State.KEY_REFUSED: "The provider refuses the key",
    State.UNREACHABLE: "The provider cannot be reached",
    State.BROKEN: "The provider answers with what is no answer",
    State.LIMITED: "The account is at its rate limit",
    State.SLOW: "The provider is slow",
}


@dataclass(frozen=True)
class Standing:
    """The state of the account: since when, and how many calls of how many teams failed because of it."""

    state: State
    since: datetime | None = None
    calls: int = 0
    teams: int = 0
    said: str = ""
    """What the provider's account API said, or why it could not be asked."""

    def words(self, zone: ZoneInfo) -> str:
        """Say it in a sentence, with the time in a zone."""
        since = self.since_words(zone)
        return f"{self.what}{'' if since is None else f' since {since}'}{self.rest}"

    def since_words(self, zone: ZoneInfo) -> str | None:
        """Return since when, which belongs between `what` and `rest`; None if it is good or not known."""
        return None if self.since is None or self.state.is_good else _time(self.since, zone)

    @property
    def what(self) -> str:
        """The beginning of the sentence: the state."""
        return self.said or "The provider answers." if self.state.is_good else WORDS[self.state]

    @property
    def rest(self) -> str:
        """The end of the sentence: what failed because of it, or what the provider said."""
        if self.state.is_good:
            return ""
        if not self.calls:
            return f": {self.said.removeprefix(UNREACHABLE)}" if self.said else "."
        calls = "1 call" if self.calls == 1 else f"{self.calls:,} calls"
        teams = "1 team" if self.teams == 1 else f"{self.teams:,} teams"
        return f": {calls} of {teams} {self._ending}."

    @property
    def _ending(self) -> str:
        if self.state not in REFUSALS:
            return "failed"
        return "was refused" if self.calls == 1 else "were refused"


def _time(moment: datetime, zone: ZoneInfo) -> str:
    at, now = moment.astimezone(zone), datetime.now(zone)
    return f"{at:%H:%M}" if at.date() == now.date() else f"{at.day} {at:%b}, {at:%H:%M}"


def refresh(engine: Engine, account: Account) -> Found:
    """Ask the provider for state and balance of the account, and store them; log a warning if it is not well."""
    found = account.check()
    balance = {name: getattr(found.balance or Balance(), name) for name in KEPT}
    with writing(engine, durable=False) as connection:
        kept = {"at": found.at, "state": found.state.value, "words": found.words[:REASON_LENGTH], "is_typed": False}
        connection.execute(insert(AccountCheck).values(**kept, **balance, spent=spent(connection)))
        if found.balance is not None and found.balance.spending is not None:
            provider_days.keep(connection, found.at, found.balance.spending)
    if not found.state.is_good:
        troubles.warn("account", "The provider's account: %s", found.words)
    return found


def spent(connection: Connection) -> int:
    """Return what all calls ever cost, as far as that is known; deleted teams are included."""
    return int(connection.execute(select(func.coalesce(func.sum(Team.settled_cost), 0))).scalar_one())


def checked_at(engine: Engine) -> datetime | None:
    """Return when the provider was last asked; None if never."""
    with engine.connect() as connection:
        check = connection.execute(NEWEST_CHECK).first()
    return None if check is None else check.at


def standing(engine: Engine, now: datetime | None = None) -> Standing:
    """Return the state of the account, by the calls since the last successful one and by the last check.

    A check after the last failed call decides. But a list of models proves neither key nor balance: then only a
    successful call ends such a state.
    """
    now = now or datetime.now(UTC)
    with engine.connect() as connection:
        check = connection.execute(NEWEST_CHECK).first()
        answered = connection.execute(LAST_ANSWERED).first()
        failed = _by_failures(connection, 0 if answered is None else answered.id, check, now)
        if failed is not None:
            return failed
        is_newer = check is not None and (answered is None or check.at > _ended(answered))
        if check is not None and is_newer and not State(check.state).is_good:
            return Standing(State(check.state), check.at, said=check.words)
        state = State.UNPROVEN if check is None or State(check.state) is State.UNPROVEN else State.GOOD
        said = "The provider answers." if answered is not None else check.words if check else ""
        return _by_pace(connection, now) or Standing(State.GOOD if answered is not None else state, said=said)


def _by_failures(connection: Connection, after_id: int, check: AnyRow | None, now: datetime) -> Standing | None:
    """Return the state by the calls that failed since; None if none did, or a later check is good."""
    failures = FAILURES.where(RequestLog.id > after_id, RequestLog.created_at > now - LOOKED_BACK)
    found = [
        (STATES[row.error_code], row)
        for row in connection.execute(failures)
        if not _is_over(STATES[row.error_code], row.last, check)
    ]
    if not found:
        return None
    order = list(State)
    state, row = min(found, key=lambda each: order.index(each[0]))
    said = check.words if check is not None and State(check.state) is state else ""
    return Standing(state, row.first, row.calls, row.teams, said)


def _is_over(state: State, last: datetime, check: AnyRow | None) -> bool:
    if check is None or check.at <= last:
        return False
    said = State(check.state)
    return said is State.GOOD or (said is State.UNPROVEN and state not in NEEDS_PROOF)


def _by_pace(connection: Connection, now: datetime) -> Standing | None:
    """Return the state if calls are refused for the account's rate limit, or answered late; None if neither."""
    limited = connection.execute(LIMITED.where(RequestLog.created_at > now - LATELY)).one()
    if limited.calls:
        return Standing(State.LIMITED, limited.first, limited.calls, limited.teams)
    waits = connection.execute(NEWEST_WAITS.where(RequestLog.created_at > now - LATELY)).scalars()
    waits_ms = [wait_ms for wait_ms in waits if wait_ms is not None]
    if len(waits_ms) < PACED_CALLS or median(waits_ms) < LATE_MS:
        return None
    return Standing(State.SLOW, said=f"answers begin after {median(waits_ms) / 1000:.0f} s.")


def _ended(call: AnyRow) -> datetime:
    began: datetime = call.created_at
    return began + timedelta(milliseconds=call.latency_ms or 0)


# a literal, not a parameter: only then can the partial index be used
HAS_FAILED = RequestLog.status == literal_column(f"'{PROVIDER_ERROR}'")
IS_NEW = RequestLog.id > select(func.coalesce(func.max(RequestLog.id), 0) - NEWEST_ROWS).scalar_subquery()
NEWEST_CHECK = (
    select(AccountCheck.__table__).where(AccountCheck.is_typed.is_(False)).order_by(AccountCheck.id.desc()).limit(1)
)
ANSWERED: tuple[Any, ...] = RequestLog.status == OK, RequestLog.status_code == 200, IS_NEW
LAST_ANSWERED = (
    select(RequestLog.id, RequestLog.created_at, RequestLog.latency_ms)
    .where(*ANSWERED)
    .order_by(RequestLog.id.desc())
    .limit(1)
)
SUMMED = (
    func.min(RequestLog.created_at).label("first"),
    func.max(RequestLog.created_at).label("last"),
    func.count().label("calls"),
    func.count(RequestLog.team_id.distinct()).label("teams"),
)
FAILURES = (
    select(RequestLog.error_code, *SUMMED)
    .where(HAS_FAILED, RequestLog.error_code.in_(STATES))
    .group_by(RequestLog.error_code)
)
LIMITED = select(*SUMMED).where(HAS_FAILED, RequestLog.status_code == 429, IS_NEW)
NEWEST_WAITS = select(RequestLog.first_byte_ms).where(*ANSWERED).order_by(RequestLog.id.desc()).limit(PACED_CALLS)

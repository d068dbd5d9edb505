"""One transaction of the ledger: what it has locked, and what it still has to write."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from sqlalchemy import bindparam, select

from tokenrouter.auth import CALLER_COLUMNS, IS_VALID
from tokenrouter.database.log_status import FAILURES
from tokenrouter.database.rollups import forget
from tokenrouter.database.statements import DriverConnection, Inserter, Statement
from tokenrouter.database.sums import Sums
from tokenrouter.database.tables import ApiToken, GroupUsageDaily, Team, TokenUsageDaily, UsageDaily
from tokenrouter.ledger.costs import KnownPrices
from tokenrouter.ledger.counters import OF_GROUPS, OF_TEAMS, Counters, Locked
from tokenrouter.ledger.endings import Ending
from tokenrouter.ledger.provider_pace import Places
from tokenrouter.ledger.refusals import NewRefusals, Refusals
from tokenrouter.ledger.rules import Balance, CallRequest, Outcome

NO_USE = dict.fromkeys(Sums._fields, 0)


class Moving(Protocol):
    """An operation that may move counters."""

    @property
    def team_id(self) -> int | None:
        """The team to lock."""

    @property
    def group_id(self) -> int | None:
        """The group to lock."""


class Transaction:
    """What operations read and change while the transaction of their group runs."""

    def __init__(
        self,
        connection: DriverConnection,
        worker_id: int,
        output_reserve_tokens: int,
        zone: ZoneInfo,
        refusals: NewRefusals | None = None,
        prices: KnownPrices | None = None,
        places: Places | None = None,
    ) -> None:
        """`zone` is that of the days of calls and of renewals.

        `places` are those at the provider; None if the whole service has no pace.
        """
        self.connection = connection
        self.worker_id = worker_id
        self.output_reserve_tokens = output_reserve_tokens
        self.zone = zone
        self.refusals = refusals or NewRefusals(Refusals())
        self.prices = prices or KnownPrices()
        self.places = places
        self.groups = Counters(connection, zone, OF_GROUPS, "the group “{}”")
        self.teams = Counters(connection, zone, OF_TEAMS, "this team")
        self.endings: list[Ending] = []
        """To be passed on once this is committed."""
        self.callers: dict[int, tuple[Any, ...]] = {}
        """The rows of valid tokens that requests came with, by id."""
        self._days: defaultdict[tuple[int, date, str], dict[str, int]] = defaultdict(NO_USE.copy)
        self._group_days: defaultdict[tuple[int, int, date, str], dict[str, int]] = defaultdict(NO_USE.copy)
        self._token_days: defaultdict[tuple[int, date, str], dict[str, int]] = defaultdict(NO_USE.copy)

    def lock(self, operations: "Sequence[Moving]", requests: Sequence[CallRequest]) -> None:
        """Lock the rows that operations move, groups first, each kind by id; read the callers of requests."""
        for group_id in sorted({each.group_id for each in operations if each.group_id is not None}):
            self.groups.lock(group_id)
        to_check: defaultdict[int, dict[int, datetime]] = defaultdict(dict)
        for request in requests:
            if request.caller_row is not None:
                to_check[request.team_id][request.token_id] = request.created_at
        for team_id in sorted({each.team_id for each in operations if each.team_id is not None}):
            for token_id, now in to_check[team_id].items():
                self._lock_caller(team_id, token_id, now)
            if team_id not in self.teams.balances:
                self.teams.lock(team_id)

    def _lock_caller(self, team_id: int, token_id: int, now: datetime) -> None:
        row = LOCK_CALLER.execute(self.connection, {"token": token_id, "now": now}).fetchone()
        known = row and Locked(*row[len(CALLER_COLUMNS) :])
        if known and known.is_readable:
            self.callers[token_id] = row[: len(CALLER_COLUMNS)]
            if team_id not in self.teams.balances:
                self.teams.take(team_id, known)

    def balances(self, team_id: int, group_id: int | None) -> list[Balance] | None:
        """Return the balances that a call has to fit; None if one is missing or cannot be read."""
        team = self.teams.balances.get(team_id)
        if group_id is None:
            return None if team is None else [team]
        group = self.groups.balances.get(group_id)
        return None if team is None or group is None else [team, group]

    def move(self, team_id: int, group_id: int | None, **changes: int) -> None:
        """Move the counters of a team, and of its group, as `Counters.move` does."""
        self.teams.move(team_id, **changes)
        if group_id is not None:
            self.groups.move(group_id, **changes)

    def recount_calls(self, team_id: int, group_id: int | None) -> None:
        """Correct the number of calls in flight, so that no call is refused for others that have ended."""
        self.teams.recount_calls(team_id)
        if group_id is not None:
            self.groups.recount_calls(group_id)

    def day_of(self, request: CallRequest) -> date:
        """Return the day to which a call counts."""
        return request.created_at.astimezone(self.zone).date()

    def count(
        self,
        team_id: int,
        group_id: int | None,
        token_id: int,
        day: date,
        model: str,
        outcome: Outcome,
        *,
        cost: int | None = 0,
        times: int = 1,
    ) -> None:
        """Add a call to the daily totals, or `times` refusals that cost nothing."""
        _add(self._days[team_id, day, model], outcome, cost, times)
        _add(self._token_days[token_id, day, model], outcome, cost, times)
        if group_id is not None:
            _add(self._group_days[group_id, team_id, day, model], outcome, cost, times)

    def close(self) -> None:
        """Write the changes of counters and daily totals, in the order that all workers keep to."""
        self.groups.write()
        self.teams.write()
        if self.places is not None:
            self.places.close()
        for (team_id, day, model), sums in sorted(self._days.items()):
            ADD_TO_DAY.execute(self.connection, {"team_id": team_id, "day": day, "model": model, **sums})
        for (group_id, team_id, day, model), sums in sorted(self._group_days.items()):
            whose = {"group_id": group_id, "team_id": team_id, "day": day, "model": model}
            ADD_TO_GROUP_DAY.execute(self.connection, whose | sums)
        for (token_id, day, model), sums in sorted(self._token_days.items()):
            ADD_TO_TOKEN_DAY.execute(self.connection, {"token_id": token_id, "day": day, "model": model, **sums})
        yesterday = datetime.now(self.zone).date() - timedelta(days=1)
        forget(self.connection, (day for _, day, _ in self._days if day < yesterday))


def _add(sums: dict[str, int], outcome: Outcome, cost: int | None, times: int) -> None:
    sums["requests"] += times
    sums["errors"] += times * (outcome.status in FAILURES)
    sums["prompt_tokens"] += outcome.prompt_tokens
    sums["completion_tokens"] += outcome.completion_tokens
    sums["total_tokens"] += outcome.charged_tokens
    if cost is not None:
        sums["cost"] += cost
        sums["priced_tokens"] += outcome.charged_tokens


LOCK_CALLER = Statement(
    select(*CALLER_COLUMNS, *OF_TEAMS.columns)
    .where(ApiToken.id == bindparam("token"), IS_VALID)
    .with_for_update(key_share=True, of=Team)
)


def _adding(table: type[UsageDaily | GroupUsageDaily | TokenUsageDaily], *key: str) -> Statement:
    def add(insert_or_update: Inserter) -> Any:
        adding = insert_or_update(table)
        sums = {name: getattr(table, name) + adding.excluded[name] for name in Sums._fields}
        values: dict[str, Any] = {name: bindparam(name) for name in (*key, *Sums._fields)}
        return adding.values(values).on_conflict_do_update(index_elements=key, set_=sums)

    return Statement(add)


ADD_TO_DAY = _adding(UsageDaily, "team_id", "day", "model")
ADD_TO_GROUP_DAY = _adding(GroupUsageDaily, "group_id", "team_id", "day", "model")
ADD_TO_TOKEN_DAY = _adding(TokenUsageDaily, "token_id", "day", "model")

"""The ledger driven at random against a model of the contract's rules: they never differ."""

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from conftest import TESTER, eventually, leases
from flask import Flask
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import func, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from tokenrouter import changes, ledger, prices, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import BY_PROVIDER, NOT_COUNTED, Group, RequestLog, Team, TokenUsageDaily, db
from tokenrouter.errors import PaceExceeded, QuotaExceeded, QuotaReserved
from tokenrouter.ledger import CallRequest, Ledger, Outcome, Reservation
from tokenrouter.metering.prices import Price
from tokenrouter.periods import UTC_ZONE, Renewal

pytestmark = [pytest.mark.slow, pytest.mark.both_databases]

OUTPUT_RESERVE = 1024
QUOTAS = st.one_of(st.none(), st.integers(0, 6000))
COUNTERS = (
    "settled_tokens",
    "used_tokens",
    "held_tokens",
    "calls_in_flight",
    "allowance_tokens",
    "held_cost",
    "cost",
    "unpriced_tokens",
)
BUDGETS = st.one_of(st.none(), st.integers(0, 6000).map(lambda thousandths: thousandths * 10**6))
Key = tuple[type[Team | Group], int]
_serial = itertools.count()


@dataclass
class ModelAccount:
    """A team, or a group of teams."""

    quota: int | None
    calls_at_once: int | None = None
    settled: int = 0
    mark: int = 0
    held: int = 0
    in_flight: int = 0
    extra: int = 0
    rejected: int = 0
    budget: int | None = None
    extra_budget: int = 0
    cost: int = 0
    """Since the last reset and renewal, in billionths."""
    held_cost: int = 0
    resets: list[tuple[int, int, int]] = field(default_factory=list)
    """Those that can be taken back, the last first: their changes, and the tokens and the cost that they took."""
    undone: tuple[int, int, int] | None = None
    """What was taken back last, and can be done again, likewise."""

    @property
    def used(self) -> int:
        return self.settled - self.mark

    def begin_anew(self) -> None:
        self.mark, self.cost, self.undone = self.settled, 0, None

    def lefts(self, prompt: int, price: Price, *, once_settled: bool = False) -> list[tuple[int, bool]]:
        """Return what each limit leaves for an answer, in tokens, and whether something is held of it."""
        held, held_cost = (0, 0) if once_settled else (self.held, self.held_cost)
        lefts = []
        if self.quota is not None:
            lefts.append((self.quota + self.extra - self.used - held - prompt, self.held > 0))
        if self.budget is not None:
            amount = self.budget + self.extra_budget
            left = price.output_tokens_for(amount - self.cost - held_cost, prompt) if amount else -prompt - 1
            lefts.append((left, self.held_cost > 0))
        return lefts


@dataclass
class TokenAccount:
    """What a token of a team used, ever."""

    ended: int = 0
    tokens: int = 0
    cost: int = 0


@dataclass
class ModelCall:
    token: TokenAccount
    accounts: list[ModelAccount]
    """Of its team, and of the group in which it is held."""
    worker: int
    reservation: Reservation
    prompt: int
    arrived: int = 0
    settled: bool = False


@dataclass
class Process:
    """A worker's ledger, and the number under which it joined."""

    ledger: Ledger
    alive: bool = True
    calls: list[ModelCall] = field(default_factory=list)


def new_ledger(engine: Engine) -> Ledger:
    """Make one whose heart beats only when a rule has it beat: else a lease may be renewed when it is to run out."""
    made = Ledger(engine, OUTPUT_RESERVE)
    made.start = lambda: None
    return made


class LedgerMachine(RuleBasedStateMachine):
    """Two workers, three teams and two groups; `engine` is set by the test."""

    engine: Engine
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        run = next(_serial)
        self.names = [f"run {run} team {number}" for number in range(3)]
        self.groups = [f"run {run} group {number}" for number in range(2)]
        self.accounts: dict[Key, ModelAccount] = {}
        self.group_of: list[int | None] = [None, None, None]
        self.group_ids, self.ids = [], []
        self.tokens_of: list[dict[int, TokenAccount]] = []
        for name, quota, most in zip(self.groups, (4000, None), (None, 3), strict=True):
            group = teams.create_group(name, quota, renewal=Renewal("daily"), calls_at_once=most, by=TESTER)
            self.group_ids.append(group.id)
            self.accounts[Group, group.id] = ModelAccount(quota, most)
        for name, quota, most in zip(self.names, (None, 3000, 500), (2, None, None), strict=True):
            team, _ = teams.create(name, quota, renewal=Renewal("daily"), calls_at_once=most, by=TESTER)
            self.ids.append(team.id)
            self.accounts[Team, team.id] = ModelAccount(quota, most)
            teams.create_token(team.id, by=TESTER)
            self.tokens_of.append({token.id: TokenAccount() for token in teams.tokens(team.id)})
        self.set_price(1_000_000_000, 2_000_000_000)
        self.processes = [Process(new_ledger(self.engine)) for _ in range(2)]

    def teardown(self) -> None:
        """End the workers, and settle what they leave: a later run would rightly find it pending for too long."""
        self.verify()
        for process in self.processes:
            process.ledger.close()
        ledger.recover(self.engine, leases())

    @rule(
        target=calls,
        number=st.integers(0, 2),
        token=st.integers(0, 1),
        worker=st.integers(0, 1),
        prompt=st.integers(1, 1500),
        output=st.integers(0, 3000),
        choices=st.integers(1, 4),
    )
    def reserve(self, number: int, token: int, worker: int, prompt: int, output: int, choices: int) -> ModelCall | None:
        token_id, token_account = list(self.tokens_of[number].items())[token]
        team_id, group = self.ids[number], self.group_of[number]
        group_id = None if group is None else self.group_ids[group]
        accounts = [self.accounts[Team, team_id], *([] if group_id is None else [self.accounts[Group, group_id]])]
        expected = expected_grant(accounts, self.price, prompt, output * choices, choices)
        request = CallRequest(
            request_id=f"req_{next(_serial)}",
            team_id=team_id,
            team_name=self.names[number],
            group_id=group_id,
            token_id=token_id,
            token_prefix="tr-model",
            model="GPT-5-nano",
            endpoint="/v1/chat/completions",
            stream=False,
            created_at=datetime.now(UTC),
            prompt_tokens=prompt,
            output_tokens=output * choices,
            choices=choices,
        )
        process = self.processes[worker]
        try:
            reservation = process.ledger.reserve(request)
        except (QuotaExceeded, QuotaReserved, PaceExceeded) as refusal:
            given = refusal.code
        else:
            given = reservation.held_tokens, reservation.output_limit
        assert given == expected
        if isinstance(given, str):
            accounts[0].rejected += 1
            token_account.ended += 1
            return None
        for account in accounts:
            account.held += reservation.held_tokens
            account.held_cost += reservation.held_cost
            account.in_flight += 1
        call = ModelCall(token_account, accounts, worker, reservation, prompt)
        process.calls.append(call)
        return call

    @rule(call=calls, tokens=st.integers(0, 5000), status=st.sampled_from(["ok", "client_closed", "provider_error"]))
    def settle(self, call: ModelCall | None, tokens: int, status: str) -> None:
        """Also of what is settled already, by itself or by recovery: that changes nothing."""
        if call is None:
            return
        source = BY_PROVIDER if tokens else NOT_COUNTED
        outcome = Outcome(
            status=status, status_code=200, charged_tokens=tokens, total_tokens=tokens, usage_source=source
        )
        self.processes[call.worker].ledger.settle(call.reservation, outcome)
        self._book(call, tokens, self.price.cost(0, 0, tokens))

    @rule(call=calls)
    def release(self, call: ModelCall | None) -> None:
        self.settle(call, 0, "provider_error")

    @rule(call=calls, tokens=st.integers(1, 2000))
    def save_progress(self, call: ModelCall | None, tokens: int) -> None:
        if call is None or call.settled:
            return
        call.reservation.progress = lambda: tokens
        process = self.processes[call.worker]
        process.ledger._writer.run(process.ledger._heartbeat())
        call.arrived = tokens

    @rule(number=st.integers(0, 2), group=st.one_of(st.none(), st.integers(0, 1)))
    def move(self, number: int, group: int | None) -> None:
        """Put a team into another group, whatever calls it has in flight."""
        teams.update(self.names[number], group=None if group is None else self.groups[group], by=TESTER)
        self.group_of[number] = group

    @rule(number=st.integers(0, 4))
    def reset(self, number: int) -> None:
        kind, id_ = self._key(number)
        account = self.accounts[kind, id_]
        taken = account.used, account.cost
        if ledger.reset(self.engine, *([id_], []) if kind is Team else ([], [id_]), by=TESTER):
            account.begin_anew()
            account.resets.append((newest_change(), *taken))

    @rule(number=st.integers(0, 4))
    def undo_reset(self, number: int) -> None:
        account = self.accounts[self._key(number)]
        if account.resets:
            change, tokens, cost = account.resets.pop()
            teams.undo([change], by=TESTER)
            account.mark -= tokens
            account.cost += cost
            account.undone = newest_change(), tokens, cost

    @rule(number=st.integers(0, 4))
    def redo_reset(self, number: int) -> None:
        account = self.accounts[self._key(number)]
        if account.undone is not None:
            change, tokens, cost = account.undone
            teams.undo([change], by=TESTER)
            account.mark += tokens
            account.cost -= cost
            account.resets.append((newest_change(), tokens, cost))
            account.undone = None

    @rule(number=st.integers(0, 4))
    def renew(self, number: int) -> None:
        """Have the quota's time come; from then on nothing is used, whether a call finds it or not."""
        kind, id_ = self._key(number)
        with writing(self.engine) as connection:
            connection.execute(update(kind).where(kind.id == id_).values(renews_at=1))
        account = self.accounts[kind, id_]
        account.begin_anew()
        account.resets.clear()
        account.extra = account.extra_budget = 0

    @rule(number=st.integers(0, 4), tokens=st.integers(0, 2000), budget=st.integers(0, 10**9))
    def give_extra(self, number: int, tokens: int, budget: int) -> None:
        kind, id_ = self._key(number)
        to = teams.get(id_) if kind is Team else teams.find_group(id_)
        ledger.add_extra(self.engine, to, tokens, UTC_ZONE, budget=budget, by=TESTER)
        self.accounts[kind, id_].extra += tokens
        self.accounts[kind, id_].extra_budget += budget

    @rule(number=st.integers(0, 4), budget=BUDGETS)
    def change_budget(self, number: int, budget: int | None) -> None:
        kind, id_ = self._key(number)
        change = teams.update if kind is Team else teams.update_group
        change(id_, budget=budget, by=TESTER)
        self.accounts[kind, id_].budget = budget

    @rule(input=st.integers(0, 3 * 10**9), output=st.integers(0, 3 * 10**9))
    def set_price(self, input: int, output: int) -> None:
        prices.set_price("GPT-5-nano", input, output, by=TESTER)
        self.price = Price("GPT-5-nano", input, output)

    @rule(number=st.integers(0, 4), quota=QUOTAS)
    def change_quota(self, number: int, quota: int | None) -> None:
        kind, id_ = self._key(number)
        change = teams.update if kind is Team else teams.update_group
        change(id_, quota_tokens=quota, by=TESTER)
        self.accounts[kind, id_].quota = quota

    def _key(self, number: int) -> Key:
        """Return one of the three teams, or of the two groups."""
        return (Team, self.ids[number]) if number < 3 else (Group, self.group_ids[number - 3])

    @rule(worker=st.integers(0, 1))
    def crash_and_recover(self, worker: int) -> None:
        """Let a worker's lease run out, and another settle its calls; it may come back and settle them late."""
        process = self.processes[worker]
        if process.ledger._lease is None:
            return
        mine = process.ledger._lease.worker_id
        ledger.recover(self.engine, {mine: leases()[mine]})
        for call in process.calls:
            self._book(call, call.prompt + call.arrived, self.price.cost(call.prompt, 0, call.arrived))
        process.calls.clear()
        process.ledger._writer.run(process.ledger._heartbeat())  # it wakes, and joins under another number

    def _book(self, call: ModelCall, tokens: int, cost: int) -> None:
        if not call.settled:
            call.settled = True
            call.token.ended += 1
            call.token.tokens += tokens
            call.token.cost += cost
            for account in call.accounts:
                account.held -= call.reservation.held_tokens
                account.in_flight -= 1
                account.settled += tokens
                account.held_cost -= call.reservation.held_cost
                account.cost += cost

    @rule()
    def verify(self) -> None:
        """Prove the books while calls are under way; not at every step, since `verify` reads those of all runs."""
        found = ledger.verify(self.engine)
        assert found.problems == []
        assert [note for note in found.notes if "tokens lack" in note] == []

    @invariant()
    def counters_equal_the_model(self) -> None:
        with Session(self.engine) as session:
            for kind, ids in ((Team, self.ids), (Group, self.group_ids)):
                for row in session.scalars(select(kind).where(kind.id.in_(ids))):
                    account = self.accounts[kind, row.id]
                    allowance = None if account.quota is None else account.quota + account.extra
                    used = account.settled, account.used, account.held, account.in_flight, allowance
                    wanted = (*used, account.held_cost, account.cost, 0)
                    assert tuple(getattr(row, name) for name in COUNTERS) == wanted
        for process in self.processes:
            process.ledger._write_repeats()
        rejected = {id_: each.rejected for (_, id_), each in self.accounts.items() if each.rejected}
        assert eventually(lambda: self.refusals() == rejected)
        assert self.use_of_tokens() == {
            id_: (each.ended, each.tokens, each.cost)
            for accounts in self.tokens_of
            for id_, each in accounts.items()
            if each.ended
        }

    def use_of_tokens(self) -> dict[int, tuple[int, int, int]]:
        """Return calls, tokens and cost by token, as the daily totals have them."""
        days = TokenUsageDaily
        sums = func.sum(days.requests), func.sum(days.total_tokens), func.sum(days.cost)
        ids = [id_ for accounts in self.tokens_of for id_ in accounts]
        query = select(days.token_id, *sums).where(days.token_id.in_(ids)).group_by(days.token_id)
        with self.engine.connect() as connection:
            return {id_: tuple(map(int, values)) for id_, *values in connection.execute(query)}

    def refusals(self) -> dict[int, int]:
        """Return how many calls of each team the log says were refused."""
        rejected = select(RequestLog.team_id, func.sum(RequestLog.repeats)).where(
            RequestLog.status == "rejected", RequestLog.team_id.in_(self.ids)
        )
        with self.engine.connect() as connection:
            return {id_: int(calls) for id_, calls in connection.execute(rejected.group_by(RequestLog.team_id))}


def newest_change() -> int:
    return changes.page(limit=1).rows[0].id


def expected_grant(
    accounts: list[ModelAccount], price: Price, prompt: int, output: int, choices: int
) -> tuple[int, int | None] | str:
    """Return the contract's answer: tokens held and the limit of each choice, or the code of the refusal."""
    granted = quota_grant(accounts, price, prompt, output, choices)
    is_full = any(each.calls_at_once is not None and each.in_flight >= each.calls_at_once for each in accounts)
    return "rate_limit_exceeded" if is_full and not isinstance(granted, str) else granted


def quota_grant(
    accounts: list[ModelAccount], price: Price, prompt: int, output: int, choices: int
) -> tuple[int, int | None] | str:
    lefts = [each for account in accounts for each in account.lefts(prompt, price)]
    if not lefts:
        return prompt + output, None
    left = min(its for its, _ in lefts)
    nothing_is_held = any(not is_held for its, is_held in lefts if its == left)
    if output <= left:
        return prompt + output, None
    if left >= OUTPUT_RESERVE or (nothing_is_held and left >= 16 * choices):
        return prompt + left, left // choices
    once_settled = min(its for account in accounts for its, _ in account.lefts(prompt, price, once_settled=True))
    may_fit_later = not nothing_is_held and once_settled >= 16 * choices
    return "quota_reserved" if may_fit_later else "insufficient_quota"


@pytest.mark.timeout(300)
def test_ledger_never_differs_from_the_model(app: Flask, database: str):
    LedgerMachine.engine = db.engine
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=40 if database == "sqlite" else 15,  # a step takes twice as long there
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

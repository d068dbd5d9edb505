"""Budgets: money held before a call and settled after it, as exact as tokens."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import TESTER, Member, hello
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import text, update

from tokenrouter import changes, ledger, money, prices, reports, runtime, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Group, Team, db
from tokenrouter.errors import InvalidRequest
from tokenrouter.ledger import Outcome
from tokenrouter.metering.prices import MOST_TOKENS, Price
from tokenrouter.periods import Renewal
from tokenrouter.standin import StandInProvider
from tokenrouter.teams import management_tokens

both_databases = pytest.mark.both_databases

CHAT = "/v1/chat/completions"
PROMPT, OUTPUT = 20, 80
BODY = hello(f"prompt_tokens={PROMPT} words={OUTPUT}", max_tokens=OUTPUT)
DOLLAR = 10**9
INPUT, ANSWER = 1000 * DOLLAR, 10_000 * DOLLAR  # a million tokens each, so that a token of a prompt is 0.001
COSTS = 820_000_000
"""Of 20 tokens of prompt, and 80 of an answer."""
NewTeam = Callable[..., Member]


def ask(client: FlaskClient, member: Member, body: dict[str, Any] = BODY) -> Any:
    return client.post(CHAT, json=body, headers=member.headers)


def row_of(name: str) -> Team:
    return teams.find(name)


def problems() -> list[str]:
    return ledger.verify(db.engine).problems


@pytest.fixture
def priced(app: Flask) -> None:
    prices.set_price("*", INPUT, ANSWER, by=TESTER)


@pytest.fixture
def spender(priced: None, new_team: NewTeam) -> Member:
    """A team that may spend 10 dollars: a dozen calls."""
    return new_team("spender", budget=10 * DOLLAR)


@pytest.mark.parametrize(
    ("amount", "prompt", "output"),
    [
        (0, 0, 0),
        (COSTS, 20, 80),
        (COSTS - 1, 20, 79),
        (20_000_000, 20, 0),
        (19_999_999, 20, -1),
        (10 * DOLLAR, 0, 1000),
    ],
)
def test_what_an_amount_leaves_for_an_answer(amount: int, prompt: int, output: int):
    price = Price("m", INPUT, ANSWER)
    assert price.output_tokens_for(amount, prompt) == output
    if output >= 0:
        assert price.cost(prompt, 0, output) <= amount < price.cost(prompt, 0, output + 1)
    assert Price("m", INPUT, 0).output_tokens_for(amount, prompt) in (MOST_TOKENS, -1)


@both_databases
def test_call_holds_what_it_may_cost_and_costs_what_it_used(client: FlaskClient, spender: Member):
    running = ask(client, spender, {**BODY, "stream": True})
    assert row_of("spender").held_cost >= 80 * ANSWER // 10**6
    assert running.data.endswith(b"data: [DONE]\n\n")
    assert (row_of("spender").held_cost, row_of("spender").cost) == (0, COSTS)
    view = reports.team_view(row_of("spender"))
    assert (view["budget"], view["cost"], view["extra_budget"]) == ("10", "0.82", "0")
    told = client.get("/v1/usage", headers=spender.headers).json
    assert (told["budget"], told["cost"]) == ("10", "0.82")
    assert problems() == []


@both_databases
def test_used_up_budget_refuses_and_says_so(client: FlaskClient, spender: Member, provider: StandInProvider):
    teams.update("spender", budget=COSTS, by=TESTER)
    assert ask(client, spender).status_code == 200
    refused = ask(client, spender)
    error = refused.json["error"]
    assert (refused.status_code, error["code"], refused.headers["x-should-retry"]) == (
        429,
        "insufficient_quota",
        "false",
    )
    assert error["message"].startswith(
        "Quota exceeded: $0.82 used and $0.00 held for calls in flight of the budget of $0.82"
    )
    assert "that this team has" in error["message"]
    assert len(provider.calls) == 1


@both_databases
def test_budget_for_some_calls_lets_exactly_those_through(app: Flask, client: FlaskClient, spender: Member):
    body = hello("prompt_tokens=23 words=80 delay=0.1", max_tokens=80)
    teams.update("spender", quota_tokens=0, budget=None, by=TESTER)
    needs = int(ask(client, spender, body).json["error"]["message"].split("needs about ")[1].split()[0])
    body = hello(f"prompt_tokens={needs} words=80 delay=0.1", max_tokens=80)
    cost = Price("m", INPUT, ANSWER).cost(needs, 0, 80)
    teams.update("spender", quota_tokens=None, budget=10 * cost, by=TESTER)

    def call(_: int) -> int:
        with app.test_client() as own:
            return ask(own, spender, body).status_code

    with ThreadPoolExecutor(16) as pool:
        codes = Counter(pool.map(call, range(40)))
    assert codes == {200: 10, 429: 30}
    assert (row_of("spender").cost, row_of("spender").held_cost) == (10 * cost, 0)
    assert problems() == []


def test_answer_is_limited_to_what_the_budget_leaves(client: FlaskClient, spender: Member):
    body = hello("prompt_tokens=19 words=5000", max_tokens=5000)
    assert ask(client, spender, body).headers["x-tokenrouter-output-limit"] == str((10_000 - 19) // 10)
    assert row_of("spender").cost <= 10 * DOLLAR
    teams.update("spender", quota_tokens=row_of("spender").used_tokens + 119, by=TESTER)
    ledger.reset(db.engine, [spender.team.id], by=TESTER)
    teams.update("spender", quota_tokens=119, by=TESTER)
    assert ask(client, spender, body).headers["x-tokenrouter-output-limit"] == "100"  # the tighter of both


@both_databases
def test_budget_that_is_held_asks_to_come_back(client: FlaskClient, spender: Member):
    running = ask(client, spender, hello("prompt_tokens=19 words=980", max_tokens=980, stream=True))
    refused = ask(client, spender)
    assert (refused.json["error"]["code"], refused.headers["Retry-After"]) == ("quota_reserved", "1")
    assert "of the budget of $10.00" in refused.json["error"]["message"]
    running.close()


@both_databases
def test_model_without_a_price_is_refused_where_a_budget_is(client: FlaskClient, new_team: NewTeam):
    prices.set_price("GPT-5-mini", 1, 1, by=TESTER)
    teams.create_group("year 9", budget=DOLLAR, by=TESTER)
    for member in (new_team("own", budget=DOLLAR), new_team("grouped", group="year 9")):
        refused = ask(client, member)
        assert (refused.status_code, refused.json["error"]["code"]) == (403, "model_has_no_price")
        assert refused.json["error"]["type"] == "invalid_request_error"
        assert ask(client, member, {**BODY, "model": "GPT-5-mini"}).status_code == 200
    assert ask(client, new_team("free")).status_code == 200
    assert problems() == []


@both_databases
def test_budget_of_a_group_is_shared(client: FlaskClient, priced: None, new_team: NewTeam):
    teams.create_group("year 9", budget=2 * COSTS, by=TESTER)
    first, second = new_team("9a", group="year 9"), new_team("9b", group="year 9", budget=100 * DOLLAR)
    assert [ask(client, each).status_code for each in (first, second, first)] == [200, 200, 429]
    assert "the group “year 9” has" in ask(client, first).json["error"]["message"]
    assert teams.find_group("year 9").cost == 2 * COSTS
    assert problems() == []


@pytest.mark.parametrize("price", [(INPUT, ANSWER), (0, 0)])
def test_budget_of_nothing_blocks_whatever_the_price(client: FlaskClient, spender: Member, price: tuple[int, int]):
    prices.set_price("*", *price, by=TESTER)
    teams.update("spender", budget=0, by=TESTER)
    assert ask(client, spender).json["error"]["code"] == "insufficient_quota"


@both_databases
def test_price_changed_while_a_call_runs(client: FlaskClient, spender: Member):
    """It is held at the old price and settled at the new, and nothing stays held."""
    running = ask(client, spender, {**BODY, "stream": True})
    prices.set_price("*", 2 * INPUT, 2 * ANSWER, by=TESTER)
    assert running.data.endswith(b"data: [DONE]\n\n")
    assert (row_of("spender").cost, row_of("spender").held_cost) == (2 * COSTS, 0)
    prices.set_price("*", 0, 0, by=TESTER)
    assert ask(client, spender).status_code == 200
    assert problems() == []


@both_databases
def test_budget_and_its_extra_begin_anew(client: FlaskClient, priced: None, new_team: NewTeam):
    member = new_team("monthly", budget=COSTS, renewal=Renewal("monthly"))
    assert [ask(client, member).status_code for _ in range(2)] == [200, 429]
    ledger.add_extra(db.engine, row_of("monthly"), budget=COSTS, by=TESTER)
    assert [ask(client, member).status_code for _ in range(2)] == [200, 429]
    assert "It renews on" in ask(client, member).json["error"]["message"]
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(renews_at=1))
    view = reports.team_view(row_of("monthly"))
    assert (view["cost"], view["extra_budget"]) == ("0", "0")
    assert [ask(client, member).status_code for _ in range(2)] == [200, 429]
    assert problems() == []
    (change,) = [row for row in changes.page().rows if row.action == "team.extra"]
    assert (change.before, change.after) == ({"extra_budget": "0"}, {"extra_budget": "0.82"})


def test_refused_call_and_failed_one_hold_nothing(client: FlaskClient, spender: Member):
    assert ask(client, spender, hello("status=500")).status_code == 500
    teams.update("spender", requests_per_minute=0, by=TESTER)
    assert ask(client, spender).status_code == 429
    assert (row_of("spender").held_cost, row_of("spender").cost) == (0, 0)


def test_cost_that_the_provider_tells_is_what_the_budget_pays(app: Flask, spender: Member, client: FlaskClient):
    assert ask(client, spender).status_code == 200  # so that the team is known
    books = runtime.current().ledger
    from test_prices import request

    reservation = books.reserve(request(spender))
    told = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "charged_tokens": 15}
    books.settle(reservation, Outcome(status="ok", usage_source="provider", reported_cost=DOLLAR, **told))
    assert row_of("spender").cost == COSTS + DOLLAR
    assert problems() == []


@both_databases
@pytest.mark.parametrize("kind", [Team, Group])
def test_verify_finds_and_repair_mends_a_held_budget(client: FlaskClient, priced: None, new_team: NewTeam, kind: type):
    teams.create_group("year 9", budget=100 * DOLLAR, by=TESTER)
    ask(client, new_team("9a", group="year 9"))
    with writing(db.engine) as connection:
        connection.execute(text(f"UPDATE {kind.__tablename__} SET held_cost = 7"))
    (problem,) = problems()
    assert "7 billionths held, and 0 held by pending calls" in problem
    ledger.repair(db.engine, by=TESTER)
    assert problems() == []


@both_databases
@pytest.mark.parametrize("column", ["budget", "extra_budget"])
@pytest.mark.parametrize("table", ["teams", "groups"])
def test_database_takes_no_budget_below_zero(team: Member, table: str, column: str):
    teams.create_group("year 9", by=TESTER)
    with pytest.raises(Exception, match=r"accepted|whole number"), writing(db.engine) as connection:
        connection.execute(text(f"UPDATE {table} SET {column} = -1"))


@pytest.mark.parametrize("budget", [-1, 1, 10**18 + 1000])
def test_budgets_are_amounts_with_six_decimals(team: Member, budget: int):
    with pytest.raises(InvalidRequest):
        teams.update("team", budget=budget, by=TESTER)


@both_databases
def test_commands(runner: FlaskCliRunner, app: Flask):
    def run(*arguments: str) -> str:
        done = runner.invoke(args=list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    run("groups", "create", "year 9", "--budget", "250.50")
    assert "budget               250.5" in run("groups", "show", "year 9")
    run("teams", "create", "9a", "--budget", "$12.5", "--renews", "monthly")
    shown = run("teams", "extra", "9a", "--budget", "2.50", "--tokens", "5")
    assert "extra_budget         2.5" in shown and "budget               12.5" in shown
    assert "extra_budget         0.5" in run("teams", "extra", "9a", "--budget=-2")
    assert "budget               -" in run("teams", "update", "9a", "--budget", "none")
    for wrong, status in [
        (["teams", "update", "9a", "--budget", "cheap"], 2),
        (["teams", "update", "9a", "--budget", "0.0000001"], 2),
        (["teams", "extra", "9a"], 2),
        (["teams", "extra", "9a", "--budget=-100"], 1),
    ]:
        assert runner.invoke(args=wrong).exit_code == status, wrong


def test_api(client: FlaskClient, app: Flask):
    headers = {"Authorization": f"Bearer {management_tokens.create('tests', by=TESTER)[1]}"}

    def api(method: str, path: str, **fields: Any) -> Any:
        return client.open(f"/api{path}", method=method, json=fields, headers=headers)

    made = api("POST", "/teams", name="9a", budget="12.50").json
    assert (made["budget"], made["cost"]) == ("12.5", "0")
    path = f"/teams/{made['id']}"
    assert api("POST", f"{path}/extra", budget="0.000001").json["extra_budget"] == "0.000001"
    assert api("PATCH", path, budget=None).json["budget"] is None
    assert api("PATCH", path, budget="3").json["budget"] == "3"
    for wrong in (3, "-1", "cheap", "0.0000001", 1.5, True, "none", "$3", "1,000", "", "1e3"):
        refused = api("PATCH", path, budget=wrong)
        assert (refused.status_code, refused.json["error"]["param"]) == (400, "budget"), wrong
    assert api("POST", f"{path}/extra", budget="+-1").status_code == 400


def test_amounts_in_tests_are_what_they_seem():
    assert Price("m", INPUT, ANSWER).cost(PROMPT, 0, OUTPUT) == COSTS
    assert money.decimal_string(COSTS) == "0.82"


@both_databases
def test_who_is_near_a_budget_is_near_as_who_is_near_a_quota(client: FlaskClient, spender: Member, new_team: NewTeam):
    teams.create_group("year 9", budget=COSTS, by=TESTER)
    ask(client, new_team("9a", group="year 9", quota_tokens=1_000_000))
    ask(client, spender)
    teams.update("spender", budget=COSTS + 10**8, by=TESTER)
    new_team("free")
    found = reports.running_out(4)
    assert ([use.name for use, _ in found.next], found.used_up_groups, found.used_up_teams) == (["spender"], 1, 0)
    listed = {near: [row.name for row in reports.teams_page(near_quota=near).rows] for near in ("over80", "exhausted")}
    assert listed == {"over80": ["spender"], "exhausted": []}
    assert (reports.groups_near("exhausted"), reports.groups_near("over80")) == (1, 1)
    teams.update("spender", budget=0, by=TESTER)
    assert [row.name for row in reports.teams_page(near_quota="exhausted").rows] == ["spender"]
    assert reports.teams_page(sort="share", descending=True).rows[0].name == "spender"


@pytest.mark.parametrize(
    "price", [Price("m", 3, 7), Price("m", 250_001, 1_999_999, request=40), Price("m", 0, 1_000_003)]
)
def test_longest_answer_is_the_longest_that_an_amount_pays(price: Price):
    for amount in (60, 61, 1_000):
        longest = price.output_tokens_for(amount, prompt_tokens=10)
        assert price.cost(10, 0, longest) <= amount < price.cost(10, 0, longest + 1)

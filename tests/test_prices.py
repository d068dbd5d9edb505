"""What calls cost: prices, amounts, and the cost of each call, fixed when it settles."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from conftest import TESTER, Member, chat, hello
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import select, text, update

from tokenrouter import changes, ledger, money, prices, reports, runtime, teams
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import RequestLog, Team, db
from tokenrouter.errors import InvalidRequest, NotFound
from tokenrouter.ledger import CallRequest, Ledger, Outcome
from tokenrouter.metering.prices import Price, PriceList
from tokenrouter.metering.usage import read_usage
from tokenrouter.periods import Renewal
from tokenrouter.provider.catalogue import Catalogue
from tokenrouter.standin import StandInProvider
from tokenrouter.teams import management_tokens

both_databases = pytest.mark.both_databases

CHAT = "/v1/chat/completions"
BILLION = 10**9
NANO, MINI = Price("GPT-5-nano", 45_000_000, 360_000_000), Price("GPT-5-mini", 250_000_000, 2 * BILLION)


# Amounts


@pytest.mark.parametrize(
    ("typed", "amount"),
    [
        ("0", 0),
        ("12.5", 12_500_000_000),
        ("$0.045", 45_000_000),
        (" €1,250 ", 1250 * BILLION),
        ("0.000000001", 1),
        ("1.5000000000000", 1_500_000_000),
    ],
)
def test_amounts_are_read_as_people_write_them(typed: str, amount: int):
    assert money.parse_amount(typed) == amount


@pytest.mark.parametrize("typed", ["", "-1", "1e3", "1,25", "0.0000000001", "1.", ".5", "١", "free", "9999999999.0"])
def test_what_is_no_amount_is_refused(typed: str):
    with pytest.raises(ValueError, match=r"amount|decimals|more than"):
        money.parse_amount(typed)


@pytest.mark.parametrize(
    ("amount", "told"),
    [(0, "0"), (1, "0.000000001"), (27_600, "0.0000276"), (10 * BILLION, "10"), (-1_500_000_000, "-1.5"), (None, None)],
)
def test_amounts_are_told_as_decimals_without_an_exponent(amount: int | None, told: str | None):
    assert money.decimal_string(amount) == told


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (0, "USD", "$0.00"),
        (12_500_000_000, "EUR", "€12.50"),
        (4_200_000, "USD", "$0.0042"),
        (4_249_999, "USD", "$0.0042"),
        (8_450, "USD", "$0.0000085"),
        (125_000_000, "USD", "$0.13"),
        (1, "GBP", "£0.000000001"),
        (1_234_567 * BILLION, "CHF", "CHF 1,234,567.00"),
        (-5_000_000, "USD", "-$0.005"),
    ],
)
def test_amounts_are_shown_as_people_write_them(amount: int, currency: str, shown: str):
    assert money.shown(amount, currency) == shown


# Prices


def test_cost_is_rounded_up_once():
    price = Price("m", input=1, output=1, cached_input=0, request=5)
    assert price.cost(1, 0, 1) == 1 + 5
    assert price.cost(500_000, 500_000, 0) == 5
    assert price.cost(0, 0, 0) == 5
    assert NANO.cost(1000, 0, 500) == 45_000 + 180_000
    assert Price("m", 100, 0, cached_input=None).cost(10**6, 5 * 10**5, 0) == 100
    assert Price("m", 100, 0, cached_input=10).cost(10**6, 2 * 10**6, 0) == 10  # never more of it than the prompt


def test_most_exact_price_wins_and_the_administrators_before_the_providers():
    listed = PriceList(
        [
            Price("*", 1, 1),
            Price("GPT-5*", 2, 2),
            Price("gpt-5-nano", 3, 3),
            Price("Claude", 4, 4, is_of_provider=True),
            Price("GPT-5-mini", 5, 5, is_of_provider=True),
        ]
    )
    found = {name: listed.find(name).input for name in ("GPT-5-NANO", "gpt-5-mini", "Claude", "other")}
    assert found == {"GPT-5-NANO": 3, "gpt-5-mini": 2, "Claude": 1, "other": 1}
    assert PriceList([Price("Claude", 4, 4, is_of_provider=True)]).find("claude").input == 4
    assert PriceList([Price("a", 1, 1)]).find("ab") is None


@both_databases
def test_prices_are_set_changed_and_ended_and_every_change_is_recorded(app: Flask):
    prices.set_price("GPT-5-nano", 45_000_000, 360_000_000, by=TESTER)
    prices.set_price("gpt-5-NANO", 50_000_000, 360_000_000, 5_000_000, 7, by=TESTER)
    (view,) = prices.views()
    assert (view["model"], view["input"], view["cached_input"], view["request"]) == (
        "gpt-5-NANO", "0.05", "0.005", "0.000000007",
    )  # fmt: skip
    prices.unset_price("GPT-5-nano", by=TESTER)
    assert prices.views() == []
    with pytest.raises(NotFound):
        prices.unset_price("GPT-5-nano", by=TESTER)
    recorded = [
        (row.action, row.before and row.before["input"], row.after and row.after["input"])
        for row in changes.page().rows
    ]
    assert recorded == [("price.unset", "0.05", None), ("price.set", "0.045", "0.05"), ("price.set", None, "0.045")]


@pytest.mark.parametrize("model", ["", "a,b", "a*b", "x" * 201])
def test_price_is_of_one_model_or_prefix(app: Flask, model: str):
    with pytest.raises(InvalidRequest):
        prices.set_price(model, 1, 1, by=TESTER)


POES = {
    "gpt-5-nano": {
        "pricing": {"prompt": "0.000000045", "completion": "0.00000036", "input_cache_read": "0.0000000045"}
    },
    "image-maker": {"pricing": {"prompt": None, "completion": None, "image": "0.04"}},
    "by-the-call": {"pricing": {"prompt": "0", "completion": "0", "request": "0.002"}},
    "odd": {"pricing": {"prompt": "-1", "completion": "1"}},
    "odder": {"pricing": {"prompt": "NaN", "completion": "cheap"}},
    "huge": {"pricing": {"prompt": "1e999999", "completion": "1e500000"}},
    "none": {"pricing": None},
}


@both_databases
def test_providers_prices_are_taken_over_as_far_as_they_are_prices(app: Flask):
    assert prices.take_over(POES, by=TESTER).changed == ["by-the-call", "gpt-5-nano"]
    assert prices.valid().find("GPT-5-nano") == Price("gpt-5-nano", 45_000_000, 360_000_000, 4_500_000, 0, True)
    assert prices.valid().find("by-the-call").request == 2_000_000
    assert prices.valid().find("odd") is None
    again = prices.take_over(POES, by=TESTER)
    assert (again.priced, again.changed) == (2, [])
    gone = prices.take_over({"gpt-5-nano": {"pricing": {"prompt": "0.00000005", "completion": "0.0000004"}}}, by=TESTER)
    assert gone.changed == ["by-the-call", "gpt-5-nano"]
    assert prices.valid().find("by-the-call") is None
    assert prices.valid().find("gpt-5-nano").cached_input is None
    prices.set_price("GPT-5-nano", 1, 2, by=TESTER)
    assert prices.valid().find("gpt-5-nano").input == 1
    prices.unset_price("gpt-5-nano", by=TESTER)
    assert prices.valid().find("gpt-5-nano").input == 50_000_000


def test_providers_prices_are_dollars(app: Flask):
    app.config["CURRENCY"] = "EUR"
    with pytest.raises(InvalidRequest, match="in US dollars, and CURRENCY is EUR"):
        prices.take_over(POES, by=TESTER)


def test_commands(runner: FlaskCliRunner, client: FlaskClient, team: Member, provider: StandInProvider):
    def run(*arguments: str) -> str:
        done = runner.invoke(args=["prices", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert "flask prices set" in run("list")
    chat(client, team)
    assert "No price: GPT-5-nano, of which 28 tokens" in run("list")
    run("set", "GPT-5-nano", "--input", "0.045", "--output", "0.36", "--cached-input", "0.0045")
    listed = run("list")
    assert ["GPT-5-nano", "0.045", "0.36", "0.0045", "0", "administrator"] in [
        line.split()[:6] for line in listed.splitlines()
    ]
    assert "No price" not in listed and "In USD, a million tokens each" in listed
    run("unset", "gpt-5-nano")
    assert runner.invoke(args=["prices", "unset", "GPT-5-nano"]).exit_code == 1
    assert runner.invoke(args=["prices", "set", "m", "--input", "cheap", "--output", "1"]).exit_code == 2
    assert "has prices of 0 models" in run("fetch")


def test_fetched_prices_are_shown_beside_yours(runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Catalogue, "fetch", lambda self: POES)
    prices.set_price("GPT-5*", 1_250_000_000, 10 * BILLION, by=TESTER)
    told = [line.split("  ") for line in runner.invoke(args=["prices", "fetch"]).output.splitlines()]
    shown_ = [[cell.strip() for cell in line if cell.strip()] for line in told]
    assert ["gpt-5-nano", "0.045 / 0.36", "1.25 / 10"] in shown_
    assert ["by-the-call", "0 / 0", "-"] in shown_
    assert shown_[-1] == ["The provider has prices of 2 models, 2 of them new."]


@pytest.mark.parametrize("answer", ["n", "y"])
def test_on_a_terminal_fetched_prices_hold_once_that_is_confirmed(
    runner: FlaskCliRunner, monkeypatch: pytest.MonkeyPatch, answer: str
):
    monkeypatch.setattr(Catalogue, "fetch", lambda self: POES)
    monkeypatch.setattr("tokenrouter.cli.prices.is_terminal", lambda: True)
    said = runner.invoke(args=["prices", "fetch"], input=f"{answer}\n")
    assert "Let them hold where you have set none? [y/N]" in said.output
    assert (said.exit_code, len(prices.views())) == ((0, 2) if answer == "y" else (1, 0))


def test_commands_say_how_many_tokens_a_cost_leaves_out(runner: FlaskCliRunner, client: FlaskClient, team: Member):
    left_out = "28 of the used tokens have no price; what they cost is not known."
    teams.create_group("Year 9", by=TESTER)
    teams.update("team", group="Year 9", by=TESTER)
    chat(client, team)
    prices.set_price("*", BILLION, BILLION, by=TESTER)
    chat(client, team)
    for command in (["teams", "show", "team"], ["usage", "show", "team"], ["groups", "show", "Year 9"]):
        told = runner.invoke(args=command).output.splitlines()
        assert ["cost", "0.000028"] in [line.split() for line in told]
        assert told[-1] == left_out
        assert left_out not in runner.invoke(args=[*command, "--json"]).output  # programs read nothing but its object
    runner.invoke(args=["usage", "reset", "team", "--yes"])
    assert "no price" not in runner.invoke(args=["teams", "show", "team"]).output


# What is told of usage


@pytest.mark.parametrize(
    ("usage", "cached", "cost"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}, 8, None),
        ({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}}, 4, None),
        ({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3}, 3, None),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 7}, 7, None),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1}}, None, None),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None, "cost": 0.0000276},
            None,
            "0.0000276",
        ),
        ({"prompt_tokens": 10, "completion_tokens": 5, "cost": "0.5"}, None, "0.5"),
        ({"prompt_tokens": 10, "completion_tokens": 5, "cost": -1}, None, None),
        ({"prompt_tokens": 10, "completion_tokens": 5, "cost": float("nan")}, None, None),
        ({"prompt_tokens": 10, "completion_tokens": 5, "cost": True}, None, None),
    ],
)
def test_cached_tokens_and_cost_are_read_by_whatever_name(usage: dict[str, Any], cached: int | None, cost: str | None):
    report = read_usage({"usage": usage})
    assert (report.cached_tokens, report.cost) == (cached, None if cost is None else Decimal(cost))


# The cost of calls


def rows() -> list[tuple[int | None, str]]:
    with db.engine.connect() as connection:
        query = (
            select(RequestLog.cost, RequestLog.cost_source)
            .where(RequestLog.status != "pending")
            .order_by(RequestLog.id)
        )
        return [tuple(row) for row in connection.execute(query)]


def problems() -> list[str]:
    return ledger.verify(db.engine).problems


def request(member: Member, model: str = "GPT-5-nano") -> CallRequest:
    return CallRequest(
        request_id=f"req_{datetime.now(UTC).timestamp()}",
        team_id=member.team.id,
        team_name="team",
        token_id=1,
        token_prefix="tr-abcde",
        model=model,
        endpoint=CHAT,
        stream=False,
        created_at=datetime.now(UTC),
        prompt_tokens=10,
        output_tokens=90,
        choices=1,
    )


def ok(prompt: int, completion: int, **more: Any) -> Outcome:
    total = more.pop("total_tokens", prompt + completion)
    return Outcome(
        status="ok", status_code=200, charged_tokens=total, usage_source="provider", prompt_tokens=prompt,
        completion_tokens=completion, total_tokens=total, **more,
    )  # fmt: skip


def settle(books: Ledger, member: Member, outcome: Outcome, model: str = "GPT-5-nano") -> None:
    books.settle(books.reserve(request(member, model)), outcome)


@both_databases
def test_hour_of_calls_agrees_with_what_was_computed_by_hand(app: Flask, team: Member):
    prices.set_price("GPT-5*", 250_000_000, 2 * BILLION, 25_000_000, by=TESTER)
    prices.set_price("by-the-call", 0, 0, request=2_000_000, by=TESTER)
    books = runtime.current().ledger
    settle(books, team, ok(1000, 200))  # 0.25 * 0.001 + 2 * 0.0002 = 0.00065
    settle(books, team, ok(1000, 200, cached_tokens=800))  # 0.25 * 0.0002 + 0.025 * 0.0008 + 0.0004 = 0.00047
    settle(books, team, ok(3, 1), "by-the-call")  # 0.002
    settle(books, team, ok(1000, 200), "unknown")
    settle(books, team, ok(1000, 200, reported_cost=27_600), "unknown")  # 0.0000276, as the provider says
    settle(books, team, ok(10, 5, total_tokens=115))  # 0.0000025 + 2 * 0.000105: the total alone tells of 100 more
    settle(books, team, ok(1, 0), "GPT-5-nano")  # 0.00000025, exactly
    by_hand = ["0.00065", "0.00047", "0.002", None, "0.0000276", "0.0002125", "0.00000025"]
    assert [money.decimal_string(cost) for cost, _ in rows()] == by_hand
    assert [source for _, source in rows()] == ["price", "price", "price", "none", "provider", "price", "price"]
    view = reports.team_view(teams.get(team.team.id))
    assert view["cost"] == "0.00336035"
    assert reports.usage("team")[0][0]["cost"] == "0.00336035"
    assert {row["model"]: row["cost"] for row in reports.usage("model")[0]}["unknown"] == "0.0000276"
    assert teams.get(team.team.id).unpriced_tokens == 1200
    assert problems() == []


@both_databases
def test_price_that_changes_while_calls_run_holds_for_what_settles_then_in_every_process(app: Flask, team: Member):
    others = Ledger(db.engine, output_reserve_tokens=1024)
    own = runtime.current().ledger
    prices.set_price("GPT-5-nano", 1_000_000_000, 0, by=TESTER)
    running = [(books, books.reserve(request(team))) for books in (own, others)]
    settle(own, team, ok(1000, 0))
    prices.set_price("GPT-5-nano", 3_000_000_000, 0, by=TESTER)
    for books, reservation in running:
        books.settle(reservation, ok(1000, 0))
    prices.unset_price("GPT-5-nano", by=TESTER)
    settle(others, team, ok(1000, 0))
    assert Counter(rows()) == {(1_000_000, "price"): 1, (3_000_000, "price"): 2, (None, "none"): 1}
    others.close()
    assert problems() == []


def test_cost_in_dollars_says_nothing_where_the_currency_is_another(settings: dict[str, str], app: Flask, team: Member):
    books = Ledger(db.engine, output_reserve_tokens=1024, currency="EUR")
    settle(books, team, ok(1000, 0, reported_cost=27_600))
    prices.set_price("*", BILLION, 0, by=TESTER)
    settle(books, team, ok(1000, 0, reported_cost=27_600))
    assert rows() == [(None, "none"), (1_000_000, "price")]
    books.close()


@both_databases
def test_calls_by_http_cost_what_their_usage_says(client: FlaskClient, team: Member):
    prices.set_price("*", 1_000_000_000, 2_000_000_000, by=TESTER)
    body = hello("prompt_tokens=100 words=10", max_tokens=50)
    assert client.post(CHAT, json=body, headers=team.headers).status_code == 200
    streamed = client.post(CHAT, json={**body, "stream": True}, headers=team.headers)
    assert streamed.data.endswith(b"data: [DONE]\n\n")
    assert client.post(CHAT, json=hello("status=500"), headers=team.headers).status_code == 500
    assert client.post(CHAT, json={**body, "model": "no-such"}, headers=team.headers).status_code == 404
    assert rows() == [(120_000, "price"), (120_000, "price"), (0, "none"), (0, "none")]
    told = client.get("/v1/usage", headers=team.headers).json
    assert (told["cost"], told["by_day"][-1]["cost"]) == ("0.00024", "0.00024")
    assert problems() == []


@both_databases
def test_hour_of_the_providers_traffic_agrees_with_what_was_computed_by_hand(client: FlaskClient, team: Member):
    """By every endpoint that tells of it: dollars a million tokens are 1, 0.1 and 2, and 0.002 a call of the last."""
    prices.set_price("GPT-5*", 1_000_000_000, 2_000_000_000, 100_000_000, by=TESTER)
    prices.set_price("Gemini-2.5-flash", 1_000_000_000, 2_000_000_000, request=2_000_000, by=TESTER)
    directives = "prompt_tokens=1000 words=100"
    calls = [
        ("chat/completions", directives, "GPT-5-nano", "0.0012"),
        ("chat/completions", f"{directives} cached_tokens=900", "GPT-5-nano", "0.00039"),
        ("responses", f"{directives} cached_tokens=900", "GPT-5-mini", "0.00039"),
        ("chat/completions", directives, "Gemini-2.5-flash", "0.0032"),
        ("chat/completions", directives, "Gemini-2.5-pro", None),
        ("chat/completions", f"{directives} cost=0.0000276", "Gemini-2.5-pro", "0.0000276"),
        ("chat/completions", f"{directives} cost=0.5", "GPT-5-nano", "0.5"),
        ("chat/completions", f"{directives} usage=zero", "GPT-5-nano", "0"),
        ("chat/completions", "status=500", "GPT-5-nano", "0"),
    ]
    for path, text_, model, _ in calls:
        for stream in (False, True):
            words = f"Hello! [[{text_}]]"
            content = {"input": words} if path == "responses" else {"messages": [{"role": "user", "content": words}]}
            client.post(
                f"/v1/{path}", json={"model": model, "stream": stream, **content}, headers=team.headers, buffered=True
            )
    told = [money.decimal_string(cost) for cost, _ in rows()]
    assert told == [cost for *_, cost in calls for _ in range(2)]
    total = sum(Decimal(cost) for cost in told if cost)
    assert Decimal(reports.team_view(teams.get(team.team.id))["cost"]) == total
    assert teams.get(team.team.id).unpriced_tokens == 2 * 1100
    assert problems() == []


def test_answers_whose_keys_are_fixed_say_beside_them_how_many_tokens_have_no_price(client: FlaskClient, team: Member):
    _, management_token = management_tokens.create("tests", by=TESTER)

    def unpriced(path: str) -> str | None:
        bearer = team.bearer_token if path.startswith("/v1/") else management_token
        reply = client.get(path, headers={"Authorization": f"Bearer {bearer}"})
        assert reply.status_code == 200
        return reply.headers.get("x-tokenrouter-unpriced-tokens")

    paths = ["/v1/usage", "/api/usage", "/api/usage?group_by=model", "/api/teams", f"/api/teams/{team.team.id}"]
    chat(client, team)
    prices.set_price("GPT-5-mini", 0, 0, by=TESTER)
    chat(client, team, model="GPT-5-mini")
    used = teams.get(team.team.id).used_tokens
    assert [unpriced(path) for path in paths] == [str(used // 2)] * len(paths)
    ledger.reset(db.engine, [team.team.id], by=TESTER)
    assert [unpriced(path) for path in paths] == [str(used // 2)] * 3 + [None] * 2  # the days are not reset


@both_databases
def test_unknown_cost_is_never_nothing(client: FlaskClient, team: Member, new_team: Callable[..., Member]):
    assert reports.team_view(teams.get(team.team.id))["cost"] == "0"  # of no tokens
    chat(client, team)
    view = reports.team_view(teams.get(team.team.id))
    assert (view["cost"], rows()) == (None, [(None, "none")])
    assert reports.usage("day")[0][0]["cost"] is None
    assert client.get("/v1/usage", headers=team.headers).json["by_day"][-1]["cost"] is None
    prices.set_price("*", 0, 0, by=TESTER)
    chat(client, team)
    assert (
        reports.team_view(teams.get(team.team.id))["cost"] is None
    )  # of all that is known to be free, nothing is known
    assert rows()[-1] == (0, "price")


@both_databases
def test_cost_begins_anew_with_the_quota_and_is_proven(client: FlaskClient, new_team: Callable[..., Member]):
    teams.create_group("year 9", renewal=Renewal("daily"), by=TESTER)
    member = new_team("9a", renewal=Renewal("daily"), group="year 9")
    prices.set_price("*", 1_000_000_000, 1_000_000_000, by=TESTER)
    chat(client, member)
    first = teams.find("9a").cost
    assert teams.find_group("year 9").cost == first > 0
    ledger.reset(db.engine, [member.team.id], by=TESTER)
    assert (teams.find("9a").cost, teams.find_group("year 9").cost) == (0, first)
    chat(client, member)
    with writing(db.engine) as connection:
        connection.execute(update(Team).values(renews_at=1))
    assert teams.find("9a").cost == 0
    chat(client, member)
    assert (teams.find("9a").cost, teams.find_group("year 9").cost) == (first, 3 * first)
    assert problems() == []


@both_databases
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE teams SET settled_cost = settled_cost + 1",
        "UPDATE teams SET reset_mark_cost = 1",
        "UPDATE teams SET settled_priced_tokens = 0",
        "UPDATE usage_daily SET cost = cost + 1",
        "UPDATE usage_daily SET priced_tokens = 0",
    ],
)
def test_verify_finds_and_repair_mends_what_is_wrong_with_costs(client: FlaskClient, team: Member, statement: str):
    prices.set_price("*", 1_000_000_000, 1_000_000_000, by=TESTER)
    chat(client, team)
    with writing(db.engine) as connection:
        connection.execute(text(statement))
    assert len(problems()) == 1
    ledger.repair(db.engine, by=TESTER)
    assert problems() == []

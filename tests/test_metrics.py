"""What Prometheus is told: who may ask, that all workers tell the same, and that labels and counters keep to rules."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import promql_parser
import pytest
import requests
import yaml
from conftest import ROOT, TESTER, Member, chat, eventually, hello, running_server
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
from sqlalchemy.exc import OperationalError

from tokenrouter import ledger, runtime, teams
from tokenrouter.database.tables import AccountCheck, MetricTotal, RequestLog, UsageDaily, db
from tokenrouter.monitoring import families, tally
from tokenrouter.monitoring.tally import MOST_MODELS, OTHER, Tally
from tokenrouter.provider.account import State

TOKEN = "token-for-metrics"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MONITORING = ROOT / "tokenrouter" / "monitoring"


class Samples(dict[tuple[str, ...], float]):
    """Values by the name and then by the values of the labels, in the order of the labels' names."""

    def of(self, name: str, **labels: str) -> float:
        return self[f"tokenrouter_{name}", *(labels[label] for label in sorted(labels))]

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return what is told under a name, by the values of these labels, which are all that it has."""
        order = [sorted(labels).index(label) for label in labels]
        found = {key[1:]: value for key, value in self.items() if key[0] == f"tokenrouter_{name}"}
        return {tuple(key[at] for at in order): value for key, value in found.items()}


@pytest.fixture
def settings(settings: dict[str, str]) -> dict[str, str]:
    return settings | {"METRICS_TOKEN": TOKEN, "PROVIDER_REQUESTS_PER_MINUTE": "100000"}


def read(text: str) -> Samples:
    read = parser.text_string_to_metric_families(text)
    samples = [sample for family in read for sample in family.samples]
    return Samples({(each.name, *(value for _, value in sorted(each.labels.items()))): each.value for each in samples})


@pytest.fixture
def scrape(app: Flask, client: FlaskClient) -> Callable[[], Samples]:
    """Ask for the metrics, with all that was counted by now."""

    def ask() -> Samples:
        runtime.of(app).tally.keep()
        reply = client.get("/metrics", headers=BEARER)
        assert reply.status_code == 200
        return read(reply.text)

    return ask


def test_without_a_token_set_there_is_no_such_page(settings: dict[str, str], request: pytest.FixtureRequest):
    del settings["METRICS_TOKEN"]
    client = request.getfixturevalue("client")
    unknown, page = client.get("/nothing", headers=BEARER), client.get("/metrics", headers=BEARER)
    assert (page.status_code, page.text) == (404, unknown.text.replace("/nothing", "/metrics"))
    assert client.post("/metrics").status_code == 404


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ü"])
def test_wrong_or_missing_token_gets_401(client: FlaskClient, given: str | None):
    reply = client.get("/metrics", headers={"Authorization": given} if given else {})
    assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "tokenrouter_" not in reply.text


def test_openmetrics_is_told_to_whoever_asks_for_it(client: FlaskClient, team: Member):
    chat(client, team)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"}
    reply = client.get("/metrics", headers=BEARER | accept)
    assert reply.content_type.startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(reply.text)}
    assert {"tokenrouter_calls", "tokenrouter_build", "tokenrouter_call_duration_seconds"} <= names


@pytest.mark.both_databases
def test_calls_tokens_and_cost_are_counted(
    client: FlaskClient, new_team: Callable[..., Member], scrape: Callable[[], Samples]
):
    team, poor = new_team("rich"), new_team("poor", quota_tokens=0)
    for _ in range(3):
        chat(client, team, "cost=0.25 cached_tokens=2")
    chat(client, team, "status=500")
    client.post("/v1/chat/completions", json=hello(), headers=poor.headers)
    client.post("/v1/chat/completions", json=hello(), headers={"Authorization": "Bearer tr-none"})
    told, chats = scrape(), {"model": "GPT-5-nano", "endpoint": "/v1/chat/completions"}
    used = db.session.execute(db.select(db.func.sum(UsageDaily.total_tokens))).scalar_one()
    calls = {status: told.of("calls_total", status=status, **chats) for status in ("ok", "provider_error", "rejected")}
    assert calls == {"ok": 3, "provider_error": 1, "rejected": 1}
    assert told.of("failed_calls_total", status="rejected", code="insufficient_quota") == 1
    assert told.of("charged_tokens_total", model="GPT-5-nano") == used
    kinds = told.by("tokens_total", "model", "kind")
    assert sum(kinds.values()) == used and kinds["GPT-5-nano", "cached_prompt"] == 6
    assert told.of("cost_total", model="GPT-5-nano", currency="USD") == 0.75
    assert sum(told.by("turned_away_requests_total", "reason").values()) == 1


def test_times_are_histograms_by_model_and_stage(client: FlaskClient, team: Member, scrape: Callable[[], Samples]):
    chat(client, team, "delay=0.3")
    chat(client, team)
    told = scrape()
    durations = told.by("call_duration_seconds_bucket", "model", "le")
    assert (durations["GPT-5-nano", "+Inf"], durations["GPT-5-nano", "0.25"]) == (2, 1)
    duration_s = told.of("call_duration_seconds_sum", model="GPT-5-nano")
    assert 0.3 <= duration_s < 30
    assert told.of("call_first_byte_seconds_count", model="GPT-5-nano") == 2
    assert told.by("call_overhead_seconds_count", "stage") == {("admission",): 2, ("settlement",): 2}
    assert told.of("call_overhead_seconds_sum", stage="admission") < duration_s - 0.25


def test_repeats_of_a_refusal_count_as_calls(
    app: Flask, client: FlaskClient, new_team: Callable[..., Member], scrape: Callable[[], Samples]
):
    poor = new_team(quota_tokens=0)
    for _ in range(7):
        client.post("/v1/chat/completions", json=hello(), headers=poor.headers)
    own = runtime.of(app).ledger
    own._write_repeats()
    refused = "GPT-5-nano", "rejected", "/v1/chat/completions"
    order = "model", "status", "endpoint"
    assert eventually(lambda: scrape().by("calls_total", *order)[refused] == 7)


@pytest.mark.both_databases
def test_labels_are_bounded_whatever_callers_send(
    settings: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tally, "MOST_MODELS", 10)
    settings |= {"ALLOWED_MODELS": "GPT-5-nano,odd*"}
    app, new_team = request.getfixturevalue("app"), request.getfixturevalue("new_team")
    client, team = app.test_client(), new_team()
    others = Tally(db.engine, settings["ALLOWED_MODELS"].split(","))  # another worker's
    for number in range(60):
        chat(client, team, model=f"odd-{number}")
        if number == 30:
            runtime.of(app).tally.keep()
            runtime.of(app).ledger.endings.listen(others)
    others.keep()  # it learns what the first has kept
    chat(client, team, model="ODD-3")
    others.keep()
    told = read(client.get("/metrics", headers=BEARER).text)
    calls = {model: value for (model, *_), value in told.by("calls_total", "model", "endpoint", "status").items()}
    assert len(calls) <= 11 and sum(calls.values()) == 61
    assert calls[OTHER] >= 40 and calls["odd-3"] == 2


def test_thousand_odd_names_that_the_provider_never_answered_are_no_labels(app: Flask):
    own = runtime.of(app).tally
    names = {own._models.label(f"odd {number}", is_answered=False) for number in range(1000)}
    names |= {own._models.label(f"odd {number}", is_answered=True) for number in range(1000)}
    assert len(names) <= MOST_MODELS + 1


def test_counters_go_down_with_nothing(
    client: FlaskClient, team: Member, new_team: Callable[..., Member], scrape: Callable[[], Samples]
):
    gone = new_team("gone", quota_tokens=10_000)
    chat(client, team)
    chat(client, gone)
    before = scrape()
    ledger.reset(db.engine, [team.team.id], by=TESTER)
    teams.delete("gone", by=TESTER)
    db.session.execute(db.delete(RequestLog))
    db.session.commit()
    after = scrape()
    counted = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert counted and all(after[key] >= before[key] for key in counted)


@pytest.mark.both_databases
def test_quotas_are_told_of_those_that_used_most_and_of_the_rest_as_one(
    monkeypatch: pytest.MonkeyPatch,
    client: FlaskClient,
    new_team: Callable[..., Member],
    scrape: Callable[[], Samples],
):
    monkeypatch.setattr(families, "MOST_OWNERS", 2)
    members = [new_team(f'team "{number}"\\', quota_tokens=1000 * (number + 1)) for number in range(4)]
    for member in members[2:]:
        chat(client, member)
    new_team("unlimited")
    told = scrape()
    quotas, left, used = (told.by(f"team_{name}_tokens", "team_id", "team") for name in ("quota", "remaining", "used"))
    assert quotas == {
        (str(members[2].team.id), 'team "2"\\'): 3000,
        (str(members[3].team.id), 'team "3"\\'): 4000,
        ("", "(others)"): 3000,
    }
    assert all(quotas[labels] == left[labels] + used[labels] for labels in quotas)
    assert told.of("teams") == 5


def test_account_is_told_as_it_stands(client: FlaskClient, scrape: Callable[[], Samples]):
    check = runtime.of(client.application).account.check()
    kept = {"at": check.at, "state": "empty", "words": "", "spent": 0, "is_typed": False}
    db.session.add(AccountCheck(**kept, points=12, money=2_500_000_000, currency="USD"))
    db.session.commit()
    told = scrape()
    states = told.by("provider_state", "state")
    assert set(states) == {(state.value,) for state in State}
    assert [state for (state,), value in states.items() if value] == ["empty"]
    assert told.by("provider_balance", "unit") == {("points",): 12, ("USD",): 2.5}
    assert told.of("provider_check_timestamp_seconds") == pytest.approx(check.at.timestamp())


def test_what_cannot_be_written_is_added_the_next_time(
    monkeypatch: pytest.MonkeyPatch, app: Flask, client: FlaskClient, team: Member, scrape: Callable[[], Samples]
):
    chat(client, team)

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("", {}, Exception("database is locked"))

    with monkeypatch.context() as away, pytest.raises(OperationalError):
        away.setattr(tally, "writing", fail)
        runtime.of(app).tally.keep()
    chat(client, team)
    assert list(scrape().by("calls_total", "model", "endpoint", "status").values()) == [2]


def test_histogram_takes_in_what_another_version_counted(client: FlaskClient, scrape: Callable[[], Samples]):
    for bound, count in (("0.1", 2), ("0.7", 3), ("9999", 4), ("+Inf", 5)):
        db.session.add(
            MetricTotal(name="duration", labels=json.dumps(["m", bound], separators=(",", ":")), value=count)
        )
    db.session.commit()
    buckets = scrape().by("call_duration_seconds_bucket", "model", "le")
    assert [buckets["m", bound] for bound in ("0.1", "0.5", "1", "+Inf")] == [2, 2, 5, 14]


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_all_workers_tell_the_same_sums(settings: dict[str, str], tmp_path: Path, database: str):
    with running_server(settings, tmp_path) as server:
        token = server.create_team()
        for number in range(40):
            headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
            body = hello(model="GPT-5-nano" if number % 2 else "GPT-5-mini")
            assert requests.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60).ok

        def calls() -> list[float]:
            told = read(
                requests.get(f"{server.url}/metrics", headers=BEARER | {"Connection": "close"}, timeout=60).text
            )
            return sorted(told.by("calls_total", "model", "endpoint", "status").values())

        assert eventually(lambda: calls() == [20, 20])
        assert all(calls() == [20, 20] for _ in range(10))  # whichever worker answers
    with running_server(settings, tmp_path) as server:
        assert calls() == [20, 20]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\btokenrouter_\w+", text))


def test_rules_and_dashboard_name_metrics_that_there_are(
    client: FlaskClient, team: Member, scrape: Callable[[], Samples]
):
    chat(client, team)
    told = scrape()
    families_told = parser.text_string_to_metric_families(client.get("/metrics", headers=BEARER).text)
    names = {key[0] for key in told} | {f"{each.name}{'_total' * (each.type == 'counter')}" for each in families_told}
    rules, dashboard = (MONITORING / name for name in ("alerts.yml", "dashboard.json"))
    expressions = [rule["expr"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]
    panels = json.loads(dashboard.read_text())["panels"]
    expressions += [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(expressions) > 20
    assert all(promql_parser.parse(each.replace("$__rate_interval", "5m")) for each in expressions)
    assert set().union(*map(names_in, expressions)) - names == set()


def test_every_metric_is_in_the_dashboard_or_a_rule(client: FlaskClient):
    text = "".join((MONITORING / name).read_text() for name in ("alerts.yml", "dashboard.json"))
    told = parser.text_string_to_metric_families(client.get("/metrics", headers=BEARER).text)
    assert {each.name for each in told if not re.search(rf"\b{each.name}(_total|_bucket|_info)?\b", text)} == set()


def test_scrape_configuration_asks_where_the_page_is():
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert job["authorization"]["credentials_file"]

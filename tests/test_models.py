"""Which models a team may call, by what names, and what it is told of them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from conftest import HELLO, PROVIDER_KEY, TESTER, Member
from flask.testing import FlaskClient
from requests_mock import Adapter
from sending import fetch

from tokenrouter import config, errors, payload, reports, runtime, teams
from tokenrouter.provider import client as provider_client
from tokenrouter.provider import documents
from tokenrouter.provider.catalogue import Catalogue
from tokenrouter.provider.client import Provider
from tokenrouter.standin import Ending, Script, StandInProvider

CHAT = "/v1/chat/completions"
ROOT = "https://provider.example/v1"
EVERY = ("*",)


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, **getattr(request, "param", {})}


def allowing(models: str, **others: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [{"ALLOWED_MODELS": models, **others}], indirect=True, ids=[""])


def listed(client: FlaskClient, team: Member) -> list[str]:
    return [model["id"] for model in client.get("/v1/models", headers=team.headers).json["data"]]


def refusal(client: FlaskClient, team: Member, model: str = "unknown") -> str:
    reply = client.post(CHAT, json={**HELLO, "model": model}, headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (404, "model_not_found")
    return reply.json["error"]["message"]


# Names


@allowing("GPT-5-nano,meta/LLAMA*")
@pytest.mark.parametrize("model", ["gpt-5-nano", "GPT-5-NANO", "Meta/llama-4"])
def test_capitals_do_not_matter_and_the_callers_spelling_is_sent(
    client: FlaskClient, team: Member, provider: StandInProvider, model: str
):
    assert client.post(CHAT, json={**HELLO, "model": model}, headers=team.headers).status_code == 200
    assert provider.calls[0].json["model"] == model


@pytest.mark.parametrize("model", ["gpt-5-nan", "gpt-5-nano2", "my-gpt-5-nano"])
def test_name_is_matched_whole(client: FlaskClient, team: Member, model: str):
    assert "GPT-5-nano" in refusal(client, team, model)


def test_teams_own_list_narrows_without_regard_to_capitals(client: FlaskClient, new_team):
    team = new_team(models="gpt-5-MINI,gemini*")
    assert listed(client, team) == ["GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-pro"]


def test_allowed_name_is_listed_once_as_the_provider_spells_it(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    provider.models = ("gpt-5-nano", "gpt-4", "Gemini-2.5-PRO")
    assert listed(client, team) == ["gpt-5-nano", "GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-PRO"]


@allowing("GPT-5-nano,gpt*,gpt-5*")
def test_model_that_several_patterns_fit_is_listed_once(client: FlaskClient, team: Member, provider: StandInProvider):
    provider.models = ("gpt-5-nano", "GPT-4", "claude")
    assert listed(client, team) == ["gpt-5-nano", "GPT-4"]


@allowing("meta/llama,gpt*", DEFAULT_MODEL="gpt-5-nano")
def test_without_the_providers_list_exact_names_and_the_default_are_listed(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    provider.defaults = {"status": "500"}
    assert listed(client, team) == ["meta/llama", "gpt-5-nano"]


@allowing("gpt*,meta/llama", DEFAULT_MODEL="gpt-5-nano")
def test_default_that_the_team_may_not_call_is_not_listed(client: FlaskClient, new_team, provider: StandInProvider):
    provider.defaults = {"status": "500"}
    assert listed(client, new_team(models="meta/llama")) == ["meta/llama"]


# What a refusal says


@allowing("gpt*,Gemini-2.5-pro", DEFAULT_MODEL="gpt-5-nano")
def test_refusal_names_what_patterns_stand_for(client: FlaskClient, team: Member, provider: StandInProvider):
    provider.models = ("gpt-5-nano", "gpt-4", "claude")
    listed(client, team)
    assert refusal(client, team).endswith("Allowed: Gemini-2.5-pro, gpt-5-nano and gpt-4.")


@allowing("o1*,gpt*", DEFAULT_MODEL="gpt-5-nano")
def test_refusal_says_how_names_begin_that_are_not_known(client: FlaskClient, team: Member):
    assert refusal(client, team).endswith("Allowed: gpt-5-nano and any whose name begins with o1.")


@allowing("m*", DEFAULT_MODEL="m0")
def test_refusal_names_twenty_models_and_counts_the_rest(client: FlaskClient, team: Member, provider: StandInProvider):
    provider.models = tuple(f"m{number}" for number in range(27))
    listed(client, team)
    message = refusal(client, team)
    assert message.endswith("m18, m19 and 7 more.")
    assert "m20" not in message


def test_refusal_says_what_to_do_where_nothing_may_be_called():
    with pytest.raises(errors.ModelNotFound) as raised:
        payload.check_model("m", ("gpt*",), ("claude",), list)
    assert "none at present" in raised.value.message and "Who administers" in raised.value.message
    assert "Allowed:" not in raised.value.message


# A team's own list


@pytest.mark.parametrize("models", ["claude", "GPT-5-nano,claude", "o1*"])
def test_teams_list_is_refused_where_an_entry_fits_nothing(team: Member, models: str):
    with pytest.raises(errors.InvalidRequest, match=models.split(",")[-1].rstrip("*")):
        teams.update("team", models=models, by=TESTER)


def test_list_that_allowed_models_outgrew_does_not_hinder_other_changes(app, new_team):
    new_team("old", models="GPT-5-mini")
    app.config["ALLOWED_MODELS"] = ("GPT-5-nano",)
    changed = teams.update("old", models="GPT-5-mini", quota_tokens=5, by=TESTER)
    assert (changed.quota_tokens, changed.models) == (5, "GPT-5-mini")


@pytest.mark.parametrize(
    ("patterns", "known", "shown"),
    [
        (("a", "default"), (), "default"),
        (("a*",), ("b", "ab"), "ab"),
        (("gpt-4*",), (), "gpt-4"),
        (("*",), ("b",), "default"),
        ((), ("b",), "default"),
    ],
)
def test_example_is_a_model_that_may_be_called(patterns: tuple[str, ...], known: tuple[str, ...], shown: str):
    assert payload.example_model(patterns, "default", known) == shown


# A request without a model

NAMELESS = {
    "moderations": {"input": "Hello!"},
    "embeddings": {"input": "Hello!"},
    "images/generations": {"prompt": "Hello!"},
    "audio/speech": {"input": "Hello!", "voice": "alloy"},
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    adapter = Adapter()
    monkeypatch.setattr(provider_client, "ProviderAdapter", lambda **_: adapter)
    return adapter


@pytest.mark.parametrize("endpoint", NAMELESS)
@pytest.mark.parametrize(
    "settings", [{"ALLOWED_MODELS": "a,*", "DEFAULT_MODEL": "a", "PROVIDER_BASE_URL": ROOT}], indirect=True, ids=[""]
)
def test_request_without_a_model_passes_as_it_is_where_all_are_allowed(
    answers: Adapter, client: FlaskClient, team: Member, endpoint: str
):
    answers.register_uri("POST", f"{ROOT}/{endpoint}", json={"id": "x", "data": []})
    with client.post(f"/v1/{endpoint}", json=NAMELESS[endpoint], headers=team.headers) as reply:
        reply.get_data()
    assert reply.status_code == 200
    assert answers.last_request.json() == NAMELESS[endpoint]


@pytest.mark.parametrize(
    "settings", [{"ALLOWED_MODELS": "*", "DEFAULT_MODEL": "a", "PROVIDER_BASE_URL": ROOT}], indirect=True, ids=[""]
)
def test_form_without_a_model_passes_where_all_are_allowed(answers: Adapter, client: FlaskClient, team: Member):
    answers.register_uri("POST", f"{ROOT}/images/edits", json={"data": []})
    assert fetch(client, team, "images/edits", model=None).status_code == 200
    assert reports.log_view(reports.newest_calls(None, 1)[0])["model"] == ""


@pytest.mark.parametrize("endpoint", NAMELESS)
@pytest.mark.parametrize(("settings", "own"), [({"ALLOWED_MODELS": "*"}, "a*"), ({}, None)], indirect=["settings"])
def test_request_without_a_model_is_refused_where_some_are_allowed(
    client: FlaskClient, new_team, provider: StandInProvider, endpoint: str, own: str | None
):
    reply = client.post(f"/v1/{endpoint}", json=NAMELESS[endpoint], headers=new_team(models=own).headers)
    assert (reply.status_code, reply.json["error"]["param"]) == (400, "model")
    assert provider.calls == []


# The provider's list, and its other ways to tell of a model


@pytest.fixture
def own(answers: Adapter) -> Iterator[Catalogue]:
    settings = config.load({"PROVIDER_API_KEY": PROVIDER_KEY, "PROVIDER_BASE_URL": ROOT})
    with closing(Provider(settings)) as provider:
        yield Catalogue(provider, "gpt-5-nano")


@pytest.mark.parametrize(
    ("created", "told"),
    [
        (1_754_000_000, 1_754_000_000),
        (1_754_000_000_123, 1_754_000_000),
        (1_754_000_000_123_456, 1_754_000_000),
        (1_754_000_000.5, 1_754_000_000),
        (None, 0),
        ("yesterday", 0),
        (True, 0),
        (-5, 0),
        (10**30, 0),
    ],
)
def test_created_is_told_in_seconds(own: Catalogue, answers: Adapter, created: object, told: int):
    answers.register_uri("GET", f"{ROOT}/models", json={"data": [{"id": "m", "created": created}]})
    assert own.models(EVERY) == [{"id": "m", "object": "model", "created": told, "owned_by": "provider"}]


def test_list_is_kept_for_five_minutes(own: Catalogue, answers: Adapter):
    answers.register_uri("GET", f"{ROOT}/models", json={"data": [{"id": "m"}]})
    own.models(EVERY), own.models(EVERY)
    assert answers.call_count == 1
    assert own._fresh_until - time.monotonic() == pytest.approx(300, abs=20)


@pytest.mark.parametrize("name", ["maker/model-4:free", "ft:gpt-4:org::id", "a b"])
def test_model_that_the_list_lacks_is_asked_for_by_name(own: Catalogue, answers: Adapter, name: str):
    answers.register_uri("GET", f"{ROOT}/models/{catalogue_path(name)}", json={"id": name, "object": "model"})
    found = own.ask_for(name)
    assert found is not None and found["id"] == name


def catalogue_path(name: str) -> str:
    return name.replace(":", "%3A").replace(" ", "%20")


def test_listed_model_is_found_without_regard_to_capitals(own: Catalogue, answers: Adapter):
    answers.register_uri("GET", f"{ROOT}/models", json={"data": [{"id": "gpt-5-nano"}]})
    found = own.listed("GPT-5-nano", EVERY)
    assert found is not None and found["id"] == "gpt-5-nano"
    assert answers.call_count == 1


@pytest.mark.parametrize("name", ["../files", "a/../../files", "./x", "..", "a//b", "a/"])
def test_name_that_leads_elsewhere_is_not_asked_for(own: Catalogue, answers: Adapter, name: str):
    assert own.ask_for(name) is None
    assert answers.call_count == 0


@pytest.mark.parametrize(
    "answer", [{"object": "list", "data": []}, [], {"id": "m", "object": "file"}, {"id": 5, "object": "model"}]
)
def test_what_is_no_model_is_not_taken_for_one(own: Catalogue, answers: Adapter, answer: object):
    answers.register_uri("GET", f"{ROOT}/models/m", json=answer)
    assert own.ask_for("m") is None


@pytest.mark.parametrize("body", [{"json": {"error": {"message": "None."}}}, {"text": "<h1>Not found</h1>"}])
def test_model_that_the_provider_lacks_is_none(own: Catalogue, answers: Adapter, body: dict[str, Any]):
    answers.register_uri("GET", f"{ROOT}/models/m", status_code=404, **body)
    assert own.ask_for("m") is None


@allowing("*")
def test_team_is_told_of_a_model_by_its_path_or_that_there_is_none(client: FlaskClient, team: Member):
    assert client.get("/v1/models/gpt-5-nano", headers=team.headers).json["id"] == "GPT-5-nano"
    reply = client.get("/v1/models/maker%2Fmodel-4:free", headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (404, "model_not_found")


@allowing("*")
def test_team_that_has_no_place_left_is_told_of_listed_models_alone(client: FlaskClient, team: Member):
    """A thread waits for the provider, for ten seconds maybe; all threads would, if a team could ask as it likes."""
    own = runtime.current()
    with ExitStack() as taken:
        for _ in range(own.settings.team_calls):
            taken.callback(own.slots.enter(team.team.id))
        reply = client.get("/v1/models/maker%2Fmodel-4:free", headers=team.headers)
        assert (reply.status_code, reply.json["error"]["code"]) == (503, "overloaded")
        assert client.get("/v1/models/gpt-5-nano", headers=team.headers).status_code == 200
    assert client.get("/v1/models/maker%2Fmodel-4:free", headers=team.headers).status_code == 404


# A list that comes slowly, or never ends

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
TRICKLE: list[tuple[float, bytes]] = [(0.05, b"1\r\n \r\n")] * 400


def slowly(pieces: list[tuple[float, bytes]]) -> Callable[..., Script]:
    return lambda call: Script(pieces, Ending.CUT)


@pytest.mark.parametrize("pieces", [[(0, HEAD), *TRICKLE], [(0.05, HEAD[at : at + 1]) for at in range(len(HEAD))]])
def test_list_that_trickles_is_given_up_in_time(
    app, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, bytes]]
):
    monkeypatch.setattr(documents, "FETCH_S", 0.5)
    monkeypatch.setattr(provider, "respond", slowly(pieces))
    began = time.monotonic()
    check = runtime.current().catalogue.check()
    assert (check.models, check.code) == (None, "provider_timeout")
    assert time.monotonic() - began < 10


def test_while_one_waits_for_the_list_the_others_get_what_is_known(
    app, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch
):
    own = runtime.current().catalogue
    monkeypatch.setattr(documents, "FETCH_S", 1.5)
    monkeypatch.setattr(provider, "respond", slowly([(0, HEAD), *TRICKLE]))
    first = threading.Thread(target=own.models, args=(EVERY,))
    first.start()
    while not own._fetching.locked():
        time.sleep(0.01)
    assert [model["id"] for model in own.models(("x", "gpt*"))] == ["x", "GPT-5-nano"]
    assert first.is_alive()
    first.join()


def test_list_without_end_is_given_up(own: Catalogue, answers: Adapter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "MOST_BYTES", 10_000)
    answers.register_uri("GET", f"{ROOT}/models", text=" " * 20_000)
    assert own.check().code == "provider_bad_response"

"""Bodies made to harm: the right 400, or passed on as they are; nothing charged, nothing forwarded, no 5xx."""

import gzip
import json
import time

import pytest
from conftest import TESTER, Member, stored
from flask import Flask
from flask.testing import FlaskClient
from sending import FORMS, JSON_ENDPOINTS, MODEL, body_of, fetch
from werkzeug.test import TestResponse

from tokenrouter import payload, reports, request_body, runtime
from tokenrouter.errors import InvalidRequest, Overloaded
from tokenrouter.payload import documents
from tokenrouter.standin import StandInProvider
from tokenrouter.teams import management_tokens


def assert_refused(reply: TestResponse, provider: StandInProvider, param: str | None, status: int = 400) -> None:
    assert (reply.status_code, reply.json["error"]["param"]) == (status, param), reply.data[:300]
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert len(reply.data) < 1000
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


def post_raw(client: FlaskClient, team: Member, endpoint: str, data: bytes, **headers: str) -> TestResponse:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/v1/{endpoint}", data=data, headers=team.headers | headers, content_type="application/json")


NO_OBJECTS = {
    "empty": b"",
    "array": b"[]",
    "null": b"null",
    "NaN": b'{"temperature": NaN}',
    "minus infinity": b'{"temperature": -Infinity}',
    "number beyond floats": b'{"temperature": 1e400}',
    "half a surrogate": b'{"model": "\\ud800"}',
    "10,000 arrays": b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "900 levels": b'{"input": ' + b"[" * 900 + b"]" * 900 + b"}",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", NO_OBJECTS)
def test_what_is_no_usable_json_object_is_refused(
    client: FlaskClient, team: Member, provider: StandInProvider, name: str
):
    for endpoint in JSON_ENDPOINTS:
        assert_refused(post_raw(client, team, endpoint, NO_OBJECTS[name]), provider, None)


COUNTS = [10**9, 10**19, 10**30, -1, 1.5, "2", True, [], {}]
LIMITS = [10**10, 10**19, 10**30, -1, 1.5, "5", True, [], {}]
FIELDS = {
    "chat/completions": {"n": COUNTS, "max_tokens": LIMITS, "max_completion_tokens": LIMITS},
    "completions": {"n": COUNTS, "best_of": COUNTS, "max_tokens": LIMITS},
    "responses": {"max_output_tokens": LIMITS, "tools": ["search"]},
    "images/generations": {"n": COUNTS, "stream": ["yes", 1]},
    "audio/speech": {"stream": ["yes", 1], "stream_options": [1]},
}
MODELS = [1, ["GPT-5-nano"], {"id": "GPT-5-nano"}, True, "GPT-5-nano\n", "GPT-5-nano\0"]
WRONG = [(endpoint, name, values) for endpoint, fields in FIELDS.items() for name, values in fields.items()]
WRONG += [(endpoint, "model", MODELS) for endpoint in JSON_ENDPOINTS]


@pytest.mark.parametrize(("endpoint", "field", "values"), WRONG)
def test_field_of_the_wrong_type_or_size_is_named(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str, field: str, values: list[object]
):
    for value in values:
        assert_refused(fetch(client, team, endpoint, **{field: value}), provider, field)


FORM_FIELDS = [("n", value) for value in ("-1", "1.5", "1e3", "two", "", "\u0662", str(10**9), "9" * 5000)]
FORM_FIELDS += [("model", "GPT-5-nano\n")]


def test_field_of_a_form_is_checked_likewise(client: FlaskClient, team: Member, provider: StandInProvider):
    for field, value in FORM_FIELDS:
        assert_refused(fetch(client, team, "images/edits", **{field: value}), provider, field)


SPELLINGS = {
    "unknown": "gpt-4",
    "a megabyte": "x" * 1_000_000,
    "cut short": "gpt-5-nan",
    "space after": "GPT-5-nano ",
    "wide letter": "\uff27PT-5-nano",
    "empty": "",
}


@pytest.mark.parametrize("endpoint", [*JSON_ENDPOINTS, *FORMS])
def test_model_of_any_other_spelling_is_not_found(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    for number, model in enumerate(SPELLINGS.values(), start=1):
        reply = fetch(client, team, endpoint, model=model)
        assert (reply.status_code, reply.json["error"]["code"]) == (404, "model_not_found")
        assert len(reply.data) < 1000
        row, *earlier = reports.newest_calls(None, 100)
        assert len(earlier) == number - 1
        assert (row.status, row.charged_tokens, row.usage_source, len(row.model) <= 200) == (
            "rejected",
            0,
            "none",
            True,
        )
    assert (provider.calls, stored(team).settled_tokens, stored(team).held_tokens) == ([], 0, 0)


PASSED_ON = [
    ("chat/completions", {"max_tokens": 0, "max_completion_tokens": None}),
    ("completions", {"max_tokens": 0, "n": None, "best_of": None}),
    ("completions", {"n": 0, "best_of": 0}),
    ("responses", {"max_output_tokens": 0}),
    ("responses", {"max_output_tokens": None, "tools": None, "stream": None}),
    ("responses", {"input": None}),
    ("embeddings", {"input": None}),
    ("completions", {"prompt": None}),
    ("moderations", {"input": {"unheard": ["of"]}}),
    ("images/generations", {"prompt": 5}),
    ("audio/speech", {"input": [None, 1.5, "x"]}),
]


@pytest.mark.parametrize(("endpoint", "fields"), PASSED_ON)
def test_what_is_the_providers_to_judge_is_passed_on_as_it_is(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str, fields: dict[str, object]
):
    body = body_of(endpoint) | fields
    reply = client.post(f"/v1/{endpoint}", json=body, headers=team.headers)
    assert reply.status_code < 500
    assert provider.calls[0].json == body
    assert stored(team).held_tokens == 0


@pytest.mark.parametrize("endpoint", JSON_ENDPOINTS)
def test_missing_input_is_the_providers_to_refuse(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    reply = client.post(f"/v1/{endpoint}", json={"model": MODEL}, headers=team.headers)
    assert reply.status_code == 400
    assert [call.json for call in provider.calls] == [{"model": MODEL}]
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (0, 0)


# Numbers and names that could be read in two ways


@pytest.mark.parametrize(
    "digits",
    [b"18446744073709551616", b"-9223372036854775809", b"1" + b"0" * 30, b"9" * 300],
    ids=["2**64", "-2**63-1", "10**30", "300 digits"],
)
def test_integer_that_would_change_on_its_way_is_refused(
    client: FlaskClient, team: Member, provider: StandInProvider, digits: bytes
):
    body = json.dumps(body_of("chat/completions")).encode()
    nested = body[:-1] + b', "metadata": {"a": [' + digits + b"]}}"
    assert_refused(post_raw(client, team, "chat/completions", nested), provider, None)
    assert_refused(
        post_raw(client, team, "chat/completions", body[:-1] + b', "seed": ' + digits + b"}"), provider, "seed"
    )


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 1234567890123456789])
def test_integer_of_64_bits_arrives_exactly(client: FlaskClient, team: Member, provider: StandInProvider, number: int):
    assert fetch(client, team, "chat/completions", seed=number).status_code == 200
    assert provider.calls[0].json["seed"] == number
    assert str(number).encode() in provider.calls[0].body


def test_long_digits_in_a_text_or_a_fraction_are_not_taken_for_an_integer(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    fields = {"user": "1" * 400, "temperature": 0.1234567890123456789}
    assert fetch(client, team, "chat/completions", **fields).status_code == 200
    assert provider.calls[0].json["user"] == "1" * 400


def test_of_duplicate_keys_the_last_is_checked_and_sent(client: FlaskClient, team: Member, provider: StandInProvider):
    messages = json.dumps(body_of("chat/completions")["messages"])
    for models, status in ((("gpt-4", MODEL), 200), ((MODEL, "gpt-4"), 404)):
        first, second = models
        data = f'{{"model": "{first}", "messages": {messages}, "model": "{second}"}}'
        assert post_raw(client, team, "chat/completions", data.encode()).status_code == status
    assert [call.json["model"] for call in provider.calls] == [MODEL]
    assert provider.calls[0].body.count(b'"model"') == 1


# Compression


BOMB = gzip.compress(b" " * 20_000_000)


@pytest.mark.parametrize("endpoint", ["chat/completions", "responses", "audio/transcriptions"])
def test_compressed_body_is_refused(client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str):
    for encoding in ("gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip"):
        reply = post_raw(client, team, endpoint, BOMB, Content_Encoding=encoding)
        assert_refused(reply, provider, None)
        assert "Content-Encoding" in reply.json["error"]["message"]


def test_body_that_calls_itself_uncompressed_is_taken(client: FlaskClient, team: Member):
    data = json.dumps(body_of("chat/completions")).encode()
    assert post_raw(client, team, "chat/completions", data, Content_Encoding="identity").status_code == 200


# Time and memory


LARGE = {
    "tokens": lambda: {"model": MODEL, "input": [7] * 199_000},
    "texts": lambda: {"model": MODEL, "input": ["word"] * 199_000},
    "one text": lambda: {"model": MODEL, "input": "word " * 1_000_000},
    "no spaces": lambda: {"model": MODEL, "input": "x" * 5_000_000},
    "digits": lambda: {"model": MODEL, "input": "7" * 5_000_000},
    "items": lambda: {"model": MODEL, "input": [{"role": "user", "content": [{}] * 10}] * 6_000},
    "names": lambda: {"model": MODEL, "input": "", **{f"name {at}": at for at in range(99_000)}},
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("endpoint", ["responses", "embeddings"])
def test_large_body_is_judged_within_seconds(
    client: FlaskClient, new_team, provider: StandInProvider, endpoint: str, name: str
):
    team = new_team(quota_tokens=0)
    data = json.dumps(LARGE[name]()).encode()
    started = time.process_time()
    assert post_raw(client, team, endpoint, data).status_code == 429
    assert time.process_time() - started < 15
    assert provider.calls == []


# Too many values, and too many bodies

TINY = {
    "objects": b'{"messages": [' + b"{}," * 200_000 + b"{}]}",
    "arrays": b'{"messages": [' + b"[]," * 200_000 + b"[]]}",
    "numbers": b'{"input": [' + b"1," * 200_000 + b"1]}",
    "texts": b'{"input": [' + b'"",' * 200_000 + b'""]}',
    "members": b'{"input": {' + b'"a":1,' * 200_000 + b'"a":1}}',
    "nested": b'{"input": [' + b"[[[[[]]]]]," * 50_000 + b"1]}",
    "after an escaped quote": b'{"input": ["\\"", ' + b"1," * 200_000 + b"1]}",
    "after backslashes": b'{"input": ["\\\\\\\\", ' + b"1," * 200_000 + b"1]}",
}


@pytest.mark.parametrize("name", TINY)
def test_body_of_more_values_than_may_come_is_refused_unparsed(
    client: FlaskClient, team: Member, provider: StandInProvider, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(documents.orjson, "loads", None)
    reply = post_raw(client, team, "chat/completions", TINY[name])
    assert_refused(reply, provider, None)
    assert "200,000 values" in reply.json["error"]["message"]


def test_management_api_counts_values_too(client: FlaskClient, app: Flask):
    _, bearer_token = management_tokens.create("test", by=TESTER)
    headers = {"Authorization": f"Bearer {bearer_token}"}
    reply = client.post("/api/teams", data=TINY["objects"], headers=headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (400, None)
    assert "200,000 values" in reply.json["error"]["message"]


TEXTS_OF_MARKS = ["," * 400_000, '",[{\\' * 100_000, "\\" * 300_000, '\\"' * 200_000]


@pytest.mark.parametrize("text", TEXTS_OF_MARKS)
def test_long_text_of_commas_and_brackets_is_no_value(text: str):
    body = {"messages": [{"role": "user", "content": text}]}
    assert payload.parse(json.dumps(body).encode()) == body


def test_as_many_values_as_may_come_pass():
    body = b'{"input": [' + b"1," * 199_997 + b"1]}"  # with the list and the object itself
    assert len(payload.parse(body)["input"]) == 199_998
    with pytest.raises(InvalidRequest):
        payload.parse(body[:-2] + b",1]}")


def test_bodies_under_way_share_their_memory_and_no_team_has_more_than_half():
    memory = request_body.Memory(100)
    memory.take(1, 50)
    for owner, size in ((1, 1), (2, 51)):
        with pytest.raises(Overloaded):
            memory.take(owner, size)
    memory.take(2, 50)
    with pytest.raises(Overloaded):
        memory.take(3, 1)
    memory.give_back(1, 50)
    memory.take(3, 50)


def test_large_body_that_finds_no_memory_gets_503_and_small_ones_pass(
    client: FlaskClient, app: Flask, team: Member, provider: StandInProvider
):
    memory: request_body.Memory = app.extensions[request_body.EXTENSION]
    half = runtime.current().settings.max_request_bytes * request_body.BODIES_AT_ONCE // 2
    memory.take(-1, half)
    memory.take(-2, half)
    reply = fetch(client, team, "chat/completions", user="x" * 100_000)
    assert (reply.status_code, reply.json["error"]["code"], reply.headers["Retry-After"]) == (503, "overloaded", "1")
    assert provider.calls == []
    assert fetch(client, team, "chat/completions").status_code == 200


@pytest.mark.parametrize("tail", [b'"}', b""])
def test_memory_of_a_body_is_given_back_however_it_ends(client: FlaskClient, app: Flask, team: Member, tail: bytes):
    post_raw(client, team, "chat/completions", b'{"user": "' + b"x" * 200_000 + tail)
    memory: request_body.Memory = app.extensions[request_body.EXTENSION]
    assert (memory._total, dict(memory._taken)) == (0, {})

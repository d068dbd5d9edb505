"""Every endpoint beside chat: what is forwarded, what is held, and how each ending is booked."""

import json

import pytest
from conftest import PROVIDER_KEY, ROOT, Member, eventually, stored
from flask import Flask
from flask.testing import FlaskClient
from sending import ENDPOINTS, FORMS, JSON_ENDPOINTS, MODEL, body_of, fetch, form_of, post

from tokenrouter import payload, reports
from tokenrouter.metering import media
from tokenrouter.metering.counting import count_tokens
from tokenrouter.standin import StandInProvider

BOTH = pytest.mark.both_databases
ESTIMATED = ("completions", "responses", "embeddings")
FREE = ("moderations", "images/generations", "images/edits", "audio/speech", "audio/transcriptions")
BESIDE_CHAT = ENDPOINTS[1:]
STREAMS = {
    "completions": {},
    "responses": {},
    "images/generations": {"partial_images": 2},
    "images/edits": {"partial_images": 2},
    "audio/speech": {"stream_format": "sse"},
    "audio/transcriptions": {},
}
REPORTING = (
    "completions",
    "responses",
    "embeddings",
    "images/generations",
    "images/edits",
    "audio/transcriptions",
)
REDIRECTING = ("api_base", "base_url", "api_key", "api_version", "organization", "custom_llm_provider")
IMPATIENT = pytest.mark.parametrize("settings", [{"PROVIDER_READ_TIMEOUT": "0.4"}], indirect=True)


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, **getattr(request, "param", {})}


def newest() -> dict[str, object]:
    return reports.log_view(reports.newest_calls(None, 1)[0])


def assert_booked(team: Member, status: str, charged: int, source: str, calls: int = 1) -> None:
    """Compare the rows of the log, which are alike, and the counters."""
    rows = [reports.log_view(row) for row in reports.newest_calls(None, calls + 1)]
    booked = [(row["status"], row["charged_tokens"], row["usage_source"]) for row in rows]
    assert booked == [(status, charged, source)] * calls
    assert (stored(team).settled_tokens, stored(team).held_tokens) == (charged * calls, 0)


def prompt_of(endpoint: str, directives: str = "", **fields: object) -> int:
    """Return what the prompt of a request counts."""
    (row,) = [row for row in payload.ENDPOINTS if row.path == f"/{endpoint}"]
    body = body_of(endpoint, directives, **fields)
    files = media.tokens_of_files(row.file_kind, 1, len(form_of(endpoint, body)[0])) if endpoint in FORMS else 0
    return row.read_prompt(body).count() + files


def events_of(stream: bytes) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


# The table


def test_every_row_has_its_route_and_its_place_in_the_readme(app: Flask):
    posts = {rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/v1/") and "POST" in rule.methods}
    assert posts == {f"/v1{row.path}" for row in payload.ENDPOINTS} == {f"/v1/{name}" for name in ENDPOINTS}
    told = (ROOT / "README.md").read_text()
    assert [path for path in posts if f"{path}`" not in told] == []


# The way there and back


@pytest.mark.parametrize("endpoint", JSON_ENDPOINTS)
def test_json_arrives_with_the_providers_key_and_unknown_fields(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    fetch(client, team, endpoint, unheard_of={"api_base": "http://127.0.0.1:1/"}, user="me")
    (call,) = provider.calls
    assert (call.method, call.path) == ("POST", f"/v1/{endpoint}")
    assert call.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert call.json == body_of(endpoint, unheard_of={"api_base": "http://127.0.0.1:1/"}, user="me")


@pytest.mark.parametrize("endpoint", ["chat/completions", "responses", "audio/transcriptions"])
def test_field_that_would_redirect_elsewhere_is_data_alone(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    for field in REDIRECTING:
        assert fetch(client, team, endpoint, **{field: "http://127.0.0.1:1/"}).status_code == 200
        call = provider.calls.pop()
        assert call.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        assert field.encode() in call.body and b"http://127.0.0.1:1/" in call.body
    assert provider.calls == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_headers_of_the_provider_that_concern_the_caller_are_passed(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    reply = fetch(client, team, endpoint)
    row = reports.newest_calls(None, 1)[0]
    assert not [name for name, _ in reply.headers if name.lower().startswith("x-ratelimit-")]
    assert reply.headers["openai-processing-ms"] == "5"
    assert reply.headers["x-request-id"] == row.request_id
    assert row.provider_request_id == provider.finished[0].request_id
    assert "set-cookie" not in reply.headers and "openai-organization" not in reply.headers


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_refusal_of_the_provider_passes_its_headers_and_costs_nothing(client: FlaskClient, team: Member, endpoint: str):
    reply = fetch(client, team, endpoint, "status=429 retry_after=7")
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "7")
    assert not [name for name, _ in reply.headers if name.lower().startswith("x-ratelimit-")]
    assert_booked(team, "provider_error", 0, "none")


@pytest.mark.parametrize("endpoint", STREAMS)
def test_stream_is_the_providers_byte_for_byte(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    sent = []
    respond = provider.respond
    provider.respond = lambda call: sent.append(respond(call)) or sent[0]
    reply = fetch(client, team, endpoint, "framing=close comments=1", stream=True, **STREAMS[endpoint])
    body = b"".join(data for _, data in sent[0].steps).partition(b"\r\n\r\n")[2]
    assert reply.mimetype == "text/event-stream"
    if endpoint == "completions":  # the event for usage was ours to ask for
        assert body.startswith(reply.data.removesuffix(b": ping\n\ndata: [DONE]\n\n"))
    else:
        assert reply.data == body


# The model


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "responses"])
def test_model_may_be_left_out_where_there_is_a_default(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    assert fetch(client, team, endpoint, model=None).status_code == 200
    assert provider.calls[0].json["model"] == MODEL


@pytest.mark.parametrize("endpoint", [name for name in BESIDE_CHAT if name not in ("completions", "responses")])
def test_model_has_to_be_named_elsewhere(client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str):
    reply = fetch(client, team, endpoint, model=None)
    assert (reply.status_code, reply.json["error"]["param"]) == (400, "model")
    assert "has to be named" in reply.json["error"]["message"]
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


# What is held


HELD = [
    ("completions", {"prompt": [1, 2, 3]}, 3 + 1024),
    ("completions", {"prompt": [[1, 2], [3]], "max_tokens": 10}, 3 + 2 * 10),
    ("completions", {"prompt": [[1], [2]], "max_tokens": 10, "n": 2, "best_of": 5}, 2 + 2 * 5 * 10),
    ("responses", {"input": "", "max_output_tokens": 50}, 3 + 4 + 50),
    ("embeddings", {"input": [[1, 2, 3], [4]]}, 4),
    ("embeddings", {"input": [7] * 2000}, 2000),
    ("moderations", {"input": ""}, 1),
    ("images/generations", {"prompt": "", "n": 4}, 1),
    ("images/edits", {"prompt": ""}, media.image_tokens(0, 0) + 1),
    ("images/variations", {"prompt": None}, media.image_tokens(0, 0) + 1),
    ("audio/speech", {"input": ""}, 1),
]


@pytest.mark.parametrize(("endpoint", "fields", "held"), HELD)
def test_prompt_and_most_output_are_held(
    client: FlaskClient, team: Member, endpoint: str, fields: dict[str, object], held: int
):
    fetch(client, team, endpoint, **fields)
    assert reports.newest_calls(None, 1)[0].held_tokens == held
    assert stored(team).held_tokens == 0


def test_file_of_sound_is_held_by_its_size(client: FlaskClient, team: Member):
    fetch(client, team, "audio/transcriptions", prompt="")  # 1,024 bytes, and the form around them
    assert 1 + 5 <= reports.newest_calls(None, 1)[0].held_tokens <= 1 + 10


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_quota_of_zero_blocks(client: FlaskClient, new_team, provider: StandInProvider, endpoint: str):
    reply = fetch(client, new_team(quota_tokens=0), endpoint)
    assert (reply.status_code, reply.json["error"]["code"]) == (429, "insufficient_quota")
    assert provider.calls == []


@pytest.mark.parametrize(("endpoint", "field"), [("completions", "max_tokens"), ("responses", "max_output_tokens")])
def test_answer_is_limited_to_what_is_left(
    client: FlaskClient, new_team, provider: StandInProvider, endpoint: str, field: str
):
    reply = fetch(client, new_team(quota_tokens=300), endpoint)
    limit = int(reply.headers["x-tokenrouter-output-limit"])
    assert provider.calls[0].json[field] == limit
    assert 16 < limit < 300


@pytest.mark.parametrize("settings", [{"MAX_OUTPUT_TOKENS": "7"}], indirect=True)
@pytest.mark.parametrize(("endpoint", "field"), [("completions", "max_tokens"), ("responses", "max_output_tokens")])
def test_ceiling_of_the_settings_is_sent(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str, field: str
):
    fetch(client, team, endpoint)
    fetch(client, team, endpoint, **{field: 5})
    fetch(client, team, endpoint, **{field: 50})
    assert [call.json[field] for call in provider.calls] == [7, 5, 7]


@pytest.mark.parametrize("settings", [{"MAX_OUTPUT_TOKENS": "7"}], indirect=True)
@pytest.mark.parametrize("endpoint", ["embeddings", "moderations", "images/generations", "audio/speech"])
def test_output_ceiling_is_not_sent_to_endpoints_without_text(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str
):
    fetch(client, team, endpoint)
    assert provider.calls[0].json == body_of(endpoint)


# Whole answers


@pytest.mark.parametrize("endpoint", REPORTING)
@pytest.mark.parametrize("directives", ["", "usage=zero", "usage=no_total", "usage=total_only", "framing=split"])
def test_whole_answer_is_charged_as_reported(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str, directives: str
):
    assert fetch(client, team, endpoint, directives).status_code == 200
    assert_booked(team, "ok", 0 if "zero" in directives else provider.tokens_served, "provider")


@pytest.mark.parametrize("endpoint", STREAMS)
@pytest.mark.parametrize("directives", ["", "usage=zero", "framing=split newline=crlf", "burst=1 space=0"])
def test_whole_stream_is_charged_as_reported(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str, directives: str
):
    assert fetch(client, team, endpoint, directives, stream=True, **STREAMS[endpoint]).status_code == 200
    assert_booked(team, "ok", 0 if "zero" in directives else provider.tokens_served, "provider")


UNUSABLE = ["usage=none", "usage=null", "usage=negative", "usage=string", "usage=float"]


@pytest.mark.parametrize("endpoint", ESTIMATED)
@pytest.mark.parametrize("usage", UNUSABLE)
def test_answer_without_usage_is_charged_by_its_texts(client: FlaskClient, team: Member, endpoint: str, usage: str):
    reply = fetch(client, team, endpoint, usage)
    answers = {
        "completions": lambda: reply.json["choices"][0]["text"],
        "responses": lambda: reply.json["output"][0]["content"][0]["text"],
        "embeddings": str,
    }
    charged = prompt_of(endpoint, usage) + count_tokens(answers[endpoint]())
    assert_booked(team, "ok", charged, "estimated")


def test_streamed_response_without_usage_is_charged_by_its_texts(client: FlaskClient, team: Member):
    reply = fetch(client, team, "responses", "usage=none", stream=True)
    text = events_of(reply.data)[-1]["response"]["output"][0]["content"][0]["text"]
    assert_booked(team, "ok", prompt_of("responses", "usage=none") + count_tokens(text), "estimated")


@pytest.mark.parametrize("endpoint", FREE)
def test_answer_that_costs_no_tokens_is_logged_as_uncounted(client: FlaskClient, team: Member, endpoint: str):
    for number, usage in enumerate(UNUSABLE, start=1):
        assert fetch(client, team, endpoint, usage).status_code == 200
        assert_booked(team, "ok", 0, "none", number)


@pytest.mark.parametrize("endpoint", [name for name in STREAMS if name in FREE])
def test_stream_that_costs_no_tokens_is_logged_as_uncounted(client: FlaskClient, team: Member, endpoint: str):
    fetch(client, team, endpoint, "usage=none", stream=True, **STREAMS[endpoint])
    assert_booked(team, "ok", 0, "none")


@pytest.mark.parametrize("endpoint", ["images/variations", "audio/translations"])
def test_answers_that_never_report_tokens_are_logged_as_uncounted(client: FlaskClient, team: Member, endpoint: str):
    assert fetch(client, team, endpoint).status_code == 200
    assert_booked(team, "ok", 0, "none")


def test_transcription_by_its_duration_is_logged_as_uncounted(client: FlaskClient, team: Member):
    assert fetch(client, team, "audio/transcriptions", "usage=duration").json["usage"]["seconds"] == 9
    assert_booked(team, "ok", 0, "none")


@pytest.mark.parametrize(("response_format", "start"), [("text", "This"), ("srt", "1\n"), ("vtt", "WEBVTT")])
def test_transcript_may_be_a_text(client: FlaskClient, team: Member, response_format: str, start: str):
    reply = fetch(client, team, "audio/transcriptions", response_format=response_format)
    assert reply.mimetype in ("text/plain", "text/vtt") and reply.text.startswith(start)
    assert_booked(team, "ok", 0, "none")


# Nothing of an answer came


NOTHING = [("status=500", 500), ("status=401", 502), ("drop=1", 502), ("cut=0", 502), ("status=200 body=empty", 502)]


@pytest.mark.parametrize("endpoint", BESIDE_CHAT)
def test_failure_before_an_answer_costs_nothing(client: FlaskClient, team: Member, endpoint: str):
    for number, (directives, status) in enumerate(NOTHING, start=1):
        assert fetch(client, team, endpoint, directives).status_code == status
        assert_booked(team, "provider_error", 0, "none", number)


@pytest.mark.parametrize("endpoint", [name for name in BESIDE_CHAT if name != "audio/speech"])
def test_page_in_place_of_json_is_a_bad_response(client: FlaskClient, team: Member, endpoint: str):
    reply = fetch(client, team, endpoint, "status=200 body=html")
    assert (reply.status_code, reply.json["error"]["code"]) == (502, "provider_bad_response")
    assert_booked(team, "provider_error", 0, "none")


@pytest.mark.parametrize("directives", ["error_event=0", "error_event=2", "failed=2 usage=none"])
def test_response_that_fails_before_its_first_word_costs_nothing(client: FlaskClient, team: Member, directives: str):
    reply = fetch(client, team, "responses", directives, stream=True)
    assert events_of(reply.data)[-1]["type"] in ("error", "response.failed")
    assert_booked(team, "provider_error", 0, "none")


# The provider broke off


def said(stream: bytes) -> str:
    return "".join(event["delta"] for event in events_of(stream) if event.get("type", "").endswith(".delta"))


@IMPATIENT
@pytest.mark.parametrize("directives", ["cut=8", "reset=8", "half_chunk=8", "hang=8", "cut=8 framing=close"])
def test_broken_response_ends_with_our_error_and_costs_what_arrived(client: FlaskClient, team: Member, directives: str):
    reply = fetch(client, team, "responses", directives, stream=True)
    code = "provider_timeout" if "hang" in directives else "provider_bad_response"
    assert events_of(reply.data)[-1]["error"]["code"] == code
    text = said(reply.data)
    assert text.startswith("This is")
    assert_booked(team, "provider_error", prompt_of("responses", directives) + count_tokens(text), "estimated")


@pytest.mark.parametrize("directives", ["error_event=8 code=overloaded", "failed=8 usage=none"])
def test_response_that_fails_on_its_way_costs_what_arrived(client: FlaskClient, team: Member, directives: str):
    reply = fetch(client, team, "responses", directives, stream=True)
    assert events_of(reply.data)[-1]["type"] in ("error", "response.failed")
    charged = prompt_of("responses", directives) + count_tokens(said(reply.data))
    assert_booked(team, "provider_error", charged, "estimated")


@pytest.mark.parametrize("prompt_tokens", [0, 5000])
def test_failed_response_costs_the_usage_it_reports_where_that_is_more(
    client: FlaskClient, team: Member, prompt_tokens: int
):
    directives = f"failed=8 words=3 prompt_tokens={prompt_tokens}"
    reply = fetch(client, team, "responses", directives, stream=True)
    reported = events_of(reply.data)[-1]["response"]["usage"]["total_tokens"]
    estimated = prompt_of("responses", directives) + count_tokens(said(reply.data))
    assert (reported > estimated) == (prompt_tokens > 0)
    assert_booked(team, "provider_error", max(reported, estimated), "provider")


@pytest.mark.parametrize("endpoint", ["embeddings", "images/generations", "images/edits", "moderations"])
def test_broken_answer_that_is_no_text_costs_its_prompt(client: FlaskClient, team: Member, endpoint: str):
    assert fetch(client, team, endpoint, "cut=60").status_code == 502
    assert_booked(team, "provider_error", prompt_of(endpoint, "cut=60"), "estimated")


@pytest.mark.parametrize(
    ("endpoint", "cut"), [("completions", "cut=250"), ("responses", "cut=620"), ("audio/transcriptions", "cut=60")]
)
def test_broken_answer_in_text_costs_what_arrived_too(client: FlaskClient, team: Member, endpoint: str, cut: str):
    assert fetch(client, team, endpoint, cut).status_code == 502
    charged = stored(team).settled_tokens
    assert prompt_of(endpoint, cut) < charged < prompt_of(endpoint, cut) + 100
    assert_booked(team, "provider_error", charged, "estimated")


@pytest.mark.parametrize("directives", ["cut=2", "half_chunk=2", "reset=2"])
def test_speech_that_breaks_off_breaks_the_callers_connection(client: FlaskClient, team: Member, directives: str):
    reply = post(client, team, "audio/speech", directives)
    with pytest.raises(ConnectionResetError):
        reply.get_data()
    reply.close()
    assert_booked(team, "provider_error", prompt_of("audio/speech", directives), "estimated")


# The client left


@BOTH
def test_client_that_leaves_a_response_pays_prompt_and_what_arrived(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = post(client, team, "responses", "hang=6", stream=True)
    pieces, got = reply.iter_encoded(), b""
    while got.count(b"event: response.output_text.delta") < 2:  # all that comes: what is read on counts too
        got += next(pieces)
    reply.close()
    charged = prompt_of("responses", "hang=6") + count_tokens(said(got))
    assert_booked(team, "client_closed", charged, "estimated")
    assert eventually(lambda: provider.aborted == 1)


def test_client_that_leaves_a_speech_pays_its_prompt(client: FlaskClient, team: Member, provider: StandInProvider):
    reply = post(client, team, "audio/speech", "hang=2")
    next(reply.iter_encoded())
    reply.close()
    assert_booked(team, "client_closed", prompt_of("audio/speech", "hang=2"), "estimated")
    assert eventually(lambda: provider.aborted == 1)


def test_response_is_booked_before_its_last_event_leaves(client: FlaskClient, team: Member):
    reply = post(client, team, "responses", "gap=0.01 words=3", stream=True)
    seen = [(b"response.completed" in piece, stored(team).settled_tokens > 0) for piece in reply.iter_encoded()]
    reply.close()
    assert seen[-1] == (True, True)
    assert not any(booked for last, booked in seen if not last)


# The connection and the place afterwards


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("stream", [False, True])
def test_connection_is_used_again(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str, stream: bool
):
    for _ in range(3):
        assert fetch(client, team, endpoint, stream=stream).status_code == 200
    assert (provider.open_connections, len(provider.calls)) == (1, 3)


@pytest.mark.parametrize("settings", [{"THREADS": "1"}], indirect=True)
@pytest.mark.parametrize("endpoint", BESIDE_CHAT)
def test_place_is_given_back(client: FlaskClient, team: Member, endpoint: str):
    for directives in ("", "status=500", "drop=1", ""):
        assert fetch(client, team, endpoint, directives).status_code != 503

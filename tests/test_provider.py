"""The provider's side of a call: what it is sent, and what becomes of each of its failures."""

import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import requests
from conftest import HELLO, PROVIDER_KEY, Member, eventually, free_port, hello, stored
from flask.testing import FlaskClient
from pairs import by_pairs
from requests_mock import Adapter

from tokenrouter import config, errors, reports
from tokenrouter.provider import client
from tokenrouter.provider.client import Provider
from tokenrouter.provider.refusals import RelayedError
from tokenrouter.standin import Ending, Script, StandInProvider

CHAT = "/v1/chat/completions"
ROOT = "https://provider.example/v1"
URL = f"{ROOT}/chat/completions"


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, **getattr(request, "param", {})}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    """What requests-mock answers in place of the network; its Mocker would wait for Session.send, which is not used."""
    adapter = Adapter()
    monkeypatch.setattr(client, "ProviderAdapter", lambda **_: adapter)
    return adapter


@pytest.fixture
def own(answers: Adapter) -> Iterator[Provider]:
    settings = config.load({"PROVIDER_API_KEY": PROVIDER_KEY, "PROVIDER_BASE_URL": ROOT, "THREADS": "2"})
    own = Provider(settings)
    yield own
    own.close()


def refusal(own: Provider) -> errors.APIError:
    """Send a call that must fail, and return its error."""
    with pytest.raises(errors.APIError) as raised:
        own.post("/chat/completions", b"{}", {})
    assert PROVIDER_KEY not in str(raised.value) + raised.value.body().decode()
    return raised.value


def openai_error(message: str = "No.", **fields: object) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}}


def last_call() -> dict[str, object]:
    return reports.log_view(reports.newest_calls(None, 1)[0])


# What the provider is sent


def test_only_listed_headers_and_our_key_are_sent(own: Provider, answers: Adapter):
    answers.register_uri("POST", URL, json={})
    callers = {"Accept": "a/b", "User-Agent": "probe/1", "OpenAI-Beta": "x=1"}
    strange = {"Authorization": "Bearer tr-x", "Cookie": "a=b", "X-Forwarded-For": "9.9.9.9", "Idempotency-Key": "k"}
    own.post("/chat/completions", b"{}", {**callers, **strange, "OpenAI-Organization": "o", "Content-Encoding": "gzip"})
    assert answers.last_request.headers == {
        **callers,
        "Host": "provider.example",
        "Authorization": f"Bearer {PROVIDER_KEY}",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Content-Length": "2",
    }


def test_body_is_sent_as_it_is(own: Provider, answers: Adapter):
    answers.register_uri("POST", URL, json={})
    own.post("/chat/completions", '{"é": 1}'.encode(), {})
    assert answers.last_request.body == '{"é": 1}'.encode()


def timeouts(answers: Adapter) -> tuple[float, float]:
    timeout = answers.last_request.timeout
    return timeout.connect_timeout, timeout.read_timeout


def test_every_call_has_both_timeouts(own: Provider, answers: Adapter):
    answers.register_uri("POST", URL, json={})
    answers.register_uri("GET", f"{ROOT}/models", json={})
    own.post("/chat/completions", b"{}", {})
    assert timeouts(answers) == (5, 600)
    own.get("/models")
    assert timeouts(answers) == (5, 10)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://provider.example/v1", "provider.example"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://[::1]:8080/v1", "[::1]:8080"),
    ],
)
def test_provider_is_told_its_host(answers: Adapter, url: str, host: str):
    answers.register_uri("POST", f"{url}/chat/completions", json={})
    with closing(Provider(config.load({"PROVIDER_API_KEY": PROVIDER_KEY, "PROVIDER_BASE_URL": url}))) as own:
        own.post("/chat/completions", b"{}", {})
    assert answers.last_request.headers["Host"] == host


def test_certificates_are_checked(own: Provider, answers: Adapter):
    answers.register_uri("POST", URL, json={})
    own.post("/chat/completions", b"{}", {})
    assert answers.last_request.verify


def test_netrc_does_not_replace_the_key(own: Provider, answers: Adapter, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine client.example login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    answers.register_uri("POST", URL, json={})
    own.post("/chat/completions", b"{}", {})
    assert answers.last_request.headers["Authorization"] == f"Bearer {PROVIDER_KEY}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(own: Provider, answers: Adapter, status: int):
    answers.register_uri("POST", URL, status_code=status, headers={"Location": "https://elsewhere.example/"})
    elsewhere = answers.register_uri("ANY", "https://elsewhere.example/", json={})
    assert isinstance(refusal(own), errors.ProviderBadResponse)
    assert (elsewhere.call_count, answers.call_count) == (0, 1)


def test_only_listed_headers_come_back(own: Provider, answers: Adapter):
    listed = {"Content-Type": "application/json", "openai-processing-ms": "5", "openai-version": "1"}
    listed |= {"Retry-After": "1", "retry-after-ms": "900", "x-should-retry": "true"}
    strange = {
        "X-RateLimit-Remaining-Tokens": "9",
        "Set-Cookie": "a=b",
        "OpenAI-Organization": "o",
        "Server": "x",
        "Connection": "close",
        "x-request-id": "r",
    }
    answers.register_uri("POST", URL, text="{}", headers={**listed, **strange})
    reply = own.post("/chat/completions", b"{}", {})
    assert reply.headers == listed
    assert reply.request_id == "r"


# What its errors become


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (401, {}),
        (401, {"code": "insufficient_quota"}),
        (403, {"code": "invalid_api_key"}),
        (403, {"code": "authentication_error"}),
        (403, {"type": "authentication_error"}),
    ],
)
def test_refused_key_is_provider_auth_failed(own: Provider, answers: Adapter, status: int, fields: dict):
    answers.register_uri(
        "POST", URL, status_code=status, json=openai_error(f"Incorrect key {PROVIDER_KEY[:7]}***", **fields)
    )
    error = refusal(own)
    assert isinstance(error, errors.ProviderAuthFailed)
    assert (error.status, error.headers) == (502, {"x-should-retry": "false"})
    assert PROVIDER_KEY[:7] not in error.message


WRONG_KEY = {
    "reason in a list": (
        400,
        [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}],
    ),
    "code of another case": (403, {"error": {"message": "No.", "code": "InvalidApiKey"}}),
    "object error": (403, {"object": "error", "message": "No.", "type": "authentication_error"}),
    "error is a text": (403, {"error": "invalid_api_key"}),
    "sentence, as xAI's": (400, {"code": "Client error", "error": "Incorrect API key provided: xa***."}),
    "sentence, as Gemini's": (400, {"error": {"code": 400, "message": "API key not valid. Please pass another."}}),
    "sentence in a list": (403, [{"error": {"code": 403, "message": "Your API key was reported as leaked."}}]),
    "sentence, as Cloudflare's": (403, {"success": False, "errors": [{"message": "Authentication error"}]}),
}


@pytest.mark.parametrize("name", WRONG_KEY)
def test_wrong_key_is_known_in_whatever_shape_it_is_told(own: Provider, answers: Adapter, name: str):
    status, document = WRONG_KEY[name]
    answers.register_uri("POST", URL, status_code=status, json=document)
    assert isinstance(refusal(own), errors.ProviderAuthFailed)


def test_401_without_openais_shape_is_provider_auth_failed(own: Provider, answers: Adapter):
    answers.register_uri("POST", URL, status_code=401, text="<h1>Who are you?</h1>")
    assert isinstance(refusal(own), errors.ProviderAuthFailed)


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (402, {}),
        (429, {"code": "insufficient_quota"}),
        (429, {"type": "insufficient_quota"}),
        (403, {"code": "insufficient_quota"}),
        (400, {"code": "insufficient_quota"}),
    ],
)
def test_empty_account_is_provider_quota_exhausted(own: Provider, answers: Adapter, status: int, fields: dict):
    reply = openai_error("Your balance is 12.34 USD.", **fields)
    answers.register_uri("POST", URL, status_code=status, json=reply, headers={"Retry-After": "60"})
    error = refusal(own)
    assert isinstance(error, errors.ProviderQuotaExhausted)
    assert (error.status, error.headers) == (503, {"x-should-retry": "false"})
    assert "12.34" not in error.message


EMPTY_CODES = (
    "insufficient_quota",
    "insufficient_credits",
    "billing_hard_limit_reached",
    "billing_not_active",
    "exceeded_current_quota_error",
    "Arrearage",
    "InsufficientBalance",
)
SHAPES: dict[str, Callable[[str], object]] = {
    "code": lambda code: openai_error("Account acct-77 owes 12.34.", code=code),
    "type": lambda code: {"error": {"message": "Account acct-77 owes 12.34.", "type": code.upper(), "code": 429}},
    "object error": lambda code: {"object": "error", "message": "Account acct-77 owes 12.34.", "code": code},
    "list": lambda code: [{"error": {"message": "acct-77", "details": [{"metadata": {}, "reason": code}]}}],
    "error is a text": lambda code: {"error": f"{code}: account acct-77 owes 12.34"},
}


@by_pairs(("status", [400, 402, 403, 429]), ("code", list(EMPTY_CODES)), ("shape", list(SHAPES)))
def test_empty_account_is_known_in_whatever_shape_it_is_told(
    own: Provider, answers: Adapter, shape: str, code: str, status: int
):
    answers.register_uri("POST", URL, status_code=status, json=SHAPES[shape](code))
    error = refusal(own)
    assert isinstance(error, errors.ProviderQuotaExhausted)
    assert "acct-77" not in error.body().decode()


EMPTY_SENTENCES = [
    (400, {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low. acct-77"}}),
    (403, {"error": "Your team acct-77 has either used all available credits or reached its monthly limit."}),
    (412, {"error": {"message": "Account acct-77 is suspended, possibly due to reaching the spending limit."}}),
    (403, {"error": {"message": "Key limit exceeded (total limit). acct-77", "code": 403}}),
    (403, {"code": 30001, "message": "Sorry, your account balance is insufficient. acct-77"}),
    (429, {"error": {"code": "1113", "message": "账户 acct-77 余额不足"}}),
]


@pytest.mark.parametrize(("status", "document"), EMPTY_SENTENCES)
def test_empty_account_is_known_by_a_sentence_where_no_code_tells(
    own: Provider, answers: Adapter, status: int, document: object
):
    answers.register_uri("POST", URL, status_code=status, json=document)
    error = refusal(own)
    assert isinstance(error, errors.ProviderQuotaExhausted)
    assert "acct-77" not in error.body().decode()


OF_THE_CALLER = [
    openai_error("Invalid value: 'insufficient balance'. Supported are: 'a'."),
    openai_error("Insufficient balance is no valid choice.", param="tool_choice"),
    openai_error("The model insufficient balance does not exist."),
    {"detail": [{"msg": "No such choice.", "input": {"message": "insufficient balance"}}]},
    openai_error("You sent invalid api key in a text."),
]


@pytest.mark.parametrize("document", OF_THE_CALLER)
def test_sentence_of_the_callers_own_says_nothing_of_the_account(own: Provider, answers: Adapter, document: dict):
    answers.register_uri("POST", URL, status_code=400, json=document)
    assert not isinstance(refusal(own), errors.ProviderQuotaExhausted | errors.ProviderAuthFailed)


@pytest.mark.parametrize("text", ["<h1>Payment required</h1>", "", "[1, 2", '"owes 12.34"'])
def test_402_of_any_shape_is_an_empty_account(own: Provider, answers: Adapter, text: str):
    answers.register_uri("POST", URL, status_code=402, text=text)
    assert isinstance(refusal(own), errors.ProviderQuotaExhausted)


def test_code_that_the_caller_sent_and_a_validator_repeats_says_nothing_of_the_account(own: Provider, answers: Adapter):
    detail = [{"type": "extra_forbidden", "loc": ["body", "x"], "input": {"type": "insufficient_quota"}}]
    answers.register_uri("POST", URL, status_code=400, json={"detail": detail})
    assert refusal(own).code == "provider_error"


RELAYED = [
    (400, openai_error("Too long.", param="messages", code="context_length_exceeded")),
    (403, openai_error("Not in your country.", code="unsupported_country")),
    (404, openai_error("No such model.", code="model_not_found", extra={"a": [1, None, "é"]})),
    (409, {"error": {"message": "Only a message."}}),
    (422, {"error": {"message": "A code that is a number.", "code": 7}, "more": 1}),
    (429, openai_error("Slow down.", type="rate_limit_error")),
    (500, openai_error("Sorry.", type="server_error")),
    (529, openai_error("Overloaded.", type="overloaded_error")),
]


@pytest.mark.parametrize(("status", "document"), RELAYED)
def test_any_other_error_in_openais_shape_is_relayed_byte_for_byte(
    own: Provider, answers: Adapter, status: int, document: dict
):
    body = json.dumps(document, indent=3, ensure_ascii=False).encode() + b"\n"
    answers.register_uri("POST", URL, status_code=status, content=body)
    error = refusal(own)
    assert isinstance(error, RelayedError)
    assert (error.status, error.body()) == (status, body)


@pytest.mark.parametrize("retry_after", ["7", "0.25", "Wed, 21 Oct 2035 07:28:00 GMT"])
def test_what_sdks_wait_by_is_relayed_as_it_is(own: Provider, answers: Adapter, retry_after: str):
    waits = {"Retry-After": retry_after, "retry-after-ms": "6500", "x-should-retry": "false"}
    others = {"x-ratelimit-reset-tokens": "6m0s", "Set-Cookie": "a=b"}
    answers.register_uri("POST", URL, status_code=429, json=openai_error(), headers=waits | others)
    assert refusal(own).headers == waits


STRANGE = {
    "html": "<html><h1>Bad gateway</h1></html>",
    "plain": "upstream connect error",
    "detail": '{"detail":"Something went wrong"}',
    "error is a text": '{"error":"Something went wrong"}',
    "message is no text": '{"error":{"message":null}}',
    "array": '[{"error":{"message":"No."}}]',
    "object error": '{"object":"error","message":"No."}',
    "long": "é" * 3000,
}


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 502, 503])
@pytest.mark.parametrize("name", STRANGE)
def test_error_of_another_shape_is_its_first_500_characters(own: Provider, answers: Adapter, name: str, status: int):
    answers.register_uri("POST", URL, status_code=status, content=STRANGE[name].encode(), headers={"Retry-After": "3"})
    error = refusal(own)
    assert (error.status, error.type, error.code) == (status, "api_error", "provider_error")
    assert error.message == STRANGE[name][:500]
    assert error.headers == {"Retry-After": "3"}


@pytest.mark.parametrize("content", [b"", b" \r\n"])
def test_empty_error_still_has_a_message(own: Provider, answers: Adapter, content: bytes):
    answers.register_uri("POST", URL, status_code=503, content=content)
    assert "503" in refusal(own).message


def test_error_that_is_not_utf_8_is_still_told(own: Provider, answers: Adapter):
    answers.register_uri("POST", URL, status_code=500, content=b"caf\xe9 \x00\xff")
    assert refusal(own).message.startswith("caf")


@pytest.mark.parametrize("document", [openai_error(f"Bad header: Bearer {PROVIDER_KEY}"), {"detail": PROVIDER_KEY}])
def test_key_that_the_provider_echoes_is_masked(own: Provider, answers: Adapter, document: dict):
    answers.register_uri("POST", URL, status_code=400, json=document)
    assert "[key]" in refusal(own).body().decode()


def test_status_that_is_neither_success_nor_error_is_a_bad_response(own: Provider, answers: Adapter):
    answers.register_uri("POST", URL, status_code=304)
    assert isinstance(refusal(own), errors.ProviderBadResponse)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (requests.ConnectTimeout, errors.ProviderUnreachable),
        (requests.ConnectionError, errors.ProviderUnreachable),
        (requests.exceptions.SSLError, errors.ProviderUnreachable),
        (requests.exceptions.ProxyError, errors.ProviderUnreachable),
        (requests.ReadTimeout, errors.ProviderTimeout),
    ],
)
def test_failed_connection_is_unreachable_or_a_timeout(
    own: Provider, answers: Adapter, failure: type[Exception], kind: type[Exception]
):
    answers.register_uri("POST", URL, exc=failure(f"with {PROVIDER_KEY}"))
    assert type(refusal(own)) is kind


# A real connection, and what can go wrong with it


def assert_nothing_charged(team: Member) -> None:
    call = last_call()
    assert (call["status"], call["charged_tokens"], call["usage_source"]) == ("provider_error", 0, "none")
    assert (stored(team).held_tokens, stored(team).settled_tokens) == (0, 0)


ELSEWHERE = [{"PROVIDER_BASE_URL": f"http://127.0.0.1:{free_port()}"}, {"PROVIDER_BASE_URL": "http://a.invalid"}]


@pytest.mark.parametrize("settings", ELSEWHERE, indirect=True, ids=["refused", "no such name"])
def test_provider_that_cannot_be_reached_is_502(client: FlaskClient, team: Member):
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (502, "provider_unreachable")
    assert_nothing_charged(team)


@pytest.mark.parametrize("settings", [{"PROVIDER_READ_TIMEOUT": "0.3"}], indirect=True)
def test_silent_provider_is_504_and_its_connection_is_closed(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = client.post(CHAT, json=hello("silent=1"), headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (504, "provider_timeout")
    assert_nothing_charged(team)
    assert eventually(lambda: provider.open_connections == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("directives", "code"),
    [
        ("drop=1", "provider_unreachable"),
        ("cut=0", "provider_bad_response"),
        ("reset=0", "provider_bad_response"),
        ("status=200 body=html", "provider_bad_response"),
        ("status=200 body=text", "provider_bad_response"),
        ("status=200 body=empty", "provider_bad_response"),
    ],
)
def test_failure_before_the_first_byte_is_502_and_the_next_call_works(
    client: FlaskClient, team: Member, directives: str, code: str, stream: bool
):
    reply = client.post(CHAT, json=hello(directives, stream=stream), headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (502, code)
    assert_nothing_charged(team)
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200


@pytest.mark.parametrize("length", [-5, 5])
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_content_length_is_502_and_the_next_call_works(
    client: FlaskClient, team: Member, length: int, stream: bool
):
    body = hello(f"length={length} json_for_stream=1", stream=stream)
    reply = client.post(CHAT, json=body, headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (502, "provider_bad_response")
    assert (last_call()["status"], stored(team).held_tokens) == ("provider_error", 0)
    assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200


GARBAGE = [
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x15\x03\x01\x00\x02\x02\x50",
    b"HTTP/1.1 OK\r\n\r\n",
    b"HTTP/1.1 99999 x\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"\r\n" * 300,
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_answer_that_is_no_http_is_502(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, garbage: bytes
):
    monkeypatch.setattr(provider, "respond", lambda call: Script([(0, garbage)], Ending.CUT))
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    assert (reply.status_code, reply.json["error"]["code"]) == (502, "provider_bad_response")
    assert_nothing_charged(team)


@pytest.mark.parametrize("framing", [b"content-length: 104857600", b"connection: close"])
def test_huge_error_page_takes_little_memory(
    client: FlaskClient, team: Member, provider: StandInProvider, monkeypatch: pytest.MonkeyPatch, framing: bytes
):
    client.post(CHAT, json=hello("usage=none"), headers=team.headers)  # loads what a first call loads
    head, page = b"HTTP/1.1 502 Bad\r\ncontent-type: text/html\r\n" + framing + b"\r\n\r\n", b"<p>" + b"x" * 2**20
    monkeypatch.setattr(provider, "respond", lambda call: Script([(0, head), *[(0, page)] * 100], Ending.CUT))
    tracemalloc.start()
    reply = client.post(CHAT, json=HELLO, headers=team.headers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reply.status_code, len(reply.json["error"]["message"])) == (502, 500)
    assert peak < 32 * 2**20
    assert eventually(lambda: provider.open_connections == 0)


def test_error_page_that_breaks_off_is_told_as_far_as_it_came(client: FlaskClient, team: Member):
    reply = client.post(CHAT, json=hello("body=html status=503 cut=20"), headers=team.headers)
    assert (reply.status_code, reply.json["error"]["message"]) == (503, "<!DOCTYPE html><html")


def test_stream_answered_with_json_is_relayed_as_json_and_metered(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    reply = client.post(CHAT, json=hello("json_for_stream=1", stream=True), headers=team.headers)
    assert (reply.status_code, reply.mimetype) == (200, "application/json")
    assert reply.json["choices"][0]["message"]["content"]
    assert stored(team).settled_tokens == provider.tokens_served > 0
    assert (last_call()["status"], last_call()["usage_source"]) == ("ok", "provider")


def test_connection_that_the_provider_closed_meanwhile_is_not_used_again(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    for _ in range(2):
        assert client.post(CHAT, json=HELLO, headers=team.headers).status_code == 200
        provider.close_idle()
    assert len(provider.calls) == 2


def test_connections_end_with_the_provider(provider: StandInProvider):
    own = Provider(config.load({"PROVIDER_API_KEY": PROVIDER_KEY, "PROVIDER_BASE_URL": provider.base_url}))
    assert post_together(own, threading.Barrier(1)) == 200
    assert provider.open_connections == 1
    own.close()
    assert eventually(lambda: provider.open_connections == 0)


@pytest.mark.parametrize("directives", ["status=400", "status=500", "body=html", "status=401", "body=empty status=503"])
def test_connection_is_kept_after_an_error_that_was_read(
    client: FlaskClient, team: Member, provider: StandInProvider, directives: str
):
    for _ in range(3):
        client.post(CHAT, json=hello(directives), headers=team.headers)
    assert provider.open_connections == 1


def test_first_calls_of_many_threads_at_once_are_all_sent():
    with StandInProvider() as stand_in, ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            fresh = Provider(config.load({"PROVIDER_API_KEY": "k", "PROVIDER_BASE_URL": stand_in.base_url}))
            start = threading.Barrier(8)
            with closing(fresh):
                assert set(pool.map(post_together, [fresh] * 8, [start] * 8)) == {200}


def post_together(own: Provider, start: threading.Barrier) -> int:
    start.wait()
    reply = own.post("/chat/completions", json.dumps(HELLO).encode(), {})
    reply.read()
    reply.close()
    return reply.status

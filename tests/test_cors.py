"""CORS_ORIGINS: which programs in browsers may call, and what they may read."""

import pytest
from conftest import HELLO, Member, hello
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tokenrouter.standin import StandInProvider

CHAT = "/v1/chat/completions"
APP = "https://app.example"
SDKS_HEADERS = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": SDKS_HEADERS}


@pytest.fixture
def settings(settings: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    return {**settings, "CORS_ORIGINS": f"app://editor,{APP}", **getattr(request, "param", {})}


def allowed(reply: TestResponse) -> str | None:
    return reply.headers.get("Access-Control-Allow-Origin")


def preflight(client: FlaskClient, origin: str, path: str = CHAT) -> TestResponse:
    return client.options(path, headers={"Origin": origin, **PREFLIGHT})


def test_browser_that_asks_whether_it_may_call_is_told(client: FlaskClient, provider: StandInProvider):
    reply = preflight(client, APP)
    assert (reply.status_code, reply.data, allowed(reply)) == (204, b"", APP)
    assert reply.headers["Access-Control-Allow-Headers"] == SDKS_HEADERS
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    assert int(reply.headers["Access-Control-Max-Age"]) > 0
    assert "Origin" in reply.headers["Vary"]
    assert provider.calls == []


@pytest.mark.parametrize("stream", [False, True])
def test_program_in_a_browser_may_read_the_answer_and_our_headers(client: FlaskClient, team: Member, stream: bool):
    reply = client.post(CHAT, json=hello(stream=stream), headers={**team.headers, "Origin": "app://editor"})
    assert (reply.status_code, allowed(reply)) == (200, "app://editor")
    exposed = reply.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"x-request-id", "x-tokenrouter-output-limit", "retry-after", "retry-after-ms", "x-should-retry"} <= {
        *exposed
    }
    assert "openai-processing-ms" in exposed
    assert "Origin" in reply.headers["Vary"]


@pytest.mark.parametrize(("path", "status"), [(CHAT, 401), ("/v1/nothing", 404), ("/v1/models", 405)])
def test_program_in_a_browser_may_read_errors(client: FlaskClient, path: str, status: int):
    reply = client.post(path, json=HELLO, headers={"Origin": APP})
    assert (reply.status_code, allowed(reply)) == (status, APP)


def test_provider_is_told_nothing_of_the_origin(client: FlaskClient, team: Member, provider: StandInProvider):
    client.post(CHAT, json=HELLO, headers={**team.headers, "Origin": APP})
    assert "origin" not in provider.calls[0].headers


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example", "http://app.example", f"{APP}:8443", "null", f"{APP}.x"]
)
def test_other_origins_are_not_let_in(client: FlaskClient, team: Member, origin: str):
    reply = client.post(CHAT, json=HELLO, headers={**team.headers, "Origin": origin})
    assert (reply.status_code, allowed(reply)) == (200, None)
    assert "Origin" in reply.headers["Vary"]
    assert allowed(preflight(client, origin)) is None


@pytest.mark.parametrize("settings", [{"CORS_ORIGINS": "*"}], indirect=True)
@pytest.mark.parametrize("origin", [APP, "null", "app://anything"])
def test_star_lets_every_origin_in(client: FlaskClient, team: Member, origin: str):
    assert allowed(preflight(client, origin)) == "*"
    assert allowed(client.get("/v1/models", headers={**team.headers, "Origin": origin})) == "*"


@pytest.mark.parametrize("path", ["/", "/usage", "/usage/data", "/api/teams", "/admin/login", "/healthz"])
def test_nothing_but_v1_is_opened(client: FlaskClient, path: str):
    assert allowed(preflight(client, APP, path)) is None
    assert allowed(client.get(path, headers={"Origin": APP})) is None


@pytest.mark.parametrize("settings", [{"CORS_ORIGINS": ""}], indirect=True)
def test_no_origin_is_let_in_unless_one_is_named(client: FlaskClient, team: Member):
    assert allowed(preflight(client, APP)) is None
    reply = client.post(CHAT, json=HELLO, headers={**team.headers, "Origin": APP})
    assert (allowed(reply), reply.headers.get("Vary")) == (None, None)

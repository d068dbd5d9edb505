"""Paths that are not served: programs learn the right base URL, people see a page."""

import pytest
from conftest import HELLO, Member
from flask.testing import FlaskClient

from tokenrouter import reports
from tokenrouter.standin import StandInProvider

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
WRONG_PATHS = {
    "/chat/completions": "/v1 is missing",
    "/responses": "/v1 is missing",
    "/v1/chat/completions/": "a slash too many",
    "/v1//chat/completions": "a slash too many",
    "/V1/chat/completions": "small letters",
    "/v1/Chat/Completions": "small letters",
    "/v1/v1/chat/completions": "/v1/v1/ is not how it begins",
    "/api/v1/chat/completions": "/api/v1/ is not how it begins",
    "/openai/v1/chat/completions": "/openai/v1/ is not how it begins",
    "/openai/deployments/m/chat/completions?api-version=2024-06-01": "Azure's",
    "/openai/deployments/m/audio/speech": "Azure's",
    "/v1/messages": "Anthropic's",
}


def told(client: FlaskClient, path: str, method: str = "POST", **options: object) -> str:
    """Return the message of an unknown_url in OpenAI's shape."""
    reply = client.open(path, method=method, **options)
    assert (reply.status_code, reply.mimetype) == (404, "application/json"), reply.data
    error = reply.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "unknown_url", None)
    return error["message"]


@pytest.mark.parametrize("path", WRONG_PATHS)
def test_wrong_path_is_told_with_what_is_wrong_and_the_base_url(
    client: FlaskClient, team: Member, provider: StandInProvider, path: str
):
    message = told(client, path, json=HELLO, headers=team.headers)
    assert f"POST {path.partition('?')[0]}." in message
    assert WRONG_PATHS[path] in message
    assert "http://localhost/v1" in message
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


@pytest.mark.parametrize("slashes", ["//", "///"])
def test_slash_too_many_at_the_beginning_is_told(client: FlaskClient, slashes: str):
    message = told(client, "/", environ_overrides={"PATH_INFO": f"{slashes}v1/chat/completions"})
    assert f"POST {slashes}v1/chat/completions. It has a slash too many." in message


@pytest.mark.parametrize(
    "path", ["/models", "/models/GPT-5-nano", "/v1/models/", "/v1", "/v1/", "/openai/models", "/V1"]
)
def test_wrong_path_of_a_get_is_told_too_also_to_a_browser(client: FlaskClient, path: str):
    assert "http://localhost/v1" in told(client, path, "GET", headers=BROWSER)


def test_base_url_is_that_of_the_request(client: FlaskClient):
    message = told(client, "/chat/completions", base_url="https://llm.example.org:8443")
    assert "https://llm.example.org:8443/v1," in message


def test_request_without_a_host_is_told_all_the_same(client: FlaskClient):
    assert "/v1 at this service's address" in told(client, "/models", "GET", headers={"Host": "a b"})


def test_path_within_the_right_one_is_told(client: FlaskClient):
    assert told(client, "/x/y/embeddings").endswith("and this path below it /embeddings.")


@pytest.mark.parametrize("path", ["/elsewhere", "/favicon.png", "/wp-login.php", "/v2/x", "/API/x"])
def test_program_that_asks_for_nothing_known_is_answered_in_json(client: FlaskClient, path: str):
    told(client, path, "GET")
    told(client, path, "POST", headers=BROWSER)


def test_long_path_is_cut_short(client: FlaskClient):
    assert len(told(client, "/v1" + "/x" * 20_000)) < 400


@pytest.mark.parametrize("path", ["/elsewhere", "/imprint", "/robots.txt"])
def test_person_who_asks_for_an_unknown_page_sees_one(client: FlaskClient, path: str):
    reply = client.get(path, headers=BROWSER)
    assert (reply.status_code, reply.mimetype) == (404, "text/html")


@pytest.mark.parametrize("path", ["/static/v1/models", "/docs/x", "/usage/models"])
@pytest.mark.parametrize("accept", ["text/html", "*/*"])
def test_what_lies_below_a_page_stays_a_page(client: FlaskClient, path: str, accept: str):
    reply = client.get(path, headers={"Accept": accept})
    assert (reply.status_code, reply.mimetype) == (404, "text/html")


@pytest.mark.parametrize("path", ["/", "/usage", "/docs", "/admin/login"])
def test_pages_are_served_as_before(client: FlaskClient, path: str):
    assert client.get(path, headers=BROWSER).mimetype == "text/html"

"""The page /join: a code and a name make a team, whose token is shown once."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from adminclient import NASTY_NAMES
from conftest import TESTER, Server
from flask.testing import FlaskClient
from markupsafe import escape
from werkzeug.test import TestResponse

from tokenrouter import teams
from tokenrouter.database.tables import JoinCode
from tokenrouter.teams import codes

both_databases = pytest.mark.both_databases


@pytest.fixture
def code(app) -> JoinCode:
    return codes.create("Year 9", 30, quota_tokens=50_000, by=TESTER)


def send(client: FlaskClient, code: JoinCode | str, name: str = "blue", **options: object) -> TestResponse:
    spelling = code if isinstance(code, str) else code.code
    return client.post("/join", data={"code": spelling, "name": name}, **options)


def token_in(page: TestResponse) -> str:
    return re.search(r'<output[^>]* id="token"[^>]*>(tr-[\w-]{43})</output>', page.text)[1]


def problem_in(page: TestResponse) -> str:
    return re.search(r'id="problem">(.*?)</div>', page.text)[1]


@both_databases
def test_who_has_a_code_gets_a_team_and_its_token(client: FlaskClient, code: JoinCode):
    page = send(client, code.code.lower().replace("-", " "), base_url="https://llm.example.org")
    assert page.status_code == 200
    usage = client.get("/v1/usage", headers={"Authorization": f"Bearer {token_in(page)}"}).json
    assert (usage["team"], usage["quota_tokens"]) == ("blue", 50_000)
    assert "https://llm.example.org/v1" in page.text and 'href="/usage"' in page.text
    assert page.text.count(token_in(page)) == 3  # by itself, and in two examples


def test_page_with_a_token_is_kept_by_no_one_and_shown_in_no_frame(client: FlaskClient, code: JoinCode):
    for page in (client.get("/join"), send(client, code), send(client, "wrong")):
        assert page.headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        assert "Set-Cookie" not in page.headers
        assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\s(?:style|on\w+)=", page.text) == []


def test_same_form_sent_again_makes_no_other_team(client: FlaskClient, code: JoinCode):
    token = token_in(send(client, code))
    again = send(client, code)
    assert (again.status_code, token in again.text) == (409, False)
    assert "There is a team &#39;blue&#39; already. Take another name." in problem_in(again)
    assert codes.get(code.id).used == 1


def test_code_in_the_address_stands_in_its_field(client: FlaskClient, code: JoinCode):
    assert f'name="code" class="mono typed-code" value="{code.code}"' in client.get(f"/join?code={code.code}").text
    hostile = '"><script>alert(1)</script>'
    assert hostile not in client.get("/join", query_string={"code": hostile}).text


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_name_is_text_on_the_page(client: FlaskClient, code: JoinCode, name: str):
    page = send(client, code, name)
    assert page.status_code == 200
    assert f"<bdi>{escape(teams.check_name(name))}</bdi> has joined" in page.text


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "a\nb", "a\u202eb", "a\0b"])
def test_name_that_no_team_may_have_is_refused_beside_what_was_typed(client: FlaskClient, code: JoinCode, name: str):
    page = send(client, code, name)
    assert (page.status_code, "has 1 to 200 characters" in problem_in(page)) == (400, True)
    assert f'value="{code.code}"' in page.text
    assert teams.living() == []


def test_wrong_code_is_just_not_a_code(client: FlaskClient, code: JoinCode):
    page = send(client, "2222-3333-4444")
    assert (page.status_code, problem_in(page)) == (404, "This is not a code.")


def test_revoked_code_is_told_to_who_holds_it(client: FlaskClient, code: JoinCode):
    codes.revoke(code.id, by=TESTER)
    page = send(client, code)
    told = "This code was revoked. Ask who gave it to you for another one."
    assert (page.status_code, problem_in(page)) == (403, told)


@both_databases
def test_wrong_codes_are_throttled_and_then_the_right_one_too(client: FlaskClient, code: JoinCode):
    assert [send(client, f"wrong {number}").status_code for number in range(5)] == [404] * 5
    page = send(client, code)
    assert page.status_code == 429
    assert 1 <= int(page.headers["Retry-After"]) <= 60
    assert problem_in(page).startswith("Too many wrong codes: try again in ")
    assert teams.living() == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://localhost"}, 200),  # a proxy that is not believed may end https
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 200),  # browsers alone set the second
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_form_of_another_site_makes_no_team(client: FlaskClient, code: JoinCode, headers: dict[str, str], status: int):
    assert send(client, code, headers=headers).status_code == status
    assert len(teams.living()) == (status == 200)


def test_form_says_where_it_comes_from(client: FlaskClient):
    """Without a referrer policy that lets them, old browsers tell the origin null of it."""
    assert client.get("/join").headers["Referrer-Policy"] == "same-origin"


def test_large_form_is_not_read(client: FlaskClient, code: JoinCode):
    assert send(client, code, "x" * 20_000).status_code == 413


def test_front_page_leads_to_it(client: FlaskClient):
    assert '<a href="/join">' in client.get("/").text


# Many at once, at two workers


@both_databases
def test_class_behind_one_address_joins_at_once_and_nobody_above_the_uses(server: Server, code: JoinCode):
    def press(number: int) -> int:
        fields = {"code": code.code, "name": f"pupil {number}"}
        return requests.post(f"{server.url}/join", data=fields, timeout=60).status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(press, range(40)))
    assert Counter(statuses) == {200: 30, 403: 10}
    assert (codes.get(code.id).used, len(teams.living())) == (30, 30)


def test_wrong_codes_are_counted_over_all_workers(server: Server):
    def guess(number: int) -> int:
        return requests.post(f"{server.url}/join", data={"code": f"wrong {number}"}, timeout=60).status_code

    with ThreadPoolExecutor(20) as pool:
        assert Counter(pool.map(guess, range(20))) == {404: 5, 429: 15}

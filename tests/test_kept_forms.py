"""A form that is sent after its session ended: nothing is saved, nothing that was typed is lost."""

import re
from html import unescape

import pytest
from adminclient import LOGIN, PASSWORD, Panel
from conftest import Member
from flask import Flask

from tokenrouter import teams
from tokenrouter.errors import NotFound

NEW_TEAM = "/admin/teams/new/"
TYPED = {"name": "<b>5a</b>", "quota": "2.5M", "csrf_token": "of a session that ended"}


def fields_of(page: str) -> dict[str, str]:
    """Return the hidden fields of the page's last form."""
    form = page.rpartition("<form")[2]
    return {name: unescape(value) for name, value in re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form)}


@pytest.fixture
def stranger(app: Flask) -> Panel:
    return Panel(app.test_client())


def sign_in_with(stranger: Panel, page: str, password: str = PASSWORD):
    return stranger.open(LOGIN, method="POST", data=fields_of(page) | {"password": password})


def exists(app: Flask, name: str) -> bool:
    with app.app_context():
        try:
            return teams.find(name) is not None
        except NotFound:
            return False


def test_what_was_typed_is_shown_after_sign_in_and_saved_by_a_button_alone(app: Flask, stranger: Panel):
    refused = stranger.open(NEW_TEAM, method="POST", data=TYPED, headers={"Origin": "http://localhost"})
    assert refused.status_code == 401 and "nothing was saved" in refused.text
    wrong = sign_in_with(stranger, refused.text, "guess")
    assert wrong.status_code == 401
    shown = sign_in_with(stranger, wrong.text)
    assert "Nothing was saved" in shown.text and "<bdi>&lt;b&gt;5a&lt;/b&gt;</bdi>" in shown.text
    assert not exists(app, TYPED["name"])
    stranger.open(NEW_TEAM, method="POST", data=fields_of(shown.text))
    assert exists(app, TYPED["name"])


def test_form_of_another_session_is_shown_to_be_sent_again(app: Flask, panel: Panel):
    refused = panel.open(NEW_TEAM, method="POST", data=TYPED)
    assert refused.status_code == 400 and "This form is no longer valid." in refused.text
    assert not exists(app, TYPED["name"])
    panel.open(NEW_TEAM, method="POST", data=fields_of(refused.text))
    assert exists(app, TYPED["name"])


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
        {"Origin": "http://evil.example"},  # all that browsers tell where the panel has no https
        {"Origin": "null"},
    ],
)
def test_form_sent_by_another_site_is_not_kept(stranger: Panel, panel: Panel, headers: dict[str, str]):
    from_elsewhere = {"method": "POST", "data": TYPED, "headers": headers}
    assert stranger.open(NEW_TEAM, **from_elsewhere).location == LOGIN
    assert "2.5M" not in panel.open(NEW_TEAM, **from_elsewhere).text


def test_no_secret_and_no_confirmation_is_kept(stranger: Panel):
    typed = TYPED | {"password": "hidden word", "confirmed": "1"}
    page = stranger.open("/admin/teams/action/", method="POST", data=typed).text
    assert "hidden word" not in page and "kept.csrf_token" not in page and "kept.confirmed" not in page


@pytest.mark.parametrize("path", ["https://evil.example/", "/v1/x", "/admin/\\evil.example", "//evil.example/admin/"])
def test_what_was_kept_is_sent_to_own_addresses_only(stranger: Panel, path: str):
    carried = {"kept_path": path, "kept.name": "5a", "password": PASSWORD}
    assert stranger.post(LOGIN, carried).location == "/admin/"


def test_button_without_anything_typed_leads_back_to_its_page(stranger: Panel, team: Member):
    page, token = f"/admin/teams/{team.team.id}/", {"csrf_token": "old"}
    refused = stranger.open(f"{page}tokens/1/revoke", method="POST", data=token)
    shown = sign_in_with(stranger, refused.text).text
    assert "Nothing was saved" in shown and f'href="{page}"' in shown and "Send again" not in shown


def test_sign_in_page_carries_no_more_than_it_can_send(stranger: Panel):
    refused = stranger.open(NEW_TEAM, method="POST", data=TYPED | {"models": "x" * 13_000})
    assert "too much to be kept" in refused.text and len(refused.data) < 10_000
    refused = stranger.open(NEW_TEAM, method="POST", data=TYPED | {"models": "x" * 100_000})
    assert refused.status_code == 401 and "too much to be kept" in refused.text


def test_sign_in_page_of_an_ended_session_asks_again(stranger: Panel):
    page = stranger.open(NEW_TEAM, method="POST", data=TYPED).text
    late = stranger.open(LOGIN, method="POST", data=fields_of(page) | {"csrf_token": "old", "password": PASSWORD})
    assert late.status_code == 400 and "Type the password again" in late.text
    assert "<b>5a</b>" in unescape(sign_in_with(stranger, late.text).text)


def test_errors_and_unknown_addresses_keep_the_menu(panel: Panel, stranger: Panel):
    for path, status in (("/admin/nowhere", 404), ("/admin/teams/99/", 404), ("/admin/logout", 405)):
        page = panel.get(path)
        assert (page.status_code, page.headers["Cache-Control"]) == (status, "no-store")
        assert 'aria-label="Main"' in page.text and "Sign out" in page.text
    assert stranger.get("/admin/nowhere").location == f"{LOGIN}?next=/admin/nowhere"


def test_unknown_addresses_elsewhere_are_a_page_of_ours(stranger: Panel):
    page = stranger.get("/nowhere", headers={"Accept": "text/html"})
    assert page.status_code == 404 and "There is nothing at this address." in page.text
    assert 'aria-label="Main"' in page.text and "Set-Cookie" not in page.headers
    wrong_method = stranger.open("/usage", method="POST")
    assert (wrong_method.status_code, "GET" in wrong_method.headers["Allow"]) == (405, True)

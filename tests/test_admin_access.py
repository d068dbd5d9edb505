"""Who may enter the panel, and what its pages tell browsers."""

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from adminclient import LOGIN, PAGES, PASSWORD, Panel, address, panel_rules
from conftest import Member
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tokenrouter import create_app, runtime
from tokenrouter.admin import browsers, sockets
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import db

DEFAULT_PASSWORD = "admin123"
ELSEWHERE = (
    "https://evil.example/admin/",
    "//evil.example/admin/",
    "/\\evil.example/admin/",
    "/admin/\\evil.example",
    "javascript:alert(1)",
    "/v1/models",
    "/administrator",
    "/admin/\n//evil.example",
    "/admin\t//evil.example",
    " /admin/",
    "//[",
    "//evil\u2100.example",
    "/%2f/evil.example",
    "%2f%2fevil.example",
)


@pytest.fixture
def stranger(client: FlaskClient) -> Panel:
    return Panel(client)


@pytest.fixture
def default_password(settings: dict[str, str]) -> None:
    settings["ADMIN_PASSWORD"] = DEFAULT_PASSWORD


@pytest.fixture
def behind_proxy(settings: dict[str, str]) -> None:
    settings["TRUSTED_PROXIES"] = "1"


def test_every_address_sends_a_stranger_to_sign_in(app: Flask, stranger: Panel):
    for rule in panel_rules(app):
        if rule.endpoint == "admin.login_view":
            continue
        for method in rule.methods - {"OPTIONS"}:
            reply = stranger.open(address(rule), method=method)
            assert (reply.status_code, reply.location.partition("?")[0]) == (302, LOGIN), (method, rule)


def test_stranger_comes_back_to_where_they_wanted_to_go(stranger: Panel):
    sent = stranger.get("/admin/logs/?status=rejected")
    assert sent.location == "/admin/login?next=/admin/logs/?status%3Drejected"
    assert stranger.sign_in(query_string=sent.location.partition("?")[2]).location == "/admin/logs/?status=rejected"


@pytest.mark.parametrize("target", ELSEWHERE)
def test_sign_in_leads_to_own_pages_only(stranger: Panel, target: str):
    assert stranger.post(LOGIN, {"password": PASSWORD, "next": target}).location == "/admin/"


def test_wrong_password_is_told_and_opens_nothing(stranger: Panel):
    reply = stranger.sign_in("guess")
    assert reply.status_code == 401
    assert "This is not the admin password." in reply.text
    assert stranger.get("/admin/").location == LOGIN


def test_whoever_is_signed_in_does_not_see_the_form_again(panel: Panel):
    assert panel.get(LOGIN).location == "/admin/"


def test_session_cookie_is_for_http_and_this_site_alone(stranger: Panel):
    cookie = stranger.sign_in().headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie


def test_session_cookie_by_https_stays_with_https(stranger: Panel):
    page = stranger.get(LOGIN, base_url="https://localhost")
    assert "Secure" in page.headers["Set-Cookie"]


@pytest.mark.usefixtures("behind_proxy")
def test_trusted_proxy_is_believed_that_the_browser_came_by_https(stranger: Panel):
    assert "Secure" in stranger.get(LOGIN, headers={"X-Forwarded-Proto": "https"}).headers["Set-Cookie"]


def test_nobody_else_is_believed_that_the_browser_came_by_https(stranger: Panel):
    assert "Secure" not in stranger.get(LOGIN, headers={"X-Forwarded-Proto": "https"}).headers["Set-Cookie"]


def test_page_that_renews_itself_keeps_no_session_open(panel: Panel):
    assert "Set-Cookie" in panel.get("/admin/").headers
    assert "Set-Cookie" not in panel.get("/admin/", headers={"X-Requested-With": "fetch"}).headers


def test_sign_in_begins_a_new_session(stranger: Panel):
    stranger.get(LOGIN)
    with stranger.client.session_transaction() as session:
        session["planted"] = "before"
    stranger.sign_in()
    with stranger.client.session_transaction() as session:
        assert "planted" not in session and "_user_id" in session


def test_sign_out_ends_the_session_for_a_copy_of_its_cookie_too(panel: Panel, app: Flask):
    copied = panel.client.get_cookie("tokenrouter_session").value
    assert panel.post("/admin/logout").location == LOGIN
    thief = Panel(app.test_client())
    thief.client.set_cookie("tokenrouter_session", copied)
    assert thief.get("/admin/").location == LOGIN
    assert panel.get("/admin/").location == LOGIN


def test_nobody_is_signed_out_by_a_link(panel: Panel):
    assert panel.get("/admin/logout").status_code == 405
    assert panel.get("/admin/").status_code == 200


@pytest.fixture
def other_password(panel: Panel, settings: dict[str, str]) -> Iterator[Panel]:
    """A browser that is signed in, at a service that was started again with another password."""
    app = create_app(settings | {"ADMIN_PASSWORD": "changed"})
    other = Panel(app.test_client())
    other.client.set_cookie("tokenrouter_session", panel.client.get_cookie("tokenrouter_session").value)
    yield other
    runtime.close(app)


def test_changed_password_ends_the_session(other_password: Panel):
    assert other_password.get("/admin/").location == LOGIN


def test_sixth_guess_is_not_looked_at_even_if_right(stranger: Panel):
    statuses = [stranger.sign_in(f"guess {number}").status_code for number in range(5)]
    reply = stranger.sign_in()
    assert (statuses, reply.status_code) == ([401] * 5, 429)
    assert re.search(r"try again in [1-6]?\d seconds", reply.text)


def test_guesses_count_together_whatever_address_they_claim(stranger: Panel):
    for number in range(5):
        stranger.sign_in("guess", headers={"X-Forwarded-For": f"192.0.2.{number}"})
    assert stranger.sign_in("guess", headers={"X-Forwarded-For": "192.0.2.99"}).status_code == 429


@pytest.mark.usefixtures("behind_proxy")
def test_guesses_behind_a_trusted_proxy_count_by_the_address_it_tells(stranger: Panel):
    for _ in range(5):
        stranger.sign_in("guess", headers={"X-Forwarded-For": "192.0.2.1"})
    statuses = [stranger.sign_in(headers={"X-Forwarded-For": f"192.0.2.{end}"}).status_code for end in (1, 2)]
    assert statuses == [429, 302]


@pytest.mark.usefixtures("behind_proxy")
def test_guesses_by_way_of_a_proxy_that_tells_ports_count_together(stranger: Panel):
    for port in range(5):
        stranger.sign_in("guess", headers={"X-Forwarded-For": f"192.0.2.1:{4000 + port}"})
    assert stranger.sign_in(headers={"X-Forwarded-For": "192.0.2.1:5000"}).status_code == 429


@pytest.fixture
def from_here() -> Iterator[dict[str, object]]:
    """What a server tells of a connection from this machine, of our own user."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        yield {"gunicorn.socket": connection}


@pytest.mark.usefixtures("default_password")
def test_default_password_opens_from_this_machine_and_is_warned_of_on_every_page(stranger: Panel, from_here):
    assert "The admin password is still the default." in stranger.get(LOGIN).text
    assert stranger.sign_in(DEFAULT_PASSWORD, environ_overrides=from_here).status_code == 302
    for path in (*PAGES, "/admin/teams/999/"):
        assert "The admin password is still the default." in stranger.get(path).text


@pytest.mark.usefixtures("default_password")
@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"headers": {"Via": "1.1 proxy"}},
        {"headers": {"X-Real-IP": "127.0.0.1"}},
        {"headers": {"Host": "tokenrouter.example"}},
        {"environ_overrides": {"REMOTE_ADDR": "192.0.2.1"}},
        {"environ_overrides": {"SERVER_PROTOCOL": "HTTP/1.0"}},
    ],
)
def test_default_password_opens_from_nowhere_else(stranger: Panel, options: dict[str, object], from_here):
    options = {**options, "environ_overrides": from_here | options.get("environ_overrides", {})}
    reply = stranger.sign_in(DEFAULT_PASSWORD, **options)
    assert reply.status_code == 403
    assert "Set ADMIN_PASSWORD" in reply.text


@pytest.mark.usefixtures("default_password", "behind_proxy")
@pytest.mark.parametrize("headers", [{}, {"X-Forwarded-For": "::1"}])
def test_default_password_is_refused_behind_a_trusted_proxy(stranger: Panel, headers: dict[str, str], from_here):
    reply = stranger.sign_in(DEFAULT_PASSWORD, headers=headers, environ_overrides=from_here)
    assert reply.status_code == 403


@pytest.mark.usefixtures("default_password")
def test_default_password_is_refused_by_way_of_another_user(
    stranger: Panel, from_here, monkeypatch: pytest.MonkeyPatch
):
    """A proxy that forwards HTTP/1.1 and adds no header is known by the user as whom it runs."""
    monkeypatch.setattr(sockets, "peer_owner", lambda connection: os.geteuid() + 1)
    assert stranger.sign_in(DEFAULT_PASSWORD, environ_overrides=from_here).status_code == 403


@pytest.mark.usefixtures("default_password")
def test_default_password_opens_where_the_system_tells_of_no_owners(
    stranger: Panel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sockets, "TABLES", [tmp_path / "tcp", tmp_path / "tcp6"])
    assert stranger.sign_in(DEFAULT_PASSWORD).status_code == 302


def lock_out(stranger: Panel) -> None:
    for number in range(30):
        stranger.sign_in("guess", environ_overrides={"REMOTE_ADDR": f"192.0.2.{number}"})
    assert stranger.sign_in().status_code == 429


def known_browser(app: Flask) -> Panel:
    """Return a browser in which somebody signed in, and out again."""
    browser = Panel(app.test_client())
    assert browser.sign_in().status_code == 302
    browser.post("/admin/logout")
    return browser


def test_browser_that_signed_in_before_is_not_locked_out_by_strangers(app: Flask, stranger: Panel):
    browser = known_browser(app)
    lock_out(stranger)
    assert browser.sign_in().status_code == 302


def test_known_browser_has_five_guesses_a_minute_and_locks_nobody_else_out(app: Flask, stranger: Panel):
    browser = known_browser(app)
    assert [browser.sign_in("guess").status_code for _ in range(6)] == [401] * 5 + [429]
    assert browser.sign_in().status_code == 429
    assert stranger.sign_in().status_code == 302


@pytest.mark.parametrize("change", ["another password", "forged", "another key's", "a year old"])
def test_cookie_that_does_not_hold_makes_no_browser_known(
    app: Flask, stranger: Panel, change: str, monkeypatch: pytest.MonkeyPatch
):
    browser = known_browser(app)
    value = browser.client.get_cookie(browsers.COOKIE, path="/admin").value
    if change == "another password":
        own = runtime.of(app)
        monkeypatch.setattr(own, "settings", replace(own.settings, admin_password="another"))
    elif change == "another key's":
        monkeypatch.setitem(app.config, "SECRET_KEY", "another")
    elif change == "a year old":
        monkeypatch.setattr(browsers, "LIFETIME_S", -1)
    else:
        browser.client.set_cookie(browsers.COOKIE, ("A" if value[0] != "A" else "B") + value[1:], path="/admin")
    for number in range(30):
        stranger.sign_in("guess", environ_overrides={"REMOTE_ADDR": f"192.0.2.{number}"})
    assert browser.sign_in("another" if change == "another password" else PASSWORD).status_code == 429


def test_cookie_of_a_known_browser_is_kept_from_scripts_and_other_sites(stranger: Panel):
    set_cookies = stranger.sign_in(base_url="https://localhost").headers.getlist("Set-Cookie")
    (cookie,) = [text for text in set_cookies if text.startswith(browsers.COOKIE)]
    assert all(
        f"; {word}" in cookie for word in ("HttpOnly", "Secure", "SameSite=Lax", "Path=/admin", "Max-Age=31536000")
    )


def test_browser_keeps_its_id_from_sign_in_to_sign_in(app: Flask):
    browser = known_browser(app)
    first = browser.client.get_cookie(browsers.COOKIE, path="/admin").value
    browser.sign_in()
    assert browser.client.get_cookie(browsers.COOKIE, path="/admin").value.partition(".")[0] == first.partition(".")[0]


def test_wrong_password_makes_no_browser_known(stranger: Panel):
    stranger.sign_in("guess")
    assert stranger.client.get_cookie(browsers.COOKIE, path="/admin") is None


def test_own_password_is_not_warned_of(panel: Panel):
    assert "still the default" not in panel.get("/admin/").text


def test_every_form_without_its_csrf_token_is_refused(app: Flask, panel: Panel, team: Member):
    for rule in panel_rules(app):
        if "POST" not in rule.methods or rule.endpoint == "admin.login_view":
            continue
        for token in ({}, {"csrf_token": "made up"}):
            reply = panel.open(address(rule, number=team.team.id), method="POST", data=token)
            assert reply.status_code == 400, rule
            assert "This form is no longer valid." in reply.text
    assert panel.get("/admin/").status_code == 200


@pytest.mark.parametrize("number", [0, 10**30])
def test_page_of_an_unknown_number_says_so(app: Flask, panel: Panel, number: int):
    for rule in panel_rules(app):
        if "<int:" not in rule.rule:
            continue
        fields = {"grace": "0", "quota": "5"}
        reply = panel.post(address(rule, number=number), fields) if "POST" in rule.methods else None
        assert reply is None or reply.status_code in (302, 404), rule
        assert "GET" not in rule.methods or panel.get(address(rule, number=number)).status_code == 404, rule


def test_empty_forms_break_nothing(app: Flask, panel: Panel, team: Member):
    for rule in panel_rules(app):
        if "POST" in rule.methods and rule.endpoint != "admin.logout_view":
            assert panel.post(address(rule, number=team.team.id)).status_code < 500, rule
    assert panel.get(f"/admin/teams/{team.team.id}/").status_code == 200


def test_sign_in_without_its_csrf_token_is_refused(stranger: Panel):
    assert stranger.open(LOGIN, method="POST", data={"password": PASSWORD}).status_code == 400


def test_csrf_token_of_another_session_is_refused(panel: Panel, app: Flask):
    foreign = Panel(app.test_client()).csrf_token()
    assert panel.open("/admin/logout", method="POST", data={"csrf_token": foreign}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/admin/login", "/admin/", "/admin/teams/99/", "/admin/nowhere", "/nowhere", "/admin/logs/"]
)
def test_pages_load_nothing_from_elsewhere_and_stay_out_of_frames(panel: Panel, path: str):
    headers = panel.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "same-origin")


@pytest.mark.parametrize(
    "path", ["/admin/", "/admin/teams/", "/admin/logs/", "/admin/logs/export/csv/", "/admin/teams/99/"]
)
def test_pages_with_data_are_kept_nowhere(panel: Panel, path: str):
    assert panel.get(path).headers["Cache-Control"] == "no-store"


def test_pages_have_no_script_and_no_style_of_their_own(panel: Panel, team: Member):
    for path in ("/admin/", "/admin/teams/", f"/admin/teams/{team.team.id}/", "/admin/logs/", "/admin/settings/"):
        page = panel.get(path).text
        assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page) == []


def test_pages_ask_nothing_of_other_machines(panel: Panel, team: Member):
    pages = [panel.get(path).text for path in ("/admin/", "/admin/teams/", f"/admin/teams/{team.team.id}/")]
    assert re.findall(r'(?:src|href|action)="(?!/|#)[^"]*"', "".join(pages)) == []


def test_calls_of_the_api_pay_for_nothing_of_the_panel(app: Flask, stranger: Panel, team: Member):
    hooks = [hook.__module__ for each in (app.before_request_funcs, app.after_request_funcs) for hook in each[None]]
    assert hooks == ["tokenrouter", "tokenrouter"]
    reply = stranger.get("/v1/models", headers=team.headers)
    assert {"Set-Cookie", "Vary", "Content-Security-Policy", "Cache-Control"} & set(reply.headers.keys()) == set()


def test_assets_are_kept_by_browsers_and_have_no_session(panel: Panel):
    for path in re.findall(r'(?:href|src)="(/(?:admin/)?static/[^"]+)"', panel.get("/admin/").text):
        with panel.get(path) as reply:
            assert reply.status_code == 200, path
            assert "Set-Cookie" not in reply.headers and "no-store" not in reply.headers["Cache-Control"]


def test_failing_database_is_told_and_nobody_is_asked_to_sign_in(panel: Panel):
    with writing(db.engine) as connection:
        connection.execute(text("ALTER TABLE changes RENAME TO gone"))
    reply = panel.get("/admin/changes/")
    assert reply.status_code == 503
    assert "The database does not answer" in reply.text and "Sign out" in reply.text
    assert 'href="/admin/changes/">Try again' in reply.text
    reply = panel.post("/admin/teams/new/", {"name": "typed in vain", "quota": "2M"})
    assert reply.status_code == 503
    assert "Nothing was saved" in reply.text and "typed in vain" in reply.text and "Send again" in reply.text

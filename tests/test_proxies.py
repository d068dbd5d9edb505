"""Reverse proxies, and those who pretend to be one: what a real gunicorn believes of what they say."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlencode

import pytest
from conftest import Server
from rawhttp import connect, read_all
from serving import running_service

from tokenrouter.config import DEFAULT_ADMIN_PASSWORD

pytestmark = pytest.mark.slow

NOBODY = 65534


def ask(server: Server, path: str, **headers: str) -> str:
    """Send a GET with these headers, of which any name is sent as it is, and return the whole answer."""
    lines = [f"{name.replace('__', '-')}: {value}" for name, value in headers.items()]
    with connect(server, 10) as connection:
        request = "\r\n".join([f"GET {path} HTTP/1.1", "Host: llm.example:8443", "Connection: close", *lines, "", ""])
        connection.sendall(request.encode())
        return read_all(connection).decode()


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service that believes one proxy, on two workers."""
    with running_service(tmp_path_factory.mktemp("proxied"), TRUSTED_PROXIES="1") as service:
        yield service.server


def test_caller_cannot_say_below_which_path_the_service_is(behind_proxy: Server):
    answer = ask(behind_proxy, "/admin/teams/", SCRIPT_NAME="//evil.example")
    assert re.search(r"^Location: /admin/login\?", answer, re.MULTILINE)
    assert "evil.example" not in answer


def test_caller_cannot_say_which_path_the_proxy_let_through(behind_proxy: Server):
    assert ask(behind_proxy, "/healthz", PATH_INFO="/admin/login").startswith("HTTP/1.1 200")
    assert "Admin password" not in ask(behind_proxy, "/healthz", PATH_INFO="/admin/login")


@pytest.mark.parametrize("path", ["/", "/usage"])
def test_snippets_show_the_host_that_was_asked_and_no_other(behind_proxy: Server, path: str):
    answer = ask(behind_proxy, path, X__Forwarded__Host="evil.example", X__Forwarded__Proto="https")
    assert "https://llm.example:8443/v1" in answer
    assert "evil.example" not in answer


def test_prefix_that_is_claimed_changes_no_address(behind_proxy: Server):
    assert "evil" not in ask(behind_proxy, "/admin/teams/", X__Forwarded__Prefix="/evil")


def sign_in(connection: HTTPConnection, password: str, **headers: str) -> HTTPResponse:
    """Send the sign-in form over a connection that is there."""
    connection.request("GET", "/admin/login")
    reply = connection.getresponse()
    token = re.search(r'name="csrf_token" value="([^"]+)"', reply.read().decode())[1]
    headers |= {
        "Cookie": reply.headers["Set-Cookie"].partition(";")[0],
        "Content-Type": "application/x-www-form-urlencoded",
    }
    connection.request("POST", "/admin/login", urlencode({"csrf_token": token, "password": password}), headers)
    reply = connection.getresponse()
    reply.read()
    return reply


@contextmanager
def connected(server: Server, uid: int | None = None) -> Iterator[HTTPConnection]:
    """Connect, as another user where one is named: a socket is whose it was when it was made."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = HTTPConnection(host, int(port), timeout=20)
    own = os.geteuid()
    if uid is not None:
        os.seteuid(uid)
    try:
        connection.sock = connect(server, 20)
    finally:
        os.seteuid(own)
    with connection.sock:
        yield connection


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service whose password is still the default, on two workers."""
    with running_service(tmp_path_factory.mktemp("unguarded"), ADMIN_PASSWORD=DEFAULT_ADMIN_PASSWORD) as service:
        yield service.server


def test_default_password_opens_on_this_machine(unguarded: Server):
    with connected(unguarded) as connection:
        assert sign_in(connection, "admin123").status == 302


if os.geteuid() == 0:  # nobody else can act as another user

    def test_default_password_stays_shut_to_a_silent_proxy_of_another_user(unguarded: Server):
        with connected(unguarded, NOBODY) as connection:
            assert sign_in(connection, "admin123").status == 403


def test_start_warns_once_of_the_default_password(unguarded: Server):
    warnings = re.findall(r"\[WARNING\] (.+)", unguarded.log.read_text())
    assert len(warnings) == 1
    assert "ADMIN_PASSWORD" in warnings[0]


def test_forged_addresses_do_not_escape_the_throttle_on_any_worker(behind_proxy: Server):
    """Behind a proxy that is believed, whoever reaches the port itself may claim to be anyone."""
    statuses = []
    for number in range(32):
        with connected(behind_proxy) as connection:
            statuses.append(sign_in(connection, "guess", **{"X-Forwarded-For": f"192.0.2.{number}"}).status)
    assert statuses == [401] * 30 + [429] * 2

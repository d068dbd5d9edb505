"""No secret gets out: all kinds of traffic through a real service that logs all it can, and then a search for each."""

import os
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from conftest import Server, eventually, hello, running_server
from flask import Flask
from rawhttp import connect, read_all
from serving import post, settings_for

from tokenrouter import config, create_app, runtime
from tokenrouter.standin import StandInProvider

pytestmark = pytest.mark.slow

PROVIDER_KEY = "sk-the-providers-key-0123456789abcdef"
ADMIN_PASSWORD = "an administrator's own password"
SECRET_KEY = "0123456789abcdef-signs-the-sessions"
LOG_EVERYTHING = """
[loggers]
keys=root
[handlers]
keys=stderr
[formatters]
keys=
[logger_root]
level=DEBUG
handlers=stderr
[handler_stderr]
class=StreamHandler
args=(sys.stderr,)
"""
KEY_IN_MESSAGE = f"Your_key_{PROVIDER_KEY}_is_odd"
CALLS = [
    hello(),
    hello(stream=True),
    hello("usage=none"),
    hello(n="nonsense"),
    hello(model="not-allowed"),
    hello(f"status=401 message={KEY_IN_MESSAGE}"),
    hello(f"status=403 message={KEY_IN_MESSAGE}"),
    hello(f"status=429 message={KEY_IN_MESSAGE}"),
    hello(f"status=400 message={KEY_IN_MESSAGE} code=odd"),
    hello(f"status=500 message={KEY_IN_MESSAGE}"),
    hello(f"error_event=2 message={KEY_IN_MESSAGE}", stream=True),
    hello("status=502 body=html"),
    hello("drop=1"),
    hello("cut=3", stream=True),
    hello("redirect=http://127.0.0.1:9/"),
    hello("silent=1"),
]


@dataclass
class Traffic:
    """What a service said to everyone, by where it was said."""

    secrets: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def note(self, where: str, reply: requests.Response) -> requests.Response:
        self.said[where] = f"{reply.status_code} {reply.url} {reply.headers} {reply.text}"
        return reply


def call_models(server: Server, bearer_token: str, traffic: Traffic) -> None:
    headers = {"Authorization": f"Bearer {bearer_token}"}
    url = f"{server.url}/v1"
    for at, body in enumerate(CALLS):
        traffic.note(f"call {at}", requests.post(f"{url}/chat/completions", json=body, headers=headers, timeout=30))
    for path in ("/models", "/usage", "/nothing", "/chat/completions"):
        traffic.note(f"GET {path}", requests.get(url + path, headers=headers, timeout=30))
    for wrong in (f"Basic {bearer_token}", f"Bearer {bearer_token[:-1]}", bearer_token, f"Bearer {PROVIDER_KEY}"):
        reply = requests.post(f"{url}/chat/completions", json=hello(), headers={"Authorization": wrong}, timeout=30)
        traffic.note(f"with {wrong[:9]}", reply)
    traffic.note("broken body", requests.post(f"{url}/chat/completions", data=b"{", headers=headers, timeout=30))
    with connect(server, 5) as connection:
        connection.sendall(
            f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {bearer_token}\r\nBad header\r\n\r\n".encode()
        )
        traffic.said["malformed"] = read_all(connection).decode(errors="replace")


def visit_panel(server: Server, traffic: Traffic) -> None:
    with requests.Session() as browser:

        def post(path: str, **fields: str) -> requests.Response:
            page = browser.get(server.url + path, timeout=30).text
            token = re.search(r'name="csrf_token" value="([^"]+)"', page)[1]
            return browser.post(server.url + path, data={"csrf_token": token, **fields}, timeout=30)

        traffic.note("wrong password", post("/admin/login", password=ADMIN_PASSWORD[:-1]))
        traffic.note("sign-in", post("/admin/login", password=ADMIN_PASSWORD))
        paths = ["", "teams/", "teams/1/", "logs/", "logs/1/", "logs/export/csv/", "changes/", "settings/", "provider"]
        for path in [*paths, "nothing/", "teams/999/"]:
            traffic.note(f"/admin/{path}", browser.get(f"{server.url}/admin/{path}", timeout=30))
        assert "Sign out" in traffic.said["/admin/settings/"]
        assert "csv" in traffic.said["/admin/logs/export/csv/"]
    for path in ("/", "/usage", "/docs", "/openapi.json", "/healthz", "/readyz"):
        traffic.note(path, requests.get(server.url + path, timeout=30))


def run_commands(app: Flask, traffic: Traffic) -> None:
    commands = ["teams list --json", "teams show team", "tokens list team --json", "usage show", "usage verify"]
    commands += ["logs list --json", "tokens revoke team tr-wrong", "teams show nobody", "management-tokens list"]
    for command in commands:
        traffic.said[f"flask {command}"] = app.test_cli_runner().invoke(args=command.split()).output


def dumped(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump())


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    folder = tmp_path_factory.mktemp("secrets")
    database = folder / "tokenrouter.db"
    (folder / "logging.ini").write_text(LOG_EVERYTHING)
    traffic = Traffic()
    with StandInProvider(api_key=PROVIDER_KEY) as provider:
        settings = settings_for(
            provider,
            f"sqlite:///{database}",
            PROVIDER_READ_TIMEOUT="1",
            SECRET_KEY=SECRET_KEY,
            ADMIN_PASSWORD=ADMIN_PASSWORD,
            GUNICORN_CMD_ARGS=f"--log-level debug --log-config {folder / 'logging.ini'}",
        )
        with running_server(settings, folder, is_warm=False) as server:  # its command line is searched too
            bearer_token = server.create_team()
            management_token = server.flask("management-tokens", "create").stdout.split()[-1]
            traffic.secrets |= {
                "the provider's key": PROVIDER_KEY,
                "a team's token": bearer_token,
                "a management token": management_token,
                "the administrator's password": ADMIN_PASSWORD,
                "what signs sessions": SECRET_KEY,
            }
            call_models(server, bearer_token, traffic)
            visit_panel(server, traffic)
            app = create_app({name: text for name, text in settings.items() if name in config.SETTINGS})
            run_commands(app, traffic)
            runtime.close(app)
            for pid in (server.process.pid, *server.worker_pids()):
                traffic.said[f"command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_text()
            # a wrong key, which the provider then repeats in part
            provider.api_key = "another"
            traffic.note("refused key", post(server, bearer_token, hello()))
            os.kill(server.worker_pids()[0], 9)
            assert eventually(lambda: "was sent SIGKILL" in server.log.read_text())
        traffic.said["log"] = server.log.read_text()
        traffic.said["database"] = dumped(database)
    return traffic


SECRETS = [
    "the provider's key",
    "a team's token",
    "a management token",
    "the administrator's password",
    "what signs sessions",
]


@pytest.mark.parametrize("name", SECRETS)
def test_secret_appears_nowhere(traffic: Traffic, name: str):
    secret = traffic.secrets[name]
    assert len(secret) > 20
    spellings = {secret, secret.replace(" ", "+"), secret.replace("'", "&#39;"), secret.replace(" ", "%20")}
    assert {where for where, text in traffic.said.items() if any(spelling in text for spelling in spellings)} == set()


def test_all_that_was_said_is_searched(traffic: Traffic):
    """The search would find nothing in nothing."""
    assert "DEBUG" in traffic.said["log"] or "Starting new HTTP connection" in traffic.said["log"]
    assert "request_logs" in traffic.said["database"]
    assert '"choices"' in traffic.said["call 0"]
    assert all("[key]" in traffic.said[f"call {at}"] for at in (8, 10))
    assert '"name": "team"' in traffic.said["flask teams list --json"]
    assert traffic.said["refused key"].startswith("502")
    assert "gunicorn" in "".join(text for where, text in traffic.said.items() if where.startswith("command line"))


def test_key_that_the_provider_masked_is_not_passed_on(traffic: Traffic):
    assert PROVIDER_KEY[:4] + "****" not in traffic.said["refused key"]

"""Lines of the log: each stays one line whatever it tells of, calls have one each, and none holds a secret."""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from conftest import PROVIDER_KEY, Member, Server, chat, eventually, hello, leases, running_server, stored
from flask import Flask
from flask.testing import FlaskClient

from tokenrouter import call_lines, config, ledger, logs, runtime
from tokenrouter.database.tables import RequestLog, db
from tokenrouter.ledger.endings import Ending
from tokenrouter.standin import StandInProvider

SEPARATORS = "a\nb\rc\x0bd\x0ce\x1cf\x85g\u2028h\u2029i\x1b[31mj\x00k\x7fl\ud800m"
NAME = "Größe\u2028[2026-11-28 00:00:00 +0000] [1] [ERROR] forged"
Document = dict[str, Any]


@pytest.fixture
def style() -> Iterator[None]:
    """Leave lines as they were."""
    yield
    logs.init()


def record(message: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    caught = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("tokenrouter.tests", logging.ERROR, __file__, 1, message, values, caught)


@pytest.mark.parametrize("format_", logs.FORMATS)
def test_no_character_breaks_a_line(style: None, format_: logs.Format):
    logs.init(format_)
    line = logs.formatter().format(record("It fails: %s", SEPARATORS))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line and "\x00" not in line and "\x7f" not in line


def test_text_line_has_time_level_and_process(style: None):
    logs.init()
    line = logs.formatter().format(record("It fails"))
    assert line.startswith("[20") and line.endswith(f"[{os.getpid()}] [ERROR] It fails")


def test_json_line_has_time_level_process_logger_and_message(style: None):
    logs.init("json")
    document = json.loads(logs.formatter().format(record("It fails: %s", SEPARATORS)))
    assert document.pop("time").endswith("Z")
    told = {"level": "ERROR", "process": os.getpid(), "logger": "tokenrouter.tests"}
    assert document == told | {"message": f"It fails: {SEPARATORS}"}


def test_text_of_an_error_poses_as_no_line_of_its_own(style: None):
    logs.init()
    error = ValueError("boom\n[2026-11-28 00:00:00 +0000] [1] [INFO] all is well\u2028forged")
    first, *others = logs.formatter().format(record("It fails", error=error)).splitlines()
    assert first.endswith("It fails")
    assert len(others) == 3 and all(line.startswith("  ") for line in others)


def test_traceback_is_a_field_of_the_json_line(style: None):
    logs.init("json")
    document = json.loads(logs.formatter().format(record("It fails", error=ValueError("boom"))))
    assert document["traceback"].endswith("ValueError: boom")


@pytest.mark.parametrize("format_", logs.FORMATS)
def test_secrets_are_left_out_of_every_line(style: None, format_: logs.Format):
    url = "postgresql://router:pass%2Fword-of-db@127.0.0.1/x"
    settings = {"PROVIDER_API_KEY": "sk-key-of-ours", "SECRET_KEY": "key-that-signs", "DATABASE_URL": url}
    settings |= {"ADMIN_PASSWORD": "hunter2hunter2", "METRICS_TOKEN": "metrics-token"}
    logs.init(format_, config.load(settings).secrets())
    secrets = [*settings.values(), "pass%2Fword-of-db", "pass/word-of-db", "tr-" + "x" * 43, "trm-" + "y" * 43]
    line = logs.formatter().format(record(" ".join(secrets), error=ValueError(" ".join(secrets))))
    assert [secret for secret in secrets if secret in line] == []
    assert "tr-xxxxx…" in line.replace("\\u2026", "…")


@pytest.fixture
def lines(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Document]]:
    """The lines of calls that the app has written, which is made with LOG_FORMAT=json."""
    settings["LOG_FORMAT"] = "json"
    written: list[Document] = []
    monkeypatch.setattr(call_lines.logs, "write_lines", lambda logger, documents: written.extend(documents))
    return lambda: written


def test_each_call_has_a_line_that_tells_what_the_log_does(
    lines: Callable[[], list[Document]], client: FlaskClient, team: Member
):
    call_id = chat(client, team, stream=True)
    row = db.session.get(RequestLog, call_id)
    assert eventually(lambda: len(lines()) > 0)
    (line,) = lines()
    same = "request_id model endpoint status status_code total_tokens charged_tokens latency_ms first_byte_ms"
    assert [line[name] for name in same.split()] == [getattr(row, name) for name in same.split()]
    assert (line["team"], line["token"], line["message"]) == ("team", team.bearer_token[:8], "ok")
    assert (line["code"], line["cost"], line["repeats"]) == (None, None, 1)


@pytest.mark.both_databases
def test_repeats_of_a_refusal_have_one_line_that_counts_them(
    lines: Callable[[], list[Document]], app: Flask, client: FlaskClient, new_team: Callable[..., Member]
):
    poor = new_team(quota_tokens=0)
    for _ in range(5):
        assert client.post("/v1/chat/completions", json=hello(), headers=poor.headers).status_code == 429
    runtime.of(app).ledger._write_repeats()
    assert eventually(lambda: len(lines()) == 2)
    first, repeated = lines()
    assert (first["repeats"], repeated["repeats"]) == (1, 4)
    assert first["request_id"] == repeated["request_id"]
    assert {line["code"] for line in lines()} == {"insufficient_quota"}


@pytest.mark.both_databases
def test_call_of_a_dead_worker_has_its_line_by_recovery(app: Flask, client: FlaskClient, team: Member):
    told: list[Ending] = []
    listener = SimpleNamespace(take=told.extend, close=lambda timeout_s: None)
    own = runtime.of(app).ledger
    call_id = chat(client, team)
    db.session.execute(db.update(RequestLog).values(status="pending", worker_id=10**6))
    db.session.commit()
    own.endings.listen(listener)
    assert ledger.recover(db.engine, leases(), endings=own.endings) == 1
    (ending,) = told
    assert ending.is_recovered and ending.outcome.status == "interrupted"
    assert ending.request.request_id == db.session.get(RequestLog, call_id).request_id
    assert stored(team).settled_tokens > 0


def test_settlement_that_comes_late_has_its_line(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[Document]], client: FlaskClient, team: Member
):
    monkeypatch.setattr(ledger.worker, "SETTLE_WAIT_S", 0.0)
    chat(client, team)
    chat(client, team)
    assert eventually(lambda: len(lines()) == 2)
    assert len({line["request_id"] for line in lines()}) == 2


def test_log_that_cannot_be_written_stops_no_call(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
):
    settings["LOG_FORMAT"] = "json"

    def fail(*_: object) -> None:
        raise BrokenPipeError("nobody reads")

    monkeypatch.setattr(call_lines.logs, "write_lines", fail)
    client, team = request.getfixturevalue("client"), request.getfixturevalue("team")
    assert client.post("/v1/chat/completions", json=hello(), headers=team.headers).status_code == 200
    said = "The lines of calls cannot be written (BrokenPipeError: nobody reads)"
    assert eventually(lambda: said in caplog.text)


def test_line_of_the_longest_names_is_written_at_once(capfd: pytest.CaptureFixture[str]):
    logs.write_lines("tests", [{"team": "\U0001f600" * 200, "model": "\U0001f600" * 200, "code": "\u2028" * 300}])
    line = capfd.readouterr().out
    assert len(line.encode()) <= logs.MOST_BYTES_AT_ONCE
    assert json.loads(line)["team"] == "\U0001f600" * logs.MOST_CHARACTERS


def test_lines_are_written_in_pieces_of_whole_lines_that_no_pipe_mixes(monkeypatch: pytest.MonkeyPatch):
    pieces: list[bytes] = []
    monkeypatch.setattr(logs.os, "write", lambda output, piece: pieces.append(piece) or len(piece))
    logs.write_lines("tests", [{"number": number, "text": "x" * number} for number in range(0, 3000, 100)])
    assert all(piece.endswith(b"\n") and len(piece) <= logs.MOST_BYTES_AT_ONCE for piece in pieces)
    assert [json.loads(line)["number"] for line in b"".join(pieces).splitlines()] == list(range(0, 3000, 100))
    assert len(pieces) < 30


@pytest.mark.slow
def test_service_writes_json_alone_with_a_line_a_call_and_no_secret(
    settings: dict[str, str], tmp_path: Path, provider: StandInProvider
):
    settings |= {"LOG_FORMAT": "json", "METRICS_TOKEN": "token-for-metrics"}
    with running_server(settings, tmp_path) as server:
        token = server.create_team(NAME.replace("\u2028", " "))
        ids = {call(server, token, hello(f"n={number}")) for number in range(20)}
        ids |= {call(server, token, hello("status=401")), call(server, token, hello(model="No such model"))}
        call(server, "tr-" + "z" * 43, hello())
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: server.log.read_text().count("Booting worker") >= 4)
        with ThreadPoolExecutor(8) as pool:  # of both workers, and the last of them just before the end
            ids |= set(pool.map(lambda number: call(server, token, hello(f"n={number}")), range(40)))
    text = server.log.read_text()
    documents = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "process", "logger", "message"} <= set(document) for document in documents)
    calls = [document for document in documents if document["logger"] == call_lines.LOGGER]
    assert sorted(call["request_id"] for call in calls) == sorted(ids)
    assert "Hello!" not in text
    secret = [PROVIDER_KEY, token, "z" * 43, *(settings[name] for name in ("SECRET_KEY", "ADMIN_PASSWORD"))]
    assert [each for each in secret if each in text] == []


def call(server: Server, token: str, body: Document) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    return requests.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60).headers[
        "x-request-id"
    ]

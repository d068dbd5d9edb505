"""Alerts in the panel and by commands: what was told and to whom, what did not arrive, and whether any would."""

import json
import re
from collections.abc import Iterator

import pytest
import rivals
from adminclient import Panel
from conftest import TESTER, Member
from flask import Flask
from flask.testing import FlaskCliRunner
from markupsafe import Markup
from receiver import Receiver, running_receiver
from sqlalchemy import insert

from tokenrouter import alerts, runtime, teams
from tokenrouter.admin.formats import with_code
from tokenrouter.alerts.kinds import Kind
from tokenrouter.alerts.outbox import begin
from tokenrouter.changes import page as changes_page
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Delivery, db

PAGE = "/admin/alerts/"
COUNT = re.compile(r'nav-count">([\d,]+)<')


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


def tell(kind: Kind = Kind.ACCOUNT_EMPTY, once: str = "x") -> None:
    details = {"name": "<b>nine</b>", "day": "2026-12-01", "renews_at": None}
    assert begin(db.engine, kind, once, details, team_id=1 if kind is Kind.RUNS_OUT else None)


def count(panel: Panel) -> str:
    found = COUNT.search(panel.get("/admin/teams/").text)
    return found[1] if found else ""


def test_those_not_seen_are_counted_on_every_page_until_they_are(panel: Panel, team: Member):
    assert "No alerts yet" in panel.get(PAGE).text
    for number in range(3):
        tell(Kind.RUNS_OUT, once=str(number))
    assert count(panel) == "3"
    page = panel.get(PAGE).text
    assert (
        "The team “\u2068&lt;b&gt;nine&lt;/b&gt;\u2069” will soon have used up its limit" in page
        and "shown here only" in page
    )
    panel.post(f"{PAGE}seen", {"id": "1", "url": PAGE})
    assert count(panel) == "2"
    panel.post(f"{PAGE}seen", {"up_to": "2", "url": PAGE})  # the third came after the page was shown
    assert count(panel) == "1"
    panel.post(f"{PAGE}seen", {"up_to": "3", "url": PAGE})
    assert count(panel) == "" and "All were seen" in panel.get(f"{PAGE}?show=unseen").text


def test_commands_in_sentences_look_like_commands():
    assert with_code("<b> `flask setup` `<i>`") == "&lt;b&gt; <code>flask setup</code> <code>&lt;i&gt;</code>"
    assert with_code(Markup("<bdi>a`</bdi>, <bdi>`b</bdi>")) == "<bdi>a`</bdi>, <bdi>`b</bdi>"


def test_seen_takes_no_other_for_an_answer(panel: Panel):
    tell()
    panel.post(f"{PAGE}seen", {"url": "https://evil.example/"})
    assert count(panel) == "1"
    assert panel.get(f"{PAGE}seen").status_code == 405


def test_failure_of_a_delivery_is_shown_with_its_reason_and_the_next_attempt(
    app: Flask, panel: Panel, receiver: Receiver
):
    tell()
    receiver.answers = [(503, {})]
    rivals.sender_to(receiver.url, db.engine).deliver_due()
    page = panel.get(PAGE).text
    assert "1 attempt failed, next <time" in page and "127.0.0.1 answered 503: no" in page
    told = {"alert_id": 1, "says": "begun", "channel": "mail", "address": "a@b.org", "state": "given_up"}
    with writing(db.engine) as connection:
        connection.execute(insert(Delivery).values(**told, created_at=0, due_at=0, attempts=30, answer="<gone>"))
    assert "given up after 30 attempts <small>&lt;gone&gt;</small>" in panel.get(PAGE).text
    assert alerts.undelivered(db.engine).deliveries == 1  # that of 1970 is long over


def test_test_button_shows_the_answer(app: Flask, panel: Panel, receiver: Receiver):
    assert "set ALERT_WEBHOOK_URL and restart" in panel.get(PAGE).text
    runtime.current().sender.receivers = rivals.sender_to(receiver.url, db.engine).receivers
    assert "Test the webhook" in panel.get(PAGE).text and "/hook/secret" not in panel.get(PAGE).text
    panel.post(f"{PAGE}test", {"channel": "webhook"})
    assert panel.messages(PAGE) == "Delivered: 127.0.0.1 answered 200: thanks."
    receiver.answers = [(404, {})]
    panel.post(f"{PAGE}test", {"channel": "webhook"})
    assert panel.messages(PAGE) == "Not delivered: 127.0.0.1 answered 404: no."
    assert receiver.texts[0] == "TokenRouter: A test of TokenRouter’s alerts. Nothing has happened."


def test_commands_list_and_test(app: Flask, runner: FlaskCliRunner, receiver: Receiver):
    assert runner.invoke(args=["alerts", "list"]).output == "There are no alerts.\n"
    assert "Alerts go nowhere" in runner.invoke(args=["alerts", "test"]).output
    tell()
    runtime.current().sender.receivers = rivals.sender_to(receiver.url, db.engine).receivers
    runtime.current().sender = alerts.Sender(db.engine, runtime.current().sender.receivers)
    runtime.current().sender.deliver_due()
    (view,) = json.loads(runner.invoke(args=["alerts", "list", "--json"]).output)
    assert view["text"].startswith("The provider’s account is empty.") and view["ended_at"] is None
    assert (view["deliveries"][0]["channel"], view["deliveries"][0]["result"]) == ("webhook", "delivered")
    assert "webhook delivered" in runner.invoke(args=["alerts", "list"]).output
    assert runner.invoke(args=["alerts", "test"]).output == "webhook: delivered. 127.0.0.1 answered 200: thanks\n"
    receiver.answers = [(500, {})]
    failed = runner.invoke(args=["alerts", "test", "--json"])
    assert failed.exit_code == 1 and json.loads(failed.output)[0]["delivered"] is False


def test_secret_is_that_of_the_secret_key(app: Flask, runner: FlaskCliRunner):
    assert runner.invoke(args=["alerts", "secret"]).output == f"{alerts.secret_from('secret-key-for-tests')}\n"


def test_mail_address_of_a_team_is_set_by_command_and_form_and_taken_back(
    panel: Panel, runner: FlaskCliRunner, team: Member
):
    assert runner.invoke(args=["teams", "update", "team", "--mail", "nine@school.example"]).exit_code == 0
    assert "nine@school.example" in panel.get("/admin/teams/1/").text
    change = changes_page(limit=1).rows[0]
    assert (change.before, change.after) == ({}, {"mail": "nine@school.example"})
    assert "is not a mail address" in runner.invoke(args=["teams", "update", "team", "--mail", "a@b\nBcc: x"]).output
    teams.undo([change.id], by=TESTER)
    assert teams.find("team").mail is None
    assert runner.invoke(args=["teams", "create", "ten", "--mail", "ten@school.example"]).exit_code == 0
    assert teams.find("ten").mail == "ten@school.example"
    runner.invoke(args=["teams", "update", "ten", "--mail", "none"])
    assert teams.find("ten").mail is None
    fields = re.findall(r'name="(was_)?(\w+)" value="([^"]*)"', panel.get("/admin/teams/1/edit/").text)
    form = {was + name: value for was, name, value in fields if name != "csrf_token"}
    form |= {"renews": "never", "group": "", "active": "y"}
    assert panel.post("/admin/teams/1/edit/", form | {"mail": "new@school.example"}).status_code == 302
    assert teams.find("team").mail == "new@school.example"
    assert "is not a mail address" in panel.post("/admin/teams/new/", {"name": "x", "mail": "nobody"}).text

"""Alerts reach their receivers: within seconds, once, signed, and after a day of failures no more."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rivals
import standardwebhooks
import warm
from aiosmtpd.controller import Controller
from conftest import TESTER, Member, eventually, free_port, hello, running_server
from flask import Flask
from receiver import Inbox, Receiver, running_receiver
from serving import post
from sqlalchemy import select, update

from tokenrouter import alerts, teams
from tokenrouter.alerts import Answer, Sender, secret_from
from tokenrouter.alerts.delivery import TRIED_S, claim, pause_after, record
from tokenrouter.alerts.kinds import Kind
from tokenrouter.alerts.outbox import begin, end
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Alert, Delivery, db

pytestmark = pytest.mark.both_databases


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def sender(app: Flask, receiver: Receiver) -> Sender:
    return rivals.sender_to(receiver.url, db.engine)


def deliveries() -> list[Any]:
    with db.engine.connect() as connection:
        return list(connection.execute(select(Delivery.__table__).order_by(Delivery.id)))


def states() -> list[str]:
    return [each.state for each in deliveries()]


def pass_time(seconds: float) -> None:
    """Let it be so much later."""
    earlier = {"created_at": Delivery.created_at - seconds, "due_at": Delivery.due_at - seconds}
    with writing(db.engine) as connection:
        connection.execute(update(Delivery).values(earlier))


def tell_of_empty_account() -> None:
    assert begin(db.engine, Kind.ACCOUNT_EMPTY, Kind.ACCOUNT_EMPTY, {})


def test_crossing_is_posted_once_as_text_and_facts(
    receiver: Receiver, sender: Sender, new_team: Callable[..., Member], database_url: str
):
    new_team("nine", quota_tokens=1_000)
    own = rivals.call_request("req_1", 1)
    book = rivals.Ledger(db.engine, 100)
    book.settle(book.reserve(own), rivals.Outcome(status="ok", status_code=200, charged_tokens=960))
    book.close()
    for _ in range(2):
        sender.deliver_due()
    assert receiver.texts == ["TokenRouter: The team “nine” has used 95 % of its quota. 960 of 1,000 tokens."]
    alert = receiver.document()["alert"]
    assert (alert["kind"], alert["state"], alert["percent"], alert["team_id"]) == ("quota", "begun", 95, 1)
    assert states() == ["delivered"] and deliveries()[0].answer == "127.0.0.1 answered 200: thanks"


def test_receivers_library_verifies_the_signature(receiver: Receiver, sender: Sender):
    tell_of_empty_account()
    sender.deliver_due()
    headers, body = receiver.came[0]
    known = standardwebhooks.Webhook(secret_from("key of the tests"))
    assert known.verify(body.decode(), headers)["alert"]["kind"] == "account_empty"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        known.verify(body.decode() + " ", headers)


def test_episode_is_told_once_then_that_it_is_over_and_then_anew(receiver: Receiver, sender: Sender):
    tell_of_empty_account()
    assert not begin(db.engine, Kind.ACCOUNT_EMPTY, Kind.ACCOUNT_EMPTY, {})
    sender.deliver_due()
    end(db.engine, Kind.ACCOUNT_EMPTY)
    sender.deliver_due()
    tell_of_empty_account()
    sender.deliver_due()
    assert [text.split(": ", 1)[1].split(".")[0] for text in receiver.texts] == [
        "The provider’s account is empty",
        "Over: the provider’s account is empty",
        "The provider’s account is empty",
    ]
    assert receiver.ids[1] == f"{receiver.ids[0]}-over" and receiver.ids[2] != receiver.ids[0]


def test_end_waits_until_the_beginning_was_told(receiver: Receiver, sender: Sender):
    receiver.answers = [(500, {})]
    tell_of_empty_account()
    end(db.engine, Kind.ACCOUNT_EMPTY)
    sender.deliver_due()
    assert len(receiver.came) == 1
    pass_time(60)
    sender.deliver_due()
    assert [receiver.document(number)["alert"]["state"] for number in range(3)] == ["begun", "begun", "over"]


def test_failures_are_tried_again_with_growing_pauses_for_a_day(receiver: Receiver, sender: Sender):
    receiver.answers = [(500, {})] * 100
    tell_of_empty_account()
    sender.deliver_due()
    attempts, passed = 1, 0.0
    while states() == ["waiting"]:
        pause = pause_after(attempts)
        pass_time(pause - 2)
        sender.deliver_due()
        assert len(receiver.came) == attempts
        pass_time(2)
        sender.deliver_due()
        attempts, passed = attempts + 1, passed + pause
    assert states() == ["given_up"] and len(set(receiver.ids)) == 1
    assert TRIED_S - 3600 < passed <= TRIED_S and 20 < attempts < 40
    assert deliveries()[0].answer == "127.0.0.1 answered 500: no"


def test_redirect_is_not_followed(receiver: Receiver, sender: Sender):
    receiver.answers = [(307, {"Location": "http://169.254.169.254/latest/meta-data/"})]
    tell_of_empty_account()
    sender.deliver_due()
    assert deliveries()[0].answer == "127.0.0.1 answered 307, a redirect, which is not followed"
    assert states() == ["waiting"]


@pytest.mark.sqlite_only
def test_receiver_that_spins_its_answer_out_is_cut_off(
    receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tokenrouter.alerts.webhook.WHOLE_S", 0.2)
    receiver.meanwhile = lambda: eventually(lambda: False, 1)
    tell_of_empty_account()
    sender.deliver_due()
    assert deliveries()[0].answer.startswith("127.0.0.1 gave no answer")


def test_claim_that_ran_out_is_another_ones_and_its_answer_comes_too_late(sender: Sender, receiver: Receiver):
    tell_of_empty_account()
    alerts.delivery.hand_out(db.engine, sender.receivers)
    first = claim(db.engine)
    assert claim(db.engine) is None
    pass_time(600)
    second = claim(db.engine)
    record(db.engine, first, Answer(False, "too late"))
    record(db.engine, second, Answer(True, "taken"))
    record(db.engine, first, Answer(False, "much too late"))
    assert [(each.state, each.answer) for each in deliveries()] == [("delivered", "taken")]


@pytest.mark.slow
def test_of_many_workers_one_delivers_each(receiver: Receiver, sender: Sender, database_url: str):
    for number in range(6):
        begin(db.engine, Kind.BOOKS, f"books {number}", {"problems": ["a", "b"], "count": 7})
    context = warm.server()
    workers = [context.Process(target=rivals.deliver_alerts, args=(database_url, receiver.url)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert states() == ["delivered"] * 6 and len(set(receiver.ids)) == len(receiver.ids) == 6


@pytest.mark.slow
def test_worker_that_is_killed_while_it_sends_leaves_at_most_one_repeat_by_the_same_id(
    receiver: Receiver, sender: Sender, database_url: str
):
    tell_of_empty_account()
    worker = warm.server().Process(target=rivals.deliver_alerts, args=(database_url, receiver.url))
    receiver.meanwhile = lambda: worker.kill()
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    receiver.meanwhile = lambda: None
    sender.deliver_due()
    assert len(receiver.came) == 1
    pass_time(600)
    for _ in range(2):
        sender.deliver_due()
    assert len(receiver.came) == 2 and len(set(receiver.ids)) == 1 and states() == ["delivered"]


def test_name_that_somebody_chose_calls_nobody_and_leads_nowhere(
    receiver: Receiver, sender: Sender, new_team: Callable[..., Member]
):
    name = "<!channel> @all [free](http://evil.example) <http://x|y>"
    member = new_team(name)
    begin(db.engine, Kind.RUNS_OUT, "x", {"name": name, "day": "2026-12-01", "renews_at": None}, team_id=member.team.id)
    sender.deliver_due()
    text = receiver.texts[0]
    assert not {"<", ">", "@a", "[", "]", "://"} & {text[i : i + n] for i in range(len(text)) for n in (1, 2, 3)}
    assert receiver.document()["alert"]["details"]["name"] == name


def test_alerts_without_receivers_are_only_shown(app: Flask):
    tell_of_empty_account()
    Sender(db.engine, alerts.Receivers(None, None, ("a@b.org",))).deliver_due()
    with db.engine.connect() as connection:
        assert connection.execute(select(Alert.to_hand_out)).scalars().all() == [None]
    assert states() == []


def test_teams_own_address_gets_what_is_of_the_team(app: Flask, new_team: Callable[..., Member]):
    new_team("nine")
    teams.update("nine", mail="nine@school.example", by=TESTER)
    receivers = alerts.Receivers(None, object(), ("admin@school.example",))
    begin(db.engine, Kind.RUNS_OUT, "x", {"name": "nine", "day": "2026-12-01", "renews_at": None}, team_id=1)
    tell_of_empty_account()
    alerts.delivery.hand_out(db.engine, receivers)
    found = sorted((each.alert_id, each.address) for each in deliveries())
    assert found == [(1, "admin@school.example"), (1, "nine@school.example"), (2, "admin@school.example")]


@pytest.mark.slow
def test_service_tells_within_seconds_once_and_posts_nothing_to_its_own_machine(
    app: Flask, settings: dict[str, str], tmp_path: Any, receiver: Receiver
):
    inbox = Inbox()
    mails = Controller(inbox, hostname="127.0.0.1", port=free_port())
    mails.start()
    settings |= {
        "ALERT_WEBHOOK_URL": receiver.url,
        "SMTP_URL": f"smtp://127.0.0.1:{mails.port}?from=router@school.example",
        "ALERT_MAIL_TO": "admin@school.example",
    }
    with running_server(settings, tmp_path) as server:
        token = server.create_team(quota_tokens=100)
        assert post(server, token, hello("prompt_tokens=50 words=45")).status_code == 200
        assert eventually(lambda: inbox.mails != [] and len(deliveries()) == 2, 20)
        assert eventually(lambda: all(each.answer for each in deliveries()), 20)
    mails.stop()
    assert [mail["Subject"] for mail in inbox.mails] == ["TokenRouter: The team “team” has used 95 % of its quota"]
    assert receiver.came == []
    assert sorted((each.channel, each.state) for each in deliveries()) == [
        ("mail", "delivered"),
        ("webhook", "waiting"),
    ]
    assert "its address 127.0.0.1 is refused" in next(each.answer for each in deliveries() if each.channel == "webhook")

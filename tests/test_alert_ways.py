"""Where alerts may go and how: addresses that are refused, certificates, and a real server of mails."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email import message_from_bytes, policy
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from conftest import free_port
from receiver import Inbox, Receiver, running_receiver
from unreachable import greeting

from tokenrouter.alerts import AlertRecord, Mail, Message, Speaker, Webhook, secret_from
from tokenrouter.alerts import mail as mails
from tokenrouter.alerts import webhook as webhooks
from tokenrouter.alerts.kinds import Kind, trial_alert
from tokenrouter.alerts.network import is_allowed
from tokenrouter.config import SmtpServer
from tokenrouter.ledger.crossings import BEGUN

SPEAKER = Speaker(ZoneInfo("Europe/Berlin"), "EUR")
EMPTY = Message(replace(trial_alert("uid-1"), kind=Kind.ACCOUNT_EMPTY))


def webhook(url: str, check: Callable[[Any], bool] = is_allowed) -> Webhook:
    return Webhook(url, lambda: secret_from("key"), SPEAKER, check)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1"),
        *("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
        *("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "2001:0:4136:e378:8000:63bf:80ff:fffe"),
    ],
)
def test_address_of_this_machine_its_link_or_metadata_is_refused(address: str):
    assert not is_allowed(ipaddress.ip_address(address))


def test_address_by_which_others_reach_this_machine_is_refused():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("This machine has no network.")
        assert not is_allowed(ipaddress.ip_address(probe.getsockname()[0]))


@pytest.mark.parametrize(
    "address", ["10.0.0.7", "192.168.1.1", "172.16.0.1", "fd12::1", "93.184.216.34", "2606:4700::1", "64:ff9b::808:808"]
)
def test_address_in_the_house_or_elsewhere_is_allowed(address: str):
    assert is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]"],
)
def test_no_way_to_write_an_address_of_this_machine_is_posted_to(host: str, receiver: Receiver):
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    answer = webhook(f"http://{host}:{port}/").send(EMPTY)
    assert not answer.is_taken and ("is refused" in answer.words or "is not found" in answer.words)
    assert receiver.came == []


def test_name_is_looked_up_once_and_no_proxy_of_the_environment_is_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    real, looked_up = socket.getaddrinfo, []

    def rebind(host: str, *arguments: Any, **options: Any) -> Any:
        looked_up.append(host)
        return real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    assert webhook(f"http://hooks.example:{port}/a?b=c", lambda address: True).send(EMPTY).is_taken
    assert looked_up[0] == "hooks.example" and set(looked_up[1:]) <= {"127.0.0.1"}
    assert receiver.came[0][0]["host"] == f"hooks.example:{port}"


def test_certificate_has_to_be_that_of_the_host(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setattr(webhooks.certifi, "where", lambda: str(tmp_path / "ca.pem"))
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **options: real("127.0.0.1", *rest, **options))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(context)
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    assert webhook(f"https://hooks.example:{port}/", lambda address: True).send(EMPTY).is_taken
    refused = webhook(f"https://other.example:{port}/", lambda address: True).send(EMPTY)
    assert not refused.is_taken and "doesn't match" in refused.words


def test_receiver_that_is_not_there_is_told_without_the_secret_of_its_url():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    answer = webhook(f"http://127.0.0.1:{port}/services/hunter2", lambda address: True).send(EMPTY)
    assert not answer.is_taken and "cannot be reached" in answer.words and "hunter2" not in answer.words


def test_teams_of_microsoft_gets_a_card():
    document = webhook("https://prod-1.westeurope.logic.azure.com/workflows/x").document(EMPTY)
    assert document["attachments"][0]["content"]["body"][0]["text"] == document["text"]
    assert "attachments" not in webhook("https://hooks.slack.com/x").document(EMPTY)


def signs_in(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(handled=False, success=data.login == b"me" and data.password == b"p/w d")


@pytest.fixture
def authority(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


@pytest.fixture
def smtp(authority: trustme.CA) -> Iterator[tuple[Inbox, SmtpServer]]:
    """A server that offers TLS, and takes what a user brings who signs in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    inbox = Inbox()

    class Offering(Controller):
        def factory(self) -> SMTP:
            return SMTP(inbox, tls_context=context, require_starttls=True, authenticator=signs_in, auth_required=True)

    controller = Offering(inbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    port = controller.port
    yield inbox, SmtpServer("127.0.0.1", port, False, "me", "p/w d", "router@school.example")
    controller.stop()


def test_mail_is_sent_over_tls_by_whoever_signs_in(smtp: tuple[Inbox, SmtpServer]):
    inbox, server = smtp
    answer = Mail(server, SPEAKER).send(EMPTY, "admin@school.example")
    assert answer.is_taken, answer.words
    (mail,) = inbox.mails
    assert mail["Subject"] == "TokenRouter: The provider’s account is empty" and mail["To"] == "admin@school.example"
    assert mail["Message-ID"] == "<uid-1@tokenrouter.school.example>" and mail["Auto-Submitted"] == "auto-generated"
    assert mail.get_content().startswith("The provider’s account is empty. Calls of all teams are refused")
    assert inbox.session.ssl is not None


@pytest.mark.parametrize(
    ("changed", "address", "words"),
    [
        ({"password": "wrong"}, "a@b.org", "answered 535"),
        ({}, "nobody@b.org", "refused nobody@b.org: 550: 5.1.1 There is nobody of that name"),
        ({"host": "localhost"}, "a@b.org", "took no mail"),  # its certificate is of another name
    ],
)
def test_refusal_of_the_server_is_told(
    smtp: tuple[Inbox, SmtpServer], changed: dict[str, str], address: str, words: str
):
    answer = Mail(replace(smtp[1], **changed), SPEAKER).send(EMPTY, address)
    assert not answer.is_taken and words in answer.words and "wrong" not in answer.words
    assert smtp[0].mails == []


def test_password_is_not_sent_to_a_server_without_tls():
    inbox = Inbox()
    controller = Controller(inbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    server = SmtpServer("127.0.0.1", controller.port, False, "me", "p", "a@b.org")
    assert "without which the password is not sent" in Mail(server, SPEAKER).send(EMPTY, "c@d.org").words
    assert Mail(replace(server, user=""), SPEAKER).send(EMPTY, "c@d.org").is_taken
    controller.stop()


def test_no_name_begins_a_header_of_its_own():
    server = SmtpServer("h", 25, False, "", "", "a@b.org")
    details = {"name": "x\r\nBcc: all@school.example\r\n\r\nbody\u2028\x00", "day": "2026-12-01", "renews_at": None}
    alert = AlertRecord("uid", Kind.RUNS_OUT, EMPTY.alert.at, details, team_id=1)
    mail = Mail(server, SPEAKER).mail(Message(alert, BEGUN), "c@d.org")
    read = message_from_bytes(mail.as_bytes(), policy=policy.default)
    assert read["Bcc"] is None and read.get_payload(decode=True).count(b"Bcc") == 1
    assert "\n" not in read["Subject"]


GREETINGS = {"tls": b"\x16\x03\x03\x40\x00", "plain": b"220-"}  # of a record of TLS as long as it may be, and of a line


@pytest.mark.parametrize("way", ["https", "smtps", "smtp"])
def test_receiver_that_spins_its_greeting_out_is_cut_off(way: str, monkeypatch: pytest.MonkeyPatch):
    def trickle(connection: socket.socket) -> None:
        connection.sendall(GREETINGS["plain" if way == "smtp" else "tls"])
        for _ in range(250):
            time.sleep(0.02)
            connection.sendall(b"a")

    monkeypatch.setattr(webhooks, "WHOLE_S", 0.3)
    monkeypatch.setattr(mails, "WHOLE_S", 0.3)
    began = time.monotonic()
    with greeting(trickle) as port:
        server = SmtpServer("127.0.0.1", port, way == "smtps", "", "", "a@b.org")
        sender = (
            Mail(server, SPEAKER) if way != "https" else webhook(f"https://127.0.0.1:{port}/", lambda address: True)
        )
        assert not sender.send(EMPTY, "c@d.org").is_taken
    assert time.monotonic() - began < 4

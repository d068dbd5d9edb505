"""Send an alert as a mail."""

import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from tokenrouter.alerts.deadline import Deadline, deadline
from tokenrouter.alerts.kinds import Speaker
from tokenrouter.alerts.message import Answer, Message
from tokenrouter.config import SmtpServer

TIMEOUT_S, WHOLE_S = 10.0, 60.0
FOOT = "\n\n-- \nSent by TokenRouter, where the panel has the same under “Alerts”.\n"


class PasswordInClear(OSError):
    """The server only takes the password over an unencrypted connection."""


class Mail:
    """The server that SMTP_URL names."""

    def __init__(self, server: SmtpServer, speaker: Speaker) -> None:
        self.server = server
        self._speaker = speaker

    def send(self, message: Message, address: str) -> Answer:
        """Mail it to an address."""
        try:
            with _connected(self.server) as smtp:
                smtp.send_message(self.mail(message, address))
        except smtplib.SMTPRecipientsRefused as error:
            return Answer(False, f"{self.server.host} refused {address}: {_said(*error.recipients[address])}")
        except smtplib.SMTPResponseException as error:
            return Answer(False, f"{self.server.host} answered {_said(error.smtp_code, error.smtp_error)}")
        except (OSError, smtplib.SMTPException, UnicodeError) as error:
            words = " ".join(str(getattr(error, "strerror", None) or error).split())
            return Answer(False, f"{self.server.host} took no mail: {words}")
        return Answer(True, f"{self.server.host} took it for {address}")

    def mail(self, message: Message, address: str) -> EmailMessage:
        """Compose the mail. No name in it can inject a header."""
        words = self._speaker.words(message.alert, message.says)
        mail = EmailMessage()
        mail["Subject"] = f"TokenRouter: {_one_line(words.title)}"
        mail["From"], mail["To"] = self.server.sender, address
        at = message.alert.at if message.alert.ended_at is None else message.alert.ended_at
        mail["Date"] = format_datetime(at)
        mail["Message-ID"] = f"<{message.id}@tokenrouter.{self.server.sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"  # stops out-of-office replies: RFC 3834
        mail.set_content(f"{_one_line(str(words))}{FOOT}")
        return mail


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)


@contextmanager
def _connected(server: SmtpServer) -> Iterator[smtplib.SMTP]:
    """Connect, over TLS if the server offers it, and sign in if a password is set."""
    context = ssl.create_default_context()
    with deadline(WHOLE_S) as until, _greeted(server, context, until) as smtp:
        smtp.ehlo_or_helo_if_needed()
        if not server.is_tls and smtp.has_extn("starttls"):
            smtp.starttls(context=context)
            smtp.ehlo()
        if server.user:
            if not isinstance(smtp.sock, ssl.SSLSocket):
                raise PasswordInClear("it offers no TLS, without which the password is not sent")
            smtp.login(server.user, server.password)
        yield smtp


def _greeted(server: SmtpServer, context: ssl.SSLContext, until: Deadline) -> smtplib.SMTP:
    """Connect, and wait for the server's greeting, however slowly it comes, until the deadline alone."""

    class Connection(smtplib.SMTP):
        def _get_socket(self, *where: Any) -> socket.socket:
            return until.hold(super()._get_socket(*where))  # type: ignore[misc]  # which SMTP_SSL calls likewise

    class TlsConnection(smtplib.SMTP_SSL, Connection):
        pass

    if server.is_tls:
        return TlsConnection(server.host, server.port, timeout=TIMEOUT_S, context=context)
    return Connection(server.host, server.port, timeout=TIMEOUT_S)


def _said(code: int, text: bytes | str) -> str:
    return f"{code}: {text.decode(errors='replace') if isinstance(text, bytes) else text}"

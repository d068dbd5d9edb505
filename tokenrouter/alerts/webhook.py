"""Post an alert as JSON, signed, to the one address that was checked.

Source of ids and signature: Standard Webhooks 1.0, "Signature scheme".
"""

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import SplitResult, urlsplit

import certifi
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError

from tokenrouter.alerts.deadline import Deadline, deadline
from tokenrouter.alerts.kinds import Speaker
from tokenrouter.alerts.message import Answer, Message
from tokenrouter.alerts.network import AddressRefused, Check, is_allowed, resolve

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, WHOLE_S = 5.0, 10.0, 20.0
MOST_ADDRESSES = 4
MOST_ANSWER_BYTES = 2048
PORTS = {"http": 80, "https": 443}
TEAMS_HOSTS = (".logic.azure.com", ".powerplatform.com")
"""Where Microsoft Teams takes webhooks: it shows cards alone."""
HARMLESS = str.maketrans({"<": "‹", ">": "›", "@": "@\u200b", "[": "［", "]": "］", "`": "ˋ"})


class Webhook:
    """The receiver that ALERT_WEBHOOK_URL names."""

    def __init__(self, url: str, find_secret: Callable[[], str], speaker: Speaker, check: Check = is_allowed) -> None:
        """`find_secret` returns the secret that receivers have; `check` tells which addresses are allowed."""
        self._parts = urlsplit(url)
        self._find_secret = find_secret
        self._speaker = replace(speaker, name=harmless)
        self._check = check

    @property
    def host(self) -> str:
        """The host only: some services put a secret into the rest of the URL."""
        return self._parts.hostname or ""

    def send(self, message: Message, address: str = "") -> Answer:
        """Post it; any status but 2xx is a failure."""
        body = json.dumps(self.document(message), ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "TokenRouter", "Host": self._parts.netloc}
        headers |= signature(self._find_secret(), message.id, body)
        port = self._parts.port or PORTS[self._parts.scheme]
        try:
            addresses = resolve(self.host, port, self._check)[:MOST_ADDRESSES]
            return self._post_to_first(addresses, port, body, headers)
        except AddressRefused as error:
            return Answer(False, f"{self.host} was not asked: {error}")
        except (OSError, UnicodeError) as error:  # no name that could be looked up is the latter
            return Answer(False, f"{self.host} is not found: {getattr(error, 'strerror', None) or error}")

    def document(self, message: Message) -> dict[str, Any]:
        """Return the body to post; for Microsoft Teams, the text on a card."""
        document = message.document(self._speaker)
        if not self.host.endswith(TEAMS_HOSTS):
            return document
        text = {"type": "TextBlock", "text": document["text"], "wrap": True}
        card = {"type": "AdaptiveCard", "version": "1.4", "body": [text]}
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return {"type": "message", "attachments": [attachment], **document}

    def _post_to_first(self, addresses: list[str], port: int, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post to the first address that accepts a connection."""
        refused = ""
        for address in addresses:
            with deadline(WHOLE_S) as until:
                connection = _connection(self._parts, address, port, until)
                try:
                    connection.connect()
                except (HTTPError, OSError, ValueError) as error:  # ValueError: a certificate for another name
                    refused = f"{self.host} cannot be reached: {_cause(error)}"
                    continue
                return self._post(connection, body, headers)
        return Answer(False, refused)

    def _post(self, connection: HTTPConnection, body: bytes, headers: Mapping[str, str]) -> Answer:
        target = self._parts._replace(scheme="", netloc="", path=self._parts.path or "/").geturl()
        try:
            connection.timeout = READ_TIMEOUT_S
            connection.sock.settimeout(READ_TIMEOUT_S)
            connection.request("POST", target, body=body, headers=headers, preload_content=False)
            return _answer_of(self.host, connection.getresponse())
        except (HTTPError, OSError, ValueError) as error:
            return Answer(False, f"{self.host} gave no answer: {_cause(error)}")
        finally:
            connection.close()


class _Connection(HTTPConnection):
    """A connection with a deadline."""

    until: Deadline

    def _new_conn(self) -> socket.socket:
        return self.until.hold(super()._new_conn())


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


def _connection(parts: SplitResult, address: str, port: int, until: Deadline) -> HTTPConnection:
    """Return a connection to an address, over TLS with the certificate of the host, not begun yet."""
    host, connection = parts.hostname, _Connection(address, port, timeout=CONNECT_TIMEOUT_S)
    if parts.scheme == "https":
        connection = _TlsConnection(
            address,
            port,
            timeout=CONNECT_TIMEOUT_S,
            server_hostname=host,
            assert_hostname=host,
            ca_certs=certifi.where(),
        )
    connection.until = until
    return connection


def _answer_of(host: str, response: BaseHTTPResponse) -> Answer:
    said = response.read(MOST_ANSWER_BYTES, decode_content=False).decode(errors="replace").strip()
    words = f"{host} answered {response.status}" + (f": {said}" if said else "")
    if 300 <= response.status < 400:
        return Answer(False, f"{host} answered {response.status}, a redirect, which is not followed")
    return Answer(200 <= response.status < 300, words)


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return "it took too long"
    if isinstance(error, NameResolutionError):
        return "its name is not known"
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def signature(secret: str, message_id: str, body: bytes) -> dict[str, str]:
    """Return the headers that identify a message and prove that it is ours."""
    key, now = base64.b64decode(secret.removeprefix("whsec_")), str(int(time.time()))
    digest = hmac.digest(key, b".".join((message_id.encode(), now.encode(), body)), "sha256")
    signed = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": message_id, "webhook-timestamp": now, "webhook-signature": signed}


def secret_from(secret_key: str) -> str:
    """Return the secret for signatures, derived from the one that signs sessions."""
    digest = hmac.digest(secret_key.encode(), b"tokenrouter alert webhook", hashlib.sha256)
    return f"whsec_{base64.b64encode(digest).decode()}"


def harmless(name: str) -> str:
    """Return a name, which a stranger may have chosen, so that no chat program makes it a link or a mention."""
    return name.translate(HARMLESS).replace("://", ":\u200b//")

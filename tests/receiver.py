"""Receivers of alerts on this machine: of webhooks, which may be slow, wrong or elsewhere, and of mails."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What came, and how it is answered."""

    url: str = ""
    server: Any = None
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Statuses and headers, one for each request; then it is 200."""
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None
    """What is done before a request is answered."""

    @property
    def texts(self) -> list[str]:
        """What a chat program would show."""
        return [self.document(number)["text"] for number in range(len(self.came))]

    @property
    def ids(self) -> list[str]:
        """Under which ids messages came."""
        return [headers["webhook-id"] for headers, _ in self.came]

    def document(self, number: int = -1) -> dict[str, Any]:
        """Return what was posted."""
        return json.loads(self.came[number][1])


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Run a receiver of webhooks."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
            receiver.meanwhile()
            status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            with suppress(BrokenPipeError):  # of whoever waited no longer
                self.end_headers()
                self.wfile.write(b"thanks" if status == 200 else b"no\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        receiver.server = server
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook/secret"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


class Inbox:
    """What a server of mails was given; it may refuse a receiver."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address.startswith("nobody"):
            return "550 5.1.1 There is nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        self.session = session
        return "250 OK"

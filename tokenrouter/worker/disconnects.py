"""Clients who wait for an answer of the provider: notice who leaves, and end all calls when the worker ends."""

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from tokenrouter.database.log_status import CLIENT_CLOSED, INTERRUPTED
from tokenrouter.errors import APIError

logger = logging.getLogger(__name__)

SWEEP_S = 0.25
LEFT_CALL_S = 2.0  # how long a call goes on after its client left: its end and its usage may be near
# Not POLLIN: bytes of a further request, sent ahead, say nothing about leaving. Only Linux can tell a half-closed
# connection from an open one (POLLRDHUP).
HAS_LEFT = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class CallEnded(APIError):
    """A call was ended from outside while the provider worked on it; `log_status` is its status in the log."""

    log_status: str
    words: str

    def __init__(self) -> None:
        super().__init__(self.words)


class ClientLeft(CallEnded):
    """The caller closed its connection; nobody is likely to read this."""

    status = 499
    log_status = CLIENT_CLOSED
    turned_away_as = "left_waiting"
    words = "The connection was closed before the answer was complete."


class Restarting(CallEnded):
    """The worker has to end, and cannot wait for the call any longer."""

    status = 503
    log_status = INTERRUPTED
    turned_away_as = "restarting"
    headers = {"Retry-After": "1"}
    words = "TokenRouter is being restarted and could not wait for the end of this answer."


@dataclass(eq=False, slots=True)
class WaitingClient:
    """A client's connection, and what ends its call."""

    sock: socket.socket
    end: Callable[[CallEnded], None]
    note_leaving: Callable[[], None]
    left_at: float | None = None
    """When it was noticed to have left, by the monotonic clock."""


class WaitingClients:
    """Checks the connections of all waiting clients four times a second, in one thread, without reading from them.

    A call only pays for an entry in a dictionary.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, WaitingClient] = {}
        self._ended_by: type[CallEnded] | None = None
        self._thread: threading.Thread | None = None  # started when first needed: none survives a fork
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def watch(
        self, sock: socket.socket, end: Callable[[CallEnded], None], note_leaving: Callable[[], None]
    ) -> Callable[[], object]:
        """Call `end`, from another thread, shortly after the client has left or once the worker ends.

        `note_leaving` is called as soon as the client has left. Return a function that stops the watch, which has to be
        called before the connection is closed.
        """
        if self._thread is None:
            self._start()
        client = WaitingClient(sock, end, note_leaving)
        self._waiting[id(client)] = client
        if self._ended_by is not None:
            end(self._ended_by())
        return partial(self._waiting.pop, id(client), None)

    def end_all(self, ending: type[CallEnded]) -> None:
        """End all calls, and those that still begin."""
        self._ended_by = ending
        for client in list(self._waiting.values()):
            client.end(ending())

    def drop_stalled(self) -> None:
        """Close the connections of clients who do not read: sending to them would never end."""
        clients = self._by_descriptor()
        for descriptor in clients.keys() - _ready(clients, select.POLLOUT):
            with suppress(OSError):
                clients[descriptor].sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="clients", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(SWEEP_S):
            try:
                self._sweep()
            except Exception:
                logger.exception("Looking for clients who left failed")  # the thread must live

    def _sweep(self) -> None:
        clients = self._by_descriptor()
        now = time.monotonic()
        for descriptor in _ready(clients, HAS_LEFT):
            client = clients[descriptor]
            if client.left_at is None:
                client.left_at = now
                client.note_leaving()
            # it has been waiting all the time, so the descriptor was not reused for another client
            if now - client.left_at >= LEFT_CALL_S and self._waiting.pop(id(client), None) is not None:
                client.end(ClientLeft())

    def _by_descriptor(self) -> dict[int, WaitingClient]:
        clients = {client.sock.fileno(): client for client in list(self._waiting.values())}
        clients.pop(-1, None)  # closed meanwhile
        return clients


def _ready(descriptors: Iterable[int], events: int) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, events)
    return {descriptor for descriptor, _ in poll.poll(0)}

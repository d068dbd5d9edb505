"""gunicorn's threaded worker, with threads that are cheap to wake and that no slow client can block."""

import errno
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from queue import SimpleQueue
from typing import Any, NoReturn

from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request
from gunicorn.workers.gthread import ThreadWorker

from tokenrouter.errors import APIError, InvalidRequest, error_body, is_api_path, new_request_id
from tokenrouter.provider.transport import timeval
from tokenrouter.worker.client_socket import ClientSocket
from tokenrouter.worker.connections import MOST_LEFT, PAGE_BODY_S, READ_SIZE, Connection
from tokenrouter.worker.disconnects import Restarting, WaitingClients
from tokenrouter.worker.slots import Slots
from tokenrouter.worker.threads import ThreadPool

HEAD_S = 20.0  # from a head's first byte to its last
LEFT_BODY_S = 0.5  # for the part of a body that the application left unread; then the connection can be reused
PARTING_S = 2.0
LINGER_S = 0.5  # for idle connections when the worker ends: a request may be on its way
LOOK_S = 0.2  # between two checks for connections whose time is over
READING_S = 1.0  # between two checks whether a client reads its answer
LAST_S = 3.0  # of the graceful timeout, for ending and booking calls that still run

ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
LEFT_BODY = object()  # returned for a request if the rest of its body has yet to arrive
REFUSALS = {
    LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
}


@dataclass(frozen=True)
class Done:
    """The result of a connection's request, in the form of the Future that gunicorn expects."""

    value: Any

    def result(self) -> Any:
        """Return the result of handling the request."""
        return self.value

    def cancelled(self) -> bool:
        """Return False: requests are never cancelled."""
        return False


class Worker(ThreadWorker):
    """The threaded worker, with threads that only work on complete requests; a short call takes a tenth less CPU.

    Whatever waits for a client waits in the poller: new connections, incomplete requests, answers not read yet, and
    connections about to be closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._expected: dict[Connection, None] = {}  # in the order in which they began to wait
        self._next_look = 0.0
        self._ends_at: float | None = None
        self._quits = False
        self._last_steps: deque[tuple[float, Callable[[], None]]] = deque()
        self.clients = WaitingClients()
        self.slots = Slots(self.cfg.threads, self.cfg.threads)
        self.early_signals: SimpleQueue[int] = SimpleQueue()

    def serve(self, clients: WaitingClients, slots: Slots, send_timeout_s: float) -> None:
        """Watch the application's clients, and drop those that read nothing of a stream for `send_timeout_s`.

        A thread that waits for a body takes one of the slots.
        """
        self.clients = clients
        self.slots = slots
        for listener in self.sockets:  # accepted connections inherit it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(send_timeout_s))

    def init_signals(self) -> None:
        """Handle signals, and those that came since the fork, while the master's handlers were still in place."""
        super().init_signals()
        while not self.early_signals.empty():
            number = self.early_signals.get()
            if number in ENDINGS:
                signal.raise_signal(number)

    def get_thread_pool(self) -> ThreadPool:
        """Return the pool of threads that handle connections."""
        return ThreadPool(self._work, self.cfg.threads)

    def enqueue_req(self, conn: Connection) -> None:
        """Have a thread answer the connection's next request."""
        self.tpool.submit(conn)

    def accept(self, listener: socket.socket) -> bool:
        """Accept a connection, if there is one, and wait for its first bytes; return whether there was one."""
        try:
            sock, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        self.nr_conns += 1
        if self.nr_conns >= self.worker_connections:
            self._make_room()
        conn = Connection(self.cfg, ClientSocket(sock), address, listener.getsockname(), self._take_slot)
        self._expect(conn, self.cfg.keepalive, self.enqueue_req)
        return True

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections; once the worker ends, stop for good and close the listeners."""
        super().set_accept_enabled(enabled)
        if not (enabled or self.alive):
            self._stop_listening()

    def is_parent_alive(self) -> bool:
        """Tell whether gunicorn's master lives; if not, end this worker."""
        if super().is_parent_alive():
            return True
        self.alive = False
        return False

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        """Have the next request on a kept connection answered, unless it was closed meanwhile to make room."""
        if client.fileno() >= 0:
            super().on_client_socket_readable(conn, client)

    def handle_request(self, req: Request, conn: Connection) -> bool:
        """Answer a request whose head is complete.

        Raises NoMoreData, also if its body has to be waited for, and what the connection raises.
        """
        if not conn.is_plain:
            return super().handle_request(req, conn)
        if not conn.may_answer(req):
            raise NoMoreData
        try:
            return super().handle_request(req, conn)
        except BlockingIOError as error:
            raise BrokenPipeError(errno.EPIPE, "The client does not read") from error
        finally:
            conn.reader.allow(0)

    def handle_error(self, req: Request | None, client: Any, addr: Any, exc: Exception) -> None:
        """Refuse what is not HTTP: on API paths in OpenAI's error shape, elsewhere with gunicorn's page."""
        if not (isinstance(client, ClientSocket) and is_api_path(_path_in(client.head))):
            super().handle_error(req, client, addr, exc)
            return
        status, error = HTTPStatus.INTERNAL_SERVER_ERROR, APIError("TokenRouter failed on this request.")
        if isinstance(exc, ParseException):
            status = REFUSALS.get(type(exc), HTTPStatus.BAD_REQUEST)
            error = InvalidRequest(f"The request is not valid HTTP: {exc}")
            self.log.warning("Invalid request from ip=%s: %s", addr[0] if addr else "", exc)
        else:
            self.log.exception("Error handling a request")
        with suppress(OSError):
            client.sendall(_refusal(status, error))

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Dispatch events; while the worker ends, check the clock more often."""
        super().wait_for_and_dispatch_events(timeout if self.alive else min(timeout, LOOK_S))
        if self._quits:
            self._quit()
        elif not self.alive:
            self._end_calls_in_time()

    def handle_quit(self, sig: int, frame: object) -> None:
        """End at once, with all calls. Ctrl-C reaches a worker twice: from the terminal and from the master.

        A serving worker ends in its loop, since a signal may interrupt code that holds a lock.
        """
        if self._quits:
            if not self.booted:  # nothing was served, so nothing is to be booked; and a lock may be held
                os._exit(0)
            return
        self._quits = True
        self._ends_at = time.monotonic() + LAST_S
        if self.booted:
            self.handle_exit(sig, frame)
        else:
            super().handle_quit(sig, frame)

    def _quit(self) -> NoReturn:
        self._end_calls()
        self.clients.drop_stalled()
        self.tpool.shutdown()
        sys.exit(0)

    def seconds_left(self) -> float:
        """Return how many seconds an ending worker has left before gunicorn's master kills it."""
        if self._ends_at is None:  # nothing was under way
            return self.cfg.graceful_timeout - PARTING_S
        return max(LAST_S / 2, self._ends_at - time.monotonic() - LAST_S / 4)

    def murder_pending(self) -> None:
        """End the waits of connections whose time is over."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for conn in [conn for conn in self._expected if conn.deadline < now]:
            self._forget(conn)
            conn.late(conn)

    def _take_slot(self) -> Callable[[], None]:
        return self.slots.take()

    def _work(self, conn: Connection) -> None:
        """Answer a request. A kept connection goes back to the poller at once, without waking the main thread.

        Any thread may register it with the poller; only the main thread may change the count of connections.
        """
        try:
            result = self.handle(conn)
            if conn.is_plain:
                conn.sock.flush()
        except OSError:
            result = False  # the client is gone
        except BaseException:  # whatever it was, the thread has to go on
            self.log.exception("Answering a request ended oddly")
            result = False
        if result is True and self.alive and not conn.holds_rest:
            self.finish_request(conn, Done(result))
        else:
            self.method_queue.defer(self._go_on, conn, result)

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> Any:
        """Return whether the connection may be used again; LEFT_BODY if the rest of the body has yet to arrive.

        gunicorn's own method would wait for it in the thread.
        """
        if not (keepalive and conn.is_plain):
            return super()._keepalive_after(conn, keepalive)
        left = conn.left_of_body()
        if left > MOST_LEFT:
            return False
        if left and not conn.reader.has(left):
            return LEFT_BODY
        try:
            return bool(conn.parser.finish_body(max_bytes=MOST_LEFT))
        except (NoMoreData, ParseException):
            return False

    def _go_on(self, conn: Connection, result: Any) -> None:
        """Do the next step after a request: send the rest of its answer, then keep the connection or close it."""
        if conn.holds_rest:
            conn.silent_since = time.monotonic()
            self._await_reading(result, conn)
        elif result is LEFT_BODY:
            self._expect(conn, LEFT_BODY_S, self._skip_body, late=self._part)
        elif result is True and (self.alive or conn.reader.buffered):
            self.finish_request(conn, Done(result))
        elif result is True:
            self._expect(conn, LINGER_S, self.enqueue_req)
        elif not conn.lacks_bytes:
            self._part(conn)
        elif conn.parser.waiting is not None:
            self._expect(conn, PAGE_BODY_S, self._receive, late=self._answer_late)
        else:  # the time runs from the first piece of the head
            conn.head_began = conn.head_began or time.monotonic()
            self._expect(conn, conn.head_began + HEAD_S - time.monotonic(), self._receive)

    def _receive(self, conn: Connection) -> None:
        """Read more of an incomplete request; a thread is used only once it is complete."""
        try:
            is_whole = conn.reader.receive()
        except OSError:
            self._close(conn)
            return
        if is_whole:
            self.enqueue_req(conn)
        else:
            self._expect(conn, conn.deadline - time.monotonic(), self._receive, conn.late)

    def _answer_late(self, conn: Connection) -> None:
        """Have the request answered although its body is incomplete."""
        conn.is_late = True
        self.enqueue_req(conn)

    def _skip_body(self, conn: Connection) -> None:
        try:
            is_whole = conn.reader.receive()
        except OSError:
            self._close(conn)
            return
        if is_whole:
            self._go_on(conn, bool(conn.parser.finish_body()))
        else:
            self._expect(conn, conn.deadline - time.monotonic(), self._skip_body, conn.late)

    def _await_reading(self, result: Any, conn: Connection) -> None:
        send, look = partial(self._send_rest, result), partial(self._check_reading, result)
        self._expect(conn, READING_S, send, look, selectors.EVENT_WRITE)

    def _check_reading(self, result: Any, conn: Connection) -> None:
        """Close the connection if its client has read nothing of its answer for too long."""
        now = time.monotonic()
        if conn.sock.has_taken_some():
            conn.silent_since = now
        if now - conn.silent_since < conn.sock.silence_s:
            self._await_reading(result, conn)
        else:
            self._close(conn)

    def _send_rest(self, result: Any, conn: Connection) -> None:
        try:
            conn.sock.flush()
        except OSError:
            self._close(conn)
        else:
            self._go_on(conn, result)

    def _stop_listening(self) -> None:
        """Close the listeners, so that a successor can bind; clients connected by now are still answered."""
        while self.sockets:
            listener = self.sockets.pop()
            for _ in range(self.cfg.backlog):
                if not self.accept(listener):
                    break
            listener.close()

    def _make_room(self) -> None:
        """Close the connection that has waited longest: for a request, else idle, else for its client to read."""
        waiting = next((conn for conn in self._expected if not conn.holds_rest), None)
        if waiting is None and self.keepalived_conns:
            idle = self.keepalived_conns.popleft()
            self.poller.unregister(idle.sock)
            self._close(idle)
        elif conn := waiting or next(iter(self._expected), None):
            self._forget(conn)
            self._close(conn)

    def _end_calls_in_time(self) -> None:
        """End calls that still run and have them booked before gunicorn's master kills this process."""
        now = time.monotonic()
        graceful_s = self.cfg.graceful_timeout
        if self._ends_at is None:
            self._ends_at = now + graceful_s
            for conn in self._expected:
                if not conn.holds_rest:
                    conn.deadline = min(conn.deadline, now + PARTING_S)
            last_s = min(LAST_S, graceful_s / 2)
            self._last_steps += [(last_s, self._end_calls), (last_s / 2, self._drop_stalled)]
        while self._last_steps and self._ends_at - now < self._last_steps[0][0]:
            self._last_steps.popleft()[1]()

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(time.monotonic() + LINGER_S)

    def _end_calls(self) -> None:
        self.clients.end_all(Restarting)

    def _drop_stalled(self) -> None:
        self.clients.drop_stalled()
        for conn in list(self._expected):
            self._forget(conn)
            self._close(conn)

    def _expect(
        self,
        conn: Connection,
        within_s: float,
        then: Callable[[Connection], None],
        late: Callable[[Connection], None] | None = None,
        events: int = selectors.EVENT_READ,
    ) -> None:
        """Wait for the client in the poller; if it takes too long, call `late`, by default closing the connection."""
        if self._ends_at is not None and not conn.holds_rest:
            within_s = min(within_s, PARTING_S)
        conn.sock.setblocking(False)
        conn.deadline = time.monotonic() + within_s
        conn.late = late or self._close
        self._expected[conn] = None
        self.poller.register(conn.sock, events, partial(self._on_ready, conn, then))

    def _on_ready(self, conn: Connection, then: Callable[[Connection], None], sock: socket.socket) -> None:
        if conn in self._expected:  # it may have been closed since, to make room
            self._forget(conn)
            then(conn)

    def _forget(self, conn: Connection) -> None:
        del self._expected[conn]
        self.poller.unregister(conn.sock)

    def _part(self, conn: Connection) -> None:
        """Close our side, and the connection once the client closes its own, so that bytes in flight arrive.

        Source: RFC 9112, 9.6. gunicorn's own way of it would wait in the main thread.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._expect(conn, PARTING_S, self._drain)

    def _drain(self, conn: Connection) -> None:
        try:
            data = conn.sock.recv(READ_SIZE)
        except OSError:
            data = b""
        if data:
            self._expect(conn, conn.deadline - time.monotonic(), self._drain)
        else:
            self._close(conn)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()


def keep_signals_over_forks() -> None:
    """Hold back signals that end a process until a fork is over: the child's Python would lose them."""
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, ENDINGS)
    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, ENDINGS)
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=unblock)


def _path_in(head: bytes) -> str:
    """Return the path requested by a head, as far as it can be read."""
    target = head[:2048].lstrip().partition(b"\r\n")[0].partition(b" ")[2].partition(b" ")[0]
    _, is_absolute, rest = target.partition(b"://")
    if is_absolute and not target.startswith(b"/"):
        target = b"/" + rest.partition(b"/")[2]
    return target.partition(b"?")[0].decode("latin-1")


def _refusal(status: HTTPStatus, error: APIError) -> bytes:
    body = error_body(error.message, error.type, None, None)
    lines = [f"HTTP/1.1 {status} {status.phrase}", "Connection: close", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", f"x-request-id: {new_request_id()}", "", ""]
    return "\r\n".join(lines).encode() + body

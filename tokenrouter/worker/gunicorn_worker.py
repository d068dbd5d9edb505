"""gunicorn's threaded worker, with threads that cost less to wake and that no slow client can hold."""

import errno
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gunicorn.http.errors import NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from tokenrouter.provider.transport import timeval
from tokenrouter.worker.disconnects import Restarting, WaitingClients

HEAD_S = 20.0  # from a head's first byte to its last
BODY_S, SLOWEST_BODY = 20.0, 50_000  # seconds for any body, and one more for so many bytes that it announces
LEFT_BODY_S = 0.02  # for what the application left unread of a body; the connection can then be used again
PARTING_S = 2.0
READ_SIZE = 64 * 1024
LAST_S = 3.0  # of the graceful timeout, to end and book what still runs


class Thread(threading.Thread):
    """A thread of the pool, which takes one connection after the other."""

    def __init__(self, pool: "ThreadPool", job: TConn) -> None:
        super().__init__(name="call")
        self._pool = pool
        self._job: TConn | None = job
        self._woken = threading.Lock()
        self._woken.acquire()

    def hand(self, job: TConn | None) -> None:
        """Wake the thread, which must be idle: for a connection, or to end."""
        self._job = job
        self._woken.release()

    def run(self) -> None:
        """Work until the pool ends it."""
        while (job := self._job) is not None:
            self._pool.work(job)
            if not self._pool.take_next(self):
                self._woken.acquire()

    def go_on_with(self, job: TConn | None) -> None:
        """Take this connection next, without a sleep."""
        self._job = job


class ThreadPool:
    """Threads that work on connections, started when first needed.

    The one that was idle last is woken first: what it worked with is still in the caches. A lock of its own wakes each,
    where an executor's Future and semaphore take 30 µs a call.
    """

    def __init__(self, work: Callable[[TConn], None], size: int) -> None:
        """`work` must not raise, since that would end a thread; threads start when first needed."""
        self.work = work
        self._size = size
        self._started = 0
        self._idle: list[Thread] = []
        self._waiting: deque[TConn] = deque()
        self._is_closing = False
        self._lock = threading.Lock()

    def submit(self, job: TConn) -> None:
        """Have a thread work on the connection, as soon as one is free."""
        with self._lock:
            if self._idle:
                self._idle.pop().hand(job)
            elif self._started < self._size:
                self._started += 1
                Thread(self, job).start()
            else:
                self._waiting.append(job)

    def take_next(self, thread: Thread) -> bool:
        """Give a thread that has done its work the next; return False where it has to wait for it."""
        with self._lock:
            if self._waiting or self._is_closing:
                thread.go_on_with(self._waiting.popleft() if self._waiting else None)
                return True
            self._idle.append(thread)
            return False

    def shutdown(self, wait: bool = False) -> None:
        """End the threads once they have done their work; whoever ends the process waits for them."""
        with self._lock:
            self._is_closing = True
            while self._idle:
                self._idle.pop().hand(None)


class RequestReader(SocketUnreader):
    """What gunicorn's parser reads a connection by: it never waits for the rest of a head, and not long for a body."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.lacks_bytes = False  # a head has begun, and its rest is not there
        self._head: list[bytes] | None = None  # what was read of it; None behind its end
        self._deadline = 0.0

    def begin_head(self) -> None:
        """Expect a request, which may have been read in part."""
        self.lacks_bytes = False
        self._head = [self.buf.getvalue()]

    def allow(self, seconds: float) -> None:
        """Wait no longer than this for what is still to come of the body."""
        self._head = None
        self._deadline = time.monotonic() + seconds

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next bytes.

        Raises NoMoreData where none are there: of a head at once, and all that was read of it is kept to be read again.
        """
        return self._more_of_body(size_hint) if self._head is None else self._more_of_head(self._head)

    def _more_of_head(self, head: list[bytes]) -> bytes:
        try:
            data = self.sock.recv(self.mxchunk, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.lacks_bytes = True
            self.unread(b"".join(head))
            raise NoMoreData from None
        head.append(data)
        return data

    def _more_of_body(self, size_hint: int | None) -> bytes:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise NoMoreData
        if self.sock.gettimeout() is None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(left_s))
        else:  # gunicorn's own, while it reads what is left of a body
            self.sock.settimeout(left_s)
        try:
            return super().chunk(size_hint)
        except BlockingIOError:
            raise NoMoreData from None


def _announced_length(request: Request) -> int:
    return getattr(request.body.reader, "length", 0)  # a chunked body announces none


class Connection(TConn):
    """A client's connection."""

    deadline = 0.0
    """For what it waits for in the poller, by the monotonic clock."""
    head_began: float | None = None
    """When half a head was seen, by the same."""

    def init(self) -> None:
        """Get ready to read a request; gunicorn calls it before each."""
        if not self.initialized:
            super().init()
            if self.is_plain:
                self.parser.unreader = RequestReader(self.sock)
        if self.is_plain:
            self.parser.unreader.begin_head()

    @property
    def is_plain(self) -> bool:
        """Whether it is HTTP/1 without TLS; the rest is gunicorn's, as an option of its command line asks for it."""
        return not (self.is_http2 or self.cfg.is_ssl)

    @property
    def lacks_bytes(self) -> bool:
        """Whether it has sent half a head."""
        return self.initialized and self.is_plain and self.parser.unreader.lacks_bytes


@dataclass(frozen=True)
class Done:
    """What became of a connection's request, as gunicorn asks for it."""

    value: Any

    def result(self) -> Any:
        """Return what handling the request returned."""
        return self.value

    def cancelled(self) -> bool:
        """Return False: nothing that was submitted is taken back."""
        return False


class Worker(ThreadWorker):
    """The threaded worker, whose threads only ever work on whole requests; it also takes a tenth less CPU a short call.

    What waits for a client's bytes waits in the poller: new connections, half a request, and connections that are about
    to be closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._expected: set[Connection] = set()
        self._ends_at: float | None = None
        self._last_steps: deque[tuple[float, Callable[[], None]]] = deque()
        self.clients = WaitingClients()

    def serve(self, clients: WaitingClients, send_timeout_s: float) -> None:
        """Watch over the clients of the application, and drop those that read nothing for so long."""
        self.clients = clients
        for listener in self.sockets:  # the connections that are accepted take it over
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(send_timeout_s))

    def get_thread_pool(self) -> ThreadPool:
        """Return the pool that works on connections."""
        return ThreadPool(self._work, self.cfg.threads)

    def enqueue_req(self, conn: Connection) -> None:
        """Have the connection's next request answered by a thread."""
        self.tpool.submit(conn)

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, and wait for its first bytes."""
        try:
            sock, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, sock, address, listener.getsockname())
        conn.data_ready = True  # by the time that a thread sees it
        self._expect(conn, time.monotonic() + self.cfg.keepalive, self.enqueue_req)

    def handle_request(self, req: Request, conn: Connection) -> bool:
        """Answer a request whose head is whole.

        Raises NoMoreData and what the connection raises.
        """
        if not conn.is_plain:
            return super().handle_request(req, conn)
        conn.head_began = None
        conn.parser.unreader.allow(BODY_S + _announced_length(req) / SLOWEST_BODY)
        try:
            return super().handle_request(req, conn)
        except BlockingIOError as error:
            raise BrokenPipeError(errno.EPIPE, "The client does not read") from error
        finally:
            conn.parser.unreader.allow(LEFT_BODY_S)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Do what is due; while the worker ends, look at the clock more often."""
        super().wait_for_and_dispatch_events(timeout if self.alive else min(timeout, 0.2))
        if not self.alive:
            self._end_calls_in_time()

    def handle_quit(self, sig: int, frame: object) -> None:
        """End at once, and the calls with it."""
        self._ends_at = time.monotonic() + LAST_S
        self._end_calls()
        self.clients.drop_stalled()
        super().handle_quit(sig, frame)

    def seconds_left(self) -> float:
        """Return how long this worker may still live once it ends; gunicorn's master would then kill it."""
        if self._ends_at is None:  # nothing was under way
            return self.cfg.graceful_timeout - PARTING_S
        return max(LAST_S / 2, self._ends_at - time.monotonic() - LAST_S / 4)

    def murder_pending(self) -> None:
        """Close the connections whose bytes did not come in time."""
        now = time.monotonic()
        for conn in [conn for conn in self._expected if conn.deadline < now]:
            self._expected.discard(conn)
            self.poller.unregister(conn.sock)
            self._close(conn)

    def _work(self, conn: Connection) -> None:
        """Answer a request. A connection that is kept goes back to the poller at once, without waking the main thread.

        Any thread may register it with the poller; the count of connections is the main thread's.
        """
        try:
            result = self.handle(conn)
        except BaseException:  # the thread has to live on, whatever ended this request
            self.log.exception("Answering a request ended oddly")
            result = False
        if result is True and self.alive:
            self.finish_request(conn, Done(result))
        elif result is True:
            self.method_queue.defer(self.finish_request, conn, Done(result))
        else:
            self.method_queue.defer(self._expect_rest if conn.lacks_bytes else self._part, conn)

    def _end_calls_in_time(self) -> None:
        """End what still runs and have it booked before gunicorn's master kills this process."""
        now = time.monotonic()
        graceful_s = self.cfg.graceful_timeout
        if self._ends_at is None:
            self._ends_at = now + graceful_s
            for conn in self._expected:
                conn.deadline = min(conn.deadline, now + PARTING_S)
            last_s = min(LAST_S, graceful_s / 2)
            self._last_steps += [(last_s, self._end_calls), (last_s / 2, self.clients.drop_stalled)]
        while self._last_steps and self._ends_at - now < self._last_steps[0][0]:
            self._last_steps.popleft()[1]()

    def _end_calls(self) -> None:
        self.clients.end_all(Restarting)

    def _expect(self, conn: Connection, deadline: float, then: Callable[[Connection], None]) -> None:
        conn.sock.setblocking(False)
        conn.deadline = deadline
        self._expected.add(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_bytes, conn, then))

    def _on_bytes(self, conn: Connection, then: Callable[[Connection], None], sock: socket.socket) -> None:
        self._expected.discard(conn)
        self.poller.unregister(sock)
        then(conn)

    def _expect_rest(self, conn: Connection) -> None:
        """Wait for more of a head; however often it comes in pieces, the time runs from the first of them."""
        conn.head_began = conn.head_began or time.monotonic()
        self._expect(conn, conn.head_began + HEAD_S, self.enqueue_req)

    def _part(self, conn: Connection) -> None:
        """Close our side, and the connection once the client has closed its own: what is in flight arrives.

        Source: RFC 9112, 9.6. gunicorn's own way of it would wait in the main thread.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._expect(conn, time.monotonic() + PARTING_S, self._drain)

    def _drain(self, conn: Connection) -> None:
        try:
            data = conn.sock.recv(READ_SIZE)
        except OSError:
            data = b""
        if data:
            self._expect(conn, conn.deadline, self._drain)
        else:
            self._close(conn)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()

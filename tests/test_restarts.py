"""Workers that end while calls are under way: none is lost, and each is told and booked before its worker is gone."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
from conftest import Server, eventually, hello, running_server
from rawhttp import chat_request, connect, read_all
from serving import post
from sqlalchemy import create_engine, text

pytestmark = pytest.mark.slow

LONG = hello("words=2000 gap=0.05", stream=True)
GRACE_S = 4


@contextmanager
def serving(settings: dict[str, str], folder: object, options: str) -> Iterator[tuple[Server, str]]:
    patient = {"PROVIDER_READ_TIMEOUT": "60", "GUNICORN_CMD_ARGS": options}
    with running_server(settings | patient, folder) as server:
        yield server, server.create_team()


def rows(database_url: str) -> list[object]:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT * FROM request_logs ORDER BY id")).all()
    engine.dispose()
    return found


def totals(database_url: str) -> tuple[int, int]:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        found = tuple(connection.execute(text("SELECT settled_tokens, held_tokens FROM teams")).one())
    engine.dispose()
    return found


def pieces(stream: requests.Response) -> bytes:
    return b"".join(stream.iter_content(None))


def last_event(got: bytes) -> dict[str, object]:
    return json.loads(got.strip().rpartition(b"\n")[2].removeprefix(b"data: "))


def test_what_outlasts_the_grace_is_told_and_booked_before_the_worker_is_gone(settings, database_url, tmp_path):
    with serving(settings, tmp_path, f"--graceful-timeout {GRACE_S}") as (server, token), ThreadPoolExecutor(8) as pool:
        streams = [post(server, token, LONG, stream=True) for _ in range(3)]
        answer = pool.submit(post, server, token, hello("delay=30"))
        silent = pool.submit(post, server, token, hello("silent=1", stream=True))
        deaf = connect(server)
        deaf.sendall(chat_request(token, hello("words=20000 burst=1", stream=True)))
        assert eventually(lambda: len(rows(database_url)) == 6)
        server.process.terminate()
        ends = [pool.submit(pieces, stream) for stream in streams]
        assert server.process.wait(GRACE_S + 2) == 0
        for end in ends:
            assert last_event(end.result())["error"]["type"] == "api_error"
            assert b"[DONE]" not in end.result()
        for reply in (answer.result(), silent.result()):
            assert (reply.status_code, reply.json()["error"]["type"]) == (503, "api_error")
        deaf.close()
        assert "SIGKILL" not in server.log.read_text()
    booked = Counter(row.status for row in rows(database_url))
    assert booked["pending"] == 0
    assert booked["interrupted"] >= 5
    assert all(row.charged_tokens >= row.prompt_tokens > 0 for row in rows(database_url))
    assert totals(database_url) == (sum(row.charged_tokens for row in rows(database_url)), 0)


def test_streams_within_the_grace_end_whole_and_nothing_new_is_taken(settings, database_url, tmp_path):
    with serving(settings, tmp_path, f"--graceful-timeout {GRACE_S * 5}") as (server, token):
        streams = [post(server, token, hello("words=30 gap=0.1", stream=True), stream=True) for _ in range(4)]
        server.process.terminate()
        time.sleep(0.5)
        with pytest.raises(requests.ConnectionError):
            post(server, token, hello())
        with ThreadPoolExecutor(4) as pool:
            assert all(got.endswith(b"data: [DONE]\n\n") for got in pool.map(pieces, streams))
        assert server.process.wait(5) == 0
    assert [row.status for row in rows(database_url)] == ["ok"] * 4


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_quick_stop_books_what_runs(settings, database_url, tmp_path, how: signal.Signals):
    with serving(settings, tmp_path, "") as (server, token):
        streams = [post(server, token, LONG, stream=True) for _ in range(4)]
        time.sleep(0.3)
        began = time.monotonic()
        server.process.send_signal(how)
        server.process.wait(20)
        assert time.monotonic() - began < 15  # of the graceful minute
        for stream in streams:
            stream.close()
    assert [row.status for row in rows(database_url)] == ["interrupted"] * 4
    assert totals(database_url) == (sum(row.charged_tokens for row in rows(database_url)), 0)


def test_worker_that_is_killed_is_replaced_and_the_streams_of_others_go_on(settings, tmp_path):
    with serving(settings, tmp_path, "") as (server, token), ExitStack() as clean_up, ThreadPoolExecutor(16) as pool:
        before = server.worker_pids()
        body = hello("words=40 gap=0.1", stream=True)
        streams = list(pool.map(lambda _: post(server, token, body, stream=True), range(16)))
        for stream in streams:
            clean_up.callback(stream.close)
        os.kill(before[0], signal.SIGKILL)

        def end(stream: requests.Response) -> bool:
            try:
                return pieces(stream).endswith(b"data: [DONE]\n\n")
            except requests.RequestException:
                return False

        whole = Counter(pool.map(end, streams))
        assert whole[True] > 0 and whole[True] + whole[False] == 16
        assert eventually(lambda: len(server.worker_pids()) == 2 and before[0] not in server.worker_pids())
        assert post(server, token, hello()).status_code == 200


def test_worker_that_is_recycled_ends_its_streams_first(settings, database_url, tmp_path):
    settings = settings | {"WEB_CONCURRENCY": "1"}
    with serving(settings, tmp_path, "--max-requests 10") as (server, token), ThreadPoolExecutor(4) as pool:
        (first,) = server.worker_pids()
        streams = [post(server, token, hello("words=30 gap=0.1", stream=True), stream=True) for _ in range(4)]
        ends = [pool.submit(pieces, stream) for stream in streams]
        for _ in range(12):
            assert eventually(lambda: answered(server, token))
        assert all(end.result().endswith(b"data: [DONE]\n\n") for end in ends)
        assert eventually(lambda: first not in server.worker_pids())
    assert {row.status for row in rows(database_url)} == {"ok"}


def answered(server: Server, token: str) -> bool:
    try:
        return post(server, token, hello()).status_code == 200
    except requests.ConnectionError:
        return False


def test_call_on_a_kept_connection_after_term_is_answered_or_refused_whole(settings, database_url, tmp_path):
    with serving(settings, tmp_path, f"--graceful-timeout {GRACE_S}") as (server, token):
        stream = post(server, token, hello("words=10 gap=0.1", stream=True), stream=True)
        with connect(server) as kept:
            kept.sendall(chat_request(token, hello()))
            assert b"200 OK" in kept.recv(65536)
            server.process.terminate()
            time.sleep(0.1)
            kept.sendall(chat_request(token, hello()))
            got = read_all(kept)
        assert got == b"" or b"HTTP/1.1 200 OK" in got
        pieces(stream)
        assert server.process.wait(GRACE_S + 2) == 0
    assert {row.status for row in rows(database_url)} == {"ok"}
    assert totals(database_url)[1] == 0


def is_last(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200") and b"\r\nconnection: close\r\n" in answer.lower()


def test_successor_takes_over_at_once_while_a_stream_goes_on(settings, database_url, tmp_path):
    with serving(settings, tmp_path, "") as (server, token), ExitStack() as clean_up:
        stream = post(server, token, hello("words=150 gap=0.1", stream=True), stream=True)
        silent, idle = clean_up.enter_context(connect(server)), clean_up.enter_context(connect(server))
        idle.sendall(chat_request(token, hello()))
        assert b"200 OK" in idle.recv(65536)
        port = int(server.url.rpartition(":")[2])
        with Callers(server, token) as callers:
            server.process.terminate()
            time.sleep(0.3)
            silent.sendall(chat_request(token, hello()))
            assert is_last(read_all(silent))
            assert eventually(lambda: refuses(server), 2)
            successor = clean_up.enter_context(running_server(settings, tmp_path, port=port))
            answered = callers.answered
            assert eventually(lambda: callers.answered > answered + 20, 20)
            idle.settimeout(1)
            assert idle.recv(1) == b""
        assert server.process.poll() is None
        assert "in use" not in successor.log.read_text()
        assert callers.failures == []
        assert pieces(stream).endswith(b"data: [DONE]\n\n")
        assert server.process.wait(10) == 0
    assert {row.status for row in rows(database_url)} == {"ok"}


def refuses(server: Server) -> bool:
    try:
        connect(server).close()
    except ConnectionRefusedError:
        return True
    return False


class Callers:
    """Calls, one after the other on connections of their own, as long as the block runs."""

    def __init__(self, server: Server, token: str) -> None:
        self.answered = 0
        self.failures: list[object] = []
        self._server = server
        self._request = chat_request(token, hello(), "Connection: close")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call_on) for _ in range(4)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call_on(self) -> None:
        while not self._stop.is_set():
            try:
                connection = connect(self._server)
            except ConnectionRefusedError:  # what a proxy takes for a sign to go elsewhere
                time.sleep(0.01)
                continue
            with connection:
                self._call(connection)

    def _call(self, connection: socket.socket) -> None:
        try:
            connection.sendall(self._request)
            got = read_all(connection)
        except OSError as error:
            self.failures.append(error)
            return
        if got.startswith(b"HTTP/1.1 200"):
            self.answered += 1
        else:
            self.failures.append(got)


def test_reload_hands_new_callers_to_new_workers_while_a_stream_goes_on(settings, tmp_path):
    with serving(settings, tmp_path, "") as (server, token):
        before = set(server.worker_pids())
        stream = post(server, token, hello("words=100 gap=0.1", stream=True), stream=True)
        with Callers(server, token) as callers:
            server.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: len(set(server.worker_pids()) - before) == 2, 20)
            assert eventually(lambda: len(before & set(server.worker_pids())) == 1, 20)
            for _ in range(20):
                with connect(server) as connection:
                    connection.sendall(chat_request(token, hello()))
                    assert b"\r\nconnection: keep-alive\r\n" in connection.recv(65536).lower()
        assert callers.failures == []
        assert pieces(stream).endswith(b"data: [DONE]\n\n")


def test_port_is_free_once_the_master_was_killed(settings, tmp_path):
    with serving(settings, tmp_path, "") as (server, token):
        stream = post(server, token, hello("words=60 gap=0.1", stream=True), stream=True)
        os.kill(server.process.pid, signal.SIGKILL)
        assert eventually(lambda: refuses(server), 5)
        assert pieces(stream).endswith(b"data: [DONE]\n\n")


def configured_with(folder: Path, code: str) -> dict[str, str]:
    """Have one worker, and gunicorn's configuration be ours with more code below it."""
    path = folder / "more.py"
    path.write_text(f"exec(open('gunicorn.conf.py').read())\n{code}")
    return {"GUNICORN_CMD_ARGS": f"--config {path}", "WEB_CONCURRENCY": "1"}


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_signal_that_reaches_a_worker_in_its_first_moments_ends_it(settings, tmp_path, ending: signal.Signals):
    """The child of a fork has the master's handlers for a while, which do nothing there."""
    options = configured_with(
        tmp_path,
        "hand_over = post_fork\n"
        "def post_fork(server, worker):\n"
        "    import time\n"
        "    hand_over(server, worker)\n"
        "    time.sleep(2)\n",
    )
    with running_server(settings | options, tmp_path, ready=False) as server:
        assert eventually(lambda: "Booting worker" in server.log.read_text(), 60)
        time.sleep(0.5)  # so that the master waits for signals
        server.process.send_signal(ending)
        assert server.process.wait(10) == 0


def test_ctrl_c_that_reaches_a_starting_worker_twice_ends_it_once(settings, tmp_path):
    """By the terminal and by the master: where the second broke into what the first broke off, a lock was lost."""
    options = configured_with(
        tmp_path,
        "def post_worker_init(worker):\n"
        "    import threading, time\n"
        "    lock = threading.Condition()\n"
        "    with lock:\n"
        "        print('starts', flush=True)\n"
        "        try:\n"
        "            time.sleep(5)\n"
        "        finally:\n"
        "            lock.release()\n"
        "            time.sleep(1)\n"
        "            lock.acquire()\n",
    )
    with running_server(settings | options, tmp_path, ready=False) as server:
        assert eventually(lambda: "starts" in server.log.read_text())
        os.kill(server.worker_pids()[0], signal.SIGINT)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0


def test_ctrl_c_while_the_worker_starts_a_thread_ends_it(settings, tmp_path):
    """What a signal interrupts may have a lock: where that was waited for, the worker was killed after a minute."""
    options = configured_with(
        tmp_path,
        "begin = post_worker_init\n"
        "def post_worker_init(worker):\n"
        "    import time\n"
        "    from tokenrouter.worker.threads import Thread\n"
        "    begin(worker)\n"
        "    start = Thread.start\n"
        "    def start_slowly(thread):\n"
        "        print('starts a thread', flush=True)\n"
        "        time.sleep(1)\n"
        "        start(thread)\n"
        "    Thread.start = start_slowly\n",
    )
    with running_server(settings | options, tmp_path, ready=False) as server:
        assert eventually(lambda: "Booting worker" in server.log.read_text())
        with connect(server) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert eventually(lambda: "starts a thread" in server.log.read_text())
            os.killpg(server.process.pid, signal.SIGINT)
            assert server.process.wait(10) == 0


def test_half_a_head_that_comes_while_the_worker_ends_does_not_hold_it(settings, tmp_path):
    with (
        serving(settings, tmp_path, "--graceful-timeout 30") as (server, token),
        connect(server) as idle,
        connect(server) as late,
    ):
        idle.sendall(chat_request(token, hello())[:40])  # known to the worker, and let go soon
        late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert late.recv(65536).startswith(b"HTTP/1.1 200")
        server.process.terminate()
        time.sleep(0.2)
        late.sendall(b"GET")
        assert server.process.wait(15) == 0  # of twenty for a head, and thirty for the end

"""The administrator's password: compared, guessed at too often, and allowed to be the default on this machine alone."""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import rivals
import warm
from conftest import eventually
from flask import Flask
from sqlalchemy import func, select, text, update

from tokenrouter import addresses, attempts
from tokenrouter.admin import password as passwords
from tokenrouter.admin import sockets
from tokenrouter.config import DEFAULT_ADMIN_PASSWORD, Settings, load
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import SignInAttempt, db

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def own(app: Flask) -> Settings:
    return load({"ADMIN_PASSWORD": "right"})


def guess(own: Settings, password: str = "wrong", address: str = HERE, browser: str | None = None) -> bool | str:
    """Return whether the password was right, or "wait"."""
    guesser = addresses.counted(address) if browser is None else attempts.BROWSER + browser
    try:
        return passwords.try_password(own, password, guesser)
    except attempts.TooManyGuesses:
        return "wait"


def let_pass(seconds: float) -> None:
    """Make all attempts older."""
    with writing(db.engine) as connection:
        connection.execute(update(SignInAttempt).values(at=SignInAttempt.at - seconds))


def kept_attempts() -> int:
    with db.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(SignInAttempt)).scalar_one()


# The password


@pytest.mark.parametrize("password", ["right", "", " right", "x" * 10_000, "pässwörd ✓", "\udcff", "a\0b"])
def test_password_is_right_only_if_it_is_the_same(password: str):
    own = replace(load({"ADMIN_PASSWORD": "x"}), admin_password=password)
    assert passwords.check_admin_password(own, password)
    assert not passwords.check_admin_password(own, password + "x")
    assert not passwords.check_admin_password(own, password[:-1] if password else "x")


def test_fingerprint_changes_with_the_password_and_tells_nothing_of_it():
    one, other = (passwords.password_fingerprint(load({"ADMIN_PASSWORD": password})) for password in ("right", "other"))
    assert one == passwords.password_fingerprint(load({"ADMIN_PASSWORD": "right"})) != other
    assert "right" not in one


# Too many guesses

both_databases = pytest.mark.both_databases


@both_databases
def test_sixth_guess_within_a_minute_is_not_looked_at(own: Settings):
    assert [guess(own) for _ in range(6)] == [False] * 5 + ["wait"]
    assert guess(own, "right") == "wait"


@both_databases
def test_right_password_counts_for_nothing(own: Settings):
    assert [guess(own) for _ in range(4)] == [False] * 4
    assert [guess(own, "right") for _ in range(10)] == [True] * 10
    assert [guess(own) for _ in range(2)] == [False, "wait"]


@both_databases
def test_thirty_guesses_a_minute_are_looked_at_wherever_they_come_from(own: Settings):
    outcomes = [guess(own, address=f"192.0.2.{number}") for number in range(32)]
    assert outcomes == [False] * 30 + ["wait"] * 2
    assert guess(own, "right", "198.51.100.1") == "wait"
    let_pass(60)
    assert guess(own, "right", "198.51.100.1") is True


def test_wait_until_fewer_than_thirty_is_told(own: Settings):
    for number in range(30):
        guess(own, address=f"192.0.2.{number}")
    let_pass(20)
    assert 20 <= attempts.wait_s("198.51.100.1") <= 40


@both_databases
def test_known_browser_is_counted_by_itself(own: Settings):
    assert [guess(own, browser="one") for _ in range(6)] == [False] * 5 + ["wait"]
    assert guess(own, "right", browser="one") == "wait"
    assert guess(own, "right", browser="other") is True


def test_strangers_do_not_lock_a_known_browser_out(own: Settings):
    for number in range(30):
        guess(own, address=f"192.0.2.{number}")
    assert guess(own, "right", browser="one") is True


def test_guesses_of_known_browsers_lock_no_stranger_out(own: Settings):
    for number in range(10):
        assert [guess(own, browser=f"browser {number}") for _ in range(5)] == [False] * 5
    assert guess(own, "right") is True


def test_another_address_may_still_try(own: Settings):
    assert [guess(own) for _ in range(6)][-1] == "wait"
    assert guess(own, "right", ELSEWHERE) is True


@both_databases
def test_wait_is_told_in_whole_seconds_until_the_first_guess_is_a_minute_old(own: Settings):
    guess(own)
    let_pass(20)
    assert attempts.wait_s(HERE) == 0
    for _ in range(4):
        guess(own)
    with pytest.raises(attempts.TooManyGuesses) as refusal:
        passwords.try_password(own, "right", HERE)
    assert 38 <= refusal.value.wait_s <= 40
    assert str(refusal.value.wait_s) in str(refusal.value)
    assert attempts.wait_s(HERE) in (refusal.value.wait_s, refusal.value.wait_s - 1)
    assert attempts.wait_s(ELSEWHERE) == 0


@both_databases
def test_one_more_guess_is_looked_at_for_each_that_is_a_minute_old(own: Settings):
    guess(own)
    let_pass(30)
    for _ in range(4):
        guess(own)
    let_pass(30.5)
    assert [guess(own) for _ in range(2)] == [False, "wait"]


def test_guesses_refused_meanwhile_do_not_make_the_wait_longer(own: Settings):
    for _ in range(5):
        guess(own)
    let_pass(40)
    assert guess(own) == "wait"
    let_pass(20.1)
    assert guess(own, "right") is True


@both_databases
def test_attempts_are_forgotten_after_a_minute(own: Settings):
    for number in range(20):
        guess(own, address=f"192.0.2.{number}")
    assert kept_attempts() == 20
    let_pass(61)
    guess(own)
    assert kept_attempts() == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),  # one customer's network
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::1", "127.0.0.1", False),
        ("", "192.0.2.1", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("192.0.2.1:4711", "192.0.2.1:4712", True),  # as some proxies tell it
        ("192.0.2.1:4711", "192.0.2.1", True),
        ("[2001:db8::1]:4711", "2001:db8::2", True),
        ("x" * 500, "x" * 500, True),
        ("browser:x", "no address", True),  # whoever tells none is no browser that is known
    ],
)
def test_whose_guesses_are_counted_together(own: Settings, one: str, other: str, same: bool):
    for _ in range(5):
        guess(own, address=one)
    assert (guess(own, address=other) == "wait") is same


@both_databases
@pytest.mark.parametrize("threads", [20])
def test_threads_that_guess_at_once_have_five_looked_at(app: Flask, own: Settings, threads: int):
    together = threading.Barrier(threads)

    def one(_: int) -> bool | str:
        with app.app_context():
            together.wait(20)
            return guess(own)

    with ThreadPoolExecutor(threads) as pool:
        outcomes = list(pool.map(one, range(threads)))
    assert (outcomes.count(False), outcomes.count("wait")) == (5, threads - 5)


@both_databases
def test_addresses_that_guess_at_once_have_thirty_looked_at(app: Flask, own: Settings):
    together = threading.Barrier(40)

    def one(number: int) -> bool | str:
        with app.app_context():
            together.wait(20)
            return guess(own, address=f"192.0.2.{number}")

    with ThreadPoolExecutor(40) as pool:
        outcomes = list(pool.map(one, range(40)))
    assert (outcomes.count(False), outcomes.count("wait")) == (30, 10)


@pytest.mark.slow
@both_databases
def test_processes_that_guess_at_once_have_five_looked_at(app: Flask, database_url: str):
    assert sum(warm.at_once(rivals.guess_passwords, *[(database_url, HERE, 10)] * 4)) == 5


def test_refused_guess_writes_nothing(own: Settings):
    for _ in range(5):
        guess(own)
    with db.engine.connect() as connection:
        before = connection.execute(text("PRAGMA data_version")).scalar()
        assert guess(own) == "wait"
        assert connection.execute(text("PRAGMA data_version")).scalar() == before


# The default password

THIS_MACHINE = {"remote_addr": "127.0.0.1", "host": "localhost:8000", "headers": ["Host"], "http_version": "HTTP/1.1"}


@pytest.mark.parametrize(
    "request_of",
    [
        {},
        {"host": "LOCALHOST"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:8000"},
        {"host": "[::1]"},
        {"host": "[::1]:65535", "remote_addr": "::1"},
        {"remote_addr": "127.8.9.10"},
        {"remote_addr": "::ffff:127.0.0.1"},
        {"headers": ["Host", "User-Agent", "X-Request-Id", "Viaduct", "X-Forward"]},
    ],
)
def test_request_of_this_machine_is_known(request_of: dict[str, object]):
    assert passwords.comes_from_here(**THIS_MACHINE | request_of)


@pytest.mark.parametrize(
    "request_of",
    [
        {"remote_addr": "192.0.2.1"},
        {"remote_addr": "::ffff:192.0.2.1"},
        {"remote_addr": ""},
        {"remote_addr": None},
        {"remote_addr": "localhost"},
        {"host": ""},
        {"host": "example.com"},
        {"host": "localhost.example.com"},
        {"host": "localhost:"},
        {"host": "localhost:80:80"},
        {"host": "localhost\n"},
        {"host": "127.0.0.2"},
        {"host": "127.0.0.1.nip.io"},
        {"host": "::1"},
        {"host": "192.0.2.1:8000"},
        {"http_version": "HTTP/1.0"},
        {"http_version": "HTTP/2"},
        {"http_version": ""},
        *({"headers": ["Host", name]} for name in ("Forwarded", "Via", "via", "X-Real-IP", "x-real-ip")),
        *({"headers": [f"X-Forwarded-{name}", "Host"]} for name in ("For", "FOR", "Proto", "Host", "Port", "Anything")),
    ],
)
def test_request_from_elsewhere_or_by_a_proxy_is_known(request_of: dict[str, object]):
    assert not passwords.comes_from_here(**THIS_MACHINE | request_of)


def test_only_the_default_is_the_default_password():
    assert passwords.has_default_password(load())
    assert not passwords.has_default_password(load({"ADMIN_PASSWORD": DEFAULT_ADMIN_PASSWORD + "!"}))


# Whose the other end of a connection is


def both_protocols() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return socket.has_dualstack_ipv6()
    except OSError:
        return False


WAYS = [("127.0.0.1", "127.0.0.1")]
if both_protocols():
    WAYS += [("::", "::1"), ("::", "::ffff:127.0.0.1"), ("::", "127.0.0.1")]


@pytest.fixture(params=WAYS, ids=" by ".join)
def connection(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection on this machine, the caller's and the service's, which listens and is called so."""
    host, called = request.param
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family, dualstack_ipv6=":" in host) as listener,
        socket.create_connection((called, listener.getsockname()[1])) as theirs,
        listener.accept()[0] as ours,
    ):
        yield theirs, ours


def test_owner_of_the_other_end_is_told(connection: tuple[socket.socket, socket.socket]):
    assert sockets.peer_owner(connection[1]) == os.geteuid()


def test_owner_is_read_from_the_callers_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, connection):
    """Our own end has a row too, of our own user."""
    theirs, ours = connection
    tables_now = [table.read_text() for table in sockets.TABLES]
    port = f":{theirs.getsockname()[1]:04X}"
    copies = [tmp_path / "tcp", tmp_path / "tcp6"]
    for copy, table in zip(copies, tables_now, strict=True):
        rows = [row.split() for row in table.splitlines()]
        for row in rows[1:]:
            row[7] = "4711" if row[1].endswith(port) else row[7]
        copy.write_text("\n".join(" ".join(row) for row in rows) + "\n")
    monkeypatch.setattr(sockets, "TABLES", copies)
    assert sockets.peer_owner(ours) == 4711


def test_caller_who_has_left_is_nobody(connection: tuple[socket.socket, socket.socket]):
    """What is left of their socket counts as root's."""
    theirs, ours = connection
    theirs.close()
    assert eventually(lambda: sockets.peer_owner(ours) is None)

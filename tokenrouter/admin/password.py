"""The administrator's password: compared in constant time, throttled, fenced in while it is the default."""

import hashlib
import hmac
import ipaddress
import math
import re
from collections.abc import Iterable
from functools import cache

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.engine import Connection

from tokenrouter.config import DEFAULT_ADMIN_PASSWORD, Settings
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.tables import SignInAttempt, db, writing

ATTEMPTS, ATTEMPTS_OF_ALL = 5, 30
ATTEMPTS_WITHIN_S = 60
BROWSER = "browser:"  # begins those for whom attempts are counted that are no addresses
THROTTLE_LOCK = 0x736967  # any number that no other advisory lock of ours has
LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
PROXY_HEADER = re.compile(r"forwarded|via|x-forwarded-.*|x-real-ip", re.IGNORECASE)


class TooManyWrongPasswords(Exception):
    """Too many wrong passwords came within a minute; `wait_s` says when the next one may come."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(f"Too many wrong passwords: try again in {wait_s} seconds.")
        self.wait_s = wait_s


def try_password(settings: Settings, password: str, guesser: str) -> bool:
    """Tell whether this is the administrator's password, and count it against the guesser if it is not.

    A guesser is an address as `addresses.counted` gives it, or BROWSER and the id of a known browser. Of an address
    five are looked at in a minute, of all addresses together thirty; a browser has five of its own.
    The attempt is counted before the password is looked at, and given back if that was right: however many guesses come
    at once, to however many workers, no more of them are looked at.
    Raises TooManyWrongPasswords, to the right one too, and what the database raises.
    """
    if wait_s := sign_in_wait_s(guesser):  # read first: whoever is shut out costs no write
        raise TooManyWrongPasswords(wait_s)
    attempt_id = _reserve_attempt(guesser)
    if not check_admin_password(settings, password):
        return False
    with writing(db.engine, durable=False) as connection:
        connection.execute(delete(SignInAttempt).where(SignInAttempt.id == attempt_id))
    return True


def sign_in_wait_s(guesser: str) -> int:
    """Return the whole seconds for which this guesser may not try to sign in; 0 when it may."""
    with db.engine.connect() as connection:
        return _wait_s(connection, guesser)


def check_admin_password(settings: Settings, password: str) -> bool:
    """Compare in a time that tells nothing of the right password, its length included."""
    given, right = (hashlib.sha256(text.encode(errors="surrogatepass")) for text in (password, settings.admin_password))
    return hmac.compare_digest(given.digest(), right.digest())


def password_fingerprint(settings: Settings) -> str:
    """Return what a session is kept with, so that it ends when the password changes.

    Made slowly, so that who reads it in the database can hardly test guesses; each process makes it once.
    """
    return _fingerprint(settings.admin_password.encode(errors="surrogatepass"))


@cache
def _fingerprint(password: bytes) -> str:
    return hashlib.scrypt(password, salt=b"TokenRouter administrator", n=2**14, r=8, p=1).hex()


def has_default_password(settings: Settings) -> bool:
    """Tell whether the administrator never chose a password."""
    return settings.admin_password == DEFAULT_ADMIN_PASSWORD


def comes_from_here(remote_addr: str | None, host: str, headers: Iterable[str], http_version: str) -> bool:
    """Tell whether a request looks as if it came from this very machine, without a proxy.

    `remote_addr` is the peer of the connection, not what a proxy says of it; `host` the Host header, `headers` the
    names of all headers, `http_version` the protocol as in `HTTP/1.1`. A proxy that shows in none of these passes.
    """
    return (
        _is_loopback(remote_addr)
        and LOCAL_HOST.fullmatch(host) is not None
        and http_version == "HTTP/1.1"
        and not any(PROXY_HEADER.fullmatch(name) for name in headers)
    )


def _is_loopback(address: str | None) -> bool:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _reserve_attempt(guesser: str) -> int:
    """Count an attempt, and forget all that are over; return its id."""
    with writing(db.engine, durable=False) as connection:
        if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
            together = guesser if guesser.startswith(BROWSER) else ""
            connection.execute(select(func.pg_advisory_xact_lock(THROTTLE_LOCK, func.hashtext(together))))
        if wait_s := _wait_s(connection, guesser):
            raise TooManyWrongPasswords(wait_s)
        over = select(SignInAttempt.id).where(SignInAttempt.at <= epoch_now() - ATTEMPTS_WITHIN_S)
        connection.execute(delete(SignInAttempt).where(SignInAttempt.id.in_(over.with_for_update(skip_locked=True))))
        added = insert(SignInAttempt).values(address=guesser, at=epoch_now()).returning(SignInAttempt.id)
        return connection.execute(added).scalar_one()


def _wait_s(connection: Connection, guesser: str) -> int:
    """Return how long it takes until few enough attempts lie within the last minute, the guesser's and all."""
    own_s = _wait_for_s(connection, SignInAttempt.address == guesser, ATTEMPTS)
    if guesser.startswith(BROWSER):
        return own_s
    return max(own_s, _wait_for_s(connection, SignInAttempt.address.not_like(f"{BROWSER}%"), ATTEMPTS_OF_ALL))


def _wait_for_s(connection: Connection, is_counted: ColumnElement[bool], attempts: int) -> int:
    first_of_them = (
        select(SignInAttempt.at + ATTEMPTS_WITHIN_S - epoch_now())
        .where(is_counted, SignInAttempt.at > epoch_now() - ATTEMPTS_WITHIN_S)
        .order_by(SignInAttempt.at.desc())
        .offset(attempts - 1)
        .limit(1)
    )
    remaining_s = connection.execute(first_of_them).scalar()
    return 0 if remaining_s is None else max(1, math.ceil(remaining_s))

"""The administrator's password: compared in constant time, throttled, and restricted while it is the default."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from functools import cache

from tokenrouter import attempts
from tokenrouter.config import DEFAULT_ADMIN_PASSWORD, Settings

LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
PROXY_HEADER = re.compile(r"forwarded|via|x-forwarded-.*|x-real-ip", re.IGNORECASE)


def try_password(settings: Settings, password: str, guesser: str) -> bool:
    """Tell whether this is the administrator's password, and count it against the guesser if it is not.

    Raises what `attempts.try_guess` does.
    """
    return attempts.try_guess(guesser, lambda _: check_admin_password(settings, password))


def check_admin_password(settings: Settings, password: str) -> bool:
    """Compare in a time that reveals nothing about the right password, not even its length."""
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

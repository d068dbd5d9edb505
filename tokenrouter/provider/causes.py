"""Why the provider cannot be reached, in words that say what to do about it."""

import socket
import ssl
from collections.abc import Iterator

import requests
import urllib3

from tokenrouter.errors import APIError

IS_V1 = "does PROVIDER_BASE_URL end in /v1?"
CAUSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (socket.gaierror, urllib3.exceptions.NameResolutionError),
        "the name of its host was not found: is PROVIDER_BASE_URL right, and does this machine find other names?",
    ),
    ((ConnectionRefusedError,), "the connection was refused: nothing listens at this address and port"),
    ((ssl.SSLCertVerificationError,), "its certificate is not trusted here"),
    ((ssl.SSLError,), "it does not speak TLS at this port: is https:// right in PROVIDER_BASE_URL?"),
    (
        (requests.ConnectTimeout, TimeoutError),
        "connecting took too long: a firewall may stand between, or nothing that speaks so is there",
    ),
    ((ConnectionResetError, BrokenPipeError), "the connection was closed without an answer"),
)


def cause_in_words(error: APIError) -> str | None:
    """Return the cause of a provider's error in words; None if its message is the best there is."""
    beneath = list(_beneath(error))
    for kinds, words in CAUSES:
        found = next((each for each in beneath if isinstance(each, kinds)), None)
        if found is not None:
            return words + _details(found)
    return None


def _details(cause: BaseException) -> str:
    return f" ({cause.verify_message})" if isinstance(cause, ssl.SSLCertVerificationError) else ""


def _beneath(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors it wraps: libraries keep them as causes, contexts and arguments."""
    seen: list[BaseException] = [error]
    for each in seen:
        wrapped = each.__cause__, each.__context__, getattr(each, "reason", None), *each.args
        seen += [other for other in wrapped if isinstance(other, BaseException) and other not in seen]
        yield each

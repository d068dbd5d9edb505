"""The provider's side of a call: one pool of connections, timeouts, header allowlists, and its errors as ours."""

import http.client
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO, Any, NoReturn
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Retry, Timeout

from tokenrouter.config import Settings
from tokenrouter.errors import (
    APIError,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderQuotaExhausted,
    ProviderRefusal,
    ProviderTimeout,
    ProviderUnreachable,
)
from tokenrouter.metering.streams import parse_json
from tokenrouter.provider.transport import READ_SIZE, Answer, Line, ProviderConnection, at_work

logger = logging.getLogger(__name__)

# Never cookies, organization, project or idempotency keys: they speak for the whole account, or for another caller.
FORWARDED_REQUEST_HEADERS = ("Accept", "User-Agent", "OpenAI-Beta")
FORWARDED_RESPONSE_HEADERS = ("Content-Type", "Retry-After", "OpenAI-Processing-Ms", "OpenAI-Version")
FORWARDED_RESPONSE_PREFIX = "x-ratelimit-"
ERROR_SIZE = 1024 * 1024
SHOWN_ERROR_CHARACTERS = 500
LONGEST_NAME = 100
LAST_BYTES_TIMEOUT_S = 2.0
GET_TIMEOUT_S = 10.0
AUTH_CODES = ("invalid_api_key", "authentication_error")
EMPTY_ACCOUNT = "insufficient_quota"


class RelayedError(APIError):
    """An error of the provider's in OpenAI's shape, which reaches the caller as it is."""

    def __init__(self, status: int, body: bytes, code: str | None, headers: Mapping[str, str]) -> None:
        super().__init__("The provider refused the call.", headers=headers)
        self.status = status
        self.code = code
        self._body = body

    def body(self) -> bytes:
        """Return the provider's own bytes."""
        return self._body

    def names(self, field: str) -> bool:
        """Tell whether the provider complains of this field of the request."""
        return field.encode() in self._body


class Reply:
    """The provider's answer, whose body is still to be read."""

    def __init__(self, response: requests.Response, line: Line, key: str) -> None:
        """Wrap what requests gave."""
        self._response = response
        self._line = line
        self._key = key.encode()
        self.status = response.status_code
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.is_stream = content_type == "text/event-stream"
        self.request_id = response.headers.get("x-request-id", "")[:LONGEST_NAME] or None
        self.headers = {
            name: value
            for name, value in response.headers.items()
            if (known := name.lower()) in _RESPONSE_HEADERS or known.startswith(FORWARDED_RESPONSE_PREFIX)
        }

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives, whatever its framing.

        Raises ProviderTimeout after too long a silence, ProviderBadResponse when it breaks off, and the reason why the
        line was cut.
        """
        raw = self._response.raw
        is_plain = isinstance(raw, Answer) and not raw.is_encoded
        try:
            yield from raw.content.pieces() if is_plain else _decoded_pieces(raw)
            self._line.release()
            raw.release_conn()
        except (ReadTimeoutError, TimeoutError, BlockingIOError) as error:
            raise self._line.reason or ProviderTimeout("The provider was silent for too long.") from error
        except (HTTPError, http.client.HTTPException, OSError) as error:
            raise self._line.reason or ProviderBadResponse("The provider's answer broke off.") from error
        if self._line.reason is not None and not self._tells_its_end():
            raise self._line.reason

    def _tells_its_end(self) -> bool:
        """Tell whether a whole body can be told from one that was cut; what ends with its connection cannot."""
        headers = self._response.headers
        return "Content-Length" in headers or "Transfer-Encoding" in headers

    def without_key(self, error: bytes | bytearray) -> bytes:
        """Return an error of the provider's with our key masked, should it repeat that."""
        return bytes(error).replace(self._key, b"[key]")

    def read(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.chunks())

    def read_error(self) -> bytes:
        """Return the body of an error, as much of it as anyone could want; what breaks off is enough as it is."""
        body = b""
        try:
            for chunk in self.chunks():
                body += chunk
                if len(body) > ERROR_SIZE:
                    break
        except ProviderBadResponse:
            return body
        return body

    def read_end(self, chunks: Iterator[bytes]) -> bytes:
        """Read what follows the last event, most often only the end of the body, and wait only shortly for it."""
        connection = self._response.raw.connection
        if connection is not None and connection.sock is not None:
            connection.wait_at_most(LAST_BYTES_TIMEOUT_S)
        try:
            return next(chunks, b"")
        except APIError as error:
            logger.debug("A stream did not end after its last event: %s", error)
            return b""

    def close(self) -> None:
        """Return the connection to the pool where the body was read to its end; else close it, which stops the cost."""
        self._line.release()
        if self._response.raw.closed:
            self._response.raw.release_conn()
        else:
            self._response.raw.close()


_RESPONSE_HEADERS = frozenset(name.lower() for name in FORWARDED_RESPONSE_HEADERS)


class LeanResponse(requests.Response):
    """What the relay needs of a response: its own constructor makes a cookie jar."""

    def __init__(self) -> None:
        """Leave everything to whoever builds it."""


class ProviderAdapter(HTTPAdapter):
    """Send to the one provider: what requests finds out anew for every request is found out once.

    Of a call's CPU that is 150 µs: pool and proxy by URL, certificates on disk, cookies of the response.
    """

    def __init__(self, **options: Any) -> None:
        """Connect to nothing yet."""
        super().__init__(**options)
        self._pool: HTTPConnectionPool | None = None
        self._targets: dict[str, str] = {}
        self._lock = threading.Lock()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        """Return the provider's pool."""
        with self._lock:
            if self._pool is None:
                pool = super().get_connection_with_tls_context(*args, **kwargs)
                super().cert_verify(pool, args[0].url, args[1], kwargs.get("cert"))
                pool.ConnectionCls = type("Connection", (ProviderConnection, pool.ConnectionCls), {})
                self._pool = pool
            return self._pool

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the pool was told when it was made."""

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """Return the path to ask for, or the whole URL where a proxy has to know it."""
        target = self._targets.get(request.url)
        if target is None:
            target = self._targets[request.url] = super().request_url(request, proxies)
        return target

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> LeanResponse:
        """Return status, headers and the body to be read."""
        response = LeanResponse()
        response.status_code = resp.status
        response.headers = resp.headers
        response.raw = resp
        return response


class Provider:
    """The one paid account. Safe for many threads."""

    def __init__(self, settings: Settings) -> None:
        """Connect to nothing yet."""
        self._root = settings.provider_base_url
        self._key = settings.provider_api_key
        self._own_headers = {
            "Host": _host_header(self._root),
            "User-Agent": "TokenRouter",
            "Authorization": f"Bearer {self._key}",
            "Accept-Encoding": "identity",  # what is relayed is metered on its way
        }
        connect_s, read_s = settings.provider_connect_timeout, settings.provider_read_timeout
        self._timeout = Timeout(connect=connect_s, read=read_s)
        self._short_timeout = Timeout(connect=connect_s, read=min(read_s, GET_TIMEOUT_S))
        self._session = requests.Session()
        # looked up once: for every request anew, requests would search the environment for proxies and certificates
        self._route = self._session.merge_environment_settings(self._root, {}, None, None, None)
        self._route.pop("stream")
        self._session.trust_env = False
        retry = Retry(total=None, connect=1, read=0, redirect=0, status=0, other=0, backoff_factor=0)
        adapter = ProviderAdapter(pool_connections=1, pool_maxsize=settings.threads, max_retries=retry)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def close(self) -> None:
        """Close the pool."""
        self._session.close()

    def post(self, path: str, body: bytes, headers: Mapping[str, str], line: Line | None = None) -> Reply:
        """Send a JSON body, with the caller's headers that the provider may see.

        Raises ProviderUnreachable, ProviderTimeout, what `_refuse` makes of an error, and the reason why the line was
        cut.
        """
        return self._send("POST", path, body, headers, line)

    def post_file(
        self, path: str, file: IO[bytes], content_type: str, headers: Mapping[str, str], line: Line | None = None
    ) -> Reply:
        """Send a file as the body, likewise, without ever having all of it in memory."""
        file.seek(0, os.SEEK_END)
        length = file.tell()
        file.seek(0)
        return self._send("POST", path, file, headers, line, content=(content_type, length))

    def get(self, path: str) -> Reply:
        """Ask for a small document of the provider's, likewise, and wait only shortly."""
        return self._send("GET", path, None, {}, timeout=self._short_timeout)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None,
        headers: Mapping[str, str],
        line: Line | None = None,
        timeout: Timeout | None = None,
        content: tuple[str, int] | None = None,
    ) -> Reply:
        prepared = requests.PreparedRequest()
        prepared.method = method
        prepared.url = self._root + quote(path)
        if isinstance(body, bytes):
            content = "application/json", len(body)
        prepared.headers = self._headers(headers, content)
        prepared.body = body
        line = line or Line()
        try:
            response = self._exchange(prepared, timeout or self._timeout, line)
        except requests.ConnectTimeout as error:
            raise ProviderUnreachable("The provider could not be reached: connecting took too long.") from error
        except requests.ReadTimeout as error:
            raise ProviderTimeout("The provider was silent for too long.") from error
        except requests.RequestException as error:
            if line.reason is not None:
                raise line.reason from error
            if _is_nonsense(error):
                raise ProviderBadResponse("The provider's answer is not HTTP.") from error
            raise ProviderUnreachable("The provider could not be reached.") from error
        reply = Reply(response, line, self._key)
        if not 200 <= reply.status < 300:
            self._refuse(reply)
        return reply

    def _exchange(self, prepared: requests.PreparedRequest, timeout: Timeout, line: Line) -> requests.Response:
        """Send the request; once more where the provider had just closed the connection, which it had kept for long."""
        adapter = self._session.get_adapter(prepared.url)
        at_work.line = line
        try:
            return adapter.send(prepared, stream=True, timeout=timeout, **self._route)
        except requests.ConnectionError:
            if not line.was_stale():
                raise
            line.must_be_new = True
            if hasattr(prepared.body, "seek"):
                prepared.body.seek(0)
            return adapter.send(prepared, stream=True, timeout=timeout, **self._route)
        finally:
            at_work.line = None

    def _headers(self, callers: Mapping[str, str], content: tuple[str, int] | None) -> dict[str, str]:
        headers = dict(self._own_headers)
        headers |= {name: value for name in FORWARDED_REQUEST_HEADERS if (value := callers.get(name))}
        if content is not None:
            headers["Content-Type"] = content[0]
            headers["Content-Length"] = str(content[1])
        return headers

    def _refuse(self, reply: Reply) -> NoReturn:
        """Raise what the caller may know of the provider's error."""
        try:
            if reply.status < 400:
                raise ProviderBadResponse(f"The provider answered with a redirect or an odd status, {reply.status}.")
            body = reply.read_error()
        finally:
            reply.close()
        error = _openai_error(body)
        codes = (error.get("code"), error.get("type")) if error else ()
        if reply.status == 401 or (reply.status == 403 and any(code in AUTH_CODES for code in codes)):
            raise ProviderAuthFailed("The provider refuses this service's key. Its operator has to set a valid one.")
        if reply.status == 402 or EMPTY_ACCOUNT in codes:
            raise ProviderQuotaExhausted("The provider's account is used up. The operator has to top it up.")
        body = reply.without_key(body)
        if error is None:
            text = body.decode(errors="replace").strip()[:SHOWN_ERROR_CHARACTERS]
            raise ProviderRefusal(text or f"The provider answered {reply.status}.", reply.status, _without_type(reply))
        code = error.get("code")
        is_name = isinstance(code, str) and code.isprintable() and len(code) <= LONGEST_NAME
        raise RelayedError(reply.status, body, code if is_name else None, _without_type(reply))


def _decoded_pieces(raw: HTTPResponse) -> Iterator[bytes]:
    return iter(partial(raw.read1, READ_SIZE, decode_content=True), b"")


def _host_header(url: str) -> str:
    """Return what a request to this URL says of its host. Source: RFC 9112, 3.2."""
    return urlsplit(requests.Request("GET", url).prepare().url).netloc.rpartition("@")[2]


def _without_type(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.lower() != "content-type"}


def _openai_error(body: bytes) -> dict[str, Any] | None:
    document = parse_json(body)
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def _is_nonsense(error: BaseException) -> bool:
    """Tell a malformed status line or header from a connection that ended; requests wraps both alike."""
    seen: list[BaseException] = [error]
    for cause in seen:
        if isinstance(cause, http.client.HTTPException):
            return not isinstance(cause, http.client.RemoteDisconnected)
        seen += [arg for arg in (*cause.args, cause.__cause__) if isinstance(arg, BaseException) and arg not in seen]
    return False

"""The provider's side of a call: one pool of connections, timeouts, header allowlists, and its errors as ours."""

import http.client
import os
from collections.abc import Mapping
from typing import IO, Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import requests
from urllib3.util import Retry, Timeout

from tokenrouter.config import Settings
from tokenrouter.errors import ProviderBadResponse, ProviderTimeout, ProviderUnreachable
from tokenrouter.provider.adapter import ProviderAdapter
from tokenrouter.provider.rate_limits import RateLimits
from tokenrouter.provider.refusals import refuse
from tokenrouter.provider.replies import Reply
from tokenrouter.provider.transport import ProviderLink, at_work

# Never cookies, organization, project or idempotency keys: they speak for the whole account, or for another caller.
FORWARDED_REQUEST_HEADERS = ("Accept", "User-Agent", "OpenAI-Beta")
GET_TIMEOUT_S = 10.0


class CallerHeaders(Protocol):
    """The headers of a request to us, of which the provider sees a few."""

    def get(self, key: str, /) -> str | None:
        """Return a header, in any case; None if there is none."""


class Provider:
    """The one paid account. Safe for many threads."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.provider_base_url
        self._beside = self._root.removesuffix("/v1")
        self._key = settings.provider_api_key
        self.rate_limits = RateLimits()
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
        self._route: Any = self._session.merge_environment_settings(self._root, {}, True, None, None)
        self._session.trust_env = False
        # with 0 instead of False a GET's silence would be told as a connection that failed
        retry = Retry(total=None, connect=1, read=False, redirect=0, status=0, other=0, backoff_factor=0)
        adapter = ProviderAdapter(pool_connections=1, pool_maxsize=settings.threads, max_retries=retry)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def close(self) -> None:
        """Close the pool."""
        self._session.close()

    def post(self, path: str, body: bytes, headers: CallerHeaders, link: ProviderLink | None = None) -> Reply:
        """Send a JSON body, with the caller's headers that the provider may see.

        Raises ProviderUnreachable, ProviderTimeout, what `refuse` makes of an error, and the reason why the link was
        cut.
        """
        return self._send("POST", path, body, headers, link)

    def post_file(
        self,
        path: str,
        file: IO[bytes],
        content_type: str,
        headers: CallerHeaders,
        link: ProviderLink | None = None,
    ) -> Reply:
        """Send a file as the body, likewise, without ever having all of it in memory."""
        file.seek(0, os.SEEK_END)
        length = file.tell()
        file.seek(0)
        return self._send("POST", path, file, headers, link, content=(content_type, length))

    def get(
        self,
        path: str,
        link: ProviderLink | None = None,
        *,
        is_beside: bool = False,
        query: Mapping[str, str] | None = None,
    ) -> Reply:
        """Ask for a small document of the provider's, likewise, and wait only shortly.

        What `is_beside` the API for callers stands where the root would without its `/v1`.
        """
        root = self._beside if is_beside else self._root
        return self._send("GET", path, None, {}, link, timeout=self._short_timeout, root=root, query=query)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None,
        headers: CallerHeaders,
        link: ProviderLink | None = None,
        timeout: Timeout | None = None,
        content: tuple[str, int] | None = None,
        root: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Reply:
        prepared: Any = requests.PreparedRequest()  # whose headers may be any mapping, whatever its type says
        prepared.method = method
        prepared.url = (root or self._root) + quote(path) + (f"?{urlencode(query)}" if query else "")
        if isinstance(body, bytes):
            content = "application/json", len(body)
        prepared.headers = self._headers(headers, content)
        prepared.body = body
        link = link or ProviderLink()
        try:
            response = self._exchange(prepared, timeout or self._timeout, link)
        except requests.ConnectTimeout as error:
            raise ProviderUnreachable("The provider could not be reached: connecting took too long.") from error
        except requests.ReadTimeout as error:
            raise ProviderTimeout("The provider was silent for too long.") from error
        except requests.RequestException as error:
            if link.reason is not None:
                raise link.reason from error
            if _is_nonsense(error):
                raise ProviderBadResponse("The provider's answer is not HTTP.") from error
            raise ProviderUnreachable("The provider could not be reached.") from error
        self.rate_limits.note(response.headers)
        reply = Reply(response, link, self._key)
        if not 200 <= reply.status < 300:
            refuse(reply)
        return reply

    def _exchange(self, prepared: requests.PreparedRequest, timeout: Timeout, link: ProviderLink) -> requests.Response:
        """Send the request; once more where the provider had just closed the connection, which it had kept for long."""
        adapter = self._session.get_adapter(self._root)
        options: dict[str, Any] = {**self._route, "timeout": timeout}
        at_work.link = link
        try:
            return adapter.send(prepared, **options)
        except requests.ConnectionError:
            if not link.was_stale():
                raise
            link.must_be_new = True
            body: Any = prepared.body
            if hasattr(body, "seek"):
                body.seek(0)
            return adapter.send(prepared, **options)
        finally:
            del at_work.link

    def _headers(self, caller_headers: CallerHeaders, content: tuple[str, int] | None) -> dict[str, str]:
        headers = dict(self._own_headers)
        headers |= {name: value for name in FORWARDED_REQUEST_HEADERS if (value := caller_headers.get(name))}
        if content is not None:
            headers["Content-Type"] = content[0]
            headers["Content-Length"] = str(content[1])
        return headers


def _host_header(url: str) -> str:
    """Return what a request to this URL says of its host. Source: RFC 9112, 3.2."""
    return urlsplit(str(requests.Request("GET", url).prepare().url)).netloc.rpartition("@")[2]


def _is_nonsense(error: BaseException) -> bool:
    """Tell a malformed status link or header from a connection that ended; requests wraps both alike."""
    seen: list[BaseException] = [error]
    for cause in seen:
        if isinstance(cause, http.client.HTTPException):
            return not isinstance(cause, http.client.RemoteDisconnected)
        seen += [arg for arg in (*cause.args, cause.__cause__) if isinstance(arg, BaseException) and arg not in seen]
    return False

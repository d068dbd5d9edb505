"""The provider's answer to a call, whose body is still to be read."""

import http.client
import logging
import time
from collections.abc import Iterator
from functools import partial

import requests
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError, ReadTimeoutError

from tokenrouter.errors import APIError, ProviderBadResponse, ProviderTimeout
from tokenrouter.provider.transport import READ_SIZE, Answer, ProviderConnection, ProviderLink

logger = logging.getLogger(__name__)

# Never x-ratelimit-*, which tell the state of the whole account.
FORWARDED_RESPONSE_HEADERS = (
    "Content-Type",
    "Retry-After",
    "retry-after-ms",
    "x-should-retry",
    "openai-processing-ms",
    "openai-version",
)
ERROR_SIZE = 1024 * 1024
LONGEST_NAME = 100
LAST_BYTES_TIMEOUT_S = 2.0


class Reply:
    """The provider's answer, whose body is still to be read."""

    def __init__(self, response: requests.Response, link: ProviderLink, key: str) -> None:
        """Wrap a response from requests."""
        self._response = response
        self._link = link
        self._key = key.encode()
        self.status = response.status_code
        headers = response.headers
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self.is_stream = content_type == "text/event-stream"
        self.request_id = headers.get("x-request-id", "")[:LONGEST_NAME] or None
        self.headers = {name: headers[key] for key, name in RELAYED_HEADERS.items() if key in headers}

    def label_as_stream(self) -> None:
        """Mark it as a stream of events if the provider did not."""
        if not self.is_stream:
            self.headers["Content-Type"] = "text/event-stream"
            self.is_stream = True

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives, whatever its framing.

        Raises ProviderTimeout after too long a silence, ProviderBadResponse when it breaks off, and the reason why the
        link was cut.
        """
        raw = self._response.raw
        try:
            yield from raw.content if isinstance(raw, Answer) and not raw.is_encoded else _decoded_pieces(raw)
            self._link.release()
            raw.release_conn()
        except (ReadTimeoutError, TimeoutError, BlockingIOError) as error:
            raise self._link.reason or ProviderTimeout("The provider was silent for too long.") from error
        except (HTTPError, http.client.HTTPException, OSError) as error:
            raise self._link.reason or ProviderBadResponse("The provider's answer broke off.") from error
        if self._link.reason is not None and not self._tells_its_end():
            raise self._link.reason

    def _tells_its_end(self) -> bool:
        """Tell whether a truncated body would be noticed; one that ends with its connection would not."""
        headers = self._response.headers
        return "content-length" in headers or "transfer-encoding" in headers

    def without_key(self, error: bytes | bytearray) -> bytes:
        """Return a provider's error with our key masked, in case the error repeats it."""
        return bytes(error).replace(self._key, b"[key]")

    def masked(self, names: str) -> str:
        """Return the names of an error with our key masked."""
        return self.without_key(names.encode()).decode()

    def read(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.chunks())

    def read_error(self) -> bytes:
        """Return the body of an error, up to about ERROR_SIZE; if it breaks off, what has arrived."""
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
        """Read what follows the last event, mostly just the end of the body, without waiting long."""
        return next(self.chunks_within(chunks, LAST_BYTES_TIMEOUT_S), b"")

    def chunks_within(self, chunks: Iterator[bytes], seconds: float) -> Iterator[bytes]:
        """Yield what arrives within so many seconds; if the body breaks off, stop quietly."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            connection = self._response.raw.connection
            if isinstance(connection, ProviderConnection) and connection.sock is not None:
                connection.wait_at_most(left_s)
            try:
                chunk = next(chunks, None)
            except APIError as error:
                logger.debug("An answer did not end in time: %s", error)
                return
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        """Return the connection to the pool if the body was read to its end; otherwise close it, to stop the cost."""
        self._link.release()
        self._response.raw.release_conn()


RELAYED_HEADERS = {name.lower(): name for name in FORWARDED_RESPONSE_HEADERS}


def _decoded_pieces(raw: HTTPResponse) -> Iterator[bytes]:
    return iter(partial(raw.read1, READ_SIZE, decode_content=True), b"")

"""The body of the current request: no more of it than may come, and not compressed."""

from collections.abc import Iterator
from typing import IO

from flask import request
from gunicorn.http.errors import ParseException

from tokenrouter.errors import InvalidRequest, RequestTooLarge

READ_SIZE = 64 * 1024


def check_size(most_bytes: int) -> None:
    """Raise RequestTooLarge, before anything of the body is read, where its length is known to be too much."""
    if (request.content_length or 0) > most_bytes:
        raise _too_large(most_bytes)


def check_encoding() -> None:
    """Raise InvalidRequest where the body is compressed: its length would not tell what it grows to."""
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "")
    if encoding and encoding.lower() != "identity":
        raise InvalidRequest("The body is compressed. Send it without Content-Encoding.")


def read_body(most_bytes: int) -> bytes:
    """Return the whole body.

    Raises RequestTooLarge, also for a chunked body, of which no more is read than may come, and InvalidRequest where it
    ends early or its framing is broken.
    """
    return b"".join(body_pieces(most_bytes))


def body_pieces(most_bytes: int) -> Iterator[bytes]:
    """Yield the body piece by piece.

    Raises RequestTooLarge and InvalidRequest, likewise.
    """
    environ, announced = request.environ, request.content_length
    if announced is None and "wsgi.input_terminated" not in environ:
        return  # the server does not say where the body ends, so there is none
    body, received = environ["wsgi.input"], 0
    while received != announced:
        data = _read(body, READ_SIZE if announced is None else min(READ_SIZE, announced - received))
        if not data:
            break
        received += len(data)
        if received > most_bytes:
            raise _too_large(most_bytes)
        yield data
    if announced is not None and received != announced:
        raise InvalidRequest(f"The body ended after {received:,} of {announced:,} bytes.")


def _read(body: IO[bytes], size: int) -> bytes:
    try:
        return body.read(size)
    except (OSError, ParseException) as error:
        raise InvalidRequest("The body did not come whole, or its framing is broken.") from error


def _too_large(most_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is larger than {most_bytes:,} bytes, the most taken here.")

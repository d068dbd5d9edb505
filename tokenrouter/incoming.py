"""The body of the current request: no more of it than may come, and not compressed."""

from collections.abc import Iterator

from flask import request

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

    Raises RequestTooLarge, also for a chunked body, of which no more is read than may come.
    """
    if request.content_length is not None:
        return request.get_data(cache=False)
    return b"".join(body_pieces(most_bytes))


def body_pieces(most_bytes: int) -> Iterator[bytes]:
    """Yield the body piece by piece.

    Raises RequestTooLarge, likewise.
    """
    if request.content_length is not None:
        body = request.stream
    elif "wsgi.input_terminated" in request.environ:
        body = request.environ["wsgi.input"]
    else:
        return  # the server does not say where the body ends, so there is none
    left = most_bytes
    while data := body.read(READ_SIZE):
        left -= len(data)
        if left < 0:
            raise _too_large(most_bytes)
        yield data


def _too_large(most_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is larger than {most_bytes:,} bytes, the most taken here.")

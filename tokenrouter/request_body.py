"""The body of the current request: limited in size, not compressed, and within the memory for all bodies."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

from flask import Flask, current_app, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import LengthRequired

from tokenrouter.errors import InvalidRequest, Overloaded, RequestTooLarge

READ_SIZE = 64 * 1024
BODIES_AT_ONCE = 8
EXTENSION = "tokenrouter.bodies"

Parsed = TypeVar("Parsed")


class Memory:
    """Counts the bytes of bodies that this process holds while they are received and parsed, in all and by owner.

    No owner gets more than half. What fits into one read is not counted, so short bodies always find room.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[int | None] = Counter()
        self._total = 0
        self._lock = threading.Lock()

    def take(self, owner: int | None, size: int) -> None:
        """Take so many bytes.

        Raises Overloaded.
        """
        with self._lock:
            if self._total + size > self._limit or self._taken[owner] + size > self._limit // 2:
                raise Overloaded("Too many large bodies are on their way here. Try again in a moment.")
            self._taken[owner] += size
            self._total += size

    def give_back(self, owner: int | None, size: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._total -= size
            self._taken[owner] -= size
            if not self._taken[owner]:
                del self._taken[owner]


def init_app(app: Flask, most_bytes: int) -> None:
    """Give the app memory for a few bodies of the largest size at a time."""
    app.extensions[EXTENSION] = Memory(BODIES_AT_ONCE * most_bytes)


MOST_PAGE_BYTES = 16 * 1024


def limit_page() -> None:
    """Limit a page's form to what the worker buffers without a thread.

    A view that accepts more, from an administrator, raises `request.max_content_length`.
    Raises LengthRequired for a chunked body, for which a thread would have to wait.
    """
    request.max_content_length = MOST_PAGE_BYTES
    request.environ.pop("HTTP_RANGE", None)  # parts of files would be copied; a whole file is sent by sendfile
    if "HTTP_TRANSFER_ENCODING" in request.environ:
        raise LengthRequired("Say by Content-Length how long the body is.")


def check_size(most_bytes: int) -> None:
    """Raise RequestTooLarge if the announced length is too much, before the body is read."""
    if (request.content_length or 0) > most_bytes:
        raise _too_large(most_bytes)


def check_encoding() -> None:
    """Raise InvalidRequest if the body is compressed: its length would not tell what it grows to."""
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "")
    if encoding and encoding.lower() != "identity":
        raise InvalidRequest("The body is compressed. Send it without Content-Encoding.")


def read(most_bytes: int, parse: Callable[[bytes], Parsed], owner: int | None = None) -> Parsed:
    """Return what `parse` makes of the whole body, which counts to the memory of this owner.

    Raises RequestTooLarge, also for a chunked body, of which no more is read than may come, InvalidRequest where it
    ends early or its framing is broken, and Overloaded.
    """
    memory: Memory = current_app.extensions[EXTENSION]
    pieces: list[bytes] = []
    taken = 0
    try:
        for piece in body_pieces(most_bytes):
            if pieces:
                memory.take(owner, len(piece))
                taken += len(piece)
            pieces.append(piece)
        data = b"".join(pieces)
        pieces.clear()
        return parse(data)
    finally:
        if taken:
            memory.give_back(owner, taken)


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

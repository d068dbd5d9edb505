"""Cut a byte stream into whole server-sent events, every byte kept. Source: WHATWG HTML, 9.2.5 and 9.2.6."""

import re
from collections.abc import Iterator

# A line ends with CRLF, LF or CR; an event ends with an empty line. A CR that ends what has arrived may be half a CRLF,
# so it waits for the next byte, unless the line before ended in CR alone as well.
_LINE_END = rb"(?:\r\n|\n|\r(?!\n)(?!\Z))"
_EVENT_END = re.compile(_LINE_END + _LINE_END + rb"|\r\r\Z")
_LINE = re.compile(rb"\r\n|\n|\r")
_LONGEST_END = 4
SHORT = 64 * 1024  # may be joined again with what comes next; an event of megabytes not


class EventSplitter:
    """Give back what is fed to it as whole events, each with its empty line."""

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._parts: list[bytes] = []
        self._is_simple = True  # what is held is short and has no CR
        self.held_bytes = 0
        """How much is held of an event whose end has not come."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of an event is held."""
        return not self._parts

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes, in order, as they were sent."""
        if not self._is_simple or b"\r" in data:
            return self._feed_slowly(data)
        *events, rest = b"".join((*self._parts, data)).split(b"\n\n")
        self._hold(rest)
        return [event + b"\n\n" for event in events]

    def _hold(self, rest: bytes) -> None:
        self._parts = [rest] if rest else []
        self.held_bytes = len(rest)
        self._is_simple = len(rest) <= SHORT and b"\r" not in rest

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        # An event of megabytes comes in many reads: keep them apart, and look for its end in the new bytes alone.
        seam = b"".join(self._parts[-_LONGEST_END:])[-_LONGEST_END:]
        self._parts.append(data)
        self.held_bytes += len(data)
        self._is_simple = False
        if not _EVENT_END.search(seam + data):
            return []
        whole = b"".join(self._parts)
        events, start = [], 0
        for match in _EVENT_END.finditer(whole):
            events.append(whole[start : match.end()])
            start = match.end()
        self._hold(whole[start:])
        return events

    def rest(self) -> bytes:
        """Return what is left when the stream has ended: an event whose empty line never came, or nothing."""
        rest, self._parts = b"".join(self._parts), []
        return rest


_NAME = re.compile(rb"^event:([^\r\n]*)", re.MULTILINE)
FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def first_bytes(chunks: Iterator[bytes], *, is_stream: bool) -> tuple[list[bytes], bool]:
    """Return the first chunks of an answer, and whether they begin a stream of events, whatever its label says.

    `is_stream` is what the label says; it decides where the bytes do not.
    """
    taken: list[bytes] = []
    for chunk in chunks:
        taken.append(chunk)
        beginning = b"".join(taken).removeprefix(BYTE_ORDER_MARK).lstrip()
        if beginning.startswith(FIELDS):
            return taken, True
        if beginning.startswith((b"{", b"[")):
            return taken, False
        if beginning and not any(field.startswith(beginning) for field in FIELDS):
            break
    return taken, is_stream


_ERROR = re.compile(rb"^(?:event:[ ]?error[ \t]*$|error:)", re.MULTILINE)


def is_error(event: bytes) -> bool:
    """Tell whether an event is called an error, or has a line of that name, as llama.cpp's has."""
    return not event.startswith(b"data:") and _ERROR.search(event.replace(b"\r", b"\n")) is not None


def event_name(event: bytes) -> str:
    """Return what the `event` line of an event calls it; an empty text where it has none."""
    found = _NAME.search(event)
    return found[1].decode(errors="replace").strip() if found else ""


def event_data(event: bytes) -> bytes:
    """Return the data of an event: its `data` lines joined by line feeds; empty where it has none."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # one line, the usual spelling
    lines = []
    for line in _LINE.split(event.removeprefix(BYTE_ORDER_MARK)):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)

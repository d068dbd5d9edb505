"""The splitter of event streams: every byte kept, the same events however the bytes arrive."""

import re
from collections.abc import Iterable

import pytest

from tokenrouter.metering import sse
from tokenrouter.metering.sse import EventSplitter, event_data

EVENTS = [
    "data: {}",
    ": a comment",
    "event: message\ndata: one\ndata: two\nid: 7",
    "data:é漢👩‍💻",
    "retry: 5\n: why\ndata",
    "data: [DONE]",
]
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def written(line_end: bytes) -> list[bytes]:
    """Return the events as a provider with these line ends writes them."""
    return [event.encode().replace(b"\n", line_end) + 2 * line_end for event in EVENTS]


def split(pieces: Iterable[bytes]) -> tuple[list[bytes], bytes]:
    """Return the events and the rest that come of these pieces."""
    splitter = EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.rest()


def ways_to_arrive(stream: bytes) -> Iterable[list[bytes]]:
    """Yield the stream whole, in any two pieces, and in equal pieces of few bytes."""
    yield [stream]
    yield from ([stream[:at], stream[at:]] for at in range(1, len(stream)))
    yield from ([stream[at : at + size] for at in range(0, len(stream), size)] for size in range(1, 8))


@pytest.mark.parametrize("name", LINE_ENDS)
def test_events_are_the_same_however_they_arrive(name: str):
    events = written(LINE_ENDS[name])
    for pieces in ways_to_arrive(b"".join(events)):
        assert split(pieces) == (events, b"")


@pytest.mark.parametrize("name", LINE_ENDS)
def test_byte_order_mark_is_kept_and_hides_nothing(name: str):
    stream = b"\xef\xbb\xbf" + b"".join(written(LINE_ENDS[name]))
    for pieces in ways_to_arrive(stream):
        events, rest = split(pieces)
        assert b"".join(events) + rest == stream
        assert event_data(events[0]) == b"{}"


MIXED = [first + second for first in LINE_ENDS.values() for second in LINE_ENDS.values()]
BLANK_LINES = [b"\n\n\n", b"\n\n\n\n", b"\r\r\r", b"\r\n\r\n\r\n", b"\r\r\n", b"\n\r\n\n"]


@pytest.mark.parametrize("ending", [ending for ending in MIXED if ending != b"\r\n"] + BLANK_LINES)
def test_odd_ends_of_events_neither_lose_nor_join_anything(ending: bytes):
    stream = b"data: a" + ending + b"data: b" + ending + b"data: c" + ending
    for pieces in ways_to_arrive(stream):
        events, rest = split(pieces)
        assert b"".join(events) + rest == stream
        assert [data for event in [*events, rest] if (data := event_data(event))] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("rest", [b"data: half", b"data: whole line\n", b"data: x\r", b": c"])
def test_what_no_empty_line_ends_is_no_event_yet(rest: bytes):
    for pieces in ways_to_arrive(b"data: a\n\n" + rest):
        assert split(pieces) == ([b"data: a\n\n"], rest)


def test_event_is_given_out_with_its_last_byte_whatever_the_line_ends():
    for line_end in (b"\n", b"\r"):
        splitter = EventSplitter()
        assert splitter.feed(b"data: a" + line_end) == []
        assert splitter.feed(line_end) == [b"data: a" + 2 * line_end]


def test_empty_pieces_make_no_event():
    assert split([b"", b""]) == ([], b"")


def test_unfinished_event_is_given_out_once():
    splitter = EventSplitter()
    splitter.feed(b"data: half")
    assert (splitter.rest(), splitter.rest()) == (b"data: half", b"")
    assert splitter.feed(b"data: a\n\n") == [b"data: a\n\n"]


class CountingPattern:
    """The splitter's own pattern, with a count of the bytes that it was shown."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern, self.bytes = pattern, 0

    def search(self, data: bytes) -> re.Match[bytes] | None:
        self.bytes += len(data)
        return self.pattern.search(data)

    def finditer(self, data: bytes) -> Iterable[re.Match[bytes]]:
        self.bytes += len(data)
        return self.pattern.finditer(data)


@pytest.mark.parametrize("line_end", LINE_ENDS.values())
def test_event_of_five_megabytes_is_searched_at_most_twice(monkeypatch: pytest.MonkeyPatch, line_end: bytes):
    pattern = CountingPattern(sse._EVENT_END)
    monkeypatch.setattr(sse, "_EVENT_END", pattern)
    event = b"data: " + b"x" * 5_000_000 + 2 * line_end
    events, rest = split(event[at : at + 65536] for at in range(0, len(event), 65536))
    assert (events, rest) == ([event], b"")
    assert pattern.bytes < 2.1 * len(event)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data:  a\n\n", b" a"),
        (b"data: a\r\n\r\n", b"a"),
        (b"data: a\r\r", b"a"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata:\r\ndata: b\r\n\r\n", b"a\n\nb"),
        (b"data\n\n", b""),
        (b"data: \n\n", b""),
        (b": data: a\n\n", b""),
        (b"event: data\n\n", b""),
        (b"Data: a\n\n", b""),
        (b" data: a\n\n", b""),
        (b"datas: a\n\n", b""),
        (b"event: e\nid: 1\ndata: a\nretry: 5\n: c\n\n", b"a"),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        (b"data: a: b\n\n", b"a: b"),
        (b"data: a", b"a"),
        (b"data: a\n", b"a"),
        (b"\n\n", b""),
        (b"", b""),
        (b"data: a\xe2\x80\xa8b\x0b\x0c\x85c\n\n", b"a\xe2\x80\xa8b\x0b\x0c\x85c"),
    ],
)
def test_data_lines_of_an_event_are_joined_and_all_else_is_left_out(event: bytes, data: bytes):
    assert event_data(event) == data

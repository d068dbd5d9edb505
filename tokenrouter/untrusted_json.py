"""Read JSON from outside, which may be anything."""

import codecs
import json
import re
from typing import Any

import orjson

_PIECE = re.compile(rb'[\[\]{},]|"(?:[^"\\]|\\[^u]|\\u[0-9a-fA-F]{4})*+("?)', re.DOTALL)
_CLOSING = {b"{": b"}", b"[": b"]"}
_MOST_PIECES, _MOST_LEVELS = 200_000, 1000


def parse_json(data: bytes | bytearray) -> Any:
    """Return the JSON value, or None if there is none.

    It accepts what lenient parsers do: a byte order mark, NaN and Infinity, half a surrogate pair, line ends and other
    control characters within a text. The provider bills for such an answer, and the caller's own parser may accept it.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # try the lenient parser
    try:
        return json.loads(bytes(data).removeprefix(codecs.BOM_UTF8).decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def parse_cut_json(data: bytes) -> Any:
    """Return as much of a JSON value as came before it broke off; None where that is none, or very large."""
    ends = b""  # what closes all that is open
    last_comma, ends_there = 0, b""
    for number, piece in enumerate(_PIECE.finditer(data)):
        mark = piece[0][:1]
        if number > _MOST_PIECES or len(ends) > _MOST_LEVELS or (mark in (b"}", b"]") and ends[:1] != mark):
            return None
        if mark in _CLOSING:
            ends = _CLOSING[mark] + ends
        elif mark in (b"}", b"]"):
            ends = ends[1:]
        elif mark == b",":
            last_comma, ends_there = piece.start(), ends
        elif not piece[1]:
            data = data[: piece.end()] + b'"'  # without half an escape
    attempts = (data + end + ends for end in (b"", b":null", b"null"))
    found = (parse_json(attempt) for attempt in (*attempts, data[:last_comma] + ends_there))
    return next((value for value in found if value is not None), None)

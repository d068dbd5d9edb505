"""Read JSON from outside, which may be anything."""

import codecs
import json
from typing import Any

import orjson


def parse_json(data: bytes | bytearray) -> Any:
    """Return the JSON value, or None if there is none.

    It accepts what lenient parsers do: a byte order mark, NaN and Infinity, half a surrogate pair. The provider bills
    for such an answer, and the caller's own parser may accept it.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # try the lenient parser
    try:
        return json.loads(bytes(data).removeprefix(codecs.BOM_UTF8).decode(errors="replace"))
    except (ValueError, RecursionError):
        return None

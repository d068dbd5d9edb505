"""Read JSON that others sent, who may send anything."""

import codecs
import json
from typing import Any

import orjson


def parse_json(data: bytes | bytearray) -> Any:
    """Return the JSON value, or None if there is none.

    What a lenient reader takes is taken too: a byte order mark, NaN and Infinity, half a surrogate pair. The provider
    bills for such an answer, and the caller's own reader may well read it.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # as a lenient reader then
    try:
        return json.loads(bytes(data).removeprefix(codecs.BOM_UTF8).decode(errors="replace"))
    except (ValueError, RecursionError):
        return None

"""Read JSON that others sent, who may send anything."""

from typing import Any

import orjson


def parse_json(data: bytes | bytearray) -> Any:
    """Return the JSON value, or None where there is none."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None

"""Read bodies into values that can be checked and sent on without a change of meaning."""

import json
from collections.abc import Mapping
from typing import Any

import orjson

from tokenrouter.errors import InvalidRequest

MOST_VALUES = 200_000
MOST_LEVELS = 254  # what orjson writes; it reads more
DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else byte for byte in range(256))
LONG_NUMBER = b"0" * 19  # an integer of fewer digits has less than 64 bits
LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**64 - 1
TOO_LONG = object()
BOOLEANS = {"true": True, "false": False}


def parse(data: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is. Of a field that it has twice the last one counts, and is sent.

    Raises InvalidRequest.
    """
    if len(data) > MOST_VALUES:  # each takes a byte at least
        _check_number_of_values(data)
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object.")
    if data.count(b"{") + data.count(b"[") > MOST_LEVELS:  # only then can it be nested deeper
        try:
            orjson.dumps(body)
        except TypeError:
            raise InvalidRequest(f"The body is nested deeper than {MOST_LEVELS} levels.") from None
    if LONG_NUMBER in data.translate(DIGITS):  # most often in a text; it takes a microsecond per kilobyte to see
        _refuse_long_integers(data)
    return body


def _check_number_of_values(data: bytes) -> None:
    """Refuse JSON of more values than may come, before it is parsed: tiny ones would take twenty times their bytes.

    Each value but the first follows a comma or the beginning of a list or an object. Only where there are too many of
    those, texts and all, are the texts left out. A body that is no JSON may be counted wrongly, and is refused later.
    """
    if _values_at_most(data) <= MOST_VALUES:
        return
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")  # of a run of backslashes pair by pair from its beginning
    most_quotes = 4 * MOST_VALUES  # two for each text, which is a value or the name of one
    if data.count(b'"') > most_quotes or _values_at_most(b"".join(data.split(b'"')[::2])) > MOST_VALUES:
        raise InvalidRequest(f"The body has more than {MOST_VALUES:,} values, the most taken here.")


def _values_at_most(data: bytes) -> int:
    return 1 + len(data) - len(data.translate(None, b",[{"))


def _refuse_long_integers(data: bytes) -> None:
    """Refuse integers that would be sent on as floats, and so as other numbers."""
    too_long: list[str] = []

    def read(digits: str) -> object:
        if len(digits) <= 20 and LEAST_INTEGER <= int(digits) <= MOST_INTEGER:
            return int(digits)
        too_long.append(digits)
        return TOO_LONG

    body = json.loads(data, parse_int=read)
    if too_long:
        param = next((name for name, value in body.items() if value is TOO_LONG), None)
        where = param or "The body"
        raise InvalidRequest(f"{where} has an integer of more than 64 bits, which cannot be passed on.", param=param)


def form_body(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return a form's texts with those that JSON would not have as texts in their own types.

    What cannot be converted stays a text, for the checks to refuse.
    """
    body: dict[str, Any] = dict(fields)
    if (number := body.get("n", "")).isascii() and number.isdecimal() and len(number) < len(LONG_NUMBER):
        body["n"] = int(number)
    if "stream" in body:
        body["stream"] = BOOLEANS.get(body["stream"].lower(), body["stream"])
    return body

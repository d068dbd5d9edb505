"""Calls as CSV that a spreadsheet may open: no cell of it can become a formula."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tokenrouter.money import decimal_string
from tokenrouter.reports import timestamp

COLUMNS = (
    "created_at",
    "request_id",
    "team_id",
    "team_name",
    "group_name",
    "token_prefix",
    "model",
    "endpoint",
    "stream",
    "status",
    "status_code",
    "error_code",
    "repeats",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "total_tokens",
    "charged_tokens",
    "cost",
    "cost_source",
    "usage_source",
    "first_byte_ms",
    "latency_ms",
)
# A spreadsheet may begin a cell at a semicolon too, where the comma is the decimal mark.
FORMULA_BEGINS = re.compile(r"(^|[;\t\r\n])(?=[=+\-@\t\r\n＝＋－＠])")
ROWS_AT_ONCE = 200


def cell(value: Any) -> Any:
    """Return what is written for a value. Source: OWASP, CSV Injection: a quote keeps text from being a formula."""
    return FORMULA_BEGINS.sub(r"\1'", value) if isinstance(value, str) else value


def lines(calls: Iterable[Any]) -> Iterator[str]:
    """Yield a header and a line a call, some of them together."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for number, call in enumerate(calls, 1):
        writer.writerow([_written(call, name) for name in COLUMNS])
        if number % ROWS_AT_ONCE == 0:
            yield _taken(buffer)
    yield _taken(buffer)


def _written(call: Any, name: str) -> Any:
    value = getattr(call, name)
    if name == "created_at":
        return timestamp(value)
    return decimal_string(value) if name == "cost" else cell(value)


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text

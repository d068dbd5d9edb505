"""Calls as CSV."""

from collections.abc import Iterable, Iterator
from typing import Any

from tokenrouter import spreadsheet
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
    "reason",
    "first_byte_ms",
    "latency_ms",
)


def lines(calls: Iterable[Any], delimiter: str = ",") -> Iterator[str]:
    """Yield a header and a line a call, some of them together."""
    rows = ([_written(call, name) for name in COLUMNS] for call in calls)
    return spreadsheet.lines(COLUMNS, rows, delimiter=delimiter, begin=spreadsheet.BYTE_ORDER_MARK)


def _written(call: Any, name: str) -> Any:
    value = getattr(call, name)
    if name == "created_at":
        return timestamp(value)
    return decimal_string(value) if name == "cost" else spreadsheet.cell(value)

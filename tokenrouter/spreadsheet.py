"""CSV that a spreadsheet may open: no cell of it can become a formula."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

BYTE_ORDER_MARK = "\ufeff"
"""At the beginning, it tells Excel that the text is UTF-8."""
# Whatever the delimiter here, a spreadsheet may split cells at commas or semicolons, depending on its locale.
FORMULA_BEGINS = re.compile(r"(^|[,;\t\r\n])(?=[=+\-@\t\r\n＝＋－＠])")
ROWS_AT_ONCE = 200


def cell(value: Any) -> Any:
    """Return a value for a cell: a quote keeps text from being a formula. Source: OWASP, CSV Injection."""
    return FORMULA_BEGINS.sub(r"\1'", value) if isinstance(value, str) else value


def lines(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, delimiter: str = ",", begin: str = ""
) -> Iterator[str]:
    """Yield CSV of a header and rows after `begin`, in pieces; pass texts from outside through `cell` first."""
    buffer = io.StringIO()
    buffer.write(begin)
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(header)
    for number, row in enumerate(rows, 1):
        writer.writerow(row)
        if number % ROWS_AT_ONCE == 0:
            yield _taken(buffer)
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text

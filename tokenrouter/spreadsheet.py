"""CSV that a spreadsheet may open: no cell of it can become a formula."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

BYTE_ORDER_MARK = "\ufeff"
"""At the beginning, it tells Excel that the text is UTF-8."""
# Whatever parts the cells here, a spreadsheet may begin one at a comma or a semicolon too, as its country has it.
FORMULA_BEGINS = re.compile(r"(^|[,;\t\r\n])(?=[=+\-@\t\r\n＝＋－＠])")
ROWS_AT_ONCE = 200


def cell(value: Any) -> Any:
    """Return what is written for a value. Source: OWASP, CSV Injection: a quote keeps text from being a formula."""
    return FORMULA_BEGINS.sub(r"\1'", value) if isinstance(value, str) else value


def lines(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, delimiter: str = ",", begin: str = ""
) -> Iterator[str]:
    """Yield a header and a line a row, some together, after `begin`; texts of others go through `cell` first."""
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

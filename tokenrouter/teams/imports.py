"""Create teams from a list: pasted text, or a file from Excel or LibreOffice."""

import codecs
import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from tokenrouter.changes import Actor
from tokenrouter.database.tables import Team
from tokenrouter.errors import InvalidRequest
from tokenrouter.spreadsheet import BYTE_ORDER_MARK
from tokenrouter.teams.creation import NewTeam, NotCreated, Refusal, create_several, why_not
from tokenrouter.teams.groups import NO_GROUP
from tokenrouter.teams.quotas import parse_quota

COLUMNS = ("name", "group", "quota", "models", "label")
"""In this order where the list has no headings."""
HEADINGS = {
    **{name: name for name in COLUMNS},
    "team": "name",
    "team name": "name",
    "quota_tokens": "quota",
    "quota in tokens": "quota",
    "tokens": "quota",
    "model": "models",
    "token label": "label",
}
MOST_TEAMS = 2000
MOST_BYTES = 1_000_000
DELIMITERS = "\t;,"  # a tie is won by the one that is rarest within a cell
GLANCE = 20_000  # characters read to find the delimiter
SEPARATOR_LINE = re.compile(r"\Asep=([\t;,])\r?\n?")  # names the delimiter for Excel
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods; .xls
WIDE_SPACES = re.compile("[\u00a0\u2009\u202f]")  # between thousands
BETWEEN_MODELS = re.compile(r"[,;|\s]+")
NUMBER = re.compile(r"[0-9]+ ?[kmbt]?", re.IGNORECASE)
NO_MODEL = "A number is no model. Where commas part the cells, a quota such as 2,500,000 or 2,5M stands in quotes."
EITHER_COMMA = re.compile(r"([0-9]{1,3}),([0-9]{3} ?[kmbt])", re.IGNORECASE)
PARAMS = {"quota_tokens": "quota"}
SHOWN_CELL = 60


@dataclass(frozen=True)
class Record:
    """The stripped cells of a line, or of several lines spanned by a quoted cell."""

    line: int
    cells: Sequence[str]


@dataclass(frozen=True)
class Row:
    """A row of the list: its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """An error, its line, and its column if it is in one."""

    line: int
    message: str
    column: str | None = None
    cell: str = ""

    def __str__(self) -> str:
        shown = repr(self.cell if len(self.cell) <= SHOWN_CELL else f"{self.cell[:SHOWN_CELL]}…") if self.cell else ""
        where = " ".join(filter(None, (self.column, shown)))
        return f"Line {self.line}{f', {where}' if where else ''}: {self.message}"


@dataclass(frozen=True)
class TeamList:
    """A parsed list: its rows, the team described by each, and all faults."""

    rows: Sequence[Row]
    new: Sequence[NewTeam]
    faults: Sequence[Fault]

    @cached_property
    def faults_by_line(self) -> Mapping[int, Sequence[Fault]]:
        """The faults of each line that has some."""
        by_line: dict[int, list[Fault]] = defaultdict(list)
        for fault in self.faults:
            by_line[fault.line].append(fault)
        return by_line

    @property
    def good_rows(self) -> int:
        """How many rows have no fault."""
        return sum(row.line not in self.faults_by_line for row in self.rows)

    def raise_faults(self) -> None:
        """Raise NotImported if there are faults."""
        if self.faults:
            raise NotImported(self)


class NotImported(Exception):
    """No team of a list was created; `checked` has the faults."""

    def __init__(self, checked: TeamList) -> None:
        super().__init__("\n".join(map(str, checked.faults)))
        self.checked = checked


def decode(data: bytes) -> str:
    """Return the text of a file: UTF-8, UTF-16 with its mark, or else Windows-1252.

    Raises InvalidRequest for a workbook, and for what is no text.
    """
    if data.startswith(WORKBOOKS):
        raise InvalidRequest("This is a workbook. Save it as CSV (in Excel: “CSV UTF-8”), and take that file.")
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_wide else ("utf-8-sig", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise InvalidRequest("This is no text that can be read. Save the list as CSV UTF-8, and take that file.")


def check(text: str) -> TeamList:
    """Parse a list, and find everything that prevents creating its teams; nothing is written.

    Raises InvalidRequest for faults of the whole list: too long, without a team, or with an unknown heading.
    """
    rows, faults = _read(text)
    new = []
    for row in rows:
        team, unreadable = _new_team(row)
        new.append(team)
        faults += unreadable
    faults += _faults(rows, why_not(new))
    return TeamList(rows, new, sorted(faults, key=lambda fault: fault.line))


def create(checked: TeamList, *, by: Actor) -> list[tuple[Team, str]]:
    """Create the teams of a list, all or none; return each with its first token, for the only time.

    Raises NotImported, also for what another changed since the list was checked.
    """
    checked.raise_faults()
    try:
        return create_several(checked.new, by=by)
    except NotCreated as refused:
        raise NotImported(replace(checked, faults=_faults(checked.rows, refused.refusals))) from refused


def _faults(rows: Sequence[Row], refusals: Sequence[Refusal]) -> list[Fault]:
    faults = []
    for refusal in refusals:
        row, param = rows[refusal.position], refusal.error.param or ""
        column = PARAMS.get(param, param)
        faults.append(Fault(row.line, str(refusal.error), column, row.cells.get(column, "")))
    return faults


def _new_team(row: Row) -> tuple[NewTeam, list[Fault]]:
    """Return the team described by a row, without unreadable cells, and their faults."""
    group, quota, models = row.cells["group"], row.cells["quota"], row.cells["models"]
    faults = []
    try:
        quota_tokens = _quota(WIDE_SPACES.sub(" ", quota))
    except InvalidRequest as error:
        quota_tokens = None
        faults.append(Fault(row.line, str(error), "quota", quota))
    if NUMBER.fullmatch(models):
        faults.append(Fault(row.line, NO_MODEL, "models", models))
        models = ""
    new = NewTeam(
        row.cells["name"],
        quota_tokens,
        ",".join(filter(None, BETWEEN_MODELS.split(models))) or None,
        group=None if group.lower() in ("", NO_GROUP) else group,
        label=row.cells["label"],
        place=f"Line {row.line}",
    )
    return new, faults


def _quota(cell: str) -> int | None:
    """Read a quota; spreadsheets write `1,250M` for 1.25M in some countries, and for 1250M in others."""
    if either := EITHER_COMMA.fullmatch(cell):
        meanings = f"{'.'.join(either.groups())} or {''.join(either.groups())}"
        raise InvalidRequest(f"This may mean {meanings}: write the one that is meant.")
    return parse_quota(cell) if cell else None


def _read(text: str) -> tuple[list[Row], list[Fault]]:
    """Split a list into rows, by its headings if it has any."""
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        raise InvalidRequest(f"The list is larger than {MOST_BYTES:,} bytes. Take it in parts.")
    records, faults = _records(text.removeprefix(BYTE_ORDER_MARK))
    columns = _headings(records[0].cells) if records else None
    if columns is None:
        columns = COLUMNS
    else:
        records = records[1:]
    if len(records) > MOST_TEAMS:
        raise InvalidRequest(f"The list has more than {MOST_TEAMS:,} teams. Take it in parts.")
    if not records and not faults:
        raise InvalidRequest("There is no team in the list.")
    for record in records:
        faults += _spare_cells(record, columns)
    return [_row(record, columns) for record in records], faults


def _records(text: str) -> tuple[list[Record], list[Fault]]:
    """Split a text into lines of cells, without blank lines; a misplaced quotation mark ends it with a fault."""
    lines = io.StringIO(SEPARATOR_LINE.sub("\n", text), newline="")
    reader = csv.reader(lines, delimiter=_delimiter(text), skipinitialspace=True, strict=True)
    records, line = [], 1
    try:
        for cells in reader:
            records.append(Record(line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1
    except csv.Error:
        message = "A quotation mark is in the wrong place, or not closed. Nothing from here on was read."
        return _not_blank(records), [Fault(line, message)]
    return _not_blank(records), []


def _not_blank(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if any(record.cells)]


def _delimiter(text: str) -> str:
    """Find the delimiter: the one that splits a line of headings, otherwise the most lines."""
    if line := SEPARATOR_LINE.match(text):
        return line[1]
    lines_by = {delimiter: _glance(text, delimiter) for delimiter in DELIMITERS}
    for delimiter, lines in lines_by.items():
        first = next(filter(any, lines), ["none"])
        if all(cell.lower() in HEADINGS for cell in first if cell):
            return delimiter
    return max(DELIMITERS, key=lambda delimiter: sum(len(cells) > 1 for cells in lines_by[delimiter]))


def _glance(text: str, delimiter: str) -> list[list[str]]:
    """Return the cells of the first lines, as split by this delimiter."""
    lines = csv.reader(io.StringIO(text[:GLANCE], newline=""), delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in cells] for cells in lines]


def _headings(cells: Sequence[str]) -> Sequence[str] | None:
    """Return the column of each cell, "" for an empty one; None if the cells are not headings.

    Raises InvalidRequest if one of them means no column, or the same as another.
    """
    columns = [HEADINGS.get(cell.lower(), "") for cell in cells]
    if "name" not in columns:
        return None
    for position, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        if cell and (not column or column in columns[:position]):
            raise InvalidRequest(f"The heading {cell!r} is none of {', '.join(COLUMNS)}, or one too many.")
    return columns


def _spare_cells(record: Record, columns: Sequence[str]) -> list[Fault]:
    spare = [cell for cell, column in zip_longest(record.cells, columns, fillvalue="") if cell and not column]
    message = f"Here is a cell too many: the columns are {', '.join(filter(None, columns))}."
    return [Fault(record.line, message, cell=spare[0])] if spare else []


def _row(record: Record, columns: Sequence[str]) -> Row:
    found = dict(zip(columns, record.cells, strict=False))
    return Row(record.line, {name: found.get(name, "") for name in COLUMNS})

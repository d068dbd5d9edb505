"""A report of use as rows for programs: CSV, and the objects of JSON."""

from collections.abc import Iterator
from typing import Any

from tokenrouter import spreadsheet
from tokenrouter.database.sums import Sums
from tokenrouter.money import decimal_string
from tokenrouter.reports.usage_report import Line, Report, Subject

SHOWN_SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "total_tokens", "unpriced_tokens")
COMPARED = ("requests", "total_tokens")


def csv_lines(report: Report, *, delimiter: str = ",", begin: str = "") -> Iterator[str]:
    """Yield the report as CSV, one line per row, with the second dimension after the first."""
    header = [*(name for kind in report.by for name in _names(kind)), *SHOWN_SUMS, "cost", *_before_names(report)]
    rows = ([spreadsheet.cell(value) for value in row_view(report, line).values()] for line in report.lines)
    return spreadsheet.lines(header, rows, delimiter=delimiter, begin=begin)


def report_view(report: Report) -> dict[str, Any]:
    """Describe a report: its days, both inclusive, its rows, and their sums."""
    days, before = report.days, report.days_before
    return {
        "since": days.since.isoformat(),
        "until": days.until.isoformat(),
        "by": list(report.by),
        "rows": [row_view(report, line) for line in report.lines],
        "total": _sums_view(report.total),
        "before": {"since": before.since.isoformat(), "until": before.until.isoformat(), **_sums_view(report.before)},
    }


def row_view(report: Report, line: Line) -> dict[str, Any]:
    """Describe a row: its subjects, its sums, and those of the period before if comparable."""
    row = {name: value for subject in line.subjects for name, value in _subject(subject).items()}
    row |= _sums_view(line.sums)
    if line.before is not None:
        row |= {f"{name}_before": getattr(line.before, name) for name in COMPARED}
        row |= {"cost_before": decimal_string(line.before.known_cost)}
    return row


def _names(kind: str) -> tuple[str, ...]:
    return ("token", "label", "token_team") if kind == "token" else (kind,)


def _subject(subject: Subject) -> dict[str, str | None]:
    if subject.kind == "token":
        return {
            "token": None if subject.is_nothing else subject.name,
            "label": subject.label,
            "token_team": subject.team,
        }
    name = f"{subject.name} (deleted)" if subject.is_deleted else subject.name
    return {subject.kind: None if subject.is_nothing else name}


def _before_names(report: Report) -> list[str]:
    is_compared = any(line.before is not None for line in report.lines)
    return [*(f"{name}_before" for name in COMPARED), "cost_before"] if is_compared else []


def _sums_view(sums: Sums) -> dict[str, Any]:
    return {name: getattr(sums, name) for name in SHOWN_SUMS} | {"cost": decimal_string(sums.known_cost)}

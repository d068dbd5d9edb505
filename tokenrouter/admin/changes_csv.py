"""Changes as CSV."""

from collections.abc import Iterable, Iterator
from typing import Any

from tokenrouter import spreadsheet
from tokenrouter.admin.formats import action_words, field_words
from tokenrouter.database.tables import Change
from tokenrouter.reports import timestamp

COLUMNS = (
    "id",
    "at",
    "who",
    "from",
    "what",
    "team_id",
    "team",
    "group_id",
    "group",
    "before",
    "after",
    "batch",
    "undoes",
)


def lines(rows: Iterable[Change]) -> Iterator[str]:
    """Yield a header and a line a change, some of them together."""
    return spreadsheet.lines(COLUMNS, map(_written, rows), begin=spreadsheet.BYTE_ORDER_MARK)


def _written(change: Change) -> list[Any]:
    values = [
        change.id,
        timestamp(change.at),
        change.actor_kind,
        change.actor_detail,
        action_words(change.action),
        change.team_id,
        change.team_name,
        change.group_id,
        change.group_name,
        _described(change.before),
        _described(change.after),
        change.batch,
        change.undoes_id,
    ]
    return [spreadsheet.cell(value) for value in values]


def _described(fields: dict[str, Any] | None) -> str:
    described = {field_words(name): "none" if value is None else value for name, value in (fields or {}).items()}
    return "; ".join(f"{name}: {value}" for name, value in described.items())

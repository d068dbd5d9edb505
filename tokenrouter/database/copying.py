"""Copy all rows from one database to another, of either kind; ids of new rows continue where they were."""

from typing import Any

from sqlalchemy import Table, func, insert, inspect, select, text
from sqlalchemy.engine import Connection, Engine

from tokenrouter.database.connections import without_time_limit
from tokenrouter.database.engine import snapshot, writing
from tokenrouter.database.tables import db

ROWS_AT_ONCE = 1000


def copy_rows(source: Engine, target: Engine) -> None:
    """Copy the rows of all tables into those of another database, all or none."""
    with snapshot(source) as reading, writing(target) as connection:
        without_time_limit(reading)
        for table in db.metadata.sorted_tables:
            _copy_table(table, reading, connection)
            if (column := table.autoincrement_column) is not None:
                most = reading.execute(select(func.coalesce(func.max(column), 0))).scalar_one()
                _go_on_after(table, max(most, _last_id(table, reading)), connection)


def _copy_table(table: Table, source: Connection, target: Connection) -> None:
    options = {"stream_results": True, "yield_per": ROWS_AT_ONCE}
    for rows in source.execute(select(table), execution_options=options).mappings().partitions():
        target.execute(insert(table), [dict(row) for row in rows])


def _last_id(table: Table, connection: Connection) -> int:
    """Return the last id that was given to a row, which may be gone; 0 where that is not known."""
    if connection.dialect.name == "sqlite":
        if not inspect(connection).has_table("sqlite_sequence"):
            return 0
        last = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
        return connection.execute(last, {"name": table.name}).scalar() or 0
    last = text("SELECT pg_sequence_last_value(CAST(:name AS regclass))")
    return connection.execute(last, {"name": _sequence(table, connection)}).scalar() or 0


def _go_on_after(table: Table, id_: int, connection: Connection) -> None:
    """Let the next row get a higher id than this."""
    if not id_:
        return
    values: dict[str, Any] = {"name": table.name, "last": id_}
    if connection.dialect.name == "postgresql":
        values["name"] = _sequence(table, connection)
        connection.execute(text("SELECT setval(CAST(:name AS regclass), :last)"), values)
    elif table.dialect_options["sqlite"]["autoincrement"]:  # other tables continue after their last row by themselves
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), values)


def _sequence(table: Table, connection: Connection) -> str:
    column = table.autoincrement_column
    named = text("SELECT pg_get_serial_sequence(:table, :column)")
    values = {"table": table.name, "column": column.name if column is not None else ""}
    name: str = connection.execute(named, values).scalar_one()
    return name

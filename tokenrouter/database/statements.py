"""Statements that are run by the driver itself: the few that every call needs.

SQLAlchemy compiles them once, and manages the engine; executing them through it would cost a call some 350 µs more CPU
than the drivers take.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple, Protocol

from sqlalchemy.dialects import postgresql, registry, sqlite
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.sql.expression import ClauseElement

Inserter = Callable[[Any], Any]


def inserter(bind: Engine | Connection | Dialect) -> Inserter:
    """Return the `insert` of a database's own dialect, which knows ON CONFLICT."""
    dialect = bind if isinstance(bind, Dialect) else bind.dialect
    return postgresql.insert if dialect.name == "postgresql" else sqlite.insert


class DriverConnection(Protocol):
    """What is used of connections of both sqlite3 and psycopg."""

    def execute(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = (), /) -> Any:
        """Run a statement, with values by name or by place, and return the cursor."""

    def close(self) -> None:
        """Close the connection."""


class _Compiled(NamedTuple):
    """A statement as one driver takes it: its text, constants, and conversions of values."""

    sql: str
    constants: dict[str, Any]
    conversions: list[tuple[str, Callable[[Any], Any]]]
    take: Callable[[Mapping[str, Any]], Sequence[Any]] | None
    """Returns the values in the order of the placeholders, for drivers that take them by position; SQLite is slow at
    finding them by name."""


class Statement:
    """A statement of SQLAlchemy that is compiled once and run by the driver."""

    made: ClassVar[list["Statement"]] = []

    def __init__(self, core: ClauseElement | Callable[[Inserter], ClauseElement]) -> None:
        """`core` is a statement, or a function that makes one with the `insert` of the dialect (see `inserter`)."""
        self._core = core
        self._compiled: dict[type, _Compiled] = {}
        self.made.append(self)

    def execute(self, connection: DriverConnection, values: Mapping[str, Any]) -> Any:
        """Run it with values by name; return the driver's cursor, whose rows are tuples."""
        compiled = self._compiled.get(type(connection)) or self.compile(type(connection))
        given = values
        if compiled.constants or compiled.conversions:
            given = {**compiled.constants, **values}
            for name, convert in compiled.conversions:
                given[name] = convert(given[name])
        return connection.execute(compiled.sql, given if compiled.take is None else compiled.take(given))

    def compile(self, kind: type) -> _Compiled:
        """Compile it for this kind of the driver's connections."""
        if issubclass(kind, sqlite3.Connection):
            dialect = registry.load("sqlite")()
        else:
            dialect = registry.load("postgresql.psycopg")()
        core = self._core
        if not isinstance(core, ClauseElement):
            core = core(inserter(dialect))
        compiled: Any = core.compile(dialect=dialect)
        names = {name: bind for bind, name in compiled.bind_names.items()}
        converters = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in names.items()}
        self._compiled[kind] = _Compiled(
            str(compiled),
            {name: bind.effective_value for name, bind in names.items() if not bind.required},
            [(name, convert) for name, convert in converters.items() if convert is not None],
            None if compiled.positiontup is None else _taking(compiled.positiontup),
        )
        return self._compiled[kind]


def _taking(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    if len(names) < 2:
        return lambda values: [values[name] for name in names]  # of a single name, itemgetter returns no tuple
    return itemgetter(*names)


def compile_all(engine: Engine) -> None:
    """Compile all statements for this database, so that workers that are forked later share the result."""
    for statement in Statement.made:
        statement.compile(engine.dialect.loaded_dbapi.Connection)

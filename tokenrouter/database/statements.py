"""The database by the driver's own means, for the few statements that every call runs.

SQLAlchemy compiles them, once, and manages the engine; executing them through it would cost a call some 350 µs of CPU
more than the drivers take.
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
    """What is used of a connection of sqlite3's and of psycopg's alike."""

    def execute(self, sql: str, values: Mapping[str, Any] | Sequence[Any] = (), /) -> Any:
        """Run a statement, with values by name or by place, and return the cursor."""

    def close(self) -> None:
        """Close the connection."""


class _Compiled(NamedTuple):
    """A statement as one driver takes it: its text, the values that it brings, and what values have to become."""

    sql: str
    constants: dict[str, Any]
    conversions: list[tuple[str, Callable[[Any], Any]]]
    take: Callable[[Mapping[str, Any]], Sequence[Any]] | None
    """Takes the values out of those by name, where the driver wants them by their places: SQLite looks for each name in
    all of them."""


class Statement:
    """A statement of SQLAlchemy's, compiled once for the driver and run by it."""

    made: ClassVar[list["Statement"]] = []

    def __init__(self, core: ClauseElement | Callable[[Inserter], ClauseElement]) -> None:
        """Take a statement, or what makes one by the dialect's own `insert`, which alone knows conflicts."""
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
        compiled: Any = core.compile(dialect=dialect)  # of SQL, and so with the names of its parameters
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
        return lambda values: [values[name] for name in names]  # itemgetter returns one alone, not a tuple of it
    return itemgetter(*names)


def compile_all(engine: Engine) -> None:
    """Compile all statements for this database, so that workers that are forked later share them."""
    for statement in Statement.made:
        statement.compile(engine.dialect.loaded_dbapi.Connection)

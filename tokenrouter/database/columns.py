"""The types of columns, which also read what people wrote into the database by hand; and the database's clock."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, DateTime, Integer
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

# SQLite numbers rows by itself only in a column that is exactly INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime, also on SQLite, which keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive datetime, whose zone would be a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return what was stored, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UnreadableNumber(int):
    """A value in a column of numbers that is none, which SQLite accepts from people who edit a file; it counts as 0."""

    def __new__(cls, value: object) -> "UnreadableNumber":
        """Keep the value, to show it."""
        made = super().__new__(cls, 0)
        made.value = value
        return made

    value: object

    def __eq__(self, other: object) -> bool:
        return self is other  # otherwise writing a 0 in its place would seem to change nothing

    def __hash__(self) -> int:
        return id(self)

    def __str__(self) -> str:
        return f"{self.value!r}, not a number"

    def __format__(self, specification: str) -> str:
        return str(self)


@dataclass(frozen=True, eq=False)
class UnreadableFlag:
    """A value in a column of flags that is neither 1 nor 0, likewise; it counts as no."""

    value: object

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"{self.value!r}, neither 1 nor 0"


class Tokens(TypeDecorator[int]):
    """A number of tokens; anything else, which somebody wrote by hand, is read as an UnreadableNumber."""

    impl = BigInteger
    cache_ok = True

    def process_result_value(self, value: object, dialect: Dialect) -> int | None:
        """Return the number, or an UnreadableNumber of what stands in its place."""
        return value if is_quota(value) else UnreadableNumber(value)  # type: ignore[return-value]  # edited by hand


def is_quota(value: object) -> bool:
    """Tell whether a stored value can be read as a quota."""
    return value is None or (isinstance(value, int) and value >= 0)


class Flag(TypeDecorator[bool]):
    """A flag; anything else, which somebody wrote by hand, is read as an UnreadableFlag."""

    impl = Boolean
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Read only 1 and 0 as flags; SQLAlchemy's Boolean would read any text as yes."""
        return lambda value: UnreadableFlag(value) if is_yes(value) is None else bool(value)


def is_yes(value: object) -> bool | None:
    """Read a stored flag; None if it is neither 1 nor 0."""
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


class epoch_now(FunctionElement[float]):  # noqa: N801 - it stands in statements like func.now()
    """The database's clock, in seconds since 1970."""

    inherit_cache = True
    name = "epoch_now"


@compiles(epoch_now, "sqlite")
def _sqlite_epoch_now(element: Any, compiler: Any, **options: Any) -> str:
    # unixepoch('subsec') needs SQLite 3.42; the Julian day is exact to 0.1 ms and known to all versions in use
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_now, "postgresql")
def _postgresql_epoch_now(element: Any, compiler: Any, **options: Any) -> str:
    # not now(), which stands still from the transaction's begin
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"

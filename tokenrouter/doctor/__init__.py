"""Check an installation, and say what to do about what is wrong."""

from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from tokenrouter.database import schema
from tokenrouter.doctor import alerts, database, machine, provider, proxy
from tokenrouter.doctor.findings import Check, Finding, Installation, Mark
from tokenrouter.troubles import one_line

__all__ = ["Finding", "Installation", "Mark", "examine"]

ON_DATABASE: dict[str, Check] = {
    "clock": database.clock,
    "workers": database.workers,
    "jobs": database.jobs,
    "alerts": alerts.alerts,
    "books": database.books,
}


def examine(place: Installation, *, url: str | None = None, proves_books: bool = True) -> Iterator[Finding]:
    """Yield what is found, each as soon as it is; what needs the database is left out where that cannot be used.

    `url` is where callers reach the service, through whatever stands in front of it.
    """
    yield from machine.settings(place)
    yield from machine.files(place)
    yield from _guarded("disk", machine.disk, place)
    stored = list(_guarded("database", database.database, place))
    yield from stored
    if all(found.mark is not Mark.WRONG for found in stored):
        for about, check in ON_DATABASE.items():
            if proves_books or check is not database.books:
                yield from _guarded(about, check, place)
    yield from _guarded("provider", provider.provider, place)
    yield from proxy.proxy(place, url)


def _guarded(about: str, check: Check, place: Installation) -> Iterator[Finding]:
    try:
        yield from check(place)
    except (SQLAlchemyError, OSError) as error:
        cause = schema.cause_of(error) if isinstance(error, SQLAlchemyError) else one_line(error)
        yield Finding(about, Mark.WRONG, f"This cannot be looked at: {cause}.")

"""The provider's own record of the account's calls and days, as far as it is stored here.

Its history is read from the newest entry back to known ones. If reading stops before, because time was over or the
provider failed, the unread part is stored as a stretch, and continued the next time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection, Engine

from tokenrouter import troubles
from tokenrouter.account import refresh
from tokenrouter.database.engine import writing
from tokenrouter.database.statements import inserter
from tokenrouter.database.tables import REASON_LENGTH, ProviderEntry, ProviderFetch, ProviderStretch
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.provider.account import Account
from tokenrouter.provider.history import Entry, Page

TASK = "provider's record"
EVERY_S = 600.0
PRESS_S, RUN_S = 8.0, 60.0
"""For how long a fetch begins further pages, if somebody waits for it, and if not."""
SETTLES_WITHIN = timedelta(hours=1)
"""For so long an entry may still change: a new one may have no figures at first."""
HISTORY = timedelta(days=30)
ONLY = 1  # the id of the one row


@dataclass(frozen=True)
class Kept:
    """From when to when the provider's record is stored without a gap, and the result of the last request for it."""

    since: datetime | None = None
    until: datetime | None = None
    tried_at: datetime | None = None
    error: str | None = None
    is_unfinished: bool = False
    """Whether there are entries before `since` that are still to be read."""


@dataclass(frozen=True)
class Fetched:
    """How many entries are new or changed, and whether all was read."""

    entries: int
    is_whole: bool


def kept(engine: Engine) -> Kept:
    """Return what is stored."""
    with engine.connect() as connection:
        fetch = connection.execute(select(ProviderFetch.__table__)).first()
        read_to = connection.execute(select(func.max(ProviderStretch.read_to))).scalar()
        first = connection.execute(select(func.min(ProviderEntry.at))).scalar()
    if fetch is None:
        return Kept()
    since = read_to or first
    if since is None and fetch.until is not None:
        since = fetch.until - HISTORY  # all was read, and there was nothing
    return Kept(since, fetch.until, fetch.at, fetch.error, read_to is not None)


def has_record(account: Account) -> bool:
    """Tell whether the provider has an API with its record of calls, or at least of days."""
    return account.kind in ("poe", "openrouter")


def fetch(engine: Engine, account: Account, most_s: float | None = None) -> Fetched:
    """Fetch the provider's record since the last time, and what was left then; store the result of the request.

    After `most_s` seconds no further page is begun. If the provider only reports days, these are fetched.
    Raises InvalidRequest if this provider has no record, and an APIError that says why it cannot be had.
    """
    if not has_record(account):
        raise InvalidRequest("This provider has no API that tells its record of calls; Poe and OpenRouter have one.")
    began = datetime.now(UTC)
    try:
        fetched = _fetch_days(engine, account) if account.kind == "openrouter" else _fetch(engine, account, most_s)
    except APIError as error:
        _note(engine, began, str(error)[:REASON_LENGTH])
        raise
    _note(engine, began, None)
    return fetched


def fetch_quietly(engine: Engine, account: Account) -> None:
    """Fetch on schedule; a failure is logged, and shown on the page."""
    try:
        fetch(engine, account, RUN_S)
    except APIError as error:
        troubles.warn("record", "The provider's record cannot be had: %s", error)


def _fetch_days(engine: Engine, account: Account) -> Fetched:
    found = refresh(engine, account)
    if found.balance is None:
        raise APIError(found.words)
    return Fetched(0, is_whole=True)


def _note(engine: Engine, at: datetime, error: str | None) -> None:
    """Store that the record was requested; if that failed, what is stored stays valid."""
    adding = inserter(engine)(ProviderFetch).values(id=ONLY, at=at, error=error, until=None if error else at)
    changed = {"at": at, "error": error} | ({} if error else {"until": at})
    with writing(engine, durable=False) as connection:
        connection.execute(adding.on_conflict_do_update(index_elements=["id"], set_=changed))


def _fetch(engine: Engine, account: Account, most_s: float | None) -> Fetched:
    ends = None if most_s is None else time.monotonic() + most_s
    taken = 0
    for stretch_id, after in _stretches(engine):
        for page in account.history(after):
            new, is_read = _keep(engine, stretch_id, page)
            taken += new
            if is_read:
                break
            if ends is not None and time.monotonic() > ends:
                return Fetched(taken, is_whole=False)
    return Fetched(taken, is_whole=True)


def _stretches(engine: Engine) -> list[tuple[int, str | None]]:
    """Begin a new stretch at the top; return all, newest first, each with the entry after which it goes on."""
    now = datetime.now(UTC)
    with writing(engine, durable=False) as connection:
        connection.execute(delete(ProviderStretch).where(ProviderStretch.read_to < now - HISTORY))  # it is gone there
        newest = connection.execute(select(func.max(ProviderEntry.at))).scalar()
        down_to = None if newest is None else newest - SETTLES_WITHIN
        connection.execute(insert(ProviderStretch).values(after=None, read_to=now, down_to=down_to))
        query = select(ProviderStretch.id, ProviderStretch.after).order_by(ProviderStretch.id.desc())
        return [(row.id, row.after) for row in connection.execute(query)]


def _keep(engine: Engine, stretch_id: int, page: Page) -> tuple[int, bool]:
    """Store a page, and how far the stretch is read; return how many entries are new, and whether it is finished."""
    with writing(engine, durable=False) as connection:
        new = _keep_entries(connection, page.entries)
        query = select(ProviderStretch.__table__).where(ProviderStretch.id == stretch_id)
        stretch = connection.execute(query).first()
        lowest = min((entry.at for entry in page.entries), default=None)
        if stretch is None or page.next_after in (None, stretch.after) or _is_below(lowest, stretch.down_to):
            connection.execute(delete(ProviderStretch).where(ProviderStretch.id == stretch_id))
            return new, True
        read = {"after": page.next_after, "read_to": lowest or stretch.read_to}
        connection.execute(update(ProviderStretch).where(ProviderStretch.id == stretch_id).values(read))
        return new, False


def _is_below(moment: datetime | None, down_to: datetime | None) -> bool:
    return moment is not None and down_to is not None and moment < down_to


def _keep_entries(connection: Connection, entries: Sequence[Entry]) -> int:
    """Store entries; return how many are new or changed."""
    fresh = {entry.id: entry for entry in entries}
    rows = connection.execute(select(ProviderEntry.__table__).where(ProviderEntry.id.in_(fresh)))
    known = {Entry(**row._mapping) for row in rows}
    new = [vars(entry) for entry in fresh.values() if entry not in known]
    if new:
        adding = inserter(connection)(ProviderEntry)
        changed = {name: adding.excluded[name] for name in ("cost", "points", "prompt_tokens", "completion_tokens")}
        connection.execute(adding.on_conflict_do_update(index_elements=["id"], set_=changed), new)
    return len(new)


def key_names(engine: Engine) -> list[str]:
    """Return the names of the account's keys in the stored record."""
    query = select(ProviderEntry.key_name).where(ProviderEntry.key_name.is_not(None)).distinct()
    with engine.connect() as connection:
        return sorted(name for name in connection.execute(query).scalars() if name is not None)

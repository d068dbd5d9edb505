"""The provider's own record of the account's calls, if it has an API for that: Poe's points history."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tokenrouter.errors import ProviderBadResponse
from tokenrouter.provider.client import Provider
from tokenrouter.provider.documents import read_document
from tokenrouter.provider.values import moment_of, money_of, whole_of

PATH = "/usage/points_history"
PAGE = 100
MOST_PAGES = 5_000  # of one fetch; half a million calls
LONGEST_ID = 100
TOKENS = re.compile(r"\(([0-9][0-9,]*) tokens?\)")


@dataclass(frozen=True)
class Entry:
    """A call in the provider's record; None is what it does not say. Money is in billionths of a dollar."""

    id: str
    at: datetime
    model: str
    cost: int | None
    points: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    key_name: str | None


@dataclass(frozen=True)
class Page:
    """Some entries, newest first, and the id after which the next page begins; None if this is the last page."""

    entries: list[Entry]
    next_after: str | None


def pages(provider: Provider, after: str | None = None) -> Iterator[Page]:
    """Yield pages of Poe's record of API calls in the last 30 days, newest first, from the start or after an id.

    Each page is fetched when it is needed. Raises an APIError that says why that failed. Source: Poe's API
    documentation, "Usage API".
    """
    for _ in range(MOST_PAGES):
        page = _page(provider, after)
        yield page
        if page.next_after in (None, after):
            return
        after = page.next_after


def _page(provider: Provider, after: str | None) -> Page:
    query = {"limit": str(PAGE)} | ({} if after is None else {"starting_after": after})
    document = read_document(provider, PATH, "its history", is_beside=True, query=query)
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise ProviderBadResponse("The provider's answer is not a history.")
    found = [entry for row in rows if isinstance(row, dict) and (entry := _entry(row)) is not None]
    last = rows[-1].get("query_id") if rows and isinstance(rows[-1], dict) else None
    return Page(found, last if document.get("has_more") and isinstance(last, str) else None)


def _entry(row: Mapping[str, Any]) -> Entry | None:
    """Read an entry; None if it is not an API call, or lacks its time or model."""
    id_, model, at = row.get("query_id"), row.get("bot_name"), moment_of(row.get("creation_time"))
    if not (isinstance(id_, str) and isinstance(model, str) and at) or row.get("usage_type", "API") != "API":
        return None
    parts = row.get("cost_breakdown_in_points")
    prompt, completion = (_tokens(parts.get(name) if isinstance(parts, dict) else None) for name in ("Input", "Output"))
    key_name = row.get("api_key_name")
    figures = money_of(row.get("cost_usd")), whole_of(row.get("cost_points")), prompt, completion
    return Entry(id_[:LONGEST_ID], at, model, *figures, key_name if isinstance(key_name, str) else None)


def _tokens(part: object) -> int | None:
    found = TOKENS.search(part) if isinstance(part, str) else None
    return None if found is None else int(found[1].replace(",", "")[:15])

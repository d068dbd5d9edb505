"""The order in which people look for names: 5a before 10a, ignoring case and accents."""

import unicodedata
from functools import lru_cache
from typing import Any

from natsort import natsort_keygen, ns

MOST_KEPT = 20_000  # keys; making one takes ten times as long as comparing it

_key = natsort_keygen(alg=ns.IGNORECASE)


@lru_cache(MOST_KEPT)
def natural_key(name: str) -> tuple[Any, str]:
    """Return the sort key of a name; the name itself decides between names that differ only in case or accents."""
    letters = (each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each))
    return _key("".join(letters)), name


def by_name(named: Any) -> tuple[Any, str]:
    """Return the sort key of a team, a group, or a row with a name."""
    return natural_key(named.name)

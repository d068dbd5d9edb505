"""Count the tokens of texts exactly, by OpenAI's present encoding."""

import threading
from collections.abc import Iterable

import toktok  # its tables, 65 MB, are loaded by the first count, not by this import

ENCODING = "o200k_base"
_tables_are_loaded = threading.Event()
_loading_tables = threading.Lock()


def _load_tables() -> None:
    """Load the encoding's tables once: threads that count at the same time would each load their own."""
    with _loading_tables:
        if not _tables_are_loaded.is_set():
            toktok.batch_count([""], ENCODING, threads=1)
            _tables_are_loaded.set()


def count_tokens(texts: Iterable[str]) -> int:
    """Count the tokens of texts by OpenAI's present encoding; the first call loads it."""
    if not _tables_are_loaded.is_set():
        _load_tables()
    return sum(toktok.batch_count(list(texts), ENCODING, threads=1))

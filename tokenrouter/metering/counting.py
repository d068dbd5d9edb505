"""Count the tokens of texts exactly, by OpenAI's present encoding.

Of the tokenizers on PyPI, toktok shares its tables best between processes, and `truncate`, which counts all of a text
on its way, is its quick way for one text: `batch_count` takes 50 µs to begin, and lets other threads run meanwhile.
"""

import threading
import time
from pathlib import Path

import toktok  # its tables, 65 MB, are loaded by the first count, not by this import

ENCODING = "o200k_base"
NO_LIMIT = 2**40
ANY_TEXT = "Any text."
LONG = 64 * 1024  # characters, from where on other threads should run meanwhile

_tables_are_loaded = threading.Event()
_loading_tables = threading.Lock()


def load_tables() -> None:
    """Load the encoding's tables once: threads that count at the same time would each load their own.

    gunicorn's master does it before it forks its workers, which share them; elsewhere the first count does. The first
    thread but the main one that counts gets 16 MB to work with, which those after it use too: workers share these
    likewise.
    """
    with _loading_tables:
        if not _tables_are_loaded.is_set():
            _count(ANY_TEXT)
            another = threading.Thread(target=_count, args=(ANY_TEXT,))
            another.start()
            another.join()
            while _runs(another):
                time.sleep(0.001)
            _tables_are_loaded.set()


def _runs(thread: threading.Thread) -> bool:
    """Tell whether the system still runs a thread, which goes on for a moment after Python's `join`.

    It then gives back what the tokenizer lent it. In a process that is forked meanwhile that lock stays taken for ever.
    """
    return Path(f"/proc/self/task/{thread.native_id}").exists()


def count_tokens(text: str) -> int:
    """Return the tokens of a text."""
    if not _tables_are_loaded.is_set():
        load_tables()
    try:
        return _count(text)
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 has no bytes for
        return _count(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))


def _count(text: str) -> int:
    if len(text) > LONG:
        tokens: int = toktok.batch_count([text], ENCODING, threads=1)[0]
        return tokens
    total: int = toktok.truncate(text, NO_LIMIT, ENCODING)[1]
    return total

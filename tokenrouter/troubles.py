"""Throttled warnings: one log line in ten seconds for each kind of trouble."""

import logging
import threading
import time

logger = logging.getLogger(__name__)

PAUSE_S = 10.0

_lock = threading.Lock()
_said_at: dict[str, float] = {}
_left_out: dict[str, int] = {}


def warn(kind: str, message: str, *values: object, traceback_of: BaseException | None = None) -> None:
    """Log a warning, unless one of its kind was logged just now; the next one says how many were left out."""
    now = time.monotonic()
    with _lock:
        if now - _said_at.get(kind, -PAUSE_S) < PAUSE_S:
            _left_out[kind] = _left_out.get(kind, 0) + 1
            return
        _said_at[kind] = now
        left_out = _left_out.pop(kind, 0)
    if left_out:
        message, values = f"{message} [and %s more like this before]", (*values, f"{left_out:,}")
    logger.warning(message, *values, exc_info=traceback_of)


def one_line(error: BaseException) -> str:
    """Return type and message of an error, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

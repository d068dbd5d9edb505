"""Blueprint "pages": the probes, which need no sign-in."""

import threading
import time

from flask import Blueprint, current_app

from tokenrouter import runtime
from tokenrouter.errors import StorageUnavailable
from tokenrouter.ledger import Ledger

blueprint = Blueprint("pages", __name__)

READY, NOT_READY = {"status": "ok"}, {"status": "database unavailable"}
CHECK_AGAIN_S = 1.0


class Readiness:
    """Whether the database takes writes, tested at most once a second, however many requests come."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_ready = False
        self._checked_at = -CHECK_AGAIN_S
        self._is_first = True
        self._checking = threading.Lock()

    def is_ready(self) -> bool:
        """Return the last result, or test again if it is old; only the first request ever waits for another's test."""
        if self._checking.acquire(blocking=self._is_first):
            try:
                if time.monotonic() - self._checked_at >= CHECK_AGAIN_S:
                    self._is_ready = self._takes_writes()
                    self._checked_at = time.monotonic()
                    self._is_first = False
            finally:
                self._checking.release()
        return self._is_ready

    def _takes_writes(self) -> bool:
        try:
            self._ledger.check_writing()
        except StorageUnavailable:
            return False
        return True


@blueprint.get("/healthz")
def healthz() -> dict[str, str]:
    """Tell that the process lives."""
    return READY


@blueprint.get("/readyz")
def readyz() -> tuple[dict[str, str], int]:
    """Tell whether calls can be booked: the database answers, and takes writes."""
    readiness = current_app.extensions.setdefault("tokenrouter.readiness", Readiness(runtime.current().ledger))
    return (READY, 200) if readiness.is_ready() else (NOT_READY, 503)

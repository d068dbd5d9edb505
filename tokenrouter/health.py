"""Blueprint "pages": what needs no sign-in."""

from flask import Blueprint
from sqlalchemy import literal, select

from tokenrouter import runtime
from tokenrouter.database.statements import Statement
from tokenrouter.errors import StorageUnavailable

blueprint = Blueprint("pages", __name__)

ANYTHING = Statement(select(literal(1)))
READY, NOT_READY = {"status": "ok"}, {"status": "database unavailable"}


@blueprint.get("/healthz")
def healthz() -> dict[str, str]:
    """Tell that the process lives."""
    return READY


@blueprint.get("/readyz")
def readyz() -> tuple[dict[str, str], int]:
    """Tell whether the database answers."""
    try:
        runtime.current().readers.one(ANYTHING, {})
    except StorageUnavailable:
        return NOT_READY, 503
    return READY, 200

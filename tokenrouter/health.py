"""Blueprint "pages": what needs no sign-in."""

from flask import Blueprint
from sqlalchemy import literal, select

from tokenrouter import runtime
from tokenrouter.database.connections import transient_errors
from tokenrouter.database.statements import Statement

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
    except (*transient_errors(), TimeoutError):
        return NOT_READY, 503
    return READY, 200

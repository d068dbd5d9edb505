"""Count the requests that are turned away without a row of the log: unknown tokens, broken bodies, overload."""

from flask import Flask, g, request

from tokenrouter import addresses, runtime
from tokenrouter.errors import TURNED_AWAY, APIError

CRASHED = 500
BAD_REQUEST = "bad_request"


def init_app(app: Flask) -> None:
    """Have such refusals counted, by address and, if it was ever valid, by token."""
    app.extensions[TURNED_AWAY] = _count


def _count(error: APIError) -> None:
    """Count a refusal, except mistakes of authenticated programs at the management API, and failures of ours."""
    if error.status == CRASHED or (request.path.startswith("/api") and error.status != 401):
        return
    reason = error.turned_away_as or error.code or (BAD_REQUEST if error.status == 400 else error.type)
    address = addresses.counted(request.remote_addr or "")
    token_id: int = error.token_id if error.status == 401 else g.get("token_id", 0)
    own = runtime.current()
    own.ledger.door.count(address, reason, token_id)
    if own.tally is not None:
        own.tally.note_turned_away(reason)

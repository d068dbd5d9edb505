"""Errors in OpenAI's shape, and the handlers that render them for every path that programs call."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import orjson
from flask import Flask, Response, current_app, g, render_template, request
from sqlalchemy.exc import DBAPIError, TimeoutError
from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    InternalServerError,
    RequestTimeout,
    ServiceUnavailable,
)

from tokenrouter import troubles
from tokenrouter.troubles import one_line

logger = logging.getLogger(__name__)

DATABASE_ERRORS = (DBAPIError, TimeoutError)  # whatever it says: what was to be done is not done
TROUBLE_STATUSES = (502, 503, 504)
NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}", re.IGNORECASE | re.ASCII)
TURNED_AWAY = "tokenrouter.turned_away"
"""Where an app has the function that counts refusals which the log has no row of."""
UNKNOWN_MODEL = "unknown model: "
"""Begins the reason in the log where the provider has no model of the name, whatever its code says."""
PAGES = "tokenrouter.error_pages"
PAGE_WORDS = {
    404: ("Not found", "There is nothing at this address."),
    413: ("Too much at once", "What you sent is larger than is taken here."),
    500: ("TokenRouter failed", "It failed on this request. The reason is in the service’s log."),
}
"""What pages say of an error that nothing more exact is known of: a heading and a sentence, by the status."""


class APIError(Exception):
    """An error that a caller sees as `{"error": {message, type, param, code}}`.

    Source of the shape and of the types: OpenAI's API reference, which their SDKs map to exceptions by status.
    """

    status = 500
    type = "api_error"
    code: str | None = None
    headers: Mapping[str, str] = {}
    request_id: str | None = None
    """The id of the row in the log, where that is another call's, which this one repeats."""
    reason: str | None = None
    """What the log keeps of why: our own figures, or the provider's code and type; never what anybody wrote."""
    is_logged = False
    """Whether a row of the log tells of it; what has none is counted as turned away at the door."""
    token_id = 0
    """The token that came with it, where that is, or once was, a team's."""
    turned_away_as: str | None = None
    """What the count of those turned away calls it, where callers may not know."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = {**self.headers, **(headers or {})}
        self.reason = reason

    def body(self) -> bytes:
        """Return the JSON document."""
        return error_body(self.message, self.type, self.param, self.code)


class InvalidAPIKey(APIError):
    """No token, or one that is unknown, revoked or expired: a caller cannot tell which, the administrator can."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"
    headers = {"WWW-Authenticate": "Bearer"}

    def __init__(self, turned_away_as: str = "no_token", token_id: int = 0) -> None:
        super().__init__(
            "Incorrect or missing API token. Send the token of your team as `Authorization: Bearer TOKEN`; "
            "who administers this service can give you one."
        )
        self.turned_away_as = turned_away_as
        self.token_id = token_id


class InvalidManagementToken(InvalidAPIKey):
    """The management API was called without a management token; a team's token is none."""

    turned_away_as = "no_management_token"

    def __init__(self) -> None:
        APIError.__init__(
            self,
            "Incorrect or missing management token. Send it as `Authorization: Bearer TOKEN`; "
            "`flask management-tokens create` makes one. A team's token does not open the management API.",
        )


class TeamDisabled(APIError):
    """The token is good, and its team is switched off."""

    status, type, code = 403, "invalid_request_error", "team_disabled"


class InvalidRequest(APIError):
    """The body is not what the endpoint takes; `param` names the field."""

    status, type = 400, "invalid_request_error"


class ModelNotFound(APIError):
    """The team may not call this model."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class ResponseNotFound(APIError):
    """The team was given no such response, whoever else was."""

    status, type, code = 404, "invalid_request_error", "previous_response_not_found"


class ItemNotFound(APIError):
    """The team was given no such item of a response, whoever else was."""

    status, type, code = 404, "invalid_request_error", "item_not_found"


class NotFound(APIError):
    """There is no such team or token."""

    status, type, code = 404, "invalid_request_error", "not_found"


class NameTaken(APIError):
    """Another team has the name."""

    status, type, code = 409, "invalid_request_error", "name_taken"


class CodeClosed(APIError):
    """The code to join with is one, and nobody joins with it any more; only the page for people says so."""

    status, type = 403, "invalid_request_error"


class QuotaExceeded(APIError):
    """The team's quota is used up."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"
    headers = {"x-should-retry": "false"}  # the openai SDK would otherwise try a 429 again


class ModelHasNoPrice(APIError):
    """The team has a budget, or its group, and nobody knows what the model costs."""

    status, type, code = 403, "invalid_request_error", "model_has_no_price"


class QuotaReserved(APIError):
    """The call may fit once the team's calls in flight are settled."""

    status, type, code = 429, "rate_limit_error", "quota_reserved"
    headers = {"Retry-After": "1"}


def waits(wait_ms: int) -> dict[str, str]:
    """Return the headers by which programs know how long to wait."""
    return {"Retry-After": str(-(-wait_ms // 1000)), "retry-after-ms": str(wait_ms)}


class PaceExceeded(APIError):
    """The team calls faster than it may. Source of the types: what OpenAI calls what is limited."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        kind: Literal["requests", "tokens"],
        wait_ms: int,
        headers: Mapping[str, str],
        reason: str | None = None,
    ) -> None:
        super().__init__(message, headers={**headers, **waits(wait_ms)}, reason=reason)
        self.type = kind


class ProviderBusy(APIError):
    """The service as a whole calls as fast as the provider's account allows, and others are before this call."""

    status, type, code = 429, "rate_limit_error", "provider_busy"

    def __init__(self, wait_ms: int, waiting: int, requests_per_minute: int) -> None:
        calls = "1 other call waits" if waiting == 1 else f"{waiting:,} other calls wait"
        wait = f"{wait_ms / 1000:g} s"
        super().__init__(
            "The provider is busy: all teams together call it as fast as its account allows, "
            f"{requests_per_minute:,} requests a minute, and {calls}. Try again in {wait}.",
            headers=waits(wait_ms),
            reason=f"{calls} for {requests_per_minute:,} requests a minute of the whole account; a place in {wait}",
        )


class RequestTooLarge(APIError):
    """The body is over MAX_REQUEST_BYTES."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnknownURL(APIError):
    """No such path, or one that belongs to the whole provider account."""

    status, type, code = 404, "invalid_request_error", "unknown_url"


class MethodNotAllowed(APIError):
    """The path exists, and not for this method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class StorageUnavailable(APIError):
    """The database cannot be used, so a call could not be booked or a question not be answered."""

    status, code = 503, "storage_unavailable"

    def __init__(self) -> None:
        super().__init__("The database cannot be used at the moment, so nothing was done. Try again soon.")


class Overloaded(APIError):
    """All places for calls to the provider are taken."""

    status, code = 503, "overloaded"
    headers = {"Retry-After": "1"}


class ProviderError(APIError):
    """The provider could not be reached or gave no usable answer; nothing was charged."""

    status, code = 502, "provider_error"


class ProviderUnreachable(ProviderError):
    """No connection to the provider, or one that ended before any answer."""

    code = "provider_unreachable"


class ProviderTimeout(ProviderError):
    """The provider was silent for longer than PROVIDER_READ_TIMEOUT."""

    status, code = 504, "provider_timeout"
    headers = {"x-should-retry": "false"}


class ProviderAuthFailed(ProviderError):
    """The provider refuses our key."""

    code = "provider_auth_failed"
    headers = {"x-should-retry": "false"}


class ProviderQuotaExhausted(ProviderError):
    """The provider's account is empty."""

    status, code = 503, "provider_quota_exhausted"
    headers = {"x-should-retry": "false"}


class ProviderBadResponse(ProviderError):
    """A redirect, broken framing, or a body that is neither JSON nor events where it must be."""

    code = "provider_bad_response"


class ProviderRefusal(ProviderError):
    """An error of the provider's that is not in OpenAI's shape; its status is the provider's own."""

    def __init__(
        self, message: str, status: int, headers: Mapping[str, str], provider_text: bytes, reason: str
    ) -> None:
        super().__init__(message, headers=headers, reason=reason)
        self.status = status
        self.provider_text = provider_text


def code_and_type(document: object) -> str:
    """Name an error of the provider's by its code and type, in a document or in an event of a stream.

    Only what is a name is told: all else may repeat a caller's words.
    """
    for error in _errors_in(document):
        named = [f"{field} {error[field]}" for field in ("code", "type") if _is_name(error.get(field))]
        if named:
            return ", ".join(named)
    return "no code"


def _errors_in(document: object) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        return
    choices, response = document.get("choices"), document.get("response")
    parts = [document, response, *(choices if isinstance(choices, list) else ())]
    yield from (part["error"] for part in parts if isinstance(part, dict) and isinstance(part.get("error"), dict))
    yield document


def _is_name(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) < 10**9 and not isinstance(value, bool)
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def error_body(message: str, type_: str, param: str | None, code: str | None) -> bytes:
    """Return the bytes of OpenAI's error document."""
    return orjson.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}})


def new_request_id() -> str:
    """Make the id by which an answer is found in the log; it need not be a secret."""
    return f"req_{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"


def init_app(app: Flask) -> None:
    """Register the handlers."""
    app.extensions[PAGES] = {}
    app.register_error_handler(APIError, render)
    app.register_error_handler(HTTPException, _translate)
    for kind in DATABASE_ERRORS:
        app.register_error_handler(kind, _without_database)


def render(error: APIError) -> Response:
    """Return the response that a caller gets."""
    if error.request_id is not None:
        g.request_id = error.request_id
    if error.status in TROUBLE_STATUSES:
        _tell_operator(error)
    if not error.is_logged:
        count: Callable[[APIError], None] = current_app.extensions[TURNED_AWAY]
        count(error)
    return Response(error.body(), error.status, error.headers, mimetype="application/json")


def _tell_operator(error: APIError) -> None:
    """Say in the log what callers are refused for though it is not their fault, with the cause; each now and then."""
    cause = error.__cause__
    why = "" if cause is None else f" ({one_line(getattr(cause, 'orig', None) or cause)})"  # not SQL, nor its values
    kind = error.code or error.type
    troubles.warn(f"{error.status} {kind}", "Calls are answered %d %s: %s%s", error.status, kind, error.message, why)


def _without_database(error: Exception) -> Response:
    refusal = StorageUnavailable()
    refusal.__cause__ = error
    if is_api_path(request.path):
        return render(refusal)
    _tell_operator(refusal)
    return page(ServiceUnavailable(refusal.message))


def _translate(error: HTTPException) -> Response:
    """Give Flask's own errors OpenAI's shape. Unknown paths reach no blueprint, so the path itself is looked at."""
    cause = error.original_exception if isinstance(error, InternalServerError) else None
    if cause is not None:
        logger.error("%s %s failed", request.method, request.path)
    if not is_api_path(request.path):
        return page(error)
    return render(_as_api_error(error))


def show_below(app: Flask, prefix: str, show: Callable[[HTTPException], Response]) -> None:
    """Have the pages of errors below a path made by the room that serves it."""
    app.extensions[PAGES][prefix] = show


def page(error: HTTPException) -> Response:
    """Return the page of an error, with the look of the pages about it."""
    rooms: Mapping[str, Callable[[HTTPException], Response]] = current_app.extensions[PAGES]
    for prefix, show in rooms.items():
        if request.path.startswith(f"{prefix}/"):
            return show(error)
    heading, message, status = page_words(error)
    text = render_template("pages/error.html", heading=heading, message=message)
    return Response(text, status, error.get_headers())


def page_words(error: HTTPException) -> tuple[str, str, int]:
    """Return what a page says of an error, in a heading and a sentence, and its status."""
    if isinstance(error, ClientDisconnected):
        error = RequestTimeout()  # whoever is still there to read that a form broke off was too slow
    own_heading, own_message = PAGE_WORDS.get(error.code or 500, (None, None))
    has_own = error.description != type(error).description
    message = error.description if has_own or own_message is None else own_message
    return own_heading or error.name, message or "", error.code or 500


def is_api_path(path: str) -> bool:
    """Tell whether callers expect OpenAI's error shape here."""
    return path in ("/v1", "/api", "/usage/data") or path.startswith(("/v1/", "/api/"))


def _as_api_error(error: HTTPException) -> APIError:
    target = f"{request.method} {request.path}"
    if error.code == 404:
        return UnknownURL(f"Unknown request URL: {target}.")
    if error.code == 405:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return MethodNotAllowed(f"Not allowed: {target}. This path takes {allowed}.", headers={"Allow": allowed})
    if error.code == 413:
        return RequestTooLarge(f"The body is larger than {request.max_content_length:,} bytes, the most taken here.")
    if error.code is not None and 400 <= error.code < 500:
        return InvalidRequest(error.description or error.name)
    return APIError("TokenRouter failed on this request. Its operator finds the reason in the log by the request id.")

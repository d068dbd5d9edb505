"""Errors in OpenAI's shape, and the handlers that render them on all paths for programs."""

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

DATABASE_ERRORS = (DBAPIError, TimeoutError)  # after any of them, nothing was done
TROUBLE_STATUSES = (502, 503, 504)
NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}", re.IGNORECASE | re.ASCII)
TURNED_AWAY = "tokenrouter.turned_away"
"""The extension with the function that counts refusals without a row of the log."""
UNKNOWN_MODEL = "unknown model: "
"""Prefix of the reason in the log if the provider has no model of the name, whatever its error code is."""
PAGES = "tokenrouter.error_pages"
PAGE_WORDS = {
    404: ("Not found", "There is nothing at this address."),
    413: ("Too much at once", "What you sent is larger than is taken here."),
    500: ("TokenRouter failed", "It failed on this request. The reason is in the service’s log."),
}
"""By status: the heading and sentence of an error page, if the error itself has no description."""


class APIError(Exception):
    """An error that a caller sees as `{"error": {message, type, param, code}}`.

    Source of the shape and of the types: OpenAI's API reference, which their SDKs map to exceptions by status.
    """

    status = 500
    type = "api_error"
    code: str | None = None
    headers: Mapping[str, str] = {}
    request_id: str | None = None
    """The id of the log's row, if this refusal repeats another call's, which has the row."""
    reason: str | None = None
    """The reason for the log: our own figures, or the provider's code and type; never text that somebody wrote."""
    is_logged = False
    """Whether the log has a row of it; errors without one are counted as turned away at the door."""
    token_id = 0
    """The id of the request's token, if it is, or once was, a team's."""
    turned_away_as: str | None = None
    """The reason under which it is counted at the door, if that differs from what callers see."""

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
    """No token, or one that is unknown, revoked or expired; only the administrator can see which."""

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
    """The management API was called without a management token; a team's token does not open it."""

    turned_away_as = "no_management_token"

    def __init__(self) -> None:
        APIError.__init__(
            self,
            "Incorrect or missing management token. Send it as `Authorization: Bearer TOKEN`; "
            "`flask management-tokens create` makes one. A team's token does not open the management API.",
        )


class TeamDisabled(APIError):
    """The token is valid, but its team is disabled."""

    status, type, code = 403, "invalid_request_error", "team_disabled"


class InvalidRequest(APIError):
    """The body is not what the endpoint takes; `param` names the field."""

    status, type = 400, "invalid_request_error"


class ModelNotFound(APIError):
    """The team may not call this model."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class ResponseNotFound(APIError):
    """The team was not given this response, even if another team was."""

    status, type, code = 404, "invalid_request_error", "previous_response_not_found"


class ItemNotFound(APIError):
    """The team was not given this item of a response, even if another team was."""

    status, type, code = 404, "invalid_request_error", "item_not_found"


class NotFound(APIError):
    """There is no such team or token."""

    status, type, code = 404, "invalid_request_error", "not_found"


class NameTaken(APIError):
    """Another team has the name."""

    status, type, code = 409, "invalid_request_error", "name_taken"


class CodeClosed(APIError):
    """The code exists, but nobody can join with it any more; only the page for people says so."""

    status, type = 403, "invalid_request_error"


class QuotaExceeded(APIError):
    """The team's quota is used up."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"
    headers = {"x-should-retry": "false"}  # the openai SDK would otherwise try a 429 again


class ModelHasNoPrice(APIError):
    """The team, or its group, has a budget, and the model has no price."""

    status, type, code = 403, "invalid_request_error", "model_has_no_price"


class QuotaReserved(APIError):
    """The call may fit once the team's calls in flight are settled."""

    status, type, code = 429, "rate_limit_error", "quota_reserved"
    headers = {"Retry-After": "1"}


def waits(wait_ms: int) -> dict[str, str]:
    """Return the headers that tell programs how long to wait."""
    return {"Retry-After": str(-(-wait_ms // 1000)), "retry-after-ms": str(wait_ms)}


class PaceExceeded(APIError):
    """The team calls faster than it may. Source of the types: OpenAI's errors of rate limits."""

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
    """All teams together call as fast as the provider's account allows, and other calls come before this one."""

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
    """The database cannot be used, so a call could not be booked, or a request not answered."""

    status, code = 503, "storage_unavailable"

    def __init__(self) -> None:
        super().__init__("The database cannot be used at the moment, so nothing was done. Try again soon.")


class Overloaded(APIError):
    """All slots for calls to the provider are taken."""

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
    """An error of the provider that is not in OpenAI's shape; it keeps the provider's status."""

    def __init__(
        self, message: str, status: int, headers: Mapping[str, str], provider_text: bytes, reason: str
    ) -> None:
        super().__init__(message, headers=headers, reason=reason)
        self.status = status
        self.provider_text = provider_text


def code_and_type(document: object) -> str:
    """Return code and type of a provider's error, in a document or in an event of a stream.

    Only values that look like names are used: others may repeat a caller's words.
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
    """Make the id by which an answer is found in the log; it is no secret."""
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
    """Log errors that are not the caller's fault, with the cause, throttled by kind."""
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
    """Give Flask's own errors OpenAI's shape on paths for programs; unknown paths belong to no blueprint."""
    cause = error.original_exception if isinstance(error, InternalServerError) else None
    if cause is not None:
        logger.error("%s %s failed", request.method, request.path)
    if not is_api_path(request.path):
        return page(error)
    return render(_as_api_error(error))


def show_below(app: Flask, prefix: str, show: Callable[[HTTPException], Response]) -> None:
    """Let the package that serves a path render the error pages below it."""
    app.extensions[PAGES][prefix] = show


def page(error: HTTPException) -> Response:
    """Return the error page in the style of the pages around it."""
    renderers: Mapping[str, Callable[[HTTPException], Response]] = current_app.extensions[PAGES]
    for prefix, show in renderers.items():
        if request.path.startswith(f"{prefix}/"):
            return show(error)
    heading, message, status = page_words(error)
    text = render_template("pages/error.html", heading=heading, message=message)
    return Response(text, status, error.get_headers())


def page_words(error: HTTPException) -> tuple[str, str, int]:
    """Return heading, sentence and status of an error page."""
    if isinstance(error, ClientDisconnected):
        error = RequestTimeout()  # a client that still reads the answer was too slow to send its form
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

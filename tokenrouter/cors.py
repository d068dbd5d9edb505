"""Calls by programs in browsers, allowed from the origins in CORS_ORIGINS; browsers refuse all others.

Source: Fetch Standard, 3.3.
"""

from flask import Flask, Response, current_app, request

from tokenrouter import unpriced
from tokenrouter.config import Settings

METHODS = "GET, POST, OPTIONS"
USUAL_HEADERS = "Authorization, Content-Type"
MAX_AGE_S = 7200  # the longest that Chromium accepts
EXPOSED = ", ".join(
    (
        "x-request-id",
        "x-tokenrouter-output-limit",
        unpriced.HEADER,
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "openai-processing-ms",
        "openai-version",
        "x-ratelimit-limit-requests",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
    )
)


def init_app(app: Flask, settings: Settings) -> None:
    """Allow the origins of the settings, if there are any."""
    if settings.cors_origins:
        app.config["CORS_ORIGINS"] = settings.cors_origins
        app.before_request(_answer_preflight)
        app.after_request(_let_in)


def _answer_preflight() -> Response | None:
    """Answer a preflight request, which carries no token."""
    is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    if not is_preflight or not _is_of_callers() or _allowed_origin() is None:
        return None
    response = Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = METHODS
    # SDKs send many headers of their own; they do no harm, since the provider does not get them
    requested = request.headers.get("Access-Control-Request-Headers")
    response.headers["Access-Control-Allow-Headers"] = requested or USUAL_HEADERS
    response.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
    response.vary.update(("Access-Control-Request-Method", "Access-Control-Request-Headers"))
    return response


def _let_in(response: Response) -> Response:
    """Tell the browser that the program may read this answer, errors included."""
    if _is_of_callers():
        response.vary.add("Origin")
        if (origin := _allowed_origin()) is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
    return response


def _is_of_callers() -> bool:
    return request.path == "/v1" or request.path.startswith("/v1/")


def _allowed_origin() -> str | None:
    """Return the value of Access-Control-Allow-Origin; None if the origin may not call, or is missing."""
    origin, allowed = request.headers.get("Origin"), current_app.config["CORS_ORIGINS"]
    if origin is None or ("*" not in allowed and origin.lower() not in allowed):
        return None
    return "*" if "*" in allowed else origin

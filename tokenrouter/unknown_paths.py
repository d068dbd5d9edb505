"""404 for unknown paths: programs get OpenAI's error shape, with what is wrong and the right base URL."""

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import NotFound

from tokenrouter.errors import UnknownURL, is_api_path, page, render

PAGES = ("admin", "docs", "static", "usage")
API_WORDS = frozenset(("v1", "openai", "deployments", "engines", "chat", "completions", "messages", "embeddings"))
LONGEST_PATH = 200  # of what is shown
MOST_SEGMENTS = 8  # at the end of a path, which are compared with routes


def init_app(app: Flask) -> None:
    """Register the handler."""
    app.register_error_handler(NotFound, _answer)


def _answer(error: NotFound) -> Response:
    # not request.path, which has only one slash at its beginning, however many were sent
    path = request.environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
    segments = [segment for segment in path.split("/") if segment]
    start = _start_of_served(segments)
    if not _is_of_programs(segments, start):
        return page(error)
    shown = path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}…"
    advice = _advice(path, segments, start)
    return render(UnknownURL(f"Unknown request URL: {request.method} {shown}.{advice}"))


def _start_of_served(segments: list[str]) -> int | None:
    """Return where the longest end of the path begins that is a route below /v1; None if no end is."""
    routes = current_app.url_map.bind("")
    for start in range(max(0, len(segments) - MOST_SEGMENTS), len(segments)):
        served = f"/v1/{_joined(segments[start:])}"
        if any(routes.test(served, method) for method in ("GET", "POST")):
            return start
    return None


def _joined(segments: list[str]) -> str:
    return "/".join(segments).lower()


def _is_of_programs(segments: list[str], start: int | None) -> bool:
    """Tell whether this is a program, and not a person who mistyped the address of a page."""
    if is_api_path(f"/{_joined(segments)}"):
        return True
    if segments and segments[0].lower() in PAGES:
        return False
    if start is not None or any(segment.lower() in API_WORDS for segment in segments):
        return True
    is_browsing = request.method in ("GET", "HEAD") and "text/html" in request.headers.get("Accept", "")
    return not is_browsing


def _advice(path: str, segments: list[str], start: int | None) -> str:
    """Say what is wrong with a path, as far as can be seen, and what would be right."""
    if segments and segments[0].lower() == "api" and start is None:
        return " The management API has /api/teams, /api/logs and /api/usage."
    base_url = f"{request.scheme}://{request.host}/v1" if request.host else "/v1 at this service's address"
    if start is None:
        wrong = ""
        if segments[-1:] == ["messages"]:
            wrong = " Anthropic's API is not served here; use a client for OpenAI's."
        return f"{wrong} The base URL for clients is {base_url}."
    served = _joined(segments[start:])
    wrong = _what_is_wrong(path, [segment.lower() for segment in segments[:start]], served)
    return f" {wrong} The base URL for clients is {base_url}, and this path below it /{served}."


def _what_is_wrong(path: str, before: list[str], served: str) -> str:
    if "deployments" in before:
        return "Paths by deployment are Azure's: use a client for OpenAI, and name the model in the body."
    if not before:
        return "/v1 is missing at its beginning."
    if before != ["v1"]:
        return f"/{'/'.join(before)}/ is not how it begins."[:LONGEST_PATH]
    if path.lower() == f"/v1/{served}":
        return "It is written in small letters."
    return "It has a slash too many."

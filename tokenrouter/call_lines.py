"""A JSON line on standard output for each call, without its content, for programs that read logs."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenrouter import logs, troubles
from tokenrouter.ledger.endings import Ending
from tokenrouter.money import decimal_string
from tokenrouter.troubles import one_line
from tokenrouter.worker.gathering import Gatherer

LOGGER = "tokenrouter.calls"


def writer() -> Gatherer[Ending]:
    """Return a listener that writes a line for each ending soon after, while no caller waits."""
    return Gatherer(write, "lines of calls")


def write(endings: Sequence[Ending]) -> None:
    """Write the lines of calls that ended, and of refusals that were repeated.

    If standard output cannot be written, calls go on, and the log on standard error says so.
    """
    try:
        logs.write_lines(LOGGER, map(document, endings))
    except OSError as error:
        troubles.warn("call lines", "The lines of calls cannot be written (%s)", one_line(error))


def document(ending: Ending) -> dict[str, Any]:
    """Return the line as a document; `repeats` is how many calls it stands for."""
    request, outcome = ending.request, ending.outcome
    return {
        "message": outcome.status,
        "request_id": request.request_id,
        "team_id": request.team_id,
        "team": request.team_name,
        "token": request.token_prefix,
        "model": _shown_model(request.model),
        "endpoint": request.endpoint,
        "stream": request.stream,
        "status": outcome.status,
        "status_code": outcome.status_code,
        "code": outcome.error_code,
        "repeats": ending.times,
        "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens,
        "completion_tokens": outcome.completion_tokens,
        "total_tokens": outcome.total_tokens,
        "charged_tokens": outcome.charged_tokens,
        "cost": None if ending.cost is None else decimal_string(ending.cost),
        "usage_source": outcome.usage_source,
        "latency_ms": outcome.latency_ms,
        "first_byte_ms": outcome.first_byte_ms,
    }


@lru_cache(maxsize=256)
def _shown_model(model: str) -> str:
    """Return the model without secrets: callers may send a token as the model, by mistake."""
    return logs.without_secrets(model)

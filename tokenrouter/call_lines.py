"""A line of the log for each call, as JSON, for programs that read logs; nothing of its content is in it."""

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
    """Return what takes endings over, and soon writes the line of each, behind the callers' answers."""
    return Gatherer(write, "lines of calls")


def write(endings: Sequence[Ending]) -> None:
    """Write the lines of calls that ended, and of refusals that were repeated.

    A log that cannot be written stops no call; that is said in the other one.
    """
    try:
        logs.write_lines(LOGGER, map(document, endings))
    except OSError as error:
        troubles.warn("call lines", "The lines of calls cannot be written (%s)", one_line(error))


def document(ending: Ending) -> dict[str, Any]:
    """Return what the line tells: `repeats` is how many calls it stands for."""
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
    """Return what the line says of the model, which callers write: it may be a token of theirs, by mistake."""
    return logs.without_secrets(model)

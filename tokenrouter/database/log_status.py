"""The statuses of a call in the log, and how each is explained to people."""

from dataclasses import dataclass

PENDING = "pending"
OK = "ok"
CLIENT_CLOSED = "client_closed"
PROVIDER_ERROR = "provider_error"
REJECTED = "rejected"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Description:
    """A status in words and in a sentence, the tone in which pages show it, and whether it counts as a failure."""

    words: str
    tone: str
    sentence: str
    is_failure: bool = False


DESCRIPTIONS = {
    OK: Description("answered", "good", "It was answered."),
    PENDING: Description("in flight", "busy", "It is being answered now."),
    CLIENT_CLOSED: Description(
        "caller left", "quiet", "The caller left before the answer was complete; what had arrived is charged."
    ),
    PROVIDER_ERROR: Description(
        "provider error",
        "bad",
        "The provider failed or refused it; what had arrived of an answer by then is charged.",
        is_failure=True,
    ),
    REJECTED: Description(
        "refused",
        "warn",
        "TokenRouter refused it, for quota, model or a disabled team; the provider was not called.",
        is_failure=True,
    ),
    INTERRUPTED: Description(
        "interrupted",
        "bad",
        "The worker that answered it ended in the middle; what had arrived by then is charged.",
        is_failure=True,
    ),
}


def describe(status: str) -> Description:
    """Describe a status; an unknown one, which somebody wrote by hand, is shown as it is."""
    return DESCRIPTIONS.get(status) or Description(status, "bad", status)


STATUSES = tuple(DESCRIPTIONS)
FAILURES = tuple(status for status, description in DESCRIPTIONS.items() if description.is_failure)
ANY_FAILURE = "failed"
"""In a search, any of these."""
RARE_STATUSES = tuple(status for status in STATUSES if status not in (OK, PENDING))
"""The statuses in the partial index; nearly all calls have another."""

"""What each kind of failure means, and what helps: the one table of it for the dashboard and the page of a call."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from tokenrouter.database.log_status import INTERRUPTED, PROVIDER_ERROR, REJECTED
from tokenrouter.reports import FailureGroup

SHOWN_TEAMS = 3


class Side(StrEnum):
    """Who can do something about it, in the order in which pages show it."""

    PROVIDER = "At the provider"
    HERE = "Limits and settings here"
    CALLERS = "Callers’ own mistakes"


class Help(StrEnum):
    """Where a button leads that helps."""

    SETTINGS = "Look at the provider"
    ACCOUNT = "See who waits"
    PRICES = "Set a price"
    QUOTA = "Raise the quota"
    PACE = "Change its pace"
    MODELS = "Change its models"
    ENABLE = "Enable the team"


@dataclass(frozen=True)
class Kind:
    """A kind of failure in words, whose it is, one sentence of advice, and the button that helps, if one does."""

    words: str
    side: Side
    advice: str
    help: Help | None = None


P, H, C = Side
KINDS = {
    "provider_auth_failed": Kind(
        "The provider refuses the key",
        P,
        "Set a valid PROVIDER_API_KEY with flask setup, and restart.",
        Help.SETTINGS,
    ),
    "provider_quota_exhausted": Kind(
        "The provider’s account is empty",
        P,
        "Top it up at the provider; calls go through again at once.",
        Help.SETTINGS,
    ),
    "provider_unreachable": Kind(
        "The provider cannot be reached",
        P,
        "Check PROVIDER_BASE_URL and the network of this machine.",
        Help.SETTINGS,
    ),
    "provider_timeout": Kind(
        "The provider was silent for too long",
        P,
        "Where the model does take so long, raise PROVIDER_READ_TIMEOUT; streams are silent for less long.",
        Help.SETTINGS,
    ),
    "provider_bad_response": Kind(
        "The provider’s answer made no sense",
        P,
        "It broke off, or was no answer of this API; check PROVIDER_BASE_URL if that goes on.",
        Help.SETTINGS,
    ),
    "insufficient_quota": Kind(
        "The quota is used up",
        H,
        "Raise the quota or budget, give extra, or reset what was used.",
        Help.QUOTA,
    ),
    "quota_reserved": Kind(
        "What is left is held by calls in flight",
        H,
        "It is given back as they end; an output limit in the requests, or a higher quota, lets more run at once.",
        Help.QUOTA,
    ),
    "rate_limit_exceeded": Kind(
        "Calls came faster than the pace allows",
        H,
        "Programs try again by themselves; raise the pace if the team needs it.",
        Help.PACE,
    ),
    "provider_busy": Kind(
        "All teams together called as fast as the account allows",
        H,
        "It is no fault of these teams: PROVIDER_REQUESTS_PER_MINUTE is the pace of the whole account. Programs try "
        "again by themselves; a pace of those that call most leaves room for the others.",
        Help.ACCOUNT,
    ),
    "model_has_no_price": Kind(
        "The model has no price, and a budget applies",
        H,
        "Set the model’s price, or fetch the provider’s.",
        Help.PRICES,
    ),
    "team_disabled": Kind("The team is disabled", H, "Enable it, if it is to make calls again.", Help.ENABLE),
    "storage_unavailable": Kind(
        "The database could not be used", H, "The provider was not called; the service’s log names the cause."
    ),
    "model_not_found": Kind(
        "The model is not allowed, or does not exist",
        C,
        "Allow the model, or tell the team the names that it may call.",
        Help.MODELS,
    ),
}
WORKER_ENDED = Kind(
    "The worker ended in the middle",
    H,
    "After a restart that is all; else the service’s log says what ended it.",
)
FAILED_HERE = Kind("TokenRouter failed on it", H, "The service’s log has the cause, by the request id.")
TOO_FAST = Kind(
    "The provider’s own limit was hit",
    P,
    "All teams share it: set PROVIDER_REQUESTS_PER_MINUTE, give those that call most a pace, or ask for more.",
    Help.SETTINGS,
)
PROVIDER_REFUSED = Kind(
    "The provider refused it",
    P,
    "Its code below says why; its status page, or its support, may say more.",
    Help.SETTINGS,
)
PROVIDER_FAILED = Kind(
    "The provider failed",
    P,
    "Mostly that passes; its status page says whether it is known.",
    Help.SETTINGS,
)
BAD_REQUEST = Kind(
    "The provider did not take the request", C, "The caller’s own answer says what is wrong in it; that is not kept."
)
REFUSED_HERE = Kind("Refused here", H, "Its page says by which figures.")
REFUSING_STATUSES = (401, 402, 403, 408, 409)


def kind_of(status: str, status_code: int | None, error_code: str | None) -> Kind | None:
    """Return the kind of a call's failure; None if it did not fail."""
    if status == INTERRUPTED:
        return WORKER_ENDED
    if status == REJECTED:
        return KINDS.get(error_code or "", REFUSED_HERE)
    return _of_provider(status_code or 0, error_code or "") if status == PROVIDER_ERROR else None


def _of_provider(status_code: int, error_code: str) -> Kind:
    known = KINDS.get(error_code)
    if (known is not None and known.side is not H) or error_code == "storage_unavailable":
        return known or FAILED_HERE
    if status_code == 429:
        return TOO_FAST
    if status_code in REFUSING_STATUSES:
        return PROVIDER_REFUSED
    if status_code == 500 and error_code == "api_error":
        return FAILED_HERE
    return BAD_REQUEST if 400 <= status_code < 500 else PROVIDER_FAILED


@dataclass
class TeamFailures:
    """What failed of one team in one way; `last` is the last group of such calls."""

    last: FailureGroup
    calls: int = 0


@dataclass
class KindFailures:
    """What failed in one way, by team, the last first."""

    kind: Kind
    calls: int = 0
    teams: dict[int, TeamFailures] = field(default_factory=dict)

    @property
    def last(self) -> FailureGroup:
        """The last of all."""
        return next(iter(self.teams.values())).last

    @property
    def shown(self) -> list[TeamFailures]:
        """The teams with most of them."""
        return sorted(self.teams.values(), key=lambda each: -each.calls)[:SHOWN_TEAMS]

    def add(self, group: FailureGroup) -> None:
        """Count calls to their team."""
        team = self.teams.setdefault(group.team_id, TeamFailures(group))
        team.calls += group.calls
        self.calls += group.calls


def by_side(groups: Iterable[FailureGroup]) -> dict[Side, list[KindFailures]]:
    """Group failures, given latest first, by who can act, and then by kind."""
    found: dict[Kind, KindFailures] = {}
    for group in groups:
        if (kind := kind_of(group.status, group.status_code, group.error_code)) is not None:
            found.setdefault(kind, KindFailures(kind)).add(group)
    return {side: kinds for side in Side if (kinds := [each for each in found.values() if each.kind.side is side])}


DOOR_WORDS = {
    "no_token": ("No token", "The program sends none: its key is missing, or it puts it elsewhere."),
    "unknown_token": ("Unknown token", "It never was one of yours: mistyped, cut short, or a guess."),
    "revoked_token": ("Revoked token", "A program still has it. Give the team a new one, if it should go on."),
    "expired_token": ("Expired token", "A program still has it. Give the team a new one, if it should go on."),
    "token_of_deleted_team": ("Token of a deleted team", "A program of a team that was deleted still runs."),
    "no_management_token": ("Wrong management token", "A program asks the management API with a token that is none."),
    "team_disabled": ("Team disabled", "It looked at its models or its use."),
    "bad_request": ("Request that is not understood", "Its body is broken, or a field has the wrong type."),
    "request_too_large": ("Too large a body", "It is over MAX_REQUEST_BYTES."),
    "model_not_found": ("Unknown model", "It asked about a model that it may not call."),
    "previous_response_not_found": ("Unknown response", "It named one that its team was not given."),
    "item_not_found": ("Unknown item", "It named one that its team was not given."),
    "unknown_url": ("Unknown address", "The program’s base URL is wrong, or somebody looks around."),
    "method_not_allowed": ("Wrong method", "The address takes another one."),
    "left_waiting": ("Left while waiting", "Its call waited for the pace of the whole account; it cost nothing."),
    "restarting": ("Restart", "Its call waited for the pace of the whole account when the service was restarted."),
    "overloaded": ("Too many calls at once", "Raise THREADS or TEAM_CALLS if that comes often."),
    "storage_unavailable": ("Database not available", "Nothing could be booked; the service’s log names the cause."),
}


def door_words(reason: str) -> tuple[str, str]:
    """Return the title and the meaning of a reason for refusing a request."""
    return DOOR_WORDS.get(reason, (reason, ""))

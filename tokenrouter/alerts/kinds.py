"""The kinds of alerts and their wording: an alert stores facts, which are made into sentences here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from tokenrouter.ledger.crossings import BEGUN
from tokenrouter.money import shown
from tokenrouter.periods import in_words

OVER = "over"
MINUTES_LOOKED_BACK = 15  # for revoked tokens


class Kind(StrEnum):
    """The kinds; the ledger writes the first two, in the transaction that settles a call."""

    QUOTA = "quota"
    BUDGET = "budget"
    RUNS_OUT = "runs_out"
    ACCOUNT_EMPTY = "account_empty"
    KEY_REFUSED = "key_refused"
    PROVIDER_DOWN = "provider_down"
    BALANCE_ENDS = "balance_ends"
    DATABASE = "database"
    DISK = "disk"
    REVOKED_TOKEN = "revoked_token"
    BOOKS = "books"
    TEST = "test"


TELLS_END = (Kind.ACCOUNT_EMPTY, Kind.KEY_REFUSED, Kind.PROVIDER_DOWN, Kind.DATABASE, Kind.DISK, Kind.BOOKS)
"""Those whose end is reported too; the others just end."""
GRAVE = (Kind.ACCOUNT_EMPTY, Kind.KEY_REFUSED, Kind.PROVIDER_DOWN, Kind.DATABASE, Kind.BOOKS)
"""Those that stop calls, or say that figures are wrong."""


@dataclass(frozen=True)
class AlertRecord:
    """A stored alert."""

    uid: str
    kind: str
    at: datetime
    details: Mapping[str, Any]
    team_id: int | None = None
    group_id: int | None = None
    percent: int | None = None
    ended_at: datetime | None = None

    @property
    def is_grave(self) -> bool:
        """Whether calls fail because of it, or figures are wrong."""
        return self.kind in GRAVE or self.percent == 100

    def webhook_id(self, says: str) -> str:
        """Return the id of a message, the same each time it is sent, so that receivers can drop repeats."""
        return self.uid if says == BEGUN else f"{self.uid}-{says}"


@dataclass(frozen=True)
class Words:
    """A sentence, without its full stop, and details to follow it."""

    title: str
    more: str = ""

    def __str__(self) -> str:
        """Return all of it."""
        return f"{self.title}. {self.more}".rstrip()


@dataclass(frozen=True)
class Speaker:
    """Writes alerts in words, with the zone and currency of the service; `name` formats names."""

    zone: ZoneInfo
    currency: str
    name: Callable[[str], str] = str

    def words(self, alert: AlertRecord, says: str = BEGUN) -> Words:
        """Say what an alert is about, or that it is over."""
        words = WORDS[Kind(alert.kind)](self, alert) if alert.kind in set(Kind) else Words(alert.kind)
        if says == BEGUN:
            return words
        ended = "" if alert.ended_at is None else f" and ended at {self.moment(alert.ended_at)}"
        return Words(
            f"Over: {words.title[:1].lower()}{words.title[1:]}", f"It began at {self.moment(alert.at)}{ended}."
        )

    def owner(self, alert: AlertRecord) -> str:
        """Name the team or group that it is of."""
        return f"{'team' if alert.group_id is None else 'group'} “{self.name(str(alert.details.get('name', '')))}”"

    def moment(self, moment: datetime) -> str:
        """Write a moment in the service's time zone."""
        at = moment.astimezone(self.zone)
        return f"{at:%H:%M} on {at.day} {at:%B %Y}"

    def of_limit(self, alert: AlertRecord) -> Words:
        """Say how much of a quota or budget is used."""
        facts, what = alert.details, alert.kind
        if what == Kind.BUDGET:
            used, allowance = shown(facts["used"], self.currency), shown(facts["allowance"], self.currency)
        else:
            used, allowance = f"{facts['used']:,}", f"{facts['allowance']:,} tokens"
        renews = None if facts["renews_at"] is None else in_words(facts["renews_at"], self.zone)
        is_used_up = alert.percent == 100
        ending = "" if renews is None else f" It renews on {renews}."
        if is_used_up:
            until = f"it renews on {renews}, or until " if renews else ""
            ending = f" Calls are refused until {until}the {what} is raised or its use is reset."
        share = f"has used up its {what}" if is_used_up else f"has used {alert.percent} % of its {what}"
        return Words(f"The {self.owner(alert)} {share}", f"{used} of {allowance}.{ending}")

    def of_pace(self, alert: AlertRecord) -> Words:
        """Say when a quota or budget will be used up."""
        facts = alert.details
        day = date.fromisoformat(facts["day"])
        until = f"what is left lasts until {day:%A}, {day.day} {day:%B %Y}"
        if facts["renews_at"] is None:
            return Words(f"The {self.owner(alert)} will soon have used up its limit", f"At its pace {until}.")
        renews = in_words(facts["renews_at"], self.zone)
        return Words(
            f"The {self.owner(alert)} will run out before it renews", f"At its pace {until}; it renews on {renews}."
        )

    def of_disk(self, alert: AlertRecord) -> Words:
        """Say how full the disk is."""
        free, size = (alert.details[name] / 10**9 for name in ("free", "size"))
        more = f"{free:,.1f} GB of {size:,.1f} GB are free in {alert.details['folder']} on {alert.details['host']}."
        return Words("The disk of the database is nearly full", more)

    def of_token(self, alert: AlertRecord) -> Words:
        """Say whose revoked token is used, and from where."""
        facts = alert.details
        label = f" ({self.name(facts['label'])})" if facts["label"] else ""
        requests = "1 request" if facts["requests"] == 1 else f"{facts['requests']:,} requests"
        more = f"{facts['prefix']}…{label}: {requests} in {MINUTES_LOOKED_BACK} minutes, from {facts['address']}."
        return Words(f"A revoked token of the {self.owner(alert)} is still in use", f"{more} They were refused.")

    def of_books(self, alert: AlertRecord) -> Words:
        """Say what `verify` found."""
        problems = alert.details["problems"]
        rest = alert.details["count"] - len(problems)
        more = f" There is {rest:,} more." if rest == 1 else f" There are {rest:,} more." if rest else ""
        return Words("Counters and log do not agree", f"{' '.join(problems)}{more} `flask usage verify` shows all.")


WORDS: dict[Kind, Callable[[Speaker, AlertRecord], Words]] = {
    Kind.QUOTA: Speaker.of_limit,
    Kind.BUDGET: Speaker.of_limit,
    Kind.RUNS_OUT: Speaker.of_pace,
    Kind.ACCOUNT_EMPTY: lambda speaker, alert: Words(
        "The provider’s account is empty", "Calls of all teams are refused until it is topped up."
    ),
    Kind.KEY_REFUSED: lambda speaker, alert: Words(
        "The provider refuses the key", "Set a valid PROVIDER_API_KEY with `flask setup`, and restart."
    ),
    Kind.PROVIDER_DOWN: lambda speaker, alert: Words(
        "The provider does not answer calls", "Check PROVIDER_BASE_URL, the network, and the provider’s status page."
    ),
    Kind.BALANCE_ENDS: lambda speaker, alert: Words("The provider’s account will not last", alert.details["words"]),
    Kind.DATABASE: lambda speaker, alert: Words(
        "The database cannot be written", f"{alert.details['cause']}, on {alert.details['host']}. Calls are refused."
    ),
    Kind.DISK: Speaker.of_disk,
    Kind.REVOKED_TOKEN: Speaker.of_token,
    Kind.BOOKS: Speaker.of_books,
    Kind.TEST: lambda speaker, alert: Words("A test of TokenRouter’s alerts", "Nothing has happened."),
}


def trial_alert(uid: str) -> AlertRecord:
    """Return a test alert, which shows whether alerts arrive."""
    return AlertRecord(uid, Kind.TEST, datetime.now(UTC), {})

"""How figures, moments and states are written on the pages."""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask, current_app, url_for
from flask_wtf.csrf import generate_csrf
from markupsafe import Markup, escape

from tokenrouter.changes.listing import Entry
from tokenrouter.database.log_status import describe
from tokenrouter.database.tables import Change
from tokenrouter.figures import counted, short
from tokenrouter.money import decimal_string, shown
from tokenrouter.periods import rfc3339
from tokenrouter.teams import can_undo, format_quota

STATIC = Path(__file__).parent.parent / "static"
SOURCE_WORDS = {
    "provider": "reported by the provider",
    "estimated": "estimated",
    "none": "not counted",
}

ACTION_WORDS = {
    "team.create": "Created the team",
    "team.update": "Changed the team",
    "team.extra": "Gave extra tokens",
    "team.delete": "Deleted the team",
    "team.restore": "Brought the team back",
    "group.create": "Created the group",
    "group.update": "Changed the group",
    "group.extra": "Gave extra tokens",
    "group.delete": "Deleted the group",
    "group.restore": "Brought the group back",
    "usage.reset": "Reset its usage",
    "usage.restore": "Took a reset back",
    "usage.repair": "Repaired its counters by the log",
    "log.prune": "Pruned the log",
    "price.set": "Set a price",
    "price.unset": "Ended a price",
    "price.correct": "Corrected costs",
    "prices.fetch": "Fetched the provider’s prices",
    "account.balance": "Set the provider’s balance",
    "token.create": "Created a token",
    "token.update": "Changed a token",
    "token.revoke": "Revoked a token",
    "token.restore": "Let a token in again",
    "token.rotate": "Replaced a token",
    "management_token.create": "Created a management token",
    "management_token.revoke": "Revoked a management token",
    "code.create": "Created a code to join",
    "code.revoke": "Revoked a code to join",
}
SEVERAL_WORDS = {
    "team.create": "Created {} teams",
    "team.update": "Changed {} teams",
    "team.extra": "Gave extras to {} teams",
    "team.delete": "Deleted {} teams",
    "team.restore": "Brought {} teams back",
    "usage.reset": "Reset the usage of {} teams or groups",
    "usage.restore": "Took the resets of {} teams or groups back",
}
"""Of what was done to several at once."""
FIELD_WORDS = {
    "quota_tokens": "quota",
    "used_tokens": "used",
    "extra_tokens": "extra",
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "calls_at_once": "calls at once",
    "active": "state",
    "extra_budget": "extra budget",
    "log_before": "of all days before",
    "cached_input": "cached input",
    "request": "a call",
    "priced_tokens": "tokens with a price",
    "used_cost": "cost",
    "expires_at": "expires",
    "old_token_until": "the old one works until",
}
UNSEEN_FIELDS = {"group_id", "team_ids", "token_id"}
"""Fields that are recorded only for taking changes back."""
USUAL_VALUES = {"renews": "never", "active": True}
"""What a team or group has unless it is given another; so with nothing, but for a quota, where nothing is unlimited."""


class Share(NamedTuple):
    """How much of a quota is used and held, in percent; used is cut at 100."""

    used: float
    held: float


def share(team: Any) -> Share:
    """Return a team's share of its quota and extra. A quota of 0 is used up by definition."""
    if not team.allowance_tokens:
        return Share(100.0, 0.0)
    used = min(100.0, 100.0 * team.used_tokens / team.allowance_tokens)
    return Share(used, min(100.0 - used, 100.0 * team.held_tokens / team.allowance_tokens))


def iso(moment: datetime) -> str:
    """Write a moment for a <time> element."""
    return rfc3339(moment)


def utc(moment: datetime) -> str:
    """Write a moment for people, exactly, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def with_code(text: str) -> Markup:
    """Show as code what a sentence has between backticks, such as a command."""
    return Markup(re.sub("`([^`<]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - it is escaped


def quoted(name: str) -> Markup:
    """Write a name into a sentence, whose direction it does not turn."""
    return Markup("“<bdi>{}</bdi>”").format(name)


def day_and_time(instant: datetime) -> str:
    """Write when a quota renews, in the service's own zone: `1 Dec, 00:00`."""
    at = instant.astimezone(current_app.config["TIMEZONE"])
    return f"{at.day} {at:%b}, {at:%H:%M}"


def weekday_and_time(instant: datetime) -> str:
    """Write a moment on paper, in the service's own zone: `Friday 27 November, 17:00`."""
    at = instant.astimezone(current_app.config["TIMEZONE"])
    return f"{at:%A} {at.day} {at:%B}, {at:%H:%M}"


def near_day(day: date) -> str:
    """Write a day to come: `today`, `tomorrow`, `Fri 4 Dec`, `4 Dec 2027`."""
    today = datetime.now(current_app.config["TIMEZONE"]).date()
    if day <= today + timedelta(days=1):
        return "today" if day <= today else "tomorrow"
    return f"{day:%a} {day.day} {day:%b}" if day < today + timedelta(days=180) else f"{day.day} {day:%b %Y}"


PACE_WORDS = {
    "requests_per_minute": ("request", "a minute"),
    "tokens_per_minute": ("token", "a minute"),
    "calls_at_once": ("call", "at once"),
}


def pace(limits: Mapping[str, int | None]) -> str:
    """Say how fast a team may call."""
    words = {PACE_WORDS[name]: limit for name, limit in limits.items() if limit is not None}
    return ", ".join(f"{counted(limit, thing)} {how}" for (thing, how), limit in words.items()) or "no limit"


def amount(billionths: int, currency: str | None = None) -> Markup:
    """Write an amount of money for people, of CURRENCY unless another is given, with the exact one on hover."""
    currency = currency or current_app.config["CURRENCY"]
    exact = f"{decimal_string(billionths)} {currency}"
    return Markup('<span class="num" title="{}">{}</span>').format(exact, shown(billionths, currency))


def milliseconds(duration_ms: int | None) -> str:
    """Write a duration: `340 ms`, `2.4 s`."""
    if duration_ms is None:
        return "–"
    return f"{duration_ms} ms" if duration_ms < 1000 else f"{duration_ms / 1000:.1f} s"


def source_words(usage_source: str) -> str:
    """Say how a call's tokens were counted."""
    return SOURCE_WORDS.get(usage_source, usage_source)


def action_words(action: str) -> str:
    """Say what a change was."""
    return ACTION_WORDS.get(action, action)


def field_words(field: str) -> str:
    """Name a field of a change."""
    return FIELD_WORDS.get(field, field)


def seen_fields(change: Change) -> list[str]:
    """Return the fields of a change to show; of something created or deleted, only those with unusual values."""
    fields = {**(change.before or {}), **(change.after or {})}
    is_whole = not (change.before and change.after)
    seen = {name: value for name, value in fields.items() if name not in UNSEEN_FIELDS}
    return [name for name, value in seen.items() if not (is_whole and _is_usual(name, value))]


def _is_usual(field: str, value: Any) -> bool:
    if field == "name":  # it stands beside them
        return True
    if value is None or value == "":
        return field != "quota_tokens"
    return field in USUAL_VALUES and value == USUAL_VALUES[field]


def batch_words(entry: Entry) -> str:
    """Say what was done at once."""
    actions = sorted({change.action for change in entry.rows})
    if len(actions) == 1 and actions[0] in SEVERAL_WORDS:
        return SEVERAL_WORDS[actions[0]].format(f"{entry.total:,}")
    return f"{', '.join(map(action_words, actions))}: {entry.total:,} changes at once"


@cache
def _version(filename: str) -> str:
    return hashlib.sha256((STATIC / filename).read_bytes()).hexdigest()[:10]


def asset(filename: str) -> str:
    """Return the URL of a file of ours, which changes with its content, so that browsers may keep it."""
    return url_for("static", filename=filename, v=_version(filename))


def init_app(app: Flask) -> None:
    """Register these functions for templates."""
    words = source_words, action_words, field_words
    moments = iso, utc, day_and_time, weekday_and_time, near_day
    for each in (amount, short, counted, share, *moments, pace, milliseconds, with_code, *words):
        app.jinja_env.filters[each.__name__] = each
    app.jinja_env.filters.update(quota=format_quota, status=describe)
    app.jinja_env.filters.update(seen_fields=seen_fields, batch_words=batch_words, moment_of=datetime.fromisoformat)
    app.jinja_env.tests["undoable"] = can_undo
    app.jinja_env.globals.update(asset=asset, csrf_token=generate_csrf)

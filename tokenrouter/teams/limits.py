"""The limits of teams and groups, as people set them."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from flask import current_app
from sqlalchemy import select
from sqlalchemy.orm import Session

from tokenrouter.database.columns import UnreadableNumber, epoch_now
from tokenrouter.database.tables import PACES, Group, Team
from tokenrouter.errors import InvalidRequest
from tokenrouter.money import decimal_string
from tokenrouter.periods import Renewal
from tokenrouter.teams.quotas import check_budget, check_pace, check_quota
from tokenrouter.teams.renewals import format_renewal


class Keep(Enum):
    """Marks a field to be left unchanged, since None is a value."""

    KEEP = "keep"


KEEP = Keep.KEEP
NOTHING_EXPECTED: Mapping[str, Any] = {}


class ChangedMeanwhile(InvalidRequest):
    """Somebody changed the same fields after they were shown; `fields` has their present values."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__("Somebody changed this meanwhile. Look at it again.", param=next(iter(fields)))
        self.fields = fields


def check_expected(fields: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ChangedMeanwhile if fields differ from those expected."""
    readable = {name: value for name, value in expected.items() if not isinstance(value, UnreadableNumber)}
    if changed := {name: fields.get(name) for name, value in readable.items() if fields.get(name) != value}:
        raise ChangedMeanwhile(changed)


def changed_between(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the fields that differ, before and after; None if none does."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not names:
        return None
    old, new = ({name: fields[name] for name in names if name in fields} for fields in (before, after))
    return old, new


def described(row: Team | Group) -> dict[str, Any]:
    """Return name and limits in the form of the record of changes."""
    return {
        "name": row.name,
        "quota_tokens": row.quota_tokens,
        "renews": format_renewal(row.renewal),
        **{name: getattr(row, name) for name in PACES},
        "budget": decimal_string(row.budget),
    }


def change_limits(
    session: Session,
    row: Team | Group,
    quota_tokens: int | Keep | None = KEEP,
    renewal: Renewal | Keep = KEEP,
    **others: int | None,
) -> None:
    """Set what is given; `others` has those of PACES, and the budget in billionths of the currency.

    A renewal whose time has come still counts, by the next call. Raises InvalidRequest.
    """
    if quota_tokens is not Keep.KEEP:
        row.quota_tokens = check_quota(quota_tokens)
    for name, value in others.items():
        setattr(row, name, check_limit(name, value))
    if renewal is not Keep.KEEP and renewal != Renewal(row.renews, row.renews_on):
        row.renews, row.renews_on = renewal.every, renewal.day
        if not row.is_due:
            zone, now = current_app.config["TIMEZONE"], session.scalars(select(epoch_now())).one()
            row.renews_at, row.renewal_basis = renewal.next_after(float(now), zone), renewal.basis(zone)


def check_limit(name: str, value: int | None) -> int | None:
    """Return a budget, or a limit of PACES, that can be kept; raises InvalidRequest."""
    return check_budget(value) if name == "budget" else check_pace(name, value)

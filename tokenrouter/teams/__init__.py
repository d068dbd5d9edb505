"""Teams, their tokens, and the tokens of the management API: created, changed and deleted, each change recorded."""

from tokenrouter.teams.api_tokens import (
    NotUsable,
    create_token,
    end_of_day,
    revoke_token,
    rotate_token,
    tokens,
)
from tokenrouter.teams.lookup import find, get, ids_ever_named, living
from tokenrouter.teams.names import check_label, check_name
from tokenrouter.teams.quotas import UNLIMITED, NotANumber, format_quota, parse_extra, parse_pace, parse_quota
from tokenrouter.teams.renewals import check_renewal, format_renewal, parse_renewal
from tokenrouter.teams.teams import KEEP, create, delete, delete_several, set_active, update

__all__ = [
    "KEEP",
    "UNLIMITED",
    "NotANumber",
    "NotUsable",
    "check_label",
    "check_name",
    "check_renewal",
    "create",
    "create_token",
    "delete",
    "delete_several",
    "end_of_day",
    "find",
    "format_quota",
    "format_renewal",
    "get",
    "ids_ever_named",
    "living",
    "parse_extra",
    "parse_pace",
    "parse_quota",
    "parse_renewal",
    "revoke_token",
    "rotate_token",
    "set_active",
    "tokens",
    "update",
]

"""Teams and their groups and tokens, and the management API's tokens: made, changed and deleted, which is recorded."""

from tokenrouter.teams.api_tokens import (
    NotUsable,
    create_token,
    end_of_day,
    revoke_token,
    rotate_token,
    tokens,
)
from tokenrouter.teams.groups import NO_GROUP
from tokenrouter.teams.groups import create as create_group
from tokenrouter.teams.groups import delete as delete_group
from tokenrouter.teams.groups import update as update_group
from tokenrouter.teams.limits import KEEP, ChangedMeanwhile
from tokenrouter.teams.lookup import (
    find,
    find_group,
    get,
    ids_ever_named,
    ids_of_groups_ever_named,
    living,
    living_groups,
)
from tokenrouter.teams.names import check_label, check_name
from tokenrouter.teams.quotas import (
    UNLIMITED,
    NotANumber,
    format_quota,
    parse_budget,
    parse_extra,
    parse_extra_budget,
    parse_pace,
    parse_quota,
)
from tokenrouter.teams.renewals import check_renewal, format_renewal, parse_renewal
from tokenrouter.teams.teams import create, delete, delete_several, set_active, update
from tokenrouter.teams.undo import UNDO_DAYS, NotAllUndone, can_undo, undo

__all__ = [
    "KEEP",
    "NO_GROUP",
    "UNDO_DAYS",
    "UNLIMITED",
    "ChangedMeanwhile",
    "NotANumber",
    "NotAllUndone",
    "NotUsable",
    "can_undo",
    "check_label",
    "check_name",
    "check_renewal",
    "create",
    "create_group",
    "create_token",
    "delete",
    "delete_group",
    "delete_several",
    "end_of_day",
    "find",
    "find_group",
    "format_quota",
    "format_renewal",
    "get",
    "ids_ever_named",
    "ids_of_groups_ever_named",
    "living",
    "living_groups",
    "parse_budget",
    "parse_extra",
    "parse_extra_budget",
    "parse_pace",
    "parse_quota",
    "parse_renewal",
    "revoke_token",
    "rotate_token",
    "set_active",
    "tokens",
    "undo",
    "update",
    "update_group",
]

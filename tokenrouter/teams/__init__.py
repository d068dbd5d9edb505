"""Create, change and delete teams, groups, tokens and management tokens; every change is recorded."""

from tokenrouter.teams.amounts import AmountChange, change_of_quota, parse_budget_change, parse_quota_change
from tokenrouter.teams.api_tokens import (
    NotUsable,
    create_token,
    end_of_day,
    revoke_token,
    rotate_token,
    tokens,
    update_token,
)
from tokenrouter.teams.bulk import Edit, PlanChanged, Step, change_several, plan
from tokenrouter.teams.creation import NewTeam, NotCreated, Refusal, create, create_several, why_not
from tokenrouter.teams.groups import NO_GROUP
from tokenrouter.teams.groups import create as create_group
from tokenrouter.teams.groups import delete as delete_group
from tokenrouter.teams.groups import update as update_group
from tokenrouter.teams.limits import KEEP, ChangedMeanwhile, described
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
from tokenrouter.teams.teams import check_mail, check_models, delete, delete_several, fields_of, set_active, update
from tokenrouter.teams.undo import UNDO_DAYS, NotAllUndone, can_undo, undo

__all__ = [
    "KEEP",
    "NO_GROUP",
    "UNDO_DAYS",
    "UNLIMITED",
    "AmountChange",
    "ChangedMeanwhile",
    "Edit",
    "NewTeam",
    "NotANumber",
    "NotAllUndone",
    "NotCreated",
    "NotUsable",
    "PlanChanged",
    "Refusal",
    "Step",
    "can_undo",
    "change_of_quota",
    "change_several",
    "check_label",
    "check_mail",
    "check_models",
    "check_name",
    "check_renewal",
    "create",
    "create_group",
    "create_several",
    "create_token",
    "delete",
    "delete_group",
    "delete_several",
    "described",
    "end_of_day",
    "fields_of",
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
    "parse_budget_change",
    "parse_extra",
    "parse_extra_budget",
    "parse_pace",
    "parse_quota",
    "parse_quota_change",
    "parse_renewal",
    "plan",
    "revoke_token",
    "rotate_token",
    "set_active",
    "tokens",
    "undo",
    "update",
    "update_group",
    "update_token",
    "why_not",
]

"""Read-only sums, pages and documents for the panel, the API and the commands. Nothing here writes."""

from tokenrouter.reports.calls import (
    CallDetail,
    CallFilter,
    CallsPage,
    call,
    calls_page,
    endpoint_names,
    iterate_calls,
    model_names,
)
from tokenrouter.reports.management import teams_after, usage
from tokenrouter.reports.overview import DailyTokens, Overview, Period, Series, last_failures, overview, tokens_per_day
from tokenrouter.reports.own import own_details
from tokenrouter.reports.teams import (
    SORTS,
    TeamDetail,
    TeamRow,
    TeamsPage,
    TeamUse,
    TokenRow,
    nearest_to_quota,
    team_detail,
    team_name,
    teams_page,
)
from tokenrouter.reports.views import (
    log_view,
    management_token_view,
    newest_calls,
    own_usage,
    team_view,
    timestamp,
    token_view,
)

__all__ = [
    "SORTS",
    "CallDetail",
    "CallFilter",
    "CallsPage",
    "DailyTokens",
    "Overview",
    "Period",
    "Series",
    "TeamDetail",
    "TeamRow",
    "TeamUse",
    "TeamsPage",
    "TokenRow",
    "call",
    "calls_page",
    "endpoint_names",
    "iterate_calls",
    "last_failures",
    "log_view",
    "management_token_view",
    "model_names",
    "nearest_to_quota",
    "newest_calls",
    "overview",
    "own_details",
    "own_usage",
    "team_detail",
    "team_name",
    "team_view",
    "teams_after",
    "teams_page",
    "timestamp",
    "token_view",
    "tokens_per_day",
    "usage",
]

"""The forms of a team and of its tokens: what people type, and the domain's arguments that it stands for."""

from datetime import date, datetime, timedelta
from typing import Any

from werkzeug.datastructures import MultiDict
from wtforms import BooleanField, DateField, Form, StringField
from wtforms.validators import Length, Optional

from tokenrouter import teams
from tokenrouter.admin.limit_forms import Edited, LimitsForm, stored_limits
from tokenrouter.database.tables import NAME_LENGTH, Team
from tokenrouter.errors import InvalidRequest

GRACES = {
    "0": ("no more", timedelta(0)),
    "1h": ("for 1 hour", timedelta(hours=1)),
    "1d": ("for 1 day", timedelta(days=1)),
    "7d": ("for 7 days", timedelta(days=7)),
    "30d": ("for 30 days", timedelta(days=30)),
}


class TeamForm(LimitsForm):
    """What an administrator sets of a team; the counters are not among it."""

    group = StringField("Group")
    models = StringField("Models")

    def values(self) -> dict[str, Any]:
        """Return limits, group and models as the domain takes them.

        Raises InvalidRequest.
        """
        group = self.group.data or ""
        if group and not group.isdecimal():
            raise InvalidRequest("There is no such group.", param="group")
        chosen = {"group": int(group) if group else None, "models": (self.models.data or "").strip() or None}
        return super().values() | chosen


class TeamEditForm(Edited, TeamForm):
    """The same for a team that there is, which may be switched off."""

    active = BooleanField("Active")

    def __init__(self, team: Team, formdata: MultiDict[str, str] | None = None) -> None:
        """Begin with what the team has, or with what was typed; where a field of it is missing, that is a 400."""
        more = {
            "group": "" if team.group_id is None else str(team.group_id),
            "models": team.models or "",
            "active": "y" if team.active else "",
        }
        super().__init__(stored_limits(team) | more, formdata)

    def changes(self) -> dict[str, Any]:
        """Return what was typed as the domain takes it, whether it is active too."""
        return super().changes() | ({"active": self.active.data} if "active" in self.typed else {})


class TokenForm(Form):
    """A further token."""

    label = StringField("Label", [Optional(), Length(max=NAME_LENGTH)])
    expires = DateField("Expires", [Optional()])

    def expires_at(self) -> datetime | None:
        """Return the end of the chosen day, in UTC."""
        day: date | None = self.expires.data
        return None if day is None else teams.end_of_day(day)


def parse_typed_quota(text: str) -> teams.AmountChange:
    """Read the quota typed into a list, where an emptied field is more likely a slip than a wish for no limit.

    Raises InvalidRequest.
    """
    if not text.strip():
        raise InvalidRequest("Type a number of tokens such as 2.5M, or the word unlimited.", param="quota_tokens")
    return teams.parse_quota_change(text)

"""The forms of a team and of its tokens: what people type, and the domain's arguments that it stands for."""

from datetime import date, datetime, timedelta
from typing import Any

from werkzeug.datastructures import MultiDict
from wtforms import BooleanField, DateField, Form, StringField
from wtforms.validators import Length, Optional

from tokenrouter import teams
from tokenrouter.admin.limit_forms import MEANWHILE, Edited, LimitsForm, stored_limits
from tokenrouter.database.tables import NAME_LENGTH, ApiToken, Team
from tokenrouter.errors import InvalidRequest

GRACES = {
    "0": ("no more", timedelta(0)),
    "1h": ("for 1 hour", timedelta(hours=1)),
    "1d": ("for 1 day", timedelta(days=1)),
    "7d": ("for 7 days", timedelta(days=7)),
    "30d": ("for 30 days", timedelta(days=30)),
}


class MembershipForm(LimitsForm):
    """What an administrator sets of a team, or of those that a code makes; the counters are not among it."""

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


class TeamForm(MembershipForm):
    """The same of a team alone, with the address that gets its alerts."""

    mail = StringField("Mail address")

    def values(self) -> dict[str, Any]:
        """Return all of it as the domain takes it.

        Raises InvalidRequest.
        """
        return super().values() | {"mail": teams.check_mail(self.mail.data)}


class TeamEditForm(Edited, TeamForm):
    """The same for a team that there is, which may be switched off."""

    active = BooleanField("Active")

    def __init__(self, team: Team, formdata: MultiDict[str, str] | None = None) -> None:
        """Begin with what the team has, or with what was typed; where a field of it is missing, that is a 400."""
        more = {
            "group": "" if team.group_id is None else str(team.group_id),
            "models": team.models or "",
            "mail": team.mail or "",
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


class TokenEditForm(TokenForm):
    """A token's label and its last day, sent with what they were when the form was opened."""

    def __init__(self, token: ApiToken, formdata: MultiDict[str, str]) -> None:
        """Find what was typed over, and what of it another changed meanwhile; a field that is missing is a 400."""
        super().__init__(formdata)
        self.token_id = token.id
        stored = {"label": token.label or "", "expires": last_day_text(token.expires_at)}
        self.typed = {name for name in stored if formdata[name].strip() != formdata[f"was_{name}"]}
        self._overtaken = {
            name: value
            for name, value in stored.items()
            if name in self.typed and value not in (formdata[f"was_{name}"], formdata[name].strip())
        }
        self.stored = stored

    def validate(self, extra_validators: Any = None) -> bool:
        """Check the fields, and that nobody else changed what was typed over."""
        is_valid = super().validate(extra_validators)
        for name, value in self._overtaken.items():
            self[name].errors = [*self[name].errors, MEANWHILE.format(value or "none")]
        return is_valid and not self._overtaken

    def changes(self) -> dict[str, Any]:
        """Return what was typed as the domain takes it."""
        values = {"label": self.label.data, "expires": self.expires_at()}
        return {("expires_at" if name == "expires" else name): values[name] for name in self.typed}


def last_day_text(expires_at: datetime | None) -> str:
    """Write the last day, in UTC, on which a token is valid; nothing if it never expires."""
    return "" if expires_at is None else str((expires_at - timedelta(microseconds=1)).date())


def parse_typed_quota(text: str) -> teams.AmountChange:
    """Read the quota typed into a list, where an emptied field is more likely a slip than a wish for no limit.

    Raises InvalidRequest.
    """
    if not text.strip():
        raise InvalidRequest("Type a number of tokens such as 2.5M, or the word unlimited.", param="quota_tokens")
    return teams.parse_quota_change(text)

"""The forms of a team and of its tokens: what people type, and how it is told to the domain."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from wtforms import BooleanField, DateField, Form, StringField
from wtforms.validators import DataRequired, Length, Optional

from tokenrouter import teams
from tokenrouter.models import NAME_LENGTH, Team
from tokenrouter.teams import InvalidValue, NameTaken, TeamError

GRACES = {
    "0": ("no more", timedelta(0)),
    "1h": ("for 1 hour", timedelta(hours=1)),
    "1d": ("for 1 day", timedelta(days=1)),
    "7d": ("for 7 days", timedelta(days=7)),
    "30d": ("for 30 days", timedelta(days=30)),
}
FIELDS = {"quota_tokens": "quota", "expires_at": "expires"}


class TeamForm(Form):
    """What an administrator sets of a team; the counters are not among it."""

    name = StringField("Name", [DataRequired("Give the team a name."), Length(max=NAME_LENGTH)])
    quota = StringField("Quota in tokens")
    models = StringField("Models")

    def values(self) -> dict[str, Any]:
        """Return quota and models as the domain takes them.

        Raises InvalidValue.
        """
        quota, models = (self.quota.data or "").strip(), (self.models.data or "").strip()
        return {"quota_tokens": teams.parse_quota(quota) if quota else None, "models": models or None}


class TeamEditForm(TeamForm):
    """The same for a team that there is, which may be switched off."""

    active = BooleanField("Active")

    def __init__(self, formdata: Any = None, obj: Team | None = None, **kwargs: Any) -> None:
        shown = {} if obj is None else {"quota": teams.format_quota(obj.quota_tokens)}
        super().__init__(formdata, obj, data=shown, **kwargs)


class TokenForm(Form):
    """A further token."""

    label = StringField("Label", [Optional(), Length(max=NAME_LENGTH)])
    expires = DateField("Expires", [Optional()])

    def expires_at(self) -> datetime | None:
        """Return the end of the chosen day, in UTC."""
        day: date | None = self.expires.data
        return day and datetime.combine(day, time.min, UTC) + timedelta(days=1)


def explain(form: Form, error: TeamError) -> None:
    """Put what the domain refused beside the field that it is about."""
    name = "name" if isinstance(error, NameTaken) else getattr(error, "field", "")
    field = form._fields.get(FIELDS.get(name, name))
    if field is None:
        form.form_errors.append(str(error))
    else:
        field.errors = [*field.errors, str(error)]


def parse_typed_quota(text: str) -> int | None:
    """Read the quota typed into a list, where an emptied field is more likely a slip than a wish for no limit.

    Raises InvalidValue.
    """
    if not text.strip():
        raise InvalidValue("quota_tokens", "Type a number of tokens such as 2.5M, or the word unlimited.")
    return teams.parse_quota(text)

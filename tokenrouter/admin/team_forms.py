"""The forms of a team and of its tokens: what people type, and the domain's arguments that it stands for."""

from datetime import date, datetime, timedelta
from typing import Any

from werkzeug.datastructures import MultiDict
from wtforms import BooleanField, DateField, Form, StringField
from wtforms.validators import DataRequired, Length, Optional

from tokenrouter import teams
from tokenrouter.database.tables import NAME_LENGTH, PACES, Team
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.periods import DAILY, MONTHLY, NEVER, WEEKLY, Renewal

GRACES = {
    "0": ("no more", timedelta(0)),
    "1h": ("for 1 hour", timedelta(hours=1)),
    "1d": ("for 1 day", timedelta(days=1)),
    "7d": ("for 7 days", timedelta(days=7)),
    "30d": ("for 30 days", timedelta(days=30)),
}
MEANWHILE = "Somebody changed this to “{}” meanwhile. Save again to put yours in its place."
ARGUMENTS = {
    "name": "rename",
    "quota": "quota_tokens",
    "renews": "renewal",
    "renews_on": "renewal",
    **{name: name for name in PACES},
    "models": "models",
    "active": "active",
}
PERIODS = {NEVER: "never", DAILY: "every day", WEEKLY: "every Monday", MONTHLY: "every month"}
FIELDS = {"quota_tokens": "quota", "expires_at": "expires"}


class TeamForm(Form):
    """What an administrator sets of a team; the counters are not among it."""

    name = StringField("Name", [DataRequired("Give the team a name."), Length(max=NAME_LENGTH)])
    quota = StringField("Quota in tokens")
    renews = StringField("Renews", default=NEVER)
    renews_on = StringField("Day of the month")
    requests_per_minute = StringField("Requests a minute")
    tokens_per_minute = StringField("Tokens a minute")
    calls_at_once = StringField("Calls at once")
    models = StringField("Models")

    def values(self) -> dict[str, Any]:
        """Return quota, renewal and models as the domain takes them.

        Raises InvalidRequest.
        """
        quota, models = (self.quota.data or "").strip(), (self.models.data or "").strip()
        return {
            "quota_tokens": teams.parse_quota(quota) if quota else None,
            "renewal": self._renewal(),
            **{name: teams.parse_pace(name, self[name].data or "") for name in PACES},
            "models": models or None,
        }

    def _renewal(self) -> Renewal:
        every, day = self.renews.data or NEVER, (self.renews_on.data or "").strip()
        if every != MONTHLY or not day:
            return teams.check_renewal(every, None)
        if not (day.isascii() and day.isdecimal() and len(day) <= 2):
            raise InvalidRequest("The day of the month is a number from 1 to 31.", param="renews_on")
        return teams.check_renewal(MONTHLY, int(day))


class TeamEditForm(TeamForm):
    """The same for a team that there is, which may be switched off.

    It is sent with what it showed when it was opened, and changes what was typed alone: whoever renames a team does not
    take back the quota that another administrator gave it meanwhile.
    """

    active = BooleanField("Active")

    def __init__(self, team: Team, formdata: MultiDict[str, str] | None = None) -> None:
        """Begin with what the team has, or with what was typed; where a field of it is missing, that is a 400."""
        self.stored = {
            "name": team.name,
            "quota": teams.format_quota(team.quota_tokens),
            "renews": team.renewal.every,
            "renews_on": str(team.renewal.day or ""),
            **{name: "" if (value := getattr(team, name)) is None else teams.format_quota(value) for name in PACES},
            "models": team.models or "",
            "active": "y" if team.active else "",
        }
        super().__init__(formdata, data=self.stored)
        self._typed: set[str] = set()
        self._overtaken: set[str] = set()
        if formdata is not None:
            self._compare(formdata)

    def _compare(self, formdata: MultiDict[str, str]) -> None:
        """Find what was typed, and what of it another changed since the form was opened."""
        for name, stored in self.stored.items():
            typed = formdata.get(name, "") if name == "active" else formdata[name]
            was = formdata[f"was_{name}"]
            if typed != was:
                self._typed.add(name)
                if stored not in (was, typed):
                    self._overtaken.add(name)

    def validate(self, extra_validators: Any = None) -> bool:
        """Check the fields, and that nobody else changed what was typed over."""
        is_valid = super().validate(extra_validators)
        for name in self._overtaken:
            self[name].errors = [*self[name].errors, MEANWHILE.format(_words(name, self.stored[name]))]
        return is_valid and not self._overtaken

    def changes(self) -> dict[str, Any]:
        """Return what was typed as the domain takes it.

        Raises InvalidRequest.
        """
        values = self.values() | {"rename": self.name.data, "active": self.active.data}
        return {argument: values[argument] for name, argument in ARGUMENTS.items() if name in self._typed}


def _words(name: str, text: str) -> str:
    if name == "active":
        return "active" if text else "disabled"
    return PERIODS.get(text, text) or "all allowed"


class TokenForm(Form):
    """A further token."""

    label = StringField("Label", [Optional(), Length(max=NAME_LENGTH)])
    expires = DateField("Expires", [Optional()])

    def expires_at(self) -> datetime | None:
        """Return the end of the chosen day, in UTC."""
        day: date | None = self.expires.data
        return None if day is None else teams.end_of_day(day)


def explain(form: Form, error: APIError) -> None:
    """Put what the domain refused beside the field that it is about."""
    param = error.param or ""
    field = form._fields.get(FIELDS.get(param, param))
    if field is None:
        form.form_errors.append(str(error))
    else:
        field.errors = [*field.errors, str(error)]


def parse_typed_quota(text: str) -> int | None:
    """Read the quota typed into a list, where an emptied field is more likely a slip than a wish for no limit.

    Raises InvalidRequest.
    """
    if not text.strip():
        raise InvalidRequest("Type a number of tokens such as 2.5M, or the word unlimited.", param="quota_tokens")
    return teams.parse_quota(text)

"""The form of what has limits, a team or a group: what people type, and the domain's arguments that it stands for."""

from typing import Any

from werkzeug.datastructures import MultiDict
from wtforms import Form, StringField
from wtforms.validators import DataRequired, Length

from tokenrouter import teams
from tokenrouter.database.tables import NAME_LENGTH, PACES, Group, Team
from tokenrouter.errors import APIError, InvalidRequest
from tokenrouter.money import decimal_string
from tokenrouter.periods import DAILY, MONTHLY, NEVER, WEEKLY, Renewal

MEANWHILE = "Somebody changed this to “{}” meanwhile. Save again to put yours in its place."
ARGUMENTS = {"name": "rename", "quota": "quota_tokens", "renews": "renewal", "renews_on": "renewal"}
"""What the domain calls a field that has another name there."""
RECORDED = {"quota": "quota_tokens", "renews_on": "renews"}
"""What the record of changes calls a field, likewise."""
FIELDS = {"quota_tokens": "quota", "expires_at": "expires"}
PERIODS = {NEVER: "never", DAILY: "every day", WEEKLY: "every Monday", MONTHLY: "every month"}


class LimitsForm(Form):
    """Name and limits; the counters are not among them."""

    name = StringField("Name", [DataRequired("Give it a name."), Length(max=NAME_LENGTH)])
    quota = StringField("Quota in tokens")
    renews = StringField("Renews", default=NEVER)
    renews_on = StringField("Day of the month")
    requests_per_minute = StringField("Requests a minute")
    tokens_per_minute = StringField("Tokens a minute")
    calls_at_once = StringField("Calls at once")
    budget = StringField("Budget")

    def values(self) -> dict[str, Any]:
        """Return the limits as the domain takes them.

        Raises InvalidRequest.
        """
        quota = (self.quota.data or "").strip()
        return {
            "quota_tokens": teams.parse_quota(quota) if quota else None,
            "renewal": self._renewal(),
            **{name: teams.parse_pace(name, self[name].data or "") for name in PACES},
            "budget": teams.parse_budget(self.budget.data or ""),
        }

    def _renewal(self) -> Renewal:
        every, day = self.renews.data or NEVER, (self.renews_on.data or "").strip()
        if every != MONTHLY or not day:
            return teams.check_renewal(every, None)
        if not (day.isascii() and day.isdecimal() and len(day) <= 2):
            raise InvalidRequest("The day of the month is a number from 1 to 31.", param="renews_on")
        return teams.check_renewal(MONTHLY, int(day))


def stored_limits(row: Team | Group) -> dict[str, str]:
    """Return what the fields of a LimitsForm show of a row."""
    paces = {name: getattr(row, name) for name in PACES}
    return {
        "name": row.name,
        "quota": teams.format_quota(row.quota_tokens),
        "renews": row.renewal.every,
        "renews_on": str(row.renewal.day or ""),
        **{name: "" if value is None else teams.format_quota(value) for name, value in paces.items()},
        "budget": decimal_string(row.budget) or "",
    }


class Edited(LimitsForm):
    """A form of what is there already.

    It is sent with what it showed when it was opened, and changes what was typed alone: whoever renames a team does not
    take back the quota that another administrator gave it meanwhile.
    """

    def __init__(self, stored: dict[str, str], formdata: MultiDict[str, str] | None = None) -> None:
        """Begin with what is stored, or with what was typed; where a field of that is missing, it is a 400."""
        self.stored = stored
        super().__init__(formdata, data=stored)
        self.typed: set[str] = set()
        self._overtaken: set[str] = set()
        if formdata is not None:
            self._compare(formdata)

    def _compare(self, formdata: MultiDict[str, str]) -> None:
        """Find what was typed, and what of it another changed since the form was opened."""
        for name, stored in self.stored.items():
            typed = formdata.get(name, "") if name == "active" else formdata[name]
            was = formdata[f"was_{name}"]
            if typed != was:
                self.typed.add(name)
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
        values = self.values() | {"rename": self.name.data}
        chosen = {ARGUMENTS.get(name, name) for name in self.typed}
        return {argument: value for argument, value in values.items() if argument in chosen}

    def expected(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return what was typed over, as the record of changes names it, so that nobody changes it at this moment."""
        names = {RECORDED.get(name, name) for name in self.typed}
        return {name: fields.get(name) for name in names}


class GroupEditForm(Edited):
    """The form of a group that is there."""

    def __init__(self, group: Group, formdata: MultiDict[str, str] | None = None) -> None:
        """Begin with what the group has, or with what was typed."""
        super().__init__(stored_limits(group), formdata)


def _words(name: str, text: str) -> str:
    if name == "active":
        return "active" if text else "disabled"
    if name == "group":
        return "another group" if text else "no group"
    return PERIODS.get(text, text) or "all allowed"


def explain(form: Form, error: APIError) -> None:
    """Put what the domain refused beside the field that it is about."""
    param = error.param or ""
    field = form._fields.get(FIELDS.get(param, param))
    if field is None:
        form.form_errors.append(str(error))
    else:
        field.errors = [*field.errors, str(error)]


def typed_extras(form: MultiDict[str, str]) -> dict[str, int]:
    """Read what is to be added to a period, as `ledger.add_extra` takes it.

    Raises InvalidRequest.
    """
    tokens, budget = (form.get(name, "").strip() for name in ("tokens", "budget"))
    if not tokens and not budget:
        raise InvalidRequest("Type how much to add.", param="tokens")
    return {
        "tokens": teams.parse_extra(tokens) if tokens else 0,
        "budget": teams.parse_extra_budget(budget) if budget else 0,
    }


def extras_given(row: Team | Group) -> str:
    """Say what was added to the running period by now."""
    tokens = f"{teams.format_quota(row.current_extra_tokens)} tokens"
    money = f"{decimal_string(row.current_extra_budget)} of budget"
    return f"{tokens} and {money}" if row.current_extra_budget else tokens

"""Blueprint "api": the management API, by which programs keep teams and read what was used."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, current_app, g, request

from tokenrouter import changes, ledger, payload, reports, request_body, runtime, teams, unpriced
from tokenrouter.changes import Actor
from tokenrouter.database.log_status import STATUSES
from tokenrouter.database.tables import PACES, Group, Team, clamp_id, db
from tokenrouter.errors import APIError, InvalidRequest, NotFound
from tokenrouter.periods import NEVER_RENEWS, UTC_ZONE, Renewal, midnight
from tokenrouter.teams import NewTeam, imports, management_tokens
from tokenrouter.worker.slots import PROGRAMS

MOST_ROWS, ROWS = 1000, 100
SEARCH_S = 1.0
MOMENT = re.compile(r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d))?", re.ASCII)

AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
SIGNED_AMOUNT = re.compile(rf"[+-]?{AMOUNT.pattern}", re.ASCII)

Document = dict[str, Any]

blueprint = Blueprint("api", __name__, url_prefix="/api")


@blueprint.before_request
def _authenticate() -> None:
    request_body.check_size(current_app.config["MAX_CONTENT_LENGTH"])
    token = management_tokens.authenticate(request.headers.get("Authorization"))
    g.actor = Actor(changes.API, token.label or token.prefix)


@blueprint.after_request
def _keep_private(response: Response) -> Response:
    """Let no one keep an answer: it tells what teams used, and at times a token."""
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.get("/teams")
def list_teams() -> Document:
    """List the teams by id."""
    query = _query("limit", "after", "name")
    rows, more = reports.teams_after(_after(query) or 0, _limit(query), query.get("name"))
    unpriced.note(sum(team.unpriced_tokens for team in rows))
    return _page([reports.team_view(team) for team in rows], rows[-1].id if more else None)


@blueprint.post("/teams")
def create_team() -> tuple[Document, int]:
    """Create a team; its first token is in the answer, once."""
    team, bearer_token = teams.create(**_team_fields(_body(TEAM_FIELDS)), by=g.actor)
    return {**reports.team_view(team), "token": bearer_token}, 201


def _team_fields(fields: Document) -> Document:
    """Return what a team is created with, as the domain takes it."""
    if "name" not in fields:
        raise InvalidRequest("A team needs a name.", param="name")
    _take_renewal(fields, NEVER_RENEWS)
    return fields


@blueprint.post("/teams/import")
def import_teams() -> tuple[Document, int]:
    """Create several teams, all or none; their first tokens are in the answer, once."""
    body = _body({"teams": _new_teams, "dry_run": _boolean})
    if "teams" not in body:
        raise InvalidRequest("teams is missing.", param="teams")
    if body.get("dry_run"):
        if refusals := teams.why_not(body["teams"]):
            raise _refused(refusals)
        return {"data": []}, 200
    try:
        created = teams.create_several(body["teams"], by=g.actor)
    except teams.NotCreated as error:
        raise _refused(error.refusals) from error
    return {"data": [{**reports.team_view(team), "token": bearer_token} for team, bearer_token in created]}, 201


def _refused(refusals: Sequence[teams.Refusal]) -> InvalidRequest:
    """Return what tells the first of them, and how many there are."""
    first = _within(f"teams[{refusals[0].position}]", refusals[0].error)
    if len(refusals) > 1:
        first = InvalidRequest(f"{first.message} Things wrong in all: {len(refusals):,}.", param=first.param)
    return first


def _new_teams(value: Any, name: str) -> list[NewTeam]:
    if not isinstance(value, list) or not 1 <= len(value) <= imports.MOST_TEAMS:
        raise InvalidRequest(f"{name} is a list of 1 to {imports.MOST_TEAMS:,} teams.", param=name)
    return [_new_team(each, f"{name}[{position}]") for position, each in enumerate(value)]


def _new_team(value: Any, place: str) -> NewTeam:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{place} is an object.", param=place)
    try:
        fields = _team_fields(_checked(value, NEW_TEAM_FIELDS))
    except InvalidRequest as error:
        raise _within(place, error) from error
    limits = {name: fields.pop(name) for name in (*PACES, "budget") if name in fields}
    return NewTeam(**fields, limits=limits, place=place)


def _within(place: str, error: APIError) -> InvalidRequest:
    return InvalidRequest(f"{place}: {error.message}", param=f"{place}.{error.param}")


@blueprint.get("/teams/<team_id>")
def show_team(team_id: str) -> Document:
    """Tell of a team."""
    return _team(teams.get(_id(team_id)))


@blueprint.patch("/teams/<team_id>")
def update_team(team_id: str) -> Document:
    """Change of a team what the body names."""
    team, fields = teams.get(_id(team_id)), _body(TEAM_FIELDS)
    _take_renewal(fields, team.renewal)
    if "name" in fields:
        fields["rename"] = fields.pop("name")
    return _team(teams.update(team.id, **fields, by=g.actor))


@blueprint.delete("/teams/<team_id>")
def delete_team(team_id: str) -> Response:
    """Delete a team and revoke its tokens."""
    teams.delete(_id(team_id), by=g.actor)
    return Response(status=204)


@blueprint.post("/teams/<team_id>/reset")
def reset_team(team_id: str) -> Document:
    """Count a team's use from zero again."""
    _body({})
    team = teams.get(_id(team_id))
    ledger.reset(db.engine, [team.id], by=g.actor)
    return _team(teams.get(team.id))


@blueprint.post("/teams/<team_id>/extra")
def give_extra(team_id: str) -> Document:
    """Add to what a team may use until its quota renews."""
    team = teams.get(_id(team_id))
    _give_extra(team)
    return _team(teams.get(team.id))


@blueprint.get("/groups")
def list_groups() -> Document:
    """List the groups by id."""
    query = _query("limit", "after", "name")
    rows, more = reports.groups_after(_after(query) or 0, _limit(query), query.get("name"))
    unpriced.note(sum(group.unpriced_tokens for group in rows))
    return _page(reports.group_views(rows), rows[-1].id if more else None)


@blueprint.post("/groups")
def create_group() -> tuple[Document, int]:
    """Create a group, without teams."""
    fields = _body(GROUP_FIELDS)
    if "name" not in fields:
        raise InvalidRequest("A group needs a name.", param="name")
    _take_renewal(fields, NEVER_RENEWS)
    return _group(teams.create_group(**fields, by=g.actor).id), 201


@blueprint.get("/groups/<group_id>")
def show_group(group_id: str) -> Document:
    """Tell of a group."""
    return _group(_id(group_id))


@blueprint.patch("/groups/<group_id>")
def update_group(group_id: str) -> Document:
    """Change of a group what the body names."""
    group, fields = teams.find_group(_id(group_id)), _body(GROUP_FIELDS)
    _take_renewal(fields, group.renewal)
    if "name" in fields:
        fields["rename"] = fields.pop("name")
    return _group(teams.update_group(group.id, **fields, by=g.actor).id)


@blueprint.delete("/groups/<group_id>")
def delete_group(group_id: str) -> Response:
    """Delete a group, and leave its teams."""
    teams.delete_group(_id(group_id), by=g.actor)
    return Response(status=204)


@blueprint.post("/groups/<group_id>/reset")
def reset_group(group_id: str) -> Document:
    """Count a group's use from zero again."""
    _body({})
    group = teams.find_group(_id(group_id))
    ledger.reset(db.engine, (), [group.id], by=g.actor)
    return _group(group.id)


@blueprint.post("/groups/<group_id>/extra")
def give_group_extra(group_id: str) -> Document:
    """Add to what a group may use until its quota renews."""
    group = teams.find_group(_id(group_id))
    _give_extra(group)
    return _group(group.id)


def _team(team: Team) -> Document:
    unpriced.note(team.unpriced_tokens)
    return reports.team_view(team)


def _group(group_id: int) -> Document:
    group = teams.find_group(group_id)
    unpriced.note(group.unpriced_tokens)
    (view,) = reports.group_views([group])
    return view


def _give_extra(to: Team | Group) -> None:
    fields = _body({"tokens": _extra, "budget": _extra_budget})
    if not fields:
        raise InvalidRequest("tokens and budget are missing.", param="tokens")
    ledger.add_extra(db.engine, to, zone=current_app.config["TIMEZONE"], by=g.actor, **fields)


@blueprint.get("/teams/<team_id>/tokens")
def list_tokens(team_id: str) -> Document:
    """List a team's tokens, oldest first, without those revoked."""
    _query()
    return _page([reports.token_view(token) for token in teams.tokens(_id(team_id))], None)


@blueprint.post("/teams/<team_id>/tokens")
def create_token(team_id: str) -> tuple[Document, int]:
    """Give a team one more token, which is in the answer, once."""
    token, bearer_token = teams.create_token(_id(team_id), **_body(TOKEN_FIELDS), by=g.actor)
    return {**reports.token_view(token), "token": bearer_token}, 201


@blueprint.delete("/teams/<team_id>/tokens/<token_id>")
def revoke_token(team_id: str, token_id: str) -> Response:
    """Revoke a token; it is refused from its next call on."""
    teams.revoke_token(_id(team_id), _id(token_id), by=g.actor)
    return Response(status=204)


@blueprint.get("/logs")
def list_logs() -> Document:
    """List the calls, newest first."""
    query = _query("team", "model", "status", "since", "until", "limit", "after")
    calls = reports.CallFilter(
        team_id=_team_id(query),
        model=query.get("model"),
        status=_choice(query, "status", STATUSES),
        since=_moment(query, "since"),
        until=_moment(query, "until"),
    )
    page = reports.calls_page(calls, _after(query), limit=_limit(query), search_s=SEARCH_S)
    return _page([reports.log_view(row) for row in page.rows], page.before_id)


@blueprint.get("/usage")
def list_usage() -> Document:
    """List what was used, by day, team, group, model or token."""
    query = _query("team", "group", "since", "until", "group_by")
    group_by: reports.Grouping = _choice(query, "group_by", reports.GROUPINGS) or "day"
    days = _day(query, "since"), _day(query, "until")
    rows, unpriced_tokens = reports.usage(group_by, _team_id(query), _group_id(query), *days)
    unpriced.note(unpriced_tokens)
    return _page(rows, None)


def _page(data: list[Document], next_id: int | None) -> Document:
    return {"data": data, "has_more": next_id is not None, "next": None if next_id is None else str(next_id)}


def _id(text: str) -> int:
    number = _number(text)
    if number is None:
        raise NotFound(f"There is nothing with the id {text[:40]!r}.")
    return number


def _number(text: str) -> int | None:
    """Read an id; one longer than any that a database has becomes one that none has."""
    if not (text.isascii() and text.isdecimal()):
        return None
    return clamp_id(int(text[:25]))


def _query(*names: str) -> dict[str, str]:
    """Return the query's parameters; a misspelt one would otherwise show more than was meant."""
    unknown = next((name for name in request.args if name not in names), None)
    if unknown is not None:
        taken = ", ".join(names) or "none"
        raise InvalidRequest(f"Unknown parameter {unknown[:40]!r}. This path takes: {taken}.", param=unknown)
    return request.args.to_dict()


def _limit(query: dict[str, str]) -> int:
    number = _number(query.get("limit", str(ROWS)))
    if number is None or not 1 <= number <= MOST_ROWS:
        raise InvalidRequest(f"limit is a whole number from 1 to {MOST_ROWS}.", param="limit")
    return number


def _after(query: dict[str, str]) -> int | None:
    if "after" not in query:
        return None
    if (number := _number(query["after"])) is None:
        raise InvalidRequest("after is what `next` was on the page before.", param="after")
    return number


def _team_id(query: dict[str, str]) -> int | None:
    """Return the id of the team that is given by its id, or by its name unless that is a number."""
    if "team" not in query:
        return None
    number = _number(query["team"])
    return teams.find(query["team"]).id if number is None else number


def _group_id(query: dict[str, str]) -> int | None:
    """Return the id of the group that is given likewise."""
    if "group" not in query:
        return None
    number = _number(query["group"])
    return teams.find_group(query["group"]).id if number is None else number


def _choice(query: dict[str, str], name: str, choices: tuple[str, ...]) -> Any:
    value = query.get(name)
    if value is not None and value not in choices:
        raise InvalidRequest(f"{name} is one of {', '.join(choices)}.", param=name)
    return value


def _moment(query: dict[str, str], name: str) -> datetime | None:
    return _parse_moment(query[name], name, current_app.config["TIMEZONE"]) if name in query else None


def _day(query: dict[str, str], name: str) -> date | None:
    moment = _moment(query, name)
    if moment is None:
        return None
    zone = current_app.config["TIMEZONE"]
    day = moment.astimezone(zone).date()
    if moment.timestamp() != midnight(day, zone):
        raise InvalidRequest(f"{name} is a day, such as 2026-11-24: use is kept by day in {zone.key}.", param=name)
    return day


def _parse_moment(text: str, name: str, zone: ZoneInfo) -> datetime:
    """Read a day, which is its beginning in a time zone, or a moment with its own. Source: RFC 3339, 5.6."""
    wrong = InvalidRequest(f"{name} is a day or a time with its zone: 2026-11-24, 2026-11-24T08:00:00Z.", param=name)
    if not MOMENT.fullmatch(text):
        raise wrong
    try:
        moment = datetime.fromisoformat(text.upper())
        if moment.tzinfo is None:
            return datetime.fromtimestamp(midnight(moment.date(), zone), UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is a text.", param=name)
    return value


def _optional_text(value: Any, name: str) -> str | None:
    return None if value is None else _text(value, name)


def _expiry(value: Any, name: str) -> datetime | None:
    """Read when a token ends; one that is given a day is valid through it, in UTC."""
    if value is None:
        return None
    moment = _parse_moment(_text(value, name), name, UTC_ZONE)
    return teams.end_of_day(moment.date()) if len(value) == len("2026-12-31") else moment


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is true or false.", param=name)
    return value


def _quota(value: Any, name: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRequest(f"{name} is a whole number of tokens, or null for no limit.", param=name)
    return value


def _extra(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} is a whole number of tokens; below zero it takes some back.", param=name)
    return value


def _day_of_month(value: Any, name: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRequest(f"{name} is the day of a month, from 1 to 31, or null.", param=name)
    return value


def _pace(value: Any, name: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRequest(f"{name} is a whole number, or null for no limit.", param=name)
    return value


def _budget(value: Any, name: str) -> int | None:
    return None if value is None else teams.parse_budget(_amount(value, name, AMOUNT))


def _extra_budget(value: Any, name: str) -> int:
    return teams.parse_extra_budget(_amount(value, name, SIGNED_AMOUNT))


def _amount(value: Any, name: str, pattern: re.Pattern[str]) -> str:
    """Return an amount, which is a decimal as a text: a number would be rounded on its way."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidRequest(f'{name} is an amount as a text, such as "12.50", with at most 6 decimals.', param=name)
    return value


def _take_renewal(fields: Document, now: Renewal) -> None:
    """Put one renewal in the place of its two fields, of which the one that is missing stays as it is."""
    if "renews" in fields or "renews_on" in fields:
        every = fields.pop("renews", now.every)
        day = fields.pop("renews_on", now.day if every == now.every else None)
        fields["renewal"] = teams.check_renewal(every, day)


def _models(value: Any, name: str) -> str | None:
    """Join a list of names, as a team keeps it."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, str) and "," not in each for each in value):
        raise InvalidRequest(f"{name} is a list of names without commas, or null for ALLOWED_MODELS.", param=name)
    return ",".join(value)


Fields = dict[str, Callable[[Any, str], Any]]
GROUP_FIELDS: Fields = {
    "name": _text,
    "quota_tokens": _quota,
    "renews": _text,
    "renews_on": _day_of_month,
    **dict.fromkeys(PACES, _pace),
    "budget": _budget,
}
TEAM_FIELDS: Fields = {**GROUP_FIELDS, "group": _optional_text, "models": _models, "active": _boolean}
NEW_TEAM_FIELDS: Fields = {**TEAM_FIELDS, "label": _optional_text}
TOKEN_FIELDS: Fields = {"label": _optional_text, "expires_at": _expiry}


def _body(fields: Fields) -> Document:
    """Return the body's fields, checked; no body is an object without any.

    All programs together take no more places than a team may: who sends slowly waits in one.
    Raises InvalidRequest, naming the field that is unknown or of a wrong type, and Overloaded.
    """
    request_body.check_encoding()
    leave = runtime.current().slots.enter(PROGRAMS)
    try:
        body = request_body.read(current_app.config["MAX_CONTENT_LENGTH"], lambda data: payload.parse(data or b"{}"))
    finally:
        leave()
    return _checked(body, fields)


def _checked(document: Document, fields: Fields) -> Document:
    unknown = next((name for name in document if name not in fields), None)
    if unknown is not None:
        taken = ", ".join(fields) or "none"
        raise InvalidRequest(f"Unknown field {unknown[:40]!r}. The fields here: {taken}.", param=unknown)
    return {name: fields[name](value, name) for name, value in document.items()}

"""Codes with which people make their own teams: made, listed, revoked, and joined with.

Every function that changes something is one transaction, which records who made the change, and commits.
"""

import re
import secrets
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy import update as update_rows
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from tokenrouter import addresses, attempts, changes
from tokenrouter.changes import Actor, Changed
from tokenrouter.database.tables import Group, JoinCode, Team, clamp_id, db
from tokenrouter.errors import CodeClosed, InvalidRequest, NotFound
from tokenrouter.periods import NEVER_RENEWS, Renewal, read_renewal, rfc3339
from tokenrouter.teams.api_tokens import end_of_day
from tokenrouter.teams.creation import NewTeam, NotCreated, add_teams
from tokenrouter.teams.limits import check_limit, described
from tokenrouter.teams.lookup import changing, find_group_in, group_id_in
from tokenrouter.teams.names import check_label, check_name, unique_name
from tokenrouter.teams.quotas import check_quota
from tokenrouter.teams.teams import check_models

ALPHABET = "23456789CDFHJKMNPQRTVWXY"
"""Characters that are easy to tell apart and spell no words. 12 of these 24 have 55 bits."""
MISREAD = "BGSUZ"
READ_AS = str.maketrans(MISREAD, "865V2")
"""Maps characters that no code has to those that they were probably misread from."""
LENGTH, GROUP_LENGTH = 12, 4
LETTERS = f"{ALPHABET}{MISREAD}"
TYPED = rf"(?:[\s\-–]*[{LETTERS}{LETTERS.lower()}]){{{LENGTH}}}[\s\-–]*"
"""The pattern by which browsers reject typing errors, so that they do not count as guesses."""
SPELLING = re.compile(rf"[{ALPHABET}]{{{LENGTH}}}")
MOST_USES = 1_000_000
LAST_END = end_of_day(date.max)  # that every time zone can represent
CLOSED = {
    "revoked": "This code was revoked.",
    "expired": "This code has expired.",
    "used up": "This code is used up: as many teams as it is for have joined.",
    "group deleted": "The group that this code leads into was deleted.",
}
ASK = "Ask who gave it to you for another one."


def create(
    label: str | None = None,
    uses: int | None = None,
    expires_at: datetime | None = None,
    *,
    group: str | int | None = None,
    quota_tokens: int | None = None,
    renewal: Renewal = NEVER_RENEWS,
    models: str | None = None,
    by: Actor,
    **limits: int | None,
) -> JoinCode:
    """Make a code; `uses` is how many teams it may make, None any number.

    Group, models and limits are those of each team, as `teams.create` takes them. Raises InvalidRequest.
    """
    code = JoinCode(code=_new_code(), label=check_label(label), uses=_check_uses(uses), created_at=datetime.now(UTC))
    code.expires_at = _check_end(expires_at)
    code.limits = {
        "quota_tokens": check_quota(quota_tokens),
        "renews": renewal.every,
        "renews_on": renewal.day,
        "models": check_models(models),
        **{name: check_limit(name, value) for name, value in limits.items()},
    }
    with changing() as session:
        code.group_id = group_id_in(session, group)
        session.add(code)
        session.flush()
        session.refresh(code)
        changes.record(session, by, changes.CODE_CREATE, _changed(code, after=_fields(code)))
    return code


def _check_uses(uses: int | None) -> int | None:
    if uses is not None and not 1 <= uses <= MOST_USES:
        raise InvalidRequest(f"A code is for 1 to {MOST_USES:,} teams.", param="uses")
    return uses


def _check_end(expires_at: datetime | None) -> datetime | None:
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidRequest("A code cannot expire in the past.", param="expires_at")
    return expires_at and min(expires_at, LAST_END)


def _new_code() -> str:
    return _grouped("".join(secrets.choice(ALPHABET) for _ in range(LENGTH)))


def _grouped(characters: str) -> str:
    return "-".join(characters[at : at + GROUP_LENGTH] for at in range(0, LENGTH, GROUP_LENGTH))


def read_code(text: str) -> str | None:
    """Return a code as stored, in whatever case and grouping it was typed; None if it cannot be one."""
    characters = re.sub(r"[\W_]", "", text).upper().translate(READ_AS)
    return _grouped(characters) if SPELLING.fullmatch(characters) else None


def get(code_id: int) -> JoinCode:
    """Return the code of this id, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return _find_in(session, code_id)


def _find_in(session: Session, which: str | int) -> JoinCode:
    """Return the code of this id or spelling within a session; raises NotFound."""
    is_meant = JoinCode.id == clamp_id(which) if isinstance(which, int) else JoinCode.code == read_code(which)
    if (code := session.scalars(select(JoinCode).where(is_meant)).one_or_none()) is None:
        raise NotFound("There is no such code." if isinstance(which, int) else "This is not a code.", param="code")
    return code


def revoke(which: str | int, *, by: Actor) -> JoinCode:
    """Revoke the code of this id or spelling, so that nobody joins with it any more; the teams that it made stay.

    Raises NotFound, and InvalidRequest if it is revoked already.
    """
    now = datetime.now(UTC)
    with changing() as session:
        code = _find_in(session, which)
        is_revocable = JoinCode.id == code.id, JoinCode.revoked_at.is_(None)
        revoked = update_rows(JoinCode).where(*is_revocable).values(revoked_at=now).returning(JoinCode.id)
        if session.execute(revoked).scalar() is None:
            raise InvalidRequest(f"The code {code.code} is revoked already.", param="code")
        session.refresh(code)
        changes.record(session, by, changes.CODE_REVOKE, _changed(code, _fields(code) | {"used": code.used}))
    return code


def join(text: str, name: str, *, address: str) -> tuple[Team, str]:
    """Create a team with a typed code; return the team and its token, which is shown only once.

    Raises NotFound for what is not a code, which counts against the address, and TooManyGuesses as `attempts` does; for
    who has a code CodeClosed, InvalidRequest and NameTaken, which do not count.
    """
    spelling = read_code(text)
    if not attempts.try_guess(attempts.CODE + addresses.counted(address), lambda it: _is_code(it, spelling)):
        raise NotFound("This is not a code.", param="code")
    name = check_name(name)
    with unique_name("team", name), changing() as session:
        code = _find_in(session, text)
        _lock_group(session, code)
        _use(session, code)
        return _add_team(session, code, name, Actor(changes.JOIN, address))


def _is_code(connection: Connection, spelling: str | None) -> bool:
    return connection.execute(select(JoinCode.id).where(JoinCode.code == spelling)).first() is not None


def _lock_group(session: Session, code: JoinCode) -> None:
    """Lock the team's future group against deletion. Raises CodeClosed if it is already deleted."""
    try:
        if code.group_id is not None:
            find_group_in(session, code.group_id, locked=True)
    except NotFound as error:
        raise _closed("group deleted") from error


def _use(session: Session, code: JoinCode) -> None:
    """Count one more use, in the same statement that checks if one is left. Raises CodeClosed."""
    now = datetime.now(UTC)
    is_open = (
        JoinCode.revoked_at.is_(None),
        or_(JoinCode.expires_at.is_(None), JoinCode.expires_at > now),
        or_(JoinCode.uses.is_(None), JoinCode.used < JoinCode.uses),
    )
    used = update_rows(JoinCode).where(JoinCode.id == code.id, *is_open).values(used=JoinCode.used + 1)
    if session.execute(used.returning(JoinCode.id)).scalar() is None:
        session.refresh(code)
        raise _closed(code.state_at(now))


def _closed(state: str) -> CodeClosed:
    return CodeClosed(f"{CLOSED[state]} {ASK}", param="code")


def _add_team(session: Session, code: JoinCode, name: str, by: Actor) -> tuple[Team, str]:
    limits = dict(code.limits)
    quota_tokens, models = limits.pop("quota_tokens"), limits.pop("models")
    renewal = read_renewal(limits.pop("renews"), limits.pop("renews_on"))
    new = NewTeam(
        name,
        quota_tokens,
        models,
        renewal=renewal,
        group=code.group_id,
        limits=limits,
        join_code_id=code.id,
        recorded={"code": _beginning(code)},
    )
    try:
        (created,) = add_teams(session, [new], by)
    except NotCreated as refused:
        raise refused.refusals[0].error from refused
    return created


def _changed(code: JoinCode, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None) -> Changed:
    if code.group_id is None:
        return Changed(None, None, before, after)
    return Changed.of(Group, code.group_id, code.group_name or "", before, after)


def _fields(code: JoinCode) -> dict[str, Any]:
    """Return what the record of changes may hold of a code, and the limits that it sets."""
    expires_at = code.expires_at and rfc3339(code.expires_at, "seconds")
    fields = {"code": _beginning(code), "label": code.label, "uses": code.uses, "expires_at": expires_at}
    limits = described(code.team_to_be) | {"models": code.team_to_be.models}
    return fields | {name: value for name, value in limits.items() if value is not None}


def _beginning(code: JoinCode) -> str:
    return f"{code.code[:GROUP_LENGTH]}…"  # whoever sees all of it can join

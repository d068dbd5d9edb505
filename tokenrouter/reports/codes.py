"""What the panel and the commands show of join codes: how often they were used, and by whom."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tokenrouter.database.tables import PACES, JoinCode, Team, clamp_id, db
from tokenrouter.money import decimal_string
from tokenrouter.reports.views import timestamp


@dataclass(frozen=True)
class CodeDetail:
    """A code, and the teams that it made, the newest first, deleted ones too."""

    code: JoinCode
    teams: list[Team]


def codes(now: datetime) -> list[JoinCode]:
    """Return all codes, those that can be joined with first, and then the newest first, detached."""
    with Session(db.engine) as session:
        rows = session.scalars(select(JoinCode).order_by(JoinCode.id.desc())).all()
    return sorted(rows, key=lambda code: code.state_at(now) != "open")


def code_detail(code_id: int) -> CodeDetail | None:
    """Return a code and its teams, detached."""
    with Session(db.engine) as session:
        code = session.get(JoinCode, clamp_id(code_id))
        if code is None:
            return None
        made = select(Team).where(Team.join_code_id == code.id).order_by(Team.id.desc())
        return CodeDetail(code, list(session.scalars(made)))


def code_of(team_id: int) -> JoinCode | None:
    """Return the code by which a team was made, detached."""
    query = select(JoinCode).join(Team, Team.join_code_id == JoinCode.id).where(Team.id == clamp_id(team_id))
    with Session(db.engine) as session:
        return session.scalars(query).one_or_none()


def code_view(code: JoinCode, now: datetime) -> dict[str, Any]:
    """Describe a code, with the limits of each team that it makes."""
    team = code.team_to_be
    return {
        "id": code.id,
        "code": code.code,
        "label": code.label,
        "state": code.state_at(now),
        "uses": code.uses,
        "used": code.used,
        "created_at": timestamp(code.created_at),
        "expires_at": timestamp(code.expires_at),
        "group": code.group_name,
        "quota_tokens": team.quota_tokens,
        "budget": decimal_string(team.budget),
        "renews": team.renewal.every,
        "renews_on": team.renewal.day,
        **{name: getattr(team, name) for name in PACES},
        "models": None if team.model_patterns is None else list(team.model_patterns),
    }

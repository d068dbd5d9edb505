"""Find teams by name or id; and the transaction in which they are changed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from tokenrouter.database.tables import Team, clamp_id, clamp_text, db, normalized, writing
from tokenrouter.errors import NotFound


@contextmanager
def changing() -> Iterator[Session]:
    """Open the one transaction of a change, and commit it; what it loaded stays readable."""
    with writing(db.engine) as connection, Session(connection, expire_on_commit=False) as session:
        yield session
        session.flush()
        for each in session.identity_map.values():
            if isinstance(each, Team) and "is_due" not in vars(each):  # of what was written, SQL's expressions are gone
                session.refresh(each, ["is_due", "read_at"])


def find(name: str) -> Team:
    """Return the living team of this name, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return find_in(session, name)


def get(team_id: int) -> Team:
    """Return the living team of this id, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return find_in(session, team_id)


def find_in(session: Session, which: str | int, *, locked: bool = False) -> Team:
    """Return the living team of this name or id within a session; raises NotFound."""
    is_meant = Team.id == clamp_id(which) if isinstance(which, int) else _is_named(which)
    query = select(Team).where(is_meant, Team.deleted_at.is_(None))
    if locked:
        query = query.with_for_update(key_share=True)
    if (team := session.scalars(query).one_or_none()) is None:
        raise NotFound("There is no such team." if isinstance(which, int) else f"There is no team {which!r}.")
    return team


def _is_named(name: str) -> ColumnElement[bool]:
    return Team.name == clamp_text(normalized(name))


def find_several_in(session: Session, team_ids: Iterable[int]) -> list[Team]:
    """Lock and return the living teams among these, in the order in which all lock them."""
    query = select(Team).where(Team.id.in_(list(team_ids)), Team.deleted_at.is_(None)).order_by(Team.id)
    return list(session.scalars(query.with_for_update(key_share=True)))


def ids_ever_named(name: str) -> list[int]:
    """Return the teams that have or, deleted, had this name.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        ids = list(session.scalars(select(Team.id).where(_is_named(name))))
    if not ids:
        raise NotFound(f"There is no team {name!r}.")
    return ids


def living() -> list[Team]:
    """Return all living teams by name, detached."""
    with Session(db.engine) as session:
        return list(session.scalars(select(Team).where(Team.deleted_at.is_(None)).order_by(Team.name)))

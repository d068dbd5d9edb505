"""Find teams and groups by name or id, and open the transaction for changing them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from tokenrouter.database.engine import writing
from tokenrouter.database.tables import Group, Team, clamp_id, clamp_text, db, normalized
from tokenrouter.errors import InvalidRequest, NotFound
from tokenrouter.natural_order import by_name


@contextmanager
def changing() -> Iterator[Session]:
    """Open the one transaction of a change, and commit it; what it loaded stays readable."""
    with writing(db.engine) as connection, Session(connection, expire_on_commit=False) as session:
        yield session
        session.flush()
        for each in session.identity_map.values():
            if isinstance(each, Team | Group) and "is_due" not in vars(each):
                session.refresh(each, ["is_due", "read_at"])  # a write expires attributes computed in SQL
            if isinstance(each, Team) and "group_name" not in vars(each):
                session.refresh(each, ["group_name"])


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


def _is_named(name: str, kind: type[Team | Group] = Team) -> ColumnElement[bool]:
    return kind.name == clamp_text(normalized(name))


def find_group_in(session: Session, which: str | int, *, locked: bool = False) -> Group:
    """Return the living group of this name or id within a session; raises NotFound.

    Who locks a team too locks the group first.
    """
    is_meant = Group.id == clamp_id(which) if isinstance(which, int) else _is_named(which, Group)
    query = select(Group).where(is_meant, Group.deleted_at.is_(None))
    if locked:
        query = query.with_for_update(key_share=True)
    if (group := session.scalars(query).one_or_none()) is None:
        raise NotFound("There is no such group." if isinstance(which, int) else f"There is no group {which!r}.")
    return group


def group_id_in(session: Session, which: str | int | None) -> int | None:
    """Lock the group that a team is put into, so that it is not deleted meanwhile, and return its id.

    Raises InvalidRequest if there is none.
    """
    try:
        return None if which is None else find_group_in(session, which, locked=True).id
    except NotFound as error:
        raise InvalidRequest(str(error), param="group") from error


def group_ids_in(session: Session, which: Iterable[str | int], *, locked: bool = False) -> dict[str | int, int]:
    """Return the ids of those of these groups that live, by the name or id by which each was asked for.

    They are locked in the order of their ids.
    """
    keys = {each: clamp_id(each) if isinstance(each, int) else clamp_text(normalized(each)) for each in which}
    if not keys:
        return {}
    ids, names = ([key for key in keys.values() if isinstance(key, kind)] for kind in (int, str))
    is_meant = or_(Group.id.in_(ids), Group.name.in_(names)), Group.deleted_at.is_(None)
    query = select(Group.id, Group.name).where(*is_meant).order_by(Group.id)
    rows = session.execute(query.with_for_update(key_share=True) if locked else query)
    found = {key: row.id for row in rows for key in (row.id, row.name)}
    return {each: found[key] for each, key in keys.items() if key in found}


def find_group(which: str | int) -> Group:
    """Return the living group of this name or id, detached.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        return find_group_in(session, which)


def living_groups() -> list[Group]:
    """Return all living groups by name, detached."""
    with Session(db.engine) as session:
        groups = session.scalars(select(Group).where(Group.deleted_at.is_(None))).all()
    return sorted(groups, key=by_name)


def ids_of_groups_ever_named(name: str) -> list[int]:
    """Return the groups that have or, deleted, had this name.

    Raises NotFound.
    """
    with Session(db.engine) as session:
        ids = list(session.scalars(select(Group.id).where(_is_named(name, Group))))
    if not ids:
        raise NotFound(f"There is no group {name!r}.")
    return ids


def find_several_in(session: Session, team_ids: Iterable[int]) -> list[Team]:
    """Lock and return the living teams among these, in the order used by all transactions."""
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
        teams = session.scalars(select(Team).where(Team.deleted_at.is_(None))).all()
    return sorted(teams, key=by_name)

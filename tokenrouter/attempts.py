"""Guesses at secrets: only a few wrong ones a minute are examined, counted over all workers."""

import math
from collections.abc import Callable

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.engine import Connection

from tokenrouter.database.columns import epoch_now
from tokenrouter.database.engine import writing
from tokenrouter.database.tables import SignInAttempt, db

ATTEMPTS, ATTEMPTS_OF_ALL = 5, 30
ATTEMPTS_WITHIN_S = 60
BROWSER = "browser:"  # prefix of guessers at the password that are known browsers, not addresses
CODE = "code:"  # prefix of guessers at codes, who are counted separately from those at the password
THROTTLE_LOCK = 0x736967  # any number that no other advisory lock of ours has


class TooManyGuesses(Exception):
    """Too many wrong guesses within a minute; `wait_s` is how long to wait before the next one."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(f"Too many wrong guesses: try again in {wait_s} seconds.")
        self.wait_s = wait_s


def try_guess(guesser: str, is_right: Callable[[Connection], bool]) -> bool:
    """Tell whether a guess is right, and count it against the guesser if it is not.

    A guesser is an address from `addresses.counted`, alone or after CODE, or BROWSER and the id of a known browser.
    Each address gets five wrong guesses a minute, all addresses together thirty; a browser has five of its own. Guesses
    that are counted together are examined one after the other, so that simultaneous guesses at several workers get no
    more. Right guesses do not count. Raises TooManyGuesses, to the right one too, and what the database raises.
    """
    if remaining_s := wait_s(guesser):  # read first: a guesser who has to wait causes no write
        raise TooManyGuesses(remaining_s)
    with writing(db.engine, durable=False) as connection:
        if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
            together = guesser if guesser.startswith(BROWSER) else CODE if guesser.startswith(CODE) else ""
            connection.execute(select(func.pg_advisory_xact_lock(THROTTLE_LOCK, func.hashtext(together))))
        if remaining_s := _wait_s(connection, guesser):
            raise TooManyGuesses(remaining_s)
        if is_right(connection):
            return True
        _count(connection, guesser)
    return False


def wait_s(guesser: str) -> int:
    """Return how many whole seconds this guesser has to wait; 0 if it may try."""
    with db.engine.connect() as connection:
        return _wait_s(connection, guesser)


def _count(connection: Connection, guesser: str) -> None:
    """Store a wrong guess, and delete old ones."""
    over = select(SignInAttempt.id).where(SignInAttempt.at <= epoch_now() - ATTEMPTS_WITHIN_S)
    connection.execute(delete(SignInAttempt).where(SignInAttempt.id.in_(over.with_for_update(skip_locked=True))))
    connection.execute(insert(SignInAttempt).values(address=guesser, at=epoch_now()))


def _wait_s(connection: Connection, guesser: str) -> int:
    """Return how long it takes until few enough guesses, of this guesser and of all, are within the last minute."""
    own_s = _wait_for_s(connection, SignInAttempt.address == guesser, ATTEMPTS)
    if guesser.startswith(BROWSER):
        return own_s
    return max(own_s, _wait_for_s(connection, _counted_with(guesser), ATTEMPTS_OF_ALL))


def _counted_with(guesser: str) -> ColumnElement[bool]:
    """Select the guesses that are counted together with those of this guesser."""
    is_at_codes = SignInAttempt.address.like(f"{CODE}%")
    return is_at_codes if guesser.startswith(CODE) else ~is_at_codes & SignInAttempt.address.not_like(f"{BROWSER}%")


def _wait_for_s(connection: Connection, is_counted: ColumnElement[bool], attempts: int) -> int:
    first_of_them = (
        select(SignInAttempt.at + ATTEMPTS_WITHIN_S - epoch_now())
        .where(is_counted, SignInAttempt.at > epoch_now() - ATTEMPTS_WITHIN_S)
        .order_by(SignInAttempt.at.desc())
        .offset(attempts - 1)
        .limit(1)
    )
    remaining_s = connection.execute(first_of_them).scalar()
    return 0 if remaining_s is None else max(1, math.ceil(remaining_s))

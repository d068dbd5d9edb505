"""Valid names of teams, groups and tokens: unambiguous to read, without hidden or direction-changing characters."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import IntegrityError

from tokenrouter.database.tables import NAME_LENGTH, normalized
from tokenrouter.errors import InvalidRequest, NameTaken

BREAKING = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, separators of lines and paragraphs
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # set the direction of what follows
UNSEEN = ("Cf", "Zs")
ALLOWED = "no control, line-separating or text-turning characters"


def check_name(name: str, kind: str = "team") -> str:
    """Return the name of a team or group as it is kept: in Unicode's composed form, NFC, without spaces around it.

    Marks of direction and joiners, which some scripts need, are let through.
    Raises InvalidRequest unless it has 1 to 200 characters, one of them to be seen, and none that hides or turns text.
    """
    name = normalized(name).strip()
    if not 1 <= len(name) <= NAME_LENGTH or not _is_plain(name):
        raise InvalidRequest(
            f"A {kind}'s name has 1 to {NAME_LENGTH} characters that can be seen, and {ALLOWED}.", param="name"
        )
    return name


@contextmanager
def unique_name(kind: str, name: str) -> Iterator[None]:
    """Raise NameTaken if a team or group of this name is there already."""
    try:
        yield
    except IntegrityError as error:
        raise NameTaken(f"There is a {kind} {name!r} already.", param="name") from error


def check_label(label: str | None) -> str | None:
    """Return a token's label as it is kept, None if it is empty.

    Raises InvalidRequest.
    """
    label = normalized(label or "").strip()
    if len(label) > NAME_LENGTH or (label and not _is_plain(label)):
        raise InvalidRequest(f"A label has at most {NAME_LENGTH} characters, and {ALLOWED}.", param="label")
    return label or None


def _is_plain(text: str) -> bool:
    kinds = {unicodedata.category(character) for character in text}
    return kinds.isdisjoint(BREAKING) and TURNING.isdisjoint(text) and not kinds.issubset(UNSEEN)

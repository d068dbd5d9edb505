"""What all tables are made with: their base, `db`, and the values that no database takes."""

import unicodedata
from typing import Any

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.engine import Row
from sqlalchemy.orm import DeclarativeBase

NAME_LENGTH = 200
REASON_LENGTH = 300
MAIL_LENGTH = 254


class Base(DeclarativeBase):
    """The base of all tables."""


db = SQLAlchemy(model_class=Base)

AnyRow = Row[*tuple[Any, ...]]
"""A row of any columns, which are its attributes."""


def clamp_id(number: int) -> int:
    """Return a number that somebody gave as an id; if no database can hold it, one that no row has either."""
    return min(max(number, -1), 2**63 - 1)


def clamp_text(text: str) -> str:
    """Return a text to search for; if PostgreSQL would refuse it, one that no row has either."""
    return text if "\0" not in text else "\1"


def normalized(text: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which names are stored and compared."""
    return unicodedata.normalize("NFC", text)

"""What is checked, and what is found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sqlalchemy.engine import Engine

from tokenrouter.config import Settings
from tokenrouter.provider.account import Account
from tokenrouter.provider.catalogue import Catalogue


class Mark(Enum):
    """How serious a finding is; the value is printed."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """A finding about one thing, and what to do about it."""

    about: str
    mark: Mark
    words: str
    advice: str = ""


@dataclass(frozen=True)
class Installation:
    """What is checked."""

    settings: Settings
    engine: Engine
    folder: Path
    account: Account
    catalogue: Catalogue
    jobs: Sequence[str]


Check = Callable[[Installation], Iterator[Finding]]


def in_bytes(size: float) -> str:
    """Write a size for people."""
    unit, name = (10**9, "GB") if size >= 10**9 else (10**6, "MB")
    return f"{size / unit:,.1f} {name}"

"""The settings, the files and the disk of this machine."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from tokenrouter.config import ENV_FILE
from tokenrouter.doctor.findings import Finding, Installation, Mark, in_bytes
from tokenrouter.first_start import warnings

LEAST_FREE = 0.1  # of the disk
SETUP = "run `flask setup`, and restart the service"


def settings(place: Installation) -> Iterator[Finding]:
    """Check the settings, and `.env` for names that are not settings."""
    for words in warnings(place.settings):
        yield Finding("settings", Mark.WARNING, words)
    if not place.settings.provider_api_key:
        yield Finding("settings", Mark.WRONG, "PROVIDER_API_KEY is not set: the service does not start.", SETUP)
    origins = list(place.settings.origins.values())
    said = f"{origins.count('.env')} in .env, {origins.count('environment')} in the environment"
    yield Finding("settings", Mark.OK, f"Every value can be used: {said}, all others are defaults.")


def files(place: Installation) -> Iterator[Finding]:
    """Check that only the service's user may read and write its files."""
    paths = [ENV_FILE.resolve(), place.folder / "secret_key"]
    if place.engine.dialect.name == "sqlite":
        paths.append(Path(place.engine.url.database or ""))
    found = [path for path in paths if path.exists()]
    for path in found:
        yield from _rights(path)
    for path in filter(Path.is_dir, {path.parent for path in paths[1:]}):
        if not os.access(path, os.W_OK):
            yield Finding("files", Mark.WRONG, f"{path} cannot be written by this user.", f"chown it to {_user()}")
    yield Finding("files", Mark.OK, f"Looked at: {', '.join(map(str, found)) or 'none is there yet'}.")


def _rights(path: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        words = f"{path} is open to others than its owner (mode {mode:04o})."
        yield Finding("files", Mark.WARNING, words, f"chmod 600 {path}")
    if not os.access(path, os.R_OK | os.W_OK):
        yield Finding("files", Mark.WRONG, f"{path} cannot be read and written by this user.", f"chown it to {_user()}")


def _user() -> str:
    return f"user {os.getuid()}, or run this as the service's user"


def disk(place: Installation) -> Iterator[Finding]:
    """Check the free space where the database file is, or beside the service if a server has the database."""
    is_sqlite = place.engine.dialect.name == "sqlite"
    wanted = Path(place.engine.url.database or "").parent if is_sqlite else place.folder
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    usage = shutil.disk_usage(folder)
    words = f"{in_bytes(usage.free)} of {in_bytes(usage.total)} are free at {folder}."
    if not is_sqlite:
        words += " The disk of the PostgreSQL server is not seen from here."
    if usage.free < LEAST_FREE * usage.total:
        yield Finding("disk", Mark.WRONG, words, "make room: a full disk refuses every call")
    else:
        yield Finding("disk", Mark.OK, words)

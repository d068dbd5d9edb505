"""The file of a backup: a zip of the database and other files, with a manifest of their checksums."""

import hashlib
import json
import lzma
import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from tokenrouter.database.snapshots import BackupError, make_private, sync

PRODUCT = "TokenRouter"
FORMAT = 1
MANIFEST = "manifest.json"
DATABASE, SECRET_KEY, ENV = "database", "secret_key", "env"
PIECE_BYTES = 2**20
MANIFEST_BYTES = 2**20
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, KeyError, EOFError, RuntimeError)
"""What Python raises for a zip that is damaged, encrypted, or packed in an unknown way."""
OWNER_ALONE = 0o600 << 16  # where a zip keeps the mode of a file


@dataclass(frozen=True)
class Part:
    """Size and checksum of a file in a backup."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a backup contains, and where it comes from."""

    version: str
    """The version of the code that made it."""
    schema: str
    """The last migration of the database."""
    database: str
    """`sqlite` or `postgresql`."""
    taken_at: str
    counts: Mapping[str, int]
    """How many rows each table has."""
    files: Mapping[str, Part]


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Let the block write a file, readable by its owner alone, which appears under its name once it is complete.

    Raises BackupError if there is one already, or it cannot be written.
    """
    if path.exists():
        raise BackupError(f"{path} is there already: name another file, or move it away")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield make_private(draft)
        sync(draft)
        draft.rename(path)
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def pack(draft: Path, files: Mapping[str, Path], about: Mapping[str, Any]) -> Manifest:
    """Write a zip of these files, by their names in it, with a manifest of `about` and the checksums.

    It goes to the disk in small parts: calls could not be booked while the disk is busy with all of it at once.
    """
    with draft.open("rb+") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        parts = {name: _add(archive, name, path, partial(os.fsync, file.fileno())) for name, path in files.items()}
        manifest = Manifest(**about, files=parts)
        document = {"product": PRODUCT, "format": FORMAT, **asdict(manifest)}
        archive.writestr(_entry(MANIFEST), json.dumps(document, indent=2))
    return manifest


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = OWNER_ALONE
    return entry


def _add(archive: zipfile.ZipFile, name: str, path: Path, after_piece: Callable[[], object]) -> Part:
    with path.open("rb") as source, archive.open(_entry(name), "w", force_zip64=True) as target:
        return _copy(source, target, after_piece=after_piece)


def _copy(
    source: IO[bytes],
    target: IO[bytes],
    most_bytes: float = math.inf,
    after_piece: Callable[[], object] = lambda: None,
) -> Part:
    digest, size = hashlib.sha256(), 0
    while size <= most_bytes and (piece := source.read(PIECE_BYTES)):
        digest.update(piece)
        target.write(piece)
        size += len(piece)
        after_piece()
    return Part(size, digest.hexdigest())


class Archive:
    """An existing backup, to be read."""

    def __init__(self, path: Path) -> None:
        """Read its manifest. Raises BackupError if this is no backup, or one of a later version."""
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open(MANIFEST) as file:
                document = json.loads(file.read(MANIFEST_BYTES))
            product, format_ = document.pop("product"), document.pop("format")
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error.strerror or error}") from error
        except (*BROKEN, ValueError, AttributeError, TypeError) as error:
            raise BackupError(f"{path} is broken, or no backup of TokenRouter's") from error
        if product != PRODUCT or format_ != FORMAT:
            raise BackupError(f"{path} was made by a later version of TokenRouter: restore it with that one")
        try:
            self.manifest = _read_manifest(**document)
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise BackupError(f"{path} is broken: its manifest is not as backups have it") from error

    def __contains__(self, name: str) -> bool:
        return name in self.manifest.files

    def extract(self, name: str, path: Path) -> None:
        """Extract one of its files to a new one, readable by its owner alone.

        Raises BackupError if it is not what the manifest says, and removes it.
        """
        draft = make_private(path)
        try:
            self._extract(name, draft)
        except OSError as error:
            draft.unlink()
            raise BackupError(f"{name} cannot be taken out to {path}: {error.strerror or error}") from error
        except BROKEN as error:
            draft.unlink()
            raise BackupError(f"{self._path} is broken: {name} in it is not what was put there") from error

    def _extract(self, name: str, path: Path) -> None:
        """Write at most the expected bytes, however many the entry would decompress to."""
        expected = self.manifest.files[name]
        with zipfile.ZipFile(self._path) as archive, archive.open(name) as source, path.open("wb") as target:
            part = _copy(source, target, expected.bytes)
            target.flush()
            os.fsync(target.fileno())
        if part != expected:
            raise zipfile.BadZipFile(f"{name} is not what was put there")


def _read_manifest(files: Mapping[str, Any], counts: Mapping[str, Any], **others: Any) -> Manifest:
    """Return a manifest from its document; raises one of several errors if its shape is wrong."""
    parts = {name: Part(int(part["bytes"]), str(part["sha256"])) for name, part in files.items()}
    return Manifest(**others, counts={table: int(rows) for table, rows in counts.items()}, files=parts)

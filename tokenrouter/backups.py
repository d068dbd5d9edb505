"""Back up the whole service into one file while it runs, and put it back while it does not; copy it elsewhere."""

import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from flask import Flask
from sqlalchemy import URL, create_engine, inspect, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError

from tokenrouter import ledger
from tokenrouter.config import ENV_FILE, ConfigError
from tokenrouter.database import archives, copying, schema, snapshots
from tokenrouter.database.archives import DATABASE, ENV, SECRET_KEY, Archive, Manifest
from tokenrouter.database.columns import epoch_now
from tokenrouter.database.snapshots import BackupError
from tokenrouter.database.tables import Worker, db
from tokenrouter.ledger import Verification
from tokenrouter.ledger.leases import LEASE_S
from tokenrouter.version import VERSION

logger = logging.getLogger(__name__)

SUFFIX = ".zip"
LEFTOVER_S = 86400.0
NIGHTLY = re.compile(r"tokenrouter-\d{8}-\d{6}\.zip")


@dataclass(frozen=True)
class Restored:
    """What was restored, where the old state is now, and what verification found."""

    manifest: Manifest
    moved: list[str]
    found: Verification


# backup


def name_of_now() -> str:
    """Return a name for a backup of this moment."""
    return f"tokenrouter-{snapshots.stamp()}{SUFFIX}"


def take(engine: Engine, path: Path, instance: Path, *, with_env: bool = False) -> Manifest:
    """Write the database, the key in the instance folder, and `.env` on request, into one new file.

    Calls go on meanwhile. Raises BackupError; then there is no such file.
    """
    path = path.absolute()
    others = {SECRET_KEY: instance / "secret_key"} | ({ENV: ENV_FILE.absolute()} if with_env else {})
    there = {name: file for name, file in others.items() if file.is_file()}
    with archives.written(path) as draft, TemporaryDirectory(prefix=".backup-", dir=path.parent) as folder:
        snapshot = Path(folder) / DATABASE
        about = _snapshot(engine, snapshot)
        return archives.pack(draft, {DATABASE: snapshot, **there}, about)


def _snapshot(engine: Engine, path: Path) -> dict[str, object]:
    """Copy the database, and return what the manifest says about the copy."""
    if engine.dialect.name == "postgresql":
        counts = snapshots.dump(engine, path)
        with engine.connect() as connection:
            revision = schema.stored_revision(connection)
    else:
        snapshots.sqlite_copy(engine, path)
        copy = create_engine(URL.create("sqlite", database=str(path)))
        with copy.connect() as connection:
            counts, revision = snapshots.counts(connection), schema.stored_revision(connection)
        copy.dispose()
    if revision is None:
        raise BackupError(f"there is no database of TokenRouter's yet at {engine.url.render_as_string()}")
    return {
        "version": VERSION,
        "schema": revision,
        "database": engine.dialect.name,
        "taken_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "counts": counts,
    }


def folder_of(app: Flask, setting: str) -> Path:
    """Return the folder of nightly backups; a relative one is below the instance folder, as the database is."""
    return Path(app.instance_path) / Path(setting).expanduser()


def prepare_folder(folder: Path) -> None:
    """Make the folder of nightly backups where it is missing. Raises ConfigError if it cannot be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"BACKUP_FOLDER: {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"BACKUP_FOLDER: {folder} cannot be written")


def take_nightly(engine: Engine, folder: Path, instance: Path, keep: int) -> Path:
    """Write a backup into the folder, and delete older nightly backups, so that `keep` remain."""
    prepare_folder(folder)
    _remove_leftovers(folder)
    path = folder / name_of_now()
    take(engine, path, instance)
    ours = sorted(file for file in folder.iterdir() if NIGHTLY.fullmatch(file.name))
    for old in ours[:-keep]:
        old.unlink()
    logger.info("Wrote the backup %s", path)
    return path


def _remove_leftovers(folder: Path) -> None:
    """Delete unfinished files of backups whose process was killed long ago."""
    for path in (*folder.glob(".backup-*"), *folder.glob(".tokenrouter-*.part")):
        if path.stat().st_mtime < time.time() - LEFTOVER_S:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# restore


def read(path: Path, engine: Engine) -> Archive:
    """Open a backup that can be restored into this database. Raises BackupError."""
    archive = Archive(path)
    manifest = archive.manifest
    if not schema.is_known(manifest.schema):
        raise BackupError(
            f"{path} was made by a later version of TokenRouter ({manifest.version}, its database of revision "
            f"{manifest.schema}): restore it with that one"
        )
    if manifest.database != engine.dialect.name:
        raise BackupError(
            f"{path} is of a database in {manifest.database}, and DATABASE_URL is one in {engine.dialect.name}: "
            "restore it where that is, and then use `flask copy-to`"
        )
    return archive


def restore(app: Flask, archive: Archive, *, with_env: bool = False) -> Restored:
    """Put a backup in place of the database, the key, and `.env` on request; the old state is moved aside.

    Calls that were running when it was made are settled, as those of dead workers are. Raises BackupError; then
    everything is as it was.
    """
    moved: list[str] = []
    name = f"before-restore-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    with app.app_context():
        refuse_while_served(db.engine)
        with snapshots.moved_aside(db.engine, name) as where:
            _put_database(app, archive)
            found = _settled_and_verified(db.engine)
            moved += [where] if where else []
            others = {SECRET_KEY: Path(app.instance_path) / "secret_key"}
            others |= {ENV: ENV_FILE.absolute()} if with_env else {}
            moved += _put_files(archive, {part: path for part, path in others.items() if part in archive}, name)
    return Restored(archive.manifest, moved, found)


def _put_database(app: Flask, archive: Archive) -> None:
    """Write the database of a backup where there is none, and bring it up to date."""
    if db.engine.dialect.name == "postgresql":
        with TemporaryDirectory(prefix="tokenrouter-") as folder:
            archive.extract(DATABASE, Path(folder) / DATABASE)
            snapshots.load(db.engine, Path(folder) / DATABASE)
    else:
        path = Path(db.engine.url.database or "")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        archive.extract(DATABASE, path)
    schema.ensure(app, may_make=False, saves=False)


def _settled_and_verified(engine: Engine) -> Verification:
    with engine.connect() as connection:
        dead = dict(connection.execute(select(Worker.id, Worker.lease_expires_at)).all())
    while ledger.recover(engine, dead):
        pass
    return ledger.verify(engine)


def _put_files(archive: Archive, files: Mapping[str, Path], aside: str) -> list[str]:
    """Write files of the backup, all or none; return where the old ones are now that differed."""
    drafts = {path: path.with_name(f".{path.name}.{aside}.part") for path in files.values()}
    try:
        for part, path in files.items():
            archive.extract(part, drafts[path])
        return [where for path, draft in drafts.items() if (where := _put(draft, path, aside)) is not None]
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _put(draft: Path, path: Path, aside: str) -> str | None:
    """Replace a file, and return where the old one is now; None if it was the same."""
    kept = path.with_name(f"{path.name}.{aside}")
    differs = path.exists() and path.read_bytes() != draft.read_bytes()
    if differs:
        path.replace(kept)
    draft.replace(path)
    return str(kept) if differs else None


def refuse_while_served(engine: Engine) -> None:
    """Raise BackupError if a worker is alive that uses this database, or was until a moment ago."""
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return
    try:
        with engine.connect() as connection:
            names = _live_workers(connection)
    except DatabaseError:  # it is damaged, so no service is using it
        return
    if names:
        raise BackupError(
            f"a service uses the database: {', '.join(names)}. Stop it first; one that was killed counts for "
            f"{LEASE_S:.0f} seconds more"
        )


def _live_workers(connection: Connection) -> Sequence[str]:
    if not inspect(connection).has_table(Worker.__tablename__):
        return []
    live = select(Worker.name).where(Worker.lease_expires_at > epoch_now())
    return connection.execute(live.order_by(Worker.name)).scalars().all()


# copies elsewhere


@dataclass(frozen=True)
class Copied:
    """How many rows each table of a copy has, and what was found wrong with it."""

    counts: Mapping[str, int]
    found: Verification


def copy_to(app: Flask, url: str) -> Copied:
    """Copy the database of a stopped service into an empty one of either kind.

    Raises BackupError; then the other database is still empty.
    """
    with app.app_context():
        source = db.engine
        refuse_while_served(source)
        _refuse_what_is_wrong(source)
    other = schema.app_on(url)
    with other.app_context():
        try:
            return _copy(source, other)
        finally:
            db.engine.dispose()


def _copy(source: Engine, other: Flask) -> Copied:
    if db.engine.url == source.url:
        raise BackupError("that is the database itself: name another one")
    _refuse_unless_empty(db.engine)
    schema.ensure(other)
    copying.copy_rows(source, db.engine)
    return Copied(_same_counts(source, db.engine), ledger.verify(db.engine))


def _refuse_what_is_wrong(engine: Engine) -> None:
    """Raise BackupError if the books do not agree: a copy would not tell what of that it made itself."""
    if problems := _settled_and_verified(engine).problems:
        raise BackupError(f"`flask usage verify` names {len(problems)} things that are wrong: see to them first")


def _refuse_unless_empty(engine: Engine) -> None:
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return
    with engine.connect() as connection:
        filled = [name for name, rows in snapshots.counts(connection).items() if rows]
    if filled:
        raise BackupError(f"the other database is not empty: {', '.join(filled)} have rows. Name one that is")


def _same_counts(source: Engine, target: Engine) -> Mapping[str, int]:
    with source.connect() as here, target.connect() as there:
        counted, copied = snapshots.counts(here), snapshots.counts(there)
    if counted != copied:
        differing = [
            f"{name} {counted[name]:,} and {copied[name]:,}" for name in counted if counted[name] != copied[name]
        ]
        raise BackupError(f"the copy has not the same rows: {', '.join(differing)}; does something write to either?")
    return copied

"""Put a backup in the database's place: checked whole before anything is touched; what was there is moved, never deleted.

The caller holds the data directory's lock. At every moment the database's name leads to a whole database, first the old
one, then the backup: the old one gets a second name in a directory of its own, and the backup is renamed over the first.
A write-ahead log belongs to the database it lies beside; one that stayed would be replayed into the backup, so the old
one is folded in beforehand, or kept beside the old database where it can't be.
"""

import contextlib
import hashlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from headwater.errors import OperatorError
from headwater.ledger.backup import DIRECTORY, Manifest, Progress, integrity_problems, manifest_path, open_copy
from headwater.ledger.durable import (
    BLOCK_BYTES,
    make_directory,
    partial_file,
    require_space,
    sync_directory,
    sync_file,
)
from headwater.ledger.migrate import UnreadableDatabase, current_revision, refuse_newer, require_magic, revision_in
from headwater.ledger.store import DatabaseError, open_writer


class Restored(NamedTuple):
    """What a restore did. aside: the directory that holds the database as it was; None when there was none."""

    revision: str
    aside: Path | None


def restore(backup: Path, database: Path, *, is_bare_allowed: bool, now: datetime, progress: Progress) -> Restored:
    """Make the database what the backup is. is_bare_allowed: take a copy without a manifest too, if it is sound.

    Raises OperatorError when the backup isn't what its manifest says, is damaged, of a newer schema or another
    program's, or when what is in its place is another program's; everything is then as it was.
    """
    try:
        return _restore(backup, database, is_bare_allowed, now, progress)
    except OSError as error:
        raise OperatorError(
            f"{backup} could not be put in the place of {database}.",
            why=f"{error}.",
            now="Mend the cause and do it again; whichever database is there now is whole.",
        ) from error


def _restore(backup: Path, database: Path, is_bare_allowed: bool, now: datetime, progress: Progress) -> Restored:
    manifest = _manifest(backup, is_bare_allowed=is_bare_allowed)
    _require_no_log(backup)
    with contextlib.suppress(UnreadableDatabase):  # a damaged database is a reason to restore one
        current_revision(database)  # another program's database stays where it is
    make_directory(database.parent)
    require_space(database.parent, backup.stat().st_size, what="The restored database")
    with partial_file(database) as copy:
        _copy_checked(backup, copy, manifest, progress)
        progress("Checking the copy", 0, 0)
        revision = _require_sound(copy, backup)
        aside = _keep_present(database, now)
        _remove_log(database)
        copy.rename(database)
        sync_directory(database.parent)
    return Restored(revision, aside)


def _manifest(backup: Path, *, is_bare_allowed: bool) -> Manifest | None:
    if not backup.is_file():
        raise OperatorError(
            f"There is no backup at {backup}.", now="Name the .db file that `headwater db backup` made."
        )
    path = manifest_path(backup)
    if not path.exists():
        if is_bare_allowed:
            return None
        raise OperatorError(
            f"{backup} has no manifest beside it ({path.name}), so nobody can say whether it is whole.",
            why="It was not made by `headwater db backup`, or only half of it was brought here.",
            now="Bring the manifest too, or let its integrity check be enough with --force.",
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise OperatorError(
            f"The manifest {path} can't be read.", why=f"{error}.", now="Take another backup."
        ) from error


def _require_no_log(backup: Path) -> None:
    log = backup.with_name(f"{backup.name}-wal")
    if log.exists() and log.stat().st_size:
        raise OperatorError(
            f"{backup} has a write-ahead log beside it ({log.name}), whose changes would be lost.",
            why="It is a plain copy of a database's files, or somebody has written to the backup.",
            now="Take a backup made by `headwater db backup`.",
        )


def _copy_checked(backup: Path, copy: Path, manifest: Manifest | None, progress: Progress) -> None:
    """Copy, hashing what is copied: what is checked is what will be there, whatever becomes of the backup meanwhile."""
    digest = hashlib.sha256()
    total, count = backup.stat().st_size, 0
    with backup.open("rb") as source, copy.open("wb") as target:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            target.write(block)
            count += len(block)
            progress("Copying", count, total)
    sync_file(copy)
    if manifest is not None and (count, digest.hexdigest()) != (manifest.bytes, manifest.sha256):
        raise OperatorError(
            f"{backup} is not what its manifest says.",
            why=f"It has {count:,} bytes with SHA-256 {digest.hexdigest()}; it was made with {manifest.bytes:,} bytes and "
            f"{manifest.sha256}.",
            now="It was cut or changed on the way: take another copy, or another backup. The database is as it was.",
        )


def _require_sound(copy: Path, backup: Path) -> str:
    """The schema revision of a copy that is a sound database of ours; named as the backup it is of."""
    try:
        require_magic(copy)
        with contextlib.closing(open_copy(copy)) as connection:
            problems = integrity_problems(connection)
            revision = revision_in(connection, backup)
    except DatabaseError as error:
        problems, revision = [str(error)], None
    if problems or revision is None:
        raise OperatorError(
            f"{backup} is not a sound database.",
            why=f"{problems[0] if problems else 'It is empty'}.",
            now="Take another backup. The database is as it was.",
        )
    refuse_newer(backup, revision)
    return revision


def _keep_present(database: Path, now: datetime) -> Path | None:
    """Give what is in the database's place a second name, and that one durable, before the first is taken away."""
    _fold_log(database)
    log = database.with_name(f"{database.name}-wal")
    kept = [path for path in (database, log) if path.exists() and (path == database or path.stat().st_size)]
    if not kept:
        return None
    parent = database.parent / DIRECTORY
    make_directory(parent)
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (f"replaced-{stamp}{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    aside = next(parent / name for name in names if not (parent / name).exists())
    make_directory(aside)
    for path in kept:
        _second_name(path, aside / path.name)
    sync_directory(aside)
    return aside


def _second_name(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copy2(path, other)
        sync_file(other)


def _fold_log(database: Path) -> None:
    """Bring what the write-ahead log holds into the database file; a damaged one, or none, stays as it is."""
    try:
        if current_revision(database) is None:
            return
        with contextlib.closing(open_writer(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (UnreadableDatabase, DatabaseError):
        return  # the log is kept beside it instead


def _remove_log(database: Path) -> None:
    """Take away the old log, durably, before the new database can stand beside it."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    sync_directory(database.parent)

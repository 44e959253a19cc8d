"""A consistent copy of the database while the platform runs, with a manifest that says what the copy must be.

The copy is read on a connection that can't write, from one moment of the database; the writer goes on meanwhile. That
moment pins the write-ahead log, so pages are copied as they are and as fast as the disk allows, and everything slow (the
sync, the integrity check, the hash) is done on the copy, afterwards. A backup is there only when it is whole: the
manifest's name appears first, the copy's last.
"""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from headwater.errors import OperatorError
from headwater.ledger.durable import (
    make_directory,
    partial_file,
    require_space,
    sha256_of,
    sweep_partial,
    sync_directory,
    sync_file,
)
from headwater.ledger.store import Connection, open_reader

if TYPE_CHECKING:  # the same interface, with types
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many bytes of how many are (0 of 0: nobody can say)."""

DIRECTORY = "backups"
"""Beside the database, unless another place is asked for."""
PAGES_AT_ONCE = 4096
ORDERED_IDS = (("reservations", "id"), ("resolutions", "id"), ("transfers", "id"), ("usage_records", "request_id"))
"""Tables of the log whose ids ascend: the greatest of each says how far a backup goes."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is: the copy must have these bytes and no others. sha256: hex. max_ids: None for an empty table."""

    schema: str
    created_at: str
    bytes: int
    sha256: str
    max_ids: dict[str, int | str | None]


class Backup(NamedTuple):
    """A backup that is whole and on the disk."""

    path: Path
    manifest: Manifest


def backup_path(database: Path, now: datetime, *, label: str = "") -> Path:
    """Where a backup goes when no place is named: `backups/headwater-20261123T120000Z.db` beside the database."""
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return database.parent / DIRECTORY / f"{database.stem}-{stamp}{f'-{label}' if label else ''}.db"


def manifest_path(backup: Path) -> Path:
    """Where the manifest of a backup is."""
    return backup.with_name(f"{backup.name}.json")


def make_backup(database: Path, to: Path, *, now: datetime, progress: Progress) -> Backup:
    """Copy the database to the new file `to`, check the copy, and write its manifest beside it.

    Raises OperatorError when `to` exists, the disk has too little room, or the copy isn't sound; nothing is then left.
    """
    if to.exists():
        raise OperatorError(f"{to} exists already.", now="Name another file with --to; a backup never replaces one.")
    try:
        return _make(database, to, now, progress)
    except (sqlite.DatabaseError, OSError) as error:
        raise OperatorError(
            f"The backup {to} could not be made.",
            why=f"{error}.",
            now="Mend the cause and try again; nothing was left there.",
        ) from error


def _make(database: Path, to: Path, now: datetime, progress: Progress) -> Backup:
    log = database.with_name(f"{database.name}-wal")
    make_directory(to.parent)
    if to.parent == database.parent / DIRECTORY:  # elsewhere hidden files may be anybody's
        sweep_partial(to.parent)
    needed_bytes = database.stat().st_size + (log.stat().st_size if log.exists() else 0)
    require_space(to.parent, needed_bytes, what="The backup")
    with partial_file(to) as partial, partial_file(manifest_path(to)) as partial_manifest:
        _copy(database, partial, progress)
        progress("Writing to the disk", 0, 0)
        sync_file(partial)
        progress("Checking the copy", 0, 0)
        schema, max_ids = _contents(partial, database)
        size = partial.stat().st_size
        manifest = Manifest(
            schema=schema,
            created_at=now.astimezone(UTC).isoformat(timespec="seconds"),
            bytes=size,
            sha256=sha256_of(partial, done=lambda count: progress("Hashing the copy", count, size)).hex(),
            max_ids=max_ids,
        )
        partial_manifest.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        sync_file(partial_manifest)
        partial_manifest.rename(manifest_path(to))
        sync_directory(to.parent)
        partial.rename(to)
        sync_directory(to.parent)
    return Backup(to, manifest)


def _copy(database: Path, partial: Path, progress: Progress) -> None:
    """Copy every page as one moment had it. The transaction that is open meanwhile keeps the pieces of that moment."""
    with contextlib.closing(open_reader(database)) as source, contextlib.closing(_open_target(partial)) as target:
        page_bytes = int(source.execute("PRAGMA page_size").fetchone()[0])

        def told(_status: int, remaining: int, total: int) -> None:
            progress("Copying", (total - remaining) * page_bytes, total * page_bytes)

        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the moment is that of the first read
        source.backup(target, pages=PAGES_AT_ONCE, progress=told)
        source.execute("ROLLBACK")


def _open_target(partial: Path) -> Connection:
    """The copy while it is being written: no journal and no syncs of its own, since until it is whole it is nothing."""
    connection = sqlite.connect(str(partial), isolation_level=None)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def open_copy(path: Path) -> Connection:
    """Read a database that nobody writes: no lock is taken, and no file is made beside it."""
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite.connect(address, uri=True, isolation_level=None)


def integrity_problems(connection: Connection) -> list[str]:
    """What SQLite's own check finds wrong with the whole file; empty when it is sound."""
    try:
        rows = connection.execute("PRAGMA integrity_check(100)").fetchall()
    except sqlite.DatabaseError as error:  # damage that ends the check itself
        return [str(error)]
    return [str(row[0]) for row in rows if row[0] != "ok"]


def _contents(copy: Path, database: Path) -> tuple[str, dict[str, int | str | None]]:
    """The schema and the greatest ids of a copy. Raises OperatorError when it isn't sound, as its database then isn't."""
    with contextlib.closing(open_copy(copy)) as connection:
        problems = integrity_problems(connection)
        if problems:
            raise OperatorError(
                f"The database {database} is damaged, so no backup was made of it.",
                why=f"{problems[0]}.",
                now="`headwater db check` lists all of it; put the last good backup back with `headwater db restore PATH`.",
            )
        schema: str = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return schema, {
            table: connection.execute(f"SELECT max({column}) FROM {table}").fetchone()[0]  # noqa: S608 names are ours
            for table, column in ORDERED_IDS
            if table in tables  # a backup may be of an older schema
        }

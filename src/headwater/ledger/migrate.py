"""The schema's revision: a new database is made at a start, an older one is migrated by `headwater db upgrade` only.

A migration runs in a process of its own (`python -m headwater.ledger.migrate PATH`), in one transaction, while its
starter holds the data directory's lock: Alembic and SQLAlchemy then never load into the gateway, and whatever ends it
half-way leaves the database as it was. What may be in a migration is explained in `docs/explanation/storage.md`.
"""

import contextlib
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from headwater.errors import OperatorError
from headwater.ledger.backup import Progress, backup_path, make_backup
from headwater.ledger.durable import require_space
from headwater.ledger.store import Connection, DatabaseError, open_reader

HEAD = "0003"
"""The newest revision in `migrations/versions`; a test keeps the two equal."""
SQLITE_MAGIC = b"SQLite format 3\0"
"""What every SQLite database begins with (sqlite.org/fileformat.html §1.3)."""


class UnreadableDatabase(OperatorError):
    """The file can't be read as a database at all."""


class ForeignDatabase(OperatorError):
    """The file is a database, but another program's."""


class Upgraded(NamedTuple):
    """What an upgrade did. backup: made before it; None when the schema was the newest already."""

    from_revision: str
    to_revision: str
    backup: Path | None


def current_revision(path: Path) -> str | None:
    """The schema revision of the database at `path`; None when there is no database or it is empty.

    Raises UnreadableDatabase when the file is not a SQLite database, ForeignDatabase when it is another program's.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        require_magic(path)
        with contextlib.closing(open_reader(path)) as connection:
            return revision_in(connection, path)
    except (DatabaseError, OSError) as error:
        raise UnreadableDatabase(
            f"{path} can't be read as a database.",
            why=f"{error}.",
            now="Move it away, or put a backup in its place: headwater db restore PATH.",
        ) from error


def require_magic(path: Path) -> None:
    """Raise DatabaseError unless the file begins as a database does; SQLite takes one of a few bytes for an empty one."""
    with path.open("rb") as file:
        if file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
            raise DatabaseError("file is not a database")


def revision_in(connection: Connection, path: Path) -> str | None:
    """The same, on a connection that is open already; path: how a message names the database."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return None
    revisions = []
    if {"alembic_version", "usage_records"} <= tables:  # other programs are migrated by Alembic too
        revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    if len(revisions) != 1:
        raise ForeignDatabase(
            f"{path} is not a database of Headwater's.",
            why=f"It holds other tables ({', '.join(sorted(tables)[:5])}).",
            now="Choose another path with `--set store.url=sqlite:///PATH/headwater.db`; Headwater changes nothing in this one.",
        )
    revision: str = revisions[0][0]
    return revision


def ensure_schema(path: Path) -> None:
    """Make the database at `path` if it is new, else require the newest schema; the caller holds the directory's lock.

    Raises OperatorError when the schema is older or newer than this program's, or when the database can't be made.
    """
    revision = current_revision(path)
    if revision is None:
        _run_migrations(path, now="Check free disk space and the file's permissions, then start again.")
    else:
        require_head(path, revision)


def require_head(path: Path, revision: str) -> None:
    """Raise OperatorError unless a database's revision is the newest; for everything that reads or writes one."""
    if revision < HEAD:
        raise OperatorError(
            f"The database {path} has schema {revision}; this Headwater needs {HEAD}.",
            why="It was made by an earlier version.",
            now="Run `headwater db upgrade`: it makes a backup, then migrates.",
        )
    refuse_newer(path, revision)


def refuse_newer(path: Path, revision: str) -> None:
    """Raise OperatorError when a database's revision is beyond this program's."""
    if revision > HEAD:
        raise OperatorError(
            f"The database {path} has schema {revision}; this Headwater knows up to {HEAD}.",
            why="It was opened by a newer version before.",
            now="Start that newer version, or put back the backup made before the upgrade: headwater db restore PATH.",
        )


def upgrade(path: Path, *, now: datetime, progress: Progress) -> Upgraded:
    """Back the database up, then migrate it to the newest revision; the caller holds the data directory's lock.

    Raises OperatorError when there is nothing to upgrade, too little disk space, or a failure: then it is as it was.
    """
    revision = current_revision(path)
    if revision is None:
        raise OperatorError(f"There is no database at {path}.", now="`headwater up` makes one.")
    refuse_newer(path, revision)
    if revision == HEAD:
        return Upgraded(revision, HEAD, None)
    # The copy, and a write-ahead log that holds at most every page of the database again until it is committed.
    require_space(path.parent, 2 * path.stat().st_size, what="The upgrade, with its backup,")
    made = make_backup(path, backup_path(path, now, label=f"before-{HEAD}"), now=now, progress=progress)
    progress(f"Migrating {revision} to {HEAD}", 0, 0)
    _run_migrations(path, now=f"Mend the cause and try again; the backup {made.path} is there too.")
    return Upgraded(revision, HEAD, made.path)


def _run_migrations(path: Path, *, now: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headwater.ledger.migrate", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OperatorError(
            f"The migration of {path} to schema {HEAD} failed; the database is as it was.",
            why=_reason(done.stderr) if done.returncode > 0 else f"It was ended by signal {-done.returncode}.",
            now=now,
        )


def _reason(trace: str) -> str:
    """The line of a Python traceback that names the error; SQLAlchemy's statement and link come after it."""
    lines = [line for line in trace.splitlines() if line and not line.startswith((" ", "[", "("))]
    return lines[-1] if lines else "It said nothing."


def main(path: Path, revision: str = "head") -> None:
    """Bring the database at `path` up to a revision, in one transaction."""
    from alembic import command
    from alembic.config import Config
    from pysqlite3 import dbapi2
    from sqlalchemy import URL, create_engine, event

    engine = create_engine(URL.create("sqlite", database=str(path)), module=dbapi2)

    # The driver's own transactions would commit before each CREATE TABLE; ours must hold all of them.
    @event.listens_for(engine, "connect")
    def _explicit_transactions(connection: "dbapi2.Connection", _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    config = Config()
    migrations = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", migrations.replace("%", "%%"))  # `%` interpolates there
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

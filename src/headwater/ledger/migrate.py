"""Bring a database to this version's schema, or refuse.

Run in a process of its own (`python -m headwater.ledger.migrate PATH`) by whoever holds the data directory's lock:
Alembic and SQLAlchemy then never load into the gateway.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

from headwater.errors import OperatorError
from headwater.ledger.store import DatabaseError, open_reader

HEAD = "0001"
"""The newest revision in `migrations/versions`; a test keeps the two equal."""
SQLITE_MAGIC = b"SQLite format 3\0"
"""What every SQLite database begins with (sqlite.org/fileformat.html §1.3)."""


def current_revision(path: Path) -> str | None:
    """The schema revision of the database at `path`; None when there is no database or it is empty.

    Raises OperatorError when the file is not a SQLite database, or is another program's.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with path.open("rb") as file:
            if file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:  # SQLite takes a file of a few bytes for an empty database
                raise DatabaseError("file is not a database")
        with contextlib.closing(open_reader(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            revisions = []
            if {"alembic_version", "usage_records"} <= tables:  # other programs are migrated by Alembic too
                revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except (DatabaseError, OSError) as error:
        raise OperatorError(
            f"{path} can't be read as a database.",
            why=f"{error}.",
            now="Move it away or restore it from a backup; Headwater changes nothing in it.",
        ) from error
    if not tables:
        return None
    if len(revisions) != 1:
        raise OperatorError(
            f"{path} is not a database of Headwater's.",
            why=f"It holds other tables ({', '.join(sorted(tables)[:5])}).",
            now="Choose another path with `--set store.url=sqlite:///PATH/headwater.db`; Headwater changes nothing in this one.",
        )
    revision: str = revisions[0][0]
    return revision


def ensure_schema(path: Path) -> None:
    """Migrate the database at `path` if it is new or older; the caller holds the data directory's lock.

    Raises OperatorError when the database is newer than this program, or when the migration fails (it is rolled back).
    """
    revision = current_revision(path)
    if revision == HEAD:
        return
    if revision is not None and revision > HEAD:
        raise OperatorError(
            f"The database {path} has schema {revision}; this Headwater knows up to {HEAD}.",
            why="It was opened by a newer version before.",
            now="Start that newer version, or restore the backup made before the upgrade.",
        )
    done = subprocess.run(
        [sys.executable, "-m", "headwater.ledger.migrate", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OperatorError(
            f"The migration of {path} to schema {HEAD} failed; the database is as it was.",
            why=_reason(done.stderr),
            now="Check free disk space and the file's permissions, then start again.",
        )


def _reason(trace: str) -> str:
    """The line of a Python traceback that names the error; SQLAlchemy's statement and link come after it."""
    lines = [line for line in trace.splitlines() if line and not line.startswith((" ", "[", "("))]
    return lines[-1] if lines else "It said nothing."


def main(path: Path) -> None:
    """Upgrade the database at `path` to the newest revision, in one transaction."""
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
        command.upgrade(config, "head")
    engine.dispose()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

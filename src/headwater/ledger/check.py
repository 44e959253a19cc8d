"""Is the database sound, how large is it, how much room is left: what `headwater db check` tells. Reads only.

Each table is checked in a transaction of its own, since one that is open for long pins the running platform's write-ahead
log; the file as a whole (pages that two tables claim, pages that none does) only when no platform runs.
"""

import contextlib
import shutil
from pathlib import Path
from typing import NamedTuple

from headwater.ledger.backup import Progress, integrity_problems
from headwater.ledger.migrate import HEAD, current_revision
from headwater.ledger.store import Connection, DatabaseError, open_reader

PROBLEMS_MAX = 100


class Checked(NamedTuple):
    """What was found. problems: sentences, none when all is well; rows: of each table, None for one that can't be read.

    is_whole: whether the file as a whole was checked, not only each table in it. free_bytes: of the disk.
    reusable_bytes: pages of the file that hold nothing and are used before it grows.
    """

    revision: str | None
    problems: list[str]
    is_whole: bool
    database_bytes: int
    log_bytes: int
    reusable_bytes: int
    free_bytes: int
    rows: dict[str, int | None]
    oldest_record_at_ms: int | None
    archived_records_count: int


def check_database(database: Path, *, is_whole: bool, progress: Progress) -> Checked:
    """Examine a database that is there. is_whole: no platform runs. Raises OperatorError when it can't be read at all."""
    revision = current_revision(database)
    problems = []
    if revision is not None and revision != HEAD:
        now = "run `headwater db upgrade`" if revision < HEAD else "start the newer version that made it"
        problems.append(f"The schema is {revision}, this program's is {HEAD}: {now}.")
    rows: dict[str, int | None] = {}
    with contextlib.closing(open_reader(database)) as connection:
        names = _tables(connection)
        if is_whole:
            progress("Checking the whole file", 0, 0)
            problems += integrity_problems(connection)
        for number, name in enumerate(names):
            progress(f"Checking {name} ({number + 1} of {len(names)} tables)", 0, 0)
            found, rows[name] = _look(connection, name, is_checked=is_whole)
            problems += found
        page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
        unused = int(connection.execute("PRAGMA freelist_count").fetchone()[0])
        oldest = _one(connection, "SELECT min(received_at_ms) FROM usage_records") if "usage_records" in names else None
        archived = _one(connection, "SELECT sum(records_count) FROM archives") if "archives" in names else None
    log = database.with_name(f"{database.name}-wal")
    return Checked(
        revision=revision,
        problems=problems[:PROBLEMS_MAX],
        is_whole=is_whole,
        database_bytes=database.stat().st_size,
        log_bytes=log.stat().st_size if log.exists() else 0,
        reusable_bytes=unused * page_bytes,
        free_bytes=shutil.disk_usage(database.parent).free,
        rows={name: count for name, count in rows.items() if name != "sqlite_schema"},
        oldest_record_at_ms=oldest,
        archived_records_count=archived or 0,
    )


def _tables(connection: Connection) -> list[str]:
    """The schema's own table first: checking it covers the list of free pages."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    return ["sqlite_schema", *(name for (name,) in names)]


def _look(connection: Connection, name: str, *, is_checked: bool) -> tuple[list[str], int | None]:
    """What is wrong with one table, its foreign keys too, and its rows. is_checked: its pages have been checked."""
    problems: list[str] = []
    try:
        if not is_checked:
            found = connection.execute(f'PRAGMA integrity_check("{name}")').fetchall()
            problems += [str(row[0]) for row in found if row[0] != "ok"]
        if name == "sqlite_schema":
            return problems, None
        lost = connection.execute(f'PRAGMA foreign_key_check("{name}")').fetchmany(PROBLEMS_MAX)
        problems += [f"{child}: a row refers to a row of {parent} that isn't there." for child, _, parent, _ in lost]
        return problems, _one(connection, f'SELECT count(*) FROM "{name}"')  # noqa: S608 a name from the database itself
    except DatabaseError as error:  # damage that ends the check itself
        return [*problems, f"{name} can't be read: {error}."], None


def _one(connection: Connection, text: str) -> int | None:
    try:
        found = connection.execute(text).fetchone()[0]
    except DatabaseError:
        return None  # the table's own check has said so
    return None if found is None else int(found)

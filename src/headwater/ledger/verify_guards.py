"""What the database itself refuses: the triggers, the unique keys and the view of entries must be as they were made.

With them in place SQLite lets nobody change a row of the log, resolve a reservation twice or charge above it, and the
legs of every entry sum to zero by the view's own text. Rows that were changed while a guard was away are found by the
recomputing; a guard that is away is a difference too.
"""

import re

from headwater.ledger.entries import PROGRAM
from headwater.ledger.store import Connection
from headwater.ledger.verify_result import Findings

UNIQUE = (
    ("reservations", ("request_id",)),
    ("resolutions", ("reservation_id",)),
    ("transfers", ("subject", "kind", "part")),
)


def check_guards(connection: Connection, findings: Findings) -> int:
    """Compare triggers, view and unique keys with what this version makes; returns how many were compared."""
    stored = dict(
        connection.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchall()
    )
    for statement in PROGRAM:
        name = statement.split()[2]
        if name not in stored or _plain(stored[name]) != _plain(statement):
            findings.add("sqlite_master", name, "definition", stored.get(name), "as it was made")
    for table, columns in UNIQUE:
        if not _has_unique(connection, table, columns):
            findings.add("sqlite_master", table, f"UNIQUE ({', '.join(columns)})", None, "unique")
    return len(PROGRAM) + len(UNIQUE)


def _has_unique(connection: Connection, table: str, columns: tuple[str, ...]) -> bool:
    indexes = connection.execute('SELECT name FROM pragma_index_list(?) WHERE "unique" = 1', (table,)).fetchall()
    for (index,) in indexes:
        names = connection.execute("SELECT name FROM pragma_index_info(?) ORDER BY seqno", (index,)).fetchall()
        if tuple(name for (name,) in names) == columns:
            return True
    return False


def _plain(sql: str) -> str:
    return re.sub(r"\s+", " ", sql).strip()

"""Cached sums beside recomputed ones, in tables of the verifying connection's own.

There may be millions of them, so they are kept in SQLite's temporary tables (compact, in memory, gone with the
connection) and compared there by one join.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from headwater.ledger.store import Connection

SumKind = Literal["balance", "budget", "lot"]
TABLES: dict[SumKind, tuple[str, str]] = {
    "balance": ("balances", "balance_nanos"),
    "budget": ("budget_periods", "spent_nanos"),
    "lot": ("grant_lots", "remaining_nanos"),
}
FLUSH_COUNT = 50_000
"""Sums that wait in Python before they are added to the table."""

_TABLE = "CREATE TEMP TABLE {} (kind TEXT, name TEXT, nanos INTEGER NOT NULL, PRIMARY KEY (kind, name)) STRICT, WITHOUT ROWID"
_TAKE_STORED = (
    "INSERT INTO temp.stored SELECT 'balance', account, balance_nanos FROM main.balances",
    "INSERT INTO temp.stored SELECT 'budget', budget_id || ' ' || period, spent_nanos FROM main.budget_periods",
    "INSERT INTO temp.stored SELECT 'lot', grant_id, remaining_nanos FROM main.grant_lots",
)
_TAKE_CARRIED = "INSERT INTO temp.recomputed SELECT kind, name, amount_nanos FROM main.carried_sums"
_ADD = (
    "INSERT INTO temp.recomputed VALUES (?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET nanos = nanos + excluded.nanos"
)
_COMPARE = (
    "SELECT kind, name, s.nanos, r.nanos FROM temp.stored s FULL JOIN temp.recomputed r USING (kind, name)"
    " WHERE coalesce(s.nanos, 0) <> coalesce(r.nanos, 0) ORDER BY kind, name"
)


class Sums:
    """What every cached sum is, and what it should be. One for each verification of a connection."""

    def __init__(self, connection: Connection) -> None:
        """connection: from `open_reader`; afterwards it may write temporary tables, and nothing else: its file is mode=ro."""
        self._connection = connection
        self._waiting: defaultdict[tuple[SumKind, str], int] = defaultdict(int)
        connection.execute("PRAGMA query_only=OFF")
        for table in ("stored", "recomputed"):
            connection.execute(f"DROP TABLE IF EXISTS temp.{table}")
            connection.execute(_TABLE.format(table))

    def take_stored(self) -> None:
        """Copy every cached sum, and what the archived rows add up to; call within the snapshot's transaction."""
        for statement in (*_TAKE_STORED, _TAKE_CARRIED):
            self._connection.execute(statement)

    def add(self, kind: SumKind, name: str, nanos: int) -> None:
        """A row of the log adds to a sum."""
        self._waiting[kind, name] += nanos

    def flush(self, *, above_count: int = 0) -> None:
        """Move what waits into the table, if it is more than so many."""
        if len(self._waiting) > above_count:
            self._connection.executemany(_ADD, ((*key, nanos) for key, nanos in self._waiting.items()))
            self._waiting.clear()

    def compare(self) -> Iterator[tuple[SumKind, str, int | None, int | None]]:
        """(kind, name, stored, recomputed) of each sum that differs, by kind and name."""
        self.flush()
        return self._connection.execute(_COMPARE)

    def count(self) -> int:
        """How many sums were compared."""
        sql = "SELECT count(*) FROM temp.stored s FULL JOIN temp.recomputed r USING (kind, name)"
        return int(self._connection.execute(sql).fetchone()[0])

    def balances_total(self) -> int:
        """All stored balances together, which double entry makes 0."""
        sql = "SELECT coalesce(sum(nanos), 0) FROM temp.stored WHERE kind = 'balance'"
        return int(self._connection.execute(sql).fetchone()[0])

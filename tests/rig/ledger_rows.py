"""The database as the auditor reads it: every table whole, in one read transaction, and what is wrong with it as findings."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

Row = Mapping[str, Any]
KINDS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning", "cache_write_1h")
"""The token columns; reasoning is a part of output, cache_write_1h one of cache_write."""
FAILED = ("upstream_error", "timeout", "rejected")
RESTARTED = "gateway_restarted"
"""The error code of a request whose gateway died: a later start ended it."""
TABLES = (
    *("organizations", "projects", "api_keys", "prices", "usage_records", "attempts"),
    *("reservations", "resolutions", "transfers", "budgets", "grants", "changes"),
    *("balances", "grant_lots", "budget_periods", "usage_hours", "marks", "idempotency_keys", "carried_sums"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that doesn't hold. rule: a short name; about: the id it is about."""

    rule: str
    about: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.about}: {self.message}"


class Ledger:
    """The database at one moment, with the look-ups that the rules need."""

    def __init__(self, tables: Mapping[str, list[Row]], entries: list[Row]) -> None:
        """entries: of the view of that name, summed up by subject, kind and account."""
        self.tables = tables
        self.entries = entries
        self.records, self.attempts = tables["usage_records"], tables["attempts"]
        self.reservations, self.resolutions = tables["reservations"], tables["resolutions"]
        self.record_of = {row["request_id"]: row for row in self.records}
        self.reservation_of = {row["request_id"]: row for row in self.reservations}
        self.resolution_of = {row["reservation_id"]: row for row in self.resolutions}
        self.price_of = {row["id"]: row for row in tables["prices"]}
        self.attempts_of: defaultdict[str, list[Row]] = defaultdict(list)
        for row in self.attempts:
            self.attempts_of[row["request_id"]].append(row)
        self.transfers_of: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in tables["transfers"]:
            self.transfers_of[row["kind"], row["subject"]].append(row)

    @classmethod
    def read(cls, database: Path) -> "Ledger":
        """Read all tables in one read transaction on a read-only connection."""
        connection = sqlite.connect(f"file:{database}?mode=ro", uri=True, isolation_level=None)
        connection.row_factory = sqlite.Row
        try:
            connection.execute("BEGIN")

            def rows(sql: str) -> list[Row]:
                return [dict(row) for row in connection.execute(sql)]

            tables = {table: rows(f"SELECT * FROM {table}") for table in TABLES}
            entries = rows("SELECT subject, kind, account, sum(amount_nanos) AS nanos FROM entries GROUP BY 1, 2, 3")
            return cls(tables, entries)
        finally:
            connection.close()

    def transferred(self, kind: str, subject: str) -> int:
        """The sum of the transfers of a kind with that subject."""
        nanos: int = sum(row["amount_nanos"] for row in self.transfers_of[kind, subject])
        return nanos


def is_void(record: Row) -> bool:
    """Whether nothing is owed: a failed answer that wasn't streamed gave its caller nothing."""
    return not record["is_stream"] and record["outcome"] in FAILED


def flags_of(record: Row) -> set[str]:
    """The words of a record's flags."""
    return set(record["flags"].split())

"""What was submitted to the ledger, and what a database holds of it.

It asks nothing of a row but its table and its values, so it holds for whatever a settlement consists of: every plain
`INSERT INTO table (columns) VALUES (?, …)` is looked for in the database. Other statements (an update, an upsert of a
sum) leave no row of their own to look for; of a table that they change only the primary key is compared. That they took
effect together with the rows is seen in `SUMS`.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from headwater.ledger.store import Connection, DatabaseError, Write, open_writer

_PLAIN = re.compile(r"INSERT INTO (\w+) \(([\w, ]+)\) VALUES \(\?(?:, \?)*\)\Z")
_CHANGED = re.compile(r"(?:UPDATE(?: OR \w+)?|INSERT(?: OR \w+)? INTO|REPLACE INTO) (\w+)")
Values = tuple[object, ...]

SUMS = {
    "balances": "SELECT account FROM (SELECT account, amount_nanos FROM entries UNION ALL SELECT account, -balance_nanos"
    " FROM balances) GROUP BY account HAVING sum(amount_nanos) <> 0",
    "usage_hours": "SELECT 1 WHERE (SELECT count(*) FROM usage_records)"
    " <> (SELECT coalesce(sum(requests_count), 0) FROM usage_hours)",
    "marks": "SELECT reservation_id FROM marks JOIN resolutions USING (reservation_id)",
}
"""What is kept beside the log, by table, each with a query that finds where it doesn't agree with the log."""


AHEAD = 64
"""More submissions than can wait at once."""


class Submitted(msgspec.Struct, frozen=True):
    """One row of a submission."""

    table: str
    columns: tuple[str, ...]
    values: Values


class Plan(msgspec.Struct):
    """Every submission in order. mutable: tables that other statements than plain inserts change."""

    submissions: list[list[Submitted]] = []
    mutable: set[str] = set()

    def add(self, writes: Iterable[Write]) -> int:
        """Note one submission; returns its number."""
        rows: list[Submitted] = []
        for statement, values in writes:
            sql = " ".join(statement.sql.split())
            if plain := _PLAIN.match(sql):
                rows.append(Submitted(plain[1], tuple(plain[2].split(", ")), tuple(values)))
            elif changed := _CHANGED.match(sql):
                self.mutable.add(changed[1])
        self.submissions.append(rows)
        return len(self.submissions) - 1

    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns that are compared, by table: those that every submitted row of it has."""
        found: dict[str, tuple[str, ...]] = {}
        for row in (row for rows in self.submissions for row in rows):
            known = found.setdefault(row.table, row.columns)
            if known != row.columns:
                found[row.table] = tuple(name for name in known if name in row.columns)
        return found

    def write(self, path: Path) -> None:
        """Keep it in a file."""
        path.write_bytes(msgspec.msgpack.encode(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it from the file."""
        return msgspec.msgpack.decode(path.read_bytes(), type=cls)


class Found(msgspec.Struct, frozen=True):
    """What a database lacks or has too much of. lost, half: numbers of submissions; corrupt: what SQLite says, or nothing.

    unequal: the tables of `SUMS` that don't agree with the log, so that some submission took effect in part.
    """

    lost: tuple[int, ...] = ()
    doubled_count: int = 0
    half: tuple[int, ...] = ()
    unequal: tuple[str, ...] = ()
    corrupt: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether everything is as it must be."""
        return self == Found()


class Examiner:
    """Compares databases with one plan; quickest for many of them in the order of their acknowledgements."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._columns = plan.columns()
        self._keys: dict[str, tuple[str, ...]] = {}
        self._expected: dict[str, dict[Values, int]] = {table: {} for table in self._columns}
        self._expected_count = 0

    def examine(self, database: Path, acknowledged: Collection[int]) -> Found:
        """Open the database as the platform does, and look for every submission.

        Of those that were not acknowledged it expects the next `AHEAD` only: later ones had not been submitted.
        """
        try:
            with contextlib.closing(open_writer(database)) as connection:
                said = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
                if said != ["ok"]:
                    return Found(corrupt="; ".join(said)[:500])
                return self._compare(connection, acknowledged)
        except DatabaseError as error:
            return Found(corrupt=f"{type(error).__name__}: {error}")

    def _compare(self, connection: Connection, acknowledged: Collection[int]) -> Found:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not self._columns.keys() <= tables:  # the migration that makes them all hasn't been committed
            return Found(lost=tuple(sorted(acknowledged)))
        self._expect(connection, max(acknowledged, default=0) + AHEAD)
        doubled_count, missing = 0, Counter[int]()
        for table, expected in self._expected.items():
            there = _rows(connection, table, self._keys[table])
            distinct = set(there)
            missing.update(expected[row] for row in expected.keys() - distinct)
            doubled_count += len(there) - len(distinct) + len(distinct - expected.keys())
        return Found(
            lost=tuple(sorted(number for number in missing if number in acknowledged)),
            doubled_count=doubled_count,
            half=tuple(
                sorted(
                    number
                    for number, count in missing.items()
                    if number not in acknowledged and count < len(self._plan.submissions[number])
                )
            ),
            unequal=tuple(
                name for name, query in SUMS.items() if name in tables and connection.execute(query).fetchone()
            ),
        )

    def _expect(self, connection: Connection, count: int) -> None:
        """Take in the rows of the first `count` submissions, by what is compared of them."""
        if not self._keys:
            self._keys = {table: self._compared(connection, table) for table in self._columns}
        for number in range(self._expected_count, min(count, len(self._plan.submissions))):
            for row in self._plan.submissions[number]:
                self._expected[row.table][_projected(row.columns, row.values, self._keys[row.table])] = number
            self._expected_count = number + 1

    def _compared(self, connection: Connection, table: str) -> tuple[str, ...]:
        """The columns to compare: all that are submitted, or the primary key where rows may have been changed since."""
        columns = self._columns[table]
        if table not in self._plan.mutable:
            return columns
        key = tuple(name for _, name, *_, place in connection.execute(f"PRAGMA table_info({table})") if place)
        if not key or not set(key) <= set(columns):
            raise ValueError(f"{table} is changed after the insert, and its primary key {key} is not submitted")
        return key


def _projected(names: Sequence[str], values: Values, onto: Sequence[str]) -> Values:
    return values if names == onto else tuple(values[names.index(name)] for name in onto)


def _rows(connection: Connection, table: str, columns: Sequence[str]) -> list[Values]:
    return [tuple(row) for row in connection.execute(f"SELECT {', '.join(columns)} FROM {table}")]

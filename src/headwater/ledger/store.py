"""All SQL of the running platform, named and fixed, and the two ways to open its SQLite file.

There is exactly one writing connection (`open_writer`, owned by the writer thread), which is also the only one that
checkpoints; every other is read-only (`open_reader`). SQLite is the build inside `pysqlite3` (3.53): releases before
3.51.3 can corrupt a WAL when two connections write or checkpoint at once.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headwater.ledger.rows import AttemptRow, KeyRow, Settlement, UsageRow
from headwater.money import Price
from headwater.usage import Usage

if TYPE_CHECKING:  # the same interface, with types
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

SQLITE_VERSION: str = sqlite.sqlite_version
Connection = sqlite.Connection
DatabaseError = sqlite.DatabaseError
IntegrityError = sqlite.IntegrityError


class Statement(NamedTuple):
    """A fixed SQL statement; `rank` orders statements of one transaction so that parents come before children."""

    name: str
    rank: int
    sql: str


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 names are ours


_TOKENS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning")
KEY_COLUMNS = KeyRow._fields
PRICE_COLUMNS = ("id", "model", "currency", *(f"{name}_nanos" for name in _TOKENS), "created_at_ms")
# A row's `usage` becomes the token columns, in its place.
_USAGE_AT = UsageRow._fields.index("usage")
_ATTEMPT_AT = AttemptRow._fields.index("usage")
USAGE_COLUMNS = (*UsageRow._fields[:_USAGE_AT], *_TOKENS, *UsageRow._fields[_USAGE_AT + 1 :])
ATTEMPT_COLUMNS = (*AttemptRow._fields[:_ATTEMPT_AT], *_TOKENS, *AttemptRow._fields[_ATTEMPT_AT + 1 :])

INSERT_ORGANIZATION = Statement("insert_organization", 0, _insert("organizations", ("id", "name", "created_at_ms")))
INSERT_PROJECT = Statement("insert_project", 1, _insert("projects", ("id", "organization_id", "name", "created_at_ms")))
INSERT_KEY = Statement("insert_key", 2, _insert("api_keys", KEY_COLUMNS))
# Revoking twice keeps the first time: the moment from which the key opened nothing.
REVOKE_KEY = Statement("revoke_key", 3, "UPDATE api_keys SET revoked_at_ms = ? WHERE id = ? AND revoked_at_ms IS NULL")
INSERT_PRICE = Statement("insert_price", 4, _insert("prices", PRICE_COLUMNS))
INSERT_USAGE = Statement("insert_usage", 5, _insert("usage_records", USAGE_COLUMNS))
INSERT_ATTEMPT = Statement("insert_attempt", 6, _insert("attempts", ATTEMPT_COLUMNS))


class Write(NamedTuple):
    """One row for one statement; a list of them is one atomic submission to the writer."""

    statement: Statement
    row: tuple[object, ...]


def settlement_writes(settlement: Settlement) -> list[Write]:
    """The rows of one settlement: its usage record, then its attempts."""
    record = settlement.record
    writes = [Write(INSERT_USAGE, (*record[:_USAGE_AT], *_usage_values(record.usage), *record[_USAGE_AT + 1 :]))]
    writes += (
        Write(INSERT_ATTEMPT, (*attempt[:_ATTEMPT_AT], *_usage_values(attempt.usage), *attempt[_ATTEMPT_AT + 1 :]))
        for attempt in settlement.attempts
    )
    return writes


def price_write(price: Price, created_at_ms: int) -> Write:
    """The row of a new price version."""
    return Write(
        INSERT_PRICE,
        (
            price.id,
            price.model,
            price.currency,
            price.uncached_input,
            price.cache_read,
            price.cache_write,
            price.output,
            price.reasoning,
            created_at_ms,
        ),
    )


def _usage_values(usage: Usage) -> tuple[int, int, int, int, int]:
    return (usage.uncached_input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning)


def open_writer(path: Path) -> Connection:
    """The one writing connection: WAL, every commit synced to the disk, foreign keys checked. Transactions are explicit."""
    connection = sqlite.connect(str(path), isolation_level=None, check_same_thread=False, cached_statements=64)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def open_reader(path: Path) -> Connection:
    """A read-only connection: it can neither write nor checkpoint. Usable from one thread at a time."""
    address = f"{path.absolute().as_uri()}?mode=ro"  # a path may hold `?`, `#` or `%`, which mean something in a URI
    connection = sqlite.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA busy_timeout=5000")
    return connection


SELECT_KEY_BY_HASH = f"SELECT {', '.join(KEY_COLUMNS)} FROM api_keys WHERE hash = ?"  # noqa: S608
SELECT_KEYS = f"SELECT {', '.join(KEY_COLUMNS)} FROM api_keys ORDER BY id"  # noqa: S608
SELECT_DEFAULT_PROJECT = (
    "SELECT o.id, p.id FROM organizations o JOIN projects p ON p.organization_id = o.id"
    " WHERE o.name = 'default' AND p.name = 'default'"
)
# The newest version of each model's price; ids sort by time.
SELECT_LATEST_PRICES = (
    f"SELECT {', '.join(PRICE_COLUMNS)} FROM prices p"  # noqa: S608
    " WHERE id = (SELECT max(id) FROM prices q WHERE q.model = p.model) ORDER BY model"
)
SELECT_KEY_USAGE = (
    "SELECT model, count(*), sum(uncached_input), sum(cache_read), sum(cache_write), sum(output), sum(reasoning),"
    " sum(cost_nanos), sum(cost_nanos IS NULL) FROM usage_records"
    " WHERE key_id = ? AND received_at_ms >= ? AND received_at_ms < ? GROUP BY model ORDER BY model"
)


def read_key(connection: Connection, key_hash: bytes) -> KeyRow | None:
    """The key with this SHA-256, or None."""
    row = connection.execute(SELECT_KEY_BY_HASH, (key_hash,)).fetchone()
    return None if row is None else KeyRow(*row)


def read_keys(connection: Connection) -> list[KeyRow]:
    """Every key, oldest first."""
    return [KeyRow(*row) for row in connection.execute(SELECT_KEYS)]


def read_default_project(connection: Connection) -> tuple[str, str] | None:
    """(organization id, project id) of the default ones, or None before the first start."""
    row = connection.execute(SELECT_DEFAULT_PROJECT).fetchone()
    return None if row is None else (row[0], row[1])


def read_latest_prices(connection: Connection) -> list[Price]:
    """The newest price of every model that ever had one."""
    return [
        Price(
            id=row[0],
            model=row[1],
            currency=row[2],
            uncached_input=row[3],
            cache_read=row[4],
            cache_write=row[5],
            output=row[6],
            reasoning=row[7],
        )
        for row in connection.execute(SELECT_LATEST_PRICES)
    ]


class ModelUsage(NamedTuple):
    """One model's sums for one key and span of time. cost_nanos covers priced records only; the others are counted."""

    model: str
    requests_count: int
    usage: Usage
    cost_nanos: int
    unpriced_count: int


def read_key_usage(connection: Connection, key_id: str, from_ms: int, until_ms: int) -> list[ModelUsage]:
    """Sums by model of one key's records received in [from_ms, until_ms)."""
    rows: Iterable[tuple[str, int, int, int, int, int, int, int | None, int]] = connection.execute(
        SELECT_KEY_USAGE, (key_id, from_ms, until_ms)
    )
    return [
        ModelUsage(
            model,
            count,
            Usage(uncached_input=uncached, cache_read=read, cache_write=write, output=output, reasoning=reasoning),
            cost or 0,
            unpriced,
        )
        for model, count, uncached, read, write, output, reasoning, cost, unpriced in rows
    ]

"""All SQL of the running platform, named and fixed, and the two ways to open its SQLite file.

There is exactly one writing connection (`open_writer`, owned by the writer thread), which is also the only one that
checkpoints; every other is read-only (`open_reader`). SQLite is the build inside `pysqlite3` (3.53): releases before
3.51.3 can corrupt a WAL when two connections write or checkpoint at once.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from headwater.ledger.caps import PERIODS_KEPT
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import (
    AttemptRow,
    KeyRow,
    MarkRow,
    NoticeRow,
    ReservationRow,
    ResolutionRow,
    StoredAnswer,
    TransferRow,
    UsageRow,
)
from headwater.ledger.wallet import LotState
from headwater.money import Price, price_terms_json, with_terms

if TYPE_CHECKING:  # the same interface, with types
    import sqlite3 as sqlite
else:
    from pysqlite3 import dbapi2 as sqlite

SQLITE_VERSION: str = sqlite.sqlite_version
Connection = sqlite.Connection
DatabaseError = sqlite.DatabaseError
IntegrityError = sqlite.IntegrityError
PriceKind = Literal["price", "cost"]
PriceSource = Literal["config", "admin"]


_NUMBERED = re.compile(r"\?\d")


class Statement(NamedTuple):
    """A fixed SQL statement; `rank` orders statements of one transaction so that parents come before children."""

    name: str
    rank: int
    sql: str

    def for_rows(self, count: int) -> str | None:
        """The same INSERT for several rows at once; None for a statement that takes one row at a time.

        Parameters that are numbered (`?1`) are one row's.
        """
        head, values, tail = self.sql.partition(" VALUES (")
        if not values or not head.startswith(("INSERT", "REPLACE")) or _NUMBERED.search(self.sql):
            return None
        row, _, rest = tail.partition(")")
        return f"{head} VALUES {', '.join([f'({row})'] * count)}{rest}"


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 names are ours


_TOKENS = ("uncached_input", "cache_read", "cache_write", "output", "reasoning")
KEY_COLUMNS = KeyRow._fields
PRICE_COLUMNS = (
    *("id", "model", "currency", *(f"{name}_nanos" for name in _TOKENS), "created_at_ms"),
    *("kind", "effective_at_ms", "source", "is_withdrawn", "terms"),
)
# A row's `usage` becomes the token columns in its place; `cache_write_1h` came later and stands after the duration.
_USAGE_AT, _USAGE_END = UsageRow._fields.index("usage"), UsageRow._fields.index("duration_ms") + 1
_ATTEMPT_AT, _ATTEMPT_END = AttemptRow._fields.index("usage"), AttemptRow._fields.index("duration_ms") + 1


def _with_tokens(fields: tuple[str, ...], at: int, end: int) -> tuple[str, ...]:
    return (*fields[:at], *_TOKENS, *fields[at + 1 : end], "cache_write_1h", *fields[end:])


USAGE_COLUMNS = _with_tokens(UsageRow._fields, _USAGE_AT, _USAGE_END)
ATTEMPT_COLUMNS = _with_tokens(AttemptRow._fields, _ATTEMPT_AT, _ATTEMPT_END)
HOUR_COLUMNS = (
    *("hour", "key_id", "model", "organization_id", "project_id", "requests_count", "ok_count", "unpriced_count"),
    *(*_TOKENS, "cache_write_1h", "cost_nanos", "upstream_cost_nanos"),
)
_HOUR_SUMS = HOUR_COLUMNS[5:]

INSERT_ORGANIZATION = Statement("insert_organization", 0, _insert("organizations", ("id", "name", "created_at_ms")))
INSERT_PROJECT = Statement("insert_project", 1, _insert("projects", ("id", "organization_id", "name", "created_at_ms")))
INSERT_KEY = Statement("insert_key", 2, _insert("api_keys", KEY_COLUMNS))
# Revoking twice keeps the first time: the moment from which the key opened nothing.
REVOKE_KEY = Statement("revoke_key", 3, "UPDATE api_keys SET revoked_at_ms = ? WHERE id = ? AND revoked_at_ms IS NULL")
INSERT_PRICE = Statement("insert_price", 4, _insert("prices", PRICE_COLUMNS))
INSERT_USAGE = Statement("insert_usage", 5, _insert("usage_records", USAGE_COLUMNS))
INSERT_ATTEMPT = Statement("insert_attempt", 6, _insert("attempts", ATTEMPT_COLUMNS))
INSERT_EPOCH = Statement("insert_epoch", 7, _insert("epochs", ("id", "gateway", "started_at_ms")))
INSERT_RESERVATION = Statement("insert_reservation", 8, _insert("reservations", ReservationRow._fields))
INSERT_RESOLUTION = Statement("insert_resolution", 9, _insert("resolutions", ResolutionRow._fields))
INSERT_TRANSFER = Statement("insert_transfer", 10, _insert("transfers", TransferRow._fields))
# The caches of the log: what a transaction's rows add up to is added to them in that transaction.
ADD_TO_BALANCE = Statement(
    "add_to_balance",
    11,
    "INSERT INTO balances (account, balance_nanos) VALUES (?, ?)"
    " ON CONFLICT (account) DO UPDATE SET balance_nanos = balance_nanos + excluded.balance_nanos",
)
ADD_TO_LOT = Statement(
    "add_to_lot", 12, "UPDATE grant_lots SET remaining_nanos = remaining_nanos + ?2 WHERE grant_id = ?1"
)
ADD_TO_BUDGET = Statement(
    "add_to_budget",
    13,
    "INSERT INTO budget_periods (budget_id, period, spent_nanos) VALUES (?, ?, ?)"
    " ON CONFLICT (budget_id, period) DO UPDATE SET spent_nanos = spent_nanos + excluded.spent_nanos",
)
ADD_TO_HOUR = Statement(
    "add_to_hour",
    14,
    f"{_insert('usage_hours', HOUR_COLUMNS)} ON CONFLICT (hour, key_id, model) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in _HOUR_SUMS),
)
PUT_MARK = Statement(
    "put_mark",
    15,
    f"{_insert('marks', MarkRow._fields)} ON CONFLICT (reservation_id) DO UPDATE"
    " SET attempts = excluded.attempts, marked_at_ms = excluded.marked_at_ms",
)
DELETE_MARK = Statement("delete_mark", 16, "DELETE FROM marks WHERE reservation_id = ?")
PUT_STATE = Statement(
    "put_state",
    17,
    f"{_insert('ledger_state', ('name', 'value'))} ON CONFLICT (name) DO UPDATE SET value = excluded.value",
)
# A key whose answer has expired is free again: its old answer makes room.
PUT_ANSWER = Statement("put_answer", 18, _insert("idempotency_keys", StoredAnswer._fields).replace("INSERT", "REPLACE"))
# What happens once has one notice, also when a restart sees it again.
INSERT_NOTICE = Statement(
    "insert_notice", 19, f"{_insert('notices', NoticeRow._fields)} ON CONFLICT (kind, subject) DO NOTHING"
)


class Write(NamedTuple):
    """One row for one statement; a list of them is one atomic submission to the writer."""

    statement: Statement
    row: tuple[object, ...]


class Rows(NamedTuple):
    """Many rows for one statement."""

    statement: Statement
    rows: Sequence[tuple[object, ...]]


def usage_row(record: UsageRow) -> tuple[object, ...]:
    """A usage record as `INSERT_USAGE` takes it."""
    usage = record.usage
    return (
        *record[:_USAGE_AT],
        *(usage.uncached_input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning),
        *record[_USAGE_AT + 1 : _USAGE_END],
        usage.cache_write_1h,
        *record[_USAGE_END:],
    )


def attempt_row(attempt: AttemptRow) -> tuple[object, ...]:
    """An attempt as `INSERT_ATTEMPT` takes it."""
    usage = attempt.usage
    return (
        *attempt[:_ATTEMPT_AT],
        *(usage.uncached_input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning),
        *attempt[_ATTEMPT_AT + 1 : _ATTEMPT_END],
        usage.cache_write_1h,
        *attempt[_ATTEMPT_END:],
    )


def price_write(
    price: Price,
    created_at_ms: int,
    *,
    kind: PriceKind = "price",
    effective_at_ms: int | None = None,
    source: PriceSource = "config",
    is_withdrawn: bool = False,
) -> Write:
    """The row of a new price version, in force at once unless told otherwise. is_withdrawn: from then on there is none."""
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
            kind,
            created_at_ms if effective_at_ms is None else effective_at_ms,
            source,
            is_withdrawn,
            price_terms_json(price),
        ),
    )


WAL_LIMIT = f"journal_size_limit={64 * 2**20}"
"""After a long read has let the write-ahead log grow, the file is cut back to this."""


def open_writer(path: Path) -> Connection:
    """The one writing connection: WAL, every commit synced to the disk, foreign keys checked.

    Transactions are explicit, and so are checkpoints (`writer.LedgerWriter`).
    """
    connection = sqlite.connect(str(path), isolation_level=None, check_same_thread=False, cached_statements=256)
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=5000",
        "wal_autocheckpoint=0",
        WAL_LIMIT,
    ):
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
SELECT_PRICES = f"SELECT {', '.join(PRICE_COLUMNS)} FROM prices ORDER BY id"  # noqa: S608 ids sort by time
OPEN_FROM = "open_from"
"""Name in `ledger_state`: every reservation below this id is resolved."""
SELECT_OPEN_RESERVATIONS = (
    f"SELECT {', '.join(f'r.{name}' for name in ReservationRow._fields)}, m.attempts, s.kind"  # noqa: S608
    " FROM reservations r LEFT JOIN marks m ON m.reservation_id = r.id"
    " LEFT JOIN resolutions s ON s.reservation_id = r.id"
    " WHERE r.id >= ? AND (s.id IS NULL OR (s.kind = 'expire'"
    " AND NOT EXISTS (SELECT 1 FROM usage_records u WHERE u.request_id = r.request_id))) ORDER BY r.id"
)
SELECT_NEXT_RESERVATION_ID = (
    "SELECT 1 + max(coalesce((SELECT max(id) FROM reservations), 0),"
    " coalesce((SELECT max(reservations_to) FROM archives), 0),"
    " coalesce((SELECT value - 1 FROM ledger_state WHERE name = 'open_from'), 0))"
)
SELECT_STATE = "SELECT value FROM ledger_state WHERE name = ?"
SELECT_LOTS = (
    "SELECT g.id, g.organization_id, l.remaining_nanos,"
    # One whose rest has lapsed stays over, also when the clock is put back before its date.
    " CASE WHEN EXISTS (SELECT 1 FROM transfers t WHERE t.subject = g.id AND t.kind = 'grant_expire' AND t.part = 0)"
    " THEN 0 ELSE g.expires_at_ms END, g.revoked_at_ms"
    " FROM grant_lots l JOIN grants g ON g.id = l.grant_id WHERE l.remaining_nanos > 0 ORDER BY g.id"
)
SELECT_ORGANIZATIONS_PAYING = "SELECT id, is_prepaid, currency FROM organizations"
_BUDGET_COLUMNS = (
    "b.id, b.organization_id, b.scope, b.scope_id, b.limit_nanos, b.period, b.period_days, b.anchor_ms, b.time_zone,"
    " b.thresholds, p.period, p.spent_nanos"
)
# Keys of one budget's periods sort by time; the latest few will do, since a clock isn't put back further than that.
_BUDGETS = (
    f"SELECT {_BUDGET_COLUMNS} FROM budgets b LEFT JOIN budget_periods p ON p.budget_id = b.id AND p.period IN"  # noqa: S608
    f" (SELECT q.period FROM budget_periods q WHERE q.budget_id = b.id ORDER BY q.period DESC LIMIT {PERIODS_KEPT})"
)
SELECT_BUDGETS_SHARED = f"{_BUDGETS} WHERE b.archived_at_ms IS NULL AND b.scope <> 'key' ORDER BY b.id"
SELECT_BUDGETS_OF_KEY = (
    f"{_BUDGETS} WHERE b.scope_id = ? AND b.scope = 'key' AND b.archived_at_ms IS NULL ORDER BY b.id"
)
SELECT_ANSWER = (
    f"SELECT {', '.join(StoredAnswer._fields)} FROM idempotency_keys"  # noqa: S608
    " WHERE project_id = ? AND route = ? AND idempotency_key = ? AND expires_at_ms > ?"
)
SELECT_ANSWERS_BYTES = (
    "SELECT p.is_storage_allowed, coalesce(sum(length(i.answer)), 0) FROM projects p"
    " LEFT JOIN idempotency_keys i ON i.project_id = p.id AND i.expires_at_ms > ? WHERE p.id = ? GROUP BY p.id"
)
SELECT_IS_REQUEST_OF = (
    "SELECT EXISTS (SELECT 1 FROM usage_records WHERE request_id = ?1 AND project_id = ?2)"
    " OR EXISTS (SELECT 1 FROM reservations WHERE request_id = ?1 AND project_id = ?2)"
)
SELECT_MAX_EPOCH = "SELECT coalesce(max(id), 0) FROM epochs"


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


class PriceVersion(NamedTuple):
    """One version of a price (what callers pay) or cost (what an upstream takes), and from when on it is in force."""

    price: Price
    created_at_ms: int
    kind: PriceKind
    effective_at_ms: int
    source: PriceSource
    is_withdrawn: bool


def read_prices(connection: Connection) -> list[PriceVersion]:
    """Every version there ever was, oldest first."""
    return [_price_version(row) for row in connection.execute(SELECT_PRICES)]


def _price_version(row: tuple[Any, ...]) -> PriceVersion:
    plain = Price(
        id=row[0],
        model=row[1],
        currency=row[2],
        uncached_input=row[3],
        cache_read=row[4],
        cache_write=row[5],
        output=row[6],
        reasoning=row[7],
    )
    created_at_ms, kind, effective_at_ms, source, is_withdrawn, terms = row[8:]
    return PriceVersion(
        with_terms(plain, terms), created_at_ms, kind, effective_at_ms, source, is_withdrawn=bool(is_withdrawn)
    )


class BudgetState(NamedTuple):
    """A budget's terms and what its periods have spent, by the key of the period."""

    terms: BudgetTerms
    spent_nanos: dict[str, int]


def read_budgets(connection: Connection, key_id: str | None = None) -> list[BudgetState]:
    """The budgets in force of one key; None: those of everything but keys."""
    text, given = (SELECT_BUDGETS_SHARED, ()) if key_id is None else (SELECT_BUDGETS_OF_KEY, (key_id,))
    found: dict[str, BudgetState] = {}
    for row in connection.execute(text, given):
        one = BudgetTerms._make((*row[:9], tuple(json.loads(row[9]))))
        period, spent_nanos = row[10:]
        state = found.setdefault(one.id, BudgetState(one, {}))
        if period is not None:
            state.spent_nanos[period] = spent_nanos
    return list(found.values())


def read_organizations_paying(connection: Connection) -> list[tuple[str, bool, str | None]]:
    """Every organization, whether it pays beforehand, and its own currency (None: the platform's)."""
    return [(row[0], bool(row[1]), row[2]) for row in connection.execute(SELECT_ORGANIZATIONS_PAYING)]


def is_request_of(connection: Connection, request_id: str, project_id: str) -> bool:
    """Whether the books have this request and it is that project's."""
    row = connection.execute(SELECT_IS_REQUEST_OF, (request_id, project_id)).fetchone()
    return bool(row[0])


def read_next_epoch(connection: Connection) -> int:
    """The number of the next start."""
    row = connection.execute(SELECT_MAX_EPOCH).fetchone()
    return int(row[0]) + 1


def read_answer(
    connection: Connection, project_id: str, route: str, idempotency_key: str, *, now_ms: int
) -> StoredAnswer | None:
    """The answer kept for an idempotency key, if there is one that hasn't expired."""
    row = connection.execute(SELECT_ANSWER, (project_id, route, idempotency_key, now_ms)).fetchone()
    return None if row is None else StoredAnswer(*row)


def read_answers_bytes(connection: Connection, project_id: str, *, now_ms: int) -> tuple[bool, int]:
    """Whether a project may keep answers, and the bytes of those it keeps."""
    is_allowed, stored_bytes = connection.execute(SELECT_ANSWERS_BYTES, (now_ms, project_id)).fetchone()
    return bool(is_allowed), int(stored_bytes)


class OpenReservation(NamedTuple):
    """A reservation whose request was never settled, and how far its stream was known to have come.

    marks: JSON, None for none. is_expired: its time was over before, so that nothing is held any more.
    """

    reservation: ReservationRow
    marks: str | None
    is_expired: bool


def read_open_reservations(connection: Connection, open_from: int) -> list[OpenReservation]:
    """Every reservation from this id on that nothing has resolved, or that expired and was not settled since."""
    rows = connection.execute(SELECT_OPEN_RESERVATIONS, (open_from,))
    return [OpenReservation(ReservationRow(*row[:-2]), row[-2], is_expired=row[-1] is not None) for row in rows]


def read_next_reservation_id(connection: Connection) -> int:
    """An id above every reservation's there ever was, archived ones too."""
    row = connection.execute(SELECT_NEXT_RESERVATION_ID).fetchone()
    return int(row[0])


def read_state(connection: Connection, name: str) -> int | None:
    """A number of the ledger's own; None before it was first set."""
    row = connection.execute(SELECT_STATE, (name,)).fetchone()
    return None if row is None else int(row[0])


def read_lots(connection: Connection) -> dict[str, LotState]:
    """Every grant with anything left, by id."""
    rows = connection.execute(SELECT_LOTS)
    return {row[0]: LotState(row[0], row[1], row[2], row[3], row[4] is not None) for row in rows}

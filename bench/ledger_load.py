"""Fills a database with a history: organizations, keys, budgets, and as many settled requests as asked for.

Written with SQLite's own statements, without syncing: 5 million requests take minutes and some GB. The sums are right,
so `headwater ledger verify` agrees with what comes out.

Run: python -m bench.ledger_load DATABASE REQUESTS
"""

import argparse
import sys
from pathlib import Path

from headwater.ledger import admin_store, store
from headwater.ledger.batch import Batch
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.rows import KeyRow, TransferRow
from headwater.ledger.store import Connection, Write, open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.money import Price

ORGANIZATIONS, PROJECTS_EACH, KEYS_EACH = 100, 3, 10
"""Keys: those of each organization; key k belongs to project k mod 3."""
MODEL = "m"
LAST_MS = 1_795_000_000_000
SPAN_MS = 90 * 86_400_000
"""The history ends at LAST_MS and is so long."""
AMOUNT_NANOS, COST_NANOS = 20_000, 9_000
CREDIT_NANOS = 10**15
CHUNK = 250_000
PRICE = Price(
    id="prc_1",
    model=MODEL,
    currency="USD",
    uncached_input=100_000_000,
    cache_read=10_000_000,
    cache_write=100_000_000,
    output=300_000_000,
    reasoning=300_000_000,
)

# ruff: noqa: S608 every name in these statements is ours
_RESERVATIONS = f"""
    WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i < :last),
    r AS (SELECT i, i * 7919 % :keys AS k, {LAST_MS - SPAN_MS} + i * :step_us / 1000 AS at FROM n),
    named AS (SELECT i, at, printf('key_%04d', k) AS key, printf('org_%04d', k / :keys_each) AS org,
        printf('prj_%04d_%d', k / :keys_each, k % :projects_each) AS prj FROM r)
    INSERT INTO reservations (id, request_id, epoch, organization_id, project_id, key_id, model, price_id, amount_nanos,
        budgets, lots, client_request_id, dialect, service_tier, is_stream, choices_count, tags, received_at_ms, expires_at_ms)
    SELECT i, printf('req_%026d', i), 1, org, prj, key, 'm', 'prc_1', :amount,
        '[["bud_' || org || '","' || strftime('%Y-%m', at / 1000, 'unixepoch') || '"],["bud_' || prj || '","'
        || strftime('%Y-%m-%d', at / 1000, 'unixepoch') || '"]]', '[["gnt_' || org || '",' || :amount || ']]',
        NULL, 'openai_chat', 'standard', 1, 1, NULL, at, at + 660000 FROM named
"""
_WHICH = "FROM reservations WHERE id BETWEEN :first AND :last ORDER BY id"
_RESOLUTIONS = f"""
    INSERT INTO resolutions (id, reservation_id, kind, charge_nanos, resolved_at_ms)
    SELECT id, id, 'post', :cost, received_at_ms + 900 {_WHICH}
"""
_RECORDS = f"""
    INSERT INTO usage_records (request_id, organization_id, project_id, key_id, dialect, model, is_stream, choices_count,
        outcome, usage_source, uncached_input, cache_read, cache_write, output, reasoning, price_id, cost_nanos,
        received_at_ms, queue_ms, ttft_ms, duration_ms)
    SELECT request_id, organization_id, project_id, key_id, dialect, model, is_stream, choices_count, 'ok', 'reported',
        60, 0, 0, 10, 0, price_id, :cost, received_at_ms, 1, 200, 900 {_WHICH}
"""
_ATTEMPTS = f"""
    INSERT INTO attempts (id, request_id, choice, target, replica_id, outcome, usage_source, uncached_input, cache_read,
        cache_write, output, reasoning, started_at_ms, duration_ms)
    SELECT printf('att_%026d', id), request_id, 0, model, 'rep_1', 'ok', 'reported', 60, 0, 0, 10, 0, received_at_ms + 1,
        899 {_WHICH}
"""
_SUMS = (
    """
    INSERT INTO usage_hours (hour, key_id, model, organization_id, project_id, requests_count, ok_count, unpriced_count,
        uncached_input, cache_read, cache_write, output, reasoning, cache_write_1h, cost_nanos, upstream_cost_nanos)
    SELECT (received_at_ms + duration_ms) / 3600000, key_id, model, organization_id, project_id, count(*), count(*), 0,
        sum(uncached_input), 0, 0, sum(output), 0, 0, sum(cost_nanos), 0 FROM usage_records GROUP BY 1, 2, 3
    """,
    """
    INSERT INTO budget_periods SELECT 'bud_' || organization_id, strftime('%Y-%m', received_at_ms / 1000, 'unixepoch'),
        sum(cost_nanos) FROM usage_records GROUP BY 1, 2
    """,
    """
    INSERT INTO budget_periods SELECT 'bud_' || project_id, strftime('%Y-%m-%d', received_at_ms / 1000, 'unixepoch'),
        sum(cost_nanos) FROM usage_records GROUP BY 1, 2
    """,
    """
    UPDATE grant_lots SET remaining_nanos = remaining_nanos - spent.nanos FROM
        (SELECT organization_id, sum(cost_nanos) AS nanos FROM usage_hours GROUP BY 1) AS spent
        WHERE grant_id = 'gnt_' || spent.organization_id
    """,
    """
    UPDATE balances SET balance_nanos = balance_nanos - spent.nanos FROM
        (SELECT organization_id, sum(cost_nanos) AS nanos FROM usage_hours GROUP BY 1) AS spent
        WHERE account = 'wallet/' || spent.organization_id
    """,
    "INSERT INTO balances SELECT 'revenue/m', sum(cost_nanos) FROM usage_hours",
)
_PERIODS = tuple(
    f"""
    WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 3)
    INSERT INTO budget_periods SELECT b.id, strftime('{form}', {LAST_MS} / 1000, 'unixepoch', -i || ' {step}'), 0
    FROM budgets b JOIN n WHERE b.period = '{period}'
    """
    for period, form, step in (("month", "%Y-%m", "months"), ("day", "%Y-%m-%d", "days"))
)
_INDEXES = (
    "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    " AND tbl_name IN ('usage_records', 'attempts', 'usage_hours')"
)
"""Made anew at the end, which is quicker than keeping them while rows come in."""


def fill(database: Path, requests_count: int) -> None:
    """Make the database, whose file isn't there yet. requests_count: 0 for one without history."""
    ensure_schema(database)
    writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
    writer.start()
    writer.submit(_beginnings()).result()
    writer.close()
    connection = open_writer(database)
    if not requests_count:
        # A start reads the latest periods of each budget: here too there are some, as under a history of any length.
        for statement in _PERIODS:
            connection.execute(statement)
        connection.close()
        return
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "foreign_keys=OFF", "cache_size=-1000000"):
        connection.execute(f"PRAGMA {pragma}")
    indexes: list[tuple[str, str]] = connection.execute(_INDEXES).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    names: dict[str, int] = {
        "keys": ORGANIZATIONS * KEYS_EACH,
        "keys_each": KEYS_EACH,
        "projects_each": PROJECTS_EACH,
        "step_us": SPAN_MS * 1000 // requests_count,
        "amount": AMOUNT_NANOS,
        "cost": COST_NANOS,
    }
    for statement in (_RESERVATIONS, _RESOLUTIONS, _RECORDS, _ATTEMPTS):
        for first in range(1, requests_count + 1, CHUNK):
            last = min(first + CHUNK - 1, requests_count)
            used = {name: value for name, value in names.items() if f":{name}" in statement}
            _in_transaction(connection, statement, used | {"first": first, "last": last})
    for statement in (*_SUMS, *(text for _, text in indexes)):
        _in_transaction(connection, statement, {})
    connection.execute(f"INSERT INTO ledger_state VALUES ('{store.OPEN_FROM}', {requests_count + 1})")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _in_transaction(connection: Connection, statement: str, values: dict[str, int]) -> None:
    connection.execute("BEGIN")
    connection.execute(statement, values)
    connection.execute("COMMIT")


def _beginnings() -> list[Write]:
    writes: list[Write] = [store.price_write(PRICE, 1, effective_at_ms=0), Write(store.INSERT_EPOCH, (1, "gw", 1))]
    batch = Batch()
    for number in range(ORGANIZATIONS):
        organization_id = f"org_{number:04}"
        writes.append(Write(store.INSERT_ORGANIZATION, (organization_id, organization_id, 1)))
        writes.append(_budget("organization", organization_id, organization_id, "month"))
        grant = (f"gnt_{organization_id}", organization_id, CREDIT_NANOS, None, None, 1, None)
        writes.append(Write(admin_store.INSERT_GRANT, grant))
        writes.append(Write(admin_store.INSERT_LOT, (f"gnt_{organization_id}", CREDIT_NANOS)))
        batch.move([TransferRow("grant", f"gnt_{organization_id}", 0, organization_id, None, CREDIT_NANOS, None, 1)])
        for project in range(PROJECTS_EACH):
            project_id = f"prj_{number:04}_{project}"
            writes.append(Write(store.INSERT_PROJECT, (project_id, organization_id, project_id, 1)))
            writes.append(_budget("project", project_id, organization_id, "day"))
        for key in range(number * KEYS_EACH, (number + 1) * KEYS_EACH):
            project_id = f"prj_{number:04}_{key % PROJECTS_EACH}"
            row = KeyRow(f"key_{key:04}", organization_id, project_id, "k", key.to_bytes(32), "", None, 1, None, None)
            writes.append(Write(store.INSERT_KEY, tuple(row)))
    return [*writes, *batch.writes()]


def _budget(scope: str, scope_id: str, organization_id: str, period: str) -> Write:
    row = (f"bud_{scope_id}", organization_id, scope, scope_id, 2**62, period, None, 1, "UTC", ())
    return admin_store.budget_write(BudgetTerms._make(row), 1)


def main() -> int:
    """Fill the database that is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger_load")
    parser.add_argument("database", type=Path)
    parser.add_argument("requests", type=int)
    options = parser.parse_args()
    fill(options.database, options.requests)
    return 0


if __name__ == "__main__":
    sys.exit(main())

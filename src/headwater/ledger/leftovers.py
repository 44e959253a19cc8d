"""Rows that are no use after a time and are nobody's proof: they are deleted, a bounded number in one transaction."""

from typing import NamedTuple

from headwater.ledger.store import Statement


class Leftover(NamedTuple):
    """A kind of such rows. counting, delete: SQL that takes the moment kept_ms ago; delete ends rows_at_once of them at most."""

    name: str
    kept_ms: int
    rows_at_once: int
    counting: str
    delete: Statement


def _leftover(name: str, rank: int, *, key: str, found: str, kept_ms: int = 0, rows_at_once: int = 200) -> Leftover:
    """found: FROM and WHERE of the rows; key: the columns of their table's primary key, which that table is named by."""
    table, columns = key.split(".")
    delete = f"DELETE FROM {table} WHERE ({columns}) IN (SELECT {columns} {found} LIMIT {rows_at_once})"  # noqa: S608 all ours
    return Leftover(name, kept_ms, rows_at_once, f"SELECT count(*) {found}", Statement(f"delete_{name}", rank, delete))


LEFTOVERS = (
    _leftover(
        "answers",  # of idempotency keys whose time is over
        210,
        key="idempotency_keys.project_id, route, idempotency_key",
        found="FROM idempotency_keys WHERE expires_at_ms <= ?",
        rows_at_once=50,  # an answer may be hundreds of pages
    ),
    _leftover(
        "notices",  # delivered or given up
        211,
        key="notices.id",
        found="FROM notices WHERE next_try_at_ms IS NULL AND coalesce(delivered_at_ms, created_at_ms) <= ?",
        kept_ms=30 * 86_400_000,
    ),
    _leftover(
        "marks",  # of requests that are settled
        212,
        key="marks.reservation_id",
        found="FROM marks JOIN resolutions USING (reservation_id) WHERE resolved_at_ms <= ?",
    ),
)

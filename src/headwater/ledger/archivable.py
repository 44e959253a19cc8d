"""Which requests may leave the log, with all their rows: read in short transactions on a connection that can't write."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwater.ledger.store import Connection, open_reader

PAGE_COUNT = 500
"""Requests looked at in one transaction."""


def eligible(database: Path, cutoff_ms: int) -> Iterator[dict[str, Any]]:
    """Requests that were over before the cutoff, as lines: first those with a reservation, by its id, then the others.

    Reservations leave as a prefix: the first one that is open or too young ends it. The newest resolution and transfer
    stay whatever their age, so that ids go on from there.
    """
    with contextlib.closing(open_reader(database)) as connection:
        newest = _one(connection, "SELECT max(id) FROM resolutions"), _one(connection, "SELECT max(id) FROM transfers")
        for request in _reserved(connection):
            if not _may_leave(request, cutoff_ms, *newest):
                break
            yield request
        yield from _unreserved(connection, cutoff_ms)


def _may_leave(request: dict[str, Any], cutoff_ms: int, newest_resolution: int, newest_transfer: int) -> bool:
    held, resolution, record, moved = (request[name] for name in ("reservation", "resolution", "record", "transfers"))
    if resolution is None or resolution["id"] == newest_resolution:
        return False
    if any(row["id"] == newest_transfer for row in moved):
        return False
    times_ms = [held["expires_at_ms"], resolution["resolved_at_ms"], *(row["created_at_ms"] for row in moved)]
    if record is not None:
        times_ms.append(record["received_at_ms"] + record["duration_ms"])
    return bool(max(times_ms) < cutoff_ms)


def _reserved(connection: Connection) -> Iterator[dict[str, Any]]:
    after_id = 0
    while True:
        with _moment(connection):
            held = _rows(
                connection, "SELECT * FROM reservations WHERE id > ? ORDER BY id LIMIT ?", after_id, PAGE_COUNT
            )
            if not held:
                return
            ids = json.dumps([row["request_id"] for row in held])
            resolutions = _rows(
                connection,
                "SELECT * FROM resolutions WHERE reservation_id BETWEEN ? AND ?",
                held[0]["id"],
                held[-1]["id"],
            )
            records = _rows(connection, f"SELECT * FROM usage_records WHERE request_id IN {_LISTED}", ids)  # noqa: S608
            attempts, transfers = _attempts(connection, ids), _transfers(connection, ids)
        resolved = {row["reservation_id"]: row for row in resolutions}
        recorded = {row["request_id"]: row for row in records}
        for row in held:
            request_id = row["request_id"]
            yield {
                "request_id": request_id,
                "record": recorded.get(request_id),
                "attempts": attempts.get(request_id, []),
                "reservation": row,
                "resolution": resolved.get(row["id"]),
                "transfers": transfers.get(request_id, []),
            }
        after_id = held[-1]["id"]


def _unreserved(connection: Connection, cutoff_ms: int) -> Iterator[dict[str, Any]]:
    """Records of requests that were refused, or are older than the ledger."""
    place = (-1, "")
    while True:
        with _moment(connection):
            # Each page is bounded by what it looks at, not by what it finds.
            page = _rows(
                connection,
                "SELECT received_at_ms, request_id, duration_ms,"
                " EXISTS (SELECT 1 FROM reservations r WHERE r.request_id = u.request_id) AS is_reserved"
                " FROM usage_records u WHERE (received_at_ms, request_id) > (?, ?) AND received_at_ms < ?"
                " ORDER BY received_at_ms, request_id LIMIT ?",
                *place,
                cutoff_ms,
                PAGE_COUNT,
            )
            if not page:
                return
            wanted = [
                row["request_id"]
                for row in page
                if not row["is_reserved"] and row["received_at_ms"] + row["duration_ms"] < cutoff_ms
            ]
            ids = json.dumps(wanted)
            records = _rows(connection, f"SELECT * FROM usage_records WHERE request_id IN {_LISTED}", ids)  # noqa: S608
            attempts = _attempts(connection, ids)
        recorded = {row["request_id"]: row for row in records}
        for request_id in wanted:
            yield {
                "request_id": request_id,
                "record": recorded[request_id],
                "attempts": attempts.get(request_id, []),
                "reservation": None,
                "resolution": None,
                "transfers": [],
            }
        place = (page[-1]["received_at_ms"], page[-1]["request_id"])


_LISTED = "(SELECT value FROM json_each(?))"


def _attempts(connection: Connection, ids: str) -> dict[str, list[dict[str, Any]]]:
    text = f"SELECT * FROM attempts WHERE request_id IN {_LISTED} ORDER BY id"  # noqa: S608
    return _grouped(_rows(connection, text, ids), "request_id")


def _transfers(connection: Connection, ids: str) -> dict[str, list[dict[str, Any]]]:
    """What moved for a request beside its reservation; credit that expired with it stays in the log."""
    text = f"SELECT * FROM transfers WHERE subject IN {_LISTED} AND kind IN ('absorb', 'late_post') ORDER BY id"  # noqa: S608
    return _grouped(_rows(connection, text, ids), "subject")


def _grouped(rows: list[dict[str, Any]], column: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


@contextlib.contextmanager
def _moment(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    yield
    connection.execute("COMMIT")


def _one(connection: Connection, text: str) -> int:
    """A number, 0 for none."""
    return int(connection.execute(text).fetchone()[0] or 0)


def _rows(connection: Connection, text: str, *values: object) -> list[dict[str, Any]]:
    cursor = connection.execute(text, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]

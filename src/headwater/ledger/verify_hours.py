"""The records themselves, in the order they came in: the hourly sums they add up to, and those that never held money."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from headwater.ledger.hours import MS_PER_HOUR
from headwater.ledger.store import Connection
from headwater.ledger.verify_requests import Call, Record, check_record
from headwater.ledger.verify_result import Findings
from headwater.ledger.verify_sums import Sums
from headwater.money import Price
from headwater.usage import NO_USAGE, Usage

HOUR_COLUMNS = (
    *("requests_count", "ok_count", "unpriced_count"),
    *("uncached_input", "cache_read", "cache_write", "output", "reasoning", "cache_write_1h"),
    *("cost_nanos", "upstream_cost_nanos", "organization_id", "project_id"),
)

_SLICE_END = (
    "SELECT received_at_ms FROM usage_records WHERE received_at_ms >= ? ORDER BY received_at_ms LIMIT 1 OFFSET ?"
)
_SUMS = (
    "SELECT (received_at_ms + duration_ms) / 3600000, key_id, model, organization_id, project_id,"
    " count(*), sum(outcome = 'ok'), sum(cost_nanos IS NULL), sum(uncached_input), sum(cache_read), sum(cache_write),"
    " sum(output), sum(reasoning), sum(cache_write_1h), sum(coalesce(cost_nanos, 0)),"
    " sum((SELECT coalesce(sum(a.cost_nanos), 0) FROM attempts a WHERE a.request_id = u.request_id))"
    " FROM usage_records u WHERE received_at_ms >= ? AND received_at_ms < ? GROUP BY 1, 2, 3, 4, 5"
)
_STORED = f"SELECT key_id, model, {', '.join(HOUR_COLUMNS)} FROM usage_hours WHERE hour = ?"  # noqa: S608 names are ours
_STORED_NEXT = "SELECT min(hour) FROM usage_hours WHERE hour >= ?"
_UNHELD = (
    "SELECT request_id, organization_id, project_id, key_id, model, is_stream, outcome, price_id, cost_nanos,"
    " service_tier, received_at_ms, uncached_input, cache_read, cache_write, output, reasoning, cache_write_1h"
    " FROM usage_records u WHERE received_at_ms >= ? AND received_at_ms < ?"
    " AND NOT EXISTS (SELECT 1 FROM reservations r WHERE r.request_id = u.request_id) ORDER BY received_at_ms"
)
_CALLS = (
    "SELECT request_id, id, target, cost_id, cost_nanos, uncached_input, cache_read, cache_write, output, reasoning,"
    " cache_write_1h FROM attempts WHERE request_id = ? ORDER BY id"
)


def usage_of(columns: tuple[int, ...]) -> Usage:
    """Tokens of the six columns, in the order of `verify_requests.TOKENS`."""
    uncached, read, write, output, reasoning, write_1h = columns
    return Usage(
        uncached_input=uncached,
        cache_read=read,
        cache_write=write,
        output=output,
        reasoning=reasoning,
        cache_write_1h=write_1h,
    )


class HourCheck:
    """Goes over all usage records once, in slices, by the moment they were received."""

    def __init__(
        self, connection: Connection, prices: Mapping[str, Price], sums: Sums, findings: Findings, *, chunk_count: int
    ) -> None:
        self._connection = connection
        self._prices = prices
        self._sums = sums
        self._findings = findings
        self._chunk_count = chunk_count
        self._hours: defaultdict[int, dict[tuple[str, ...], list[Any]]] = defaultdict(dict)
        self.records_count = 0
        self.hours_count = 0

    def run(
        self, *, from_hour: int, until_hour: int, ledger_began_ms: int | None, progress: Callable[[int], None]
    ) -> None:
        """Compare the hourly sums of [from_hour, until_hour), and every record that has no reservation.

        ledger_began_ms: records received before had no reservations yet; None: all of them. progress: told the records
        gone over since the last call.
        """
        next_hour = from_hour
        start = 0
        while True:
            row = self._connection.execute(_SLICE_END, (start, self._chunk_count)).fetchone()
            end = 2**62 if row is None else max(row[0], start + 1)
            before = self.records_count
            self._add_sums(start, end)
            self._check_unheld(start, end, ledger_began_ms)
            progress(self.records_count - before)
            # What is still to come was received later, so it ended later too: earlier hours are complete.
            complete = until_hour if row is None else min(until_hour, end // MS_PER_HOUR)
            next_hour = self._compare(next_hour, complete)
            if row is None:
                return
            start = end

    def _add_sums(self, start: int, end: int) -> None:
        for hour, *key_and_sums in self._connection.execute(_SUMS, (start, end)).fetchall():
            key, sums = tuple(key_and_sums[:4]), key_and_sums[4:]
            self.records_count += sums[0]
            known = self._hours[hour].get(key)
            self._hours[hour][key] = sums if known is None else [a + b for a, b in zip(known, sums, strict=True)]

    def _compare(self, next_hour: int, complete: int) -> int:
        """Compare the hours that are complete and not compared yet; returns the first that isn't."""
        for hour in [hour for hour in self._hours if hour < next_hour]:
            del self._hours[hour]
        while True:
            row = self._connection.execute(_STORED_NEXT, (next_hour,)).fetchone()
            found = [hour for hour in (row[0], *self._hours) if hour is not None and next_hour <= hour < complete]
            if not found:
                return max(next_hour, complete)
            self._compare_one(min(found))
            next_hour = min(found) + 1

    def _compare_one(self, hour: int) -> None:
        recomputed = {
            (key_id, model): [*sums, organization_id, project_id]
            for (key_id, model, organization_id, project_id), sums in self._hours.pop(hour, {}).items()
        }
        stored = {(row[0], row[1]): list(row[2:]) for row in self._connection.execute(_STORED, (hour,)).fetchall()}
        nothing = [None] * len(HOUR_COLUMNS)
        for key in sorted(stored.keys() | recomputed.keys()):
            self.hours_count += 1
            have, want = stored.get(key, nothing), recomputed.get(key, nothing)
            if have != want:
                differing = (at for at in range(len(HOUR_COLUMNS)) if have[at] != want[at])
                at = next(differing)
                self._findings.add("usage_hours", f"{hour} {key[0]} {key[1]}", HOUR_COLUMNS[at], have[at], want[at])

    def _check_unheld(self, start: int, end: int, ledger_began_ms: int | None) -> None:
        """A record without a reservation used nothing, or is older than the ledger."""
        for row in self._connection.execute(_UNHELD, (start, end)).fetchall():
            record = Record._make((*row[:10], usage_of(row[11:])))
            calls = [
                Call._make((*call[1:5], usage_of(call[5:])))
                for call in self._connection.execute(_CALLS, (record.request_id,)).fetchall()
            ]
            cost = check_record(record, calls, self._prices, self._findings)
            for call in calls:
                if call.cost_nanos:
                    self._sums.add("balance", f"expense/{call.target}", call.cost_nanos)
                    self._sums.add("balance", f"payable/{call.target}", -call.cost_nanos)
            if ledger_began_ms is None or row[10] < ledger_began_ms:
                if record.cost_nanos != cost:
                    self._findings.add("usage_records", record.request_id, "cost_nanos", record.cost_nanos, cost)
            elif record.usage != NO_USAGE or record.cost_nanos:
                self._findings.add("usage_records", record.request_id, "reservation", None, "one")

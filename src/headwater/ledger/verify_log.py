"""One pass over the log of one database: every row compared, every cached sum recomputed.

First one short read transaction: how far the log goes, what is open, and all cached sums. Then the log up to there, in
chunks, each a statement of its own. `verify.py` says why that is exact.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import msgspec

from headwater.ledger import store
from headwater.ledger.hours import ARCHIVED_TO, MS_PER_HOUR
from headwater.ledger.store import Connection, DatabaseError
from headwater.ledger.verify_guards import check_guards
from headwater.ledger.verify_hours import HourCheck, usage_of
from headwater.ledger.verify_requests import Call, Ended, Record, check_ended, lots_spent
from headwater.ledger.verify_result import Findings
from headwater.ledger.verify_sums import TABLES, Sums

SUMS_WAITING_MAX = 50_000

Progress = Callable[[int, int], None]
"""Told (rows gone over, rows in all, about)."""
Pairs = tuple[tuple[str, int], ...]

_PENDING = (
    "SELECT r.request_id, s.id FROM resolutions s JOIN reservations r ON r.id = s.reservation_id"
    " WHERE s.id > ? AND s.id <= ? AND s.kind = 'expire'"
    " AND NOT EXISTS (SELECT 1 FROM usage_records u WHERE u.request_id = r.request_id)"
)
_BOUNDS = (
    "SELECT (SELECT coalesce(max(id), 0) FROM resolutions), (SELECT coalesce(min(id), 1) - 1 FROM resolutions),"
    " (SELECT coalesce(max(id), 0) FROM transfers), (SELECT coalesce(max(id), 0) FROM reservations),"
    " (SELECT coalesce(max(id), 0) FROM epochs), (SELECT min(started_at_ms) FROM epochs)"
)
_ARCHIVED = "SELECT count(*), coalesce(sum(records_count), 0) FROM archives"
_OPEN = (
    "SELECT r.id, r.organization_id, r.amount_nanos, u.request_id FROM reservations r"
    " LEFT JOIN usage_records u ON u.request_id = r.request_id"
    " WHERE r.id >= ? AND NOT EXISTS (SELECT 1 FROM resolutions s WHERE s.reservation_id = r.id) ORDER BY r.id"
)
_UNRESOLVED = (
    "SELECT r.id FROM reservations r WHERE r.id > ? AND r.id <= ?"
    " AND NOT EXISTS (SELECT 1 FROM resolutions s WHERE s.reservation_id = r.id) ORDER BY r.id"
)
_ENDED = (
    "SELECT s.id, s.reservation_id, s.kind, s.charge_nanos, r.request_id, r.organization_id, r.project_id, r.key_id,"
    " r.model, r.price_id, r.amount_nanos, r.epoch, r.budgets, r.lots,"
    " u.request_id, u.organization_id, u.project_id, u.key_id, u.model, u.is_stream, u.outcome, u.price_id,"
    " u.cost_nanos, u.service_tier,"
    " u.uncached_input, u.cache_read, u.cache_write, u.output, u.reasoning, u.cache_write_1h"
    " FROM resolutions s LEFT JOIN reservations r ON r.id = s.reservation_id"
    " LEFT JOIN usage_records u ON u.request_id = r.request_id WHERE s.id > ? AND s.id <= ? ORDER BY s.id"
)
_CALLS = (
    "SELECT a.request_id, a.id, a.target, a.cost_id, a.cost_nanos,"
    " a.uncached_input, a.cache_read, a.cache_write, a.output, a.reasoning, a.cache_write_1h"
    " FROM resolutions s JOIN reservations r ON r.id = s.reservation_id JOIN attempts a ON a.request_id = r.request_id"
    " WHERE s.id > ? AND s.id <= ? ORDER BY a.id"
)
_BESIDE = (
    "SELECT t.subject, t.kind, sum(t.amount_nanos) FROM resolutions s JOIN reservations r ON r.id = s.reservation_id"
    " JOIN transfers t ON t.subject = r.request_id AND t.kind IN ('absorb', 'late_post')"
    " WHERE s.id > ? AND s.id <= ? GROUP BY 1, 2"
)
_TRANSFERS = (
    "SELECT id, kind, subject, part, organization_id, model, amount_nanos, note FROM transfers"
    " WHERE id > ? AND id <= ? ORDER BY id"
)
_OF_LAPSE = (
    "SELECT r.lots, s.charge_nanos FROM reservations r JOIN resolutions s ON s.reservation_id = r.id WHERE r.id = ?"
)
_OVER_LIMIT = (
    "SELECT b.id, s.name, s.nanos, b.limit_nanos, EXISTS (SELECT 1 FROM main.changes c WHERE c.object_id = b.id"
    " AND c.verb NOT LIKE 'create%') FROM temp.stored s JOIN main.budgets b ON b.id = substr(s.name, 1, instr(s.name, ' ') - 1)"
    " WHERE s.kind = 'budget' AND s.nanos > b.limit_nanos ORDER BY s.name"
)


class Archived(Exception):
    """Rows were moved out of the log while it was being read."""


class _Snapshot(NamedTuple):
    """How far the log goes, in one moment.

    pending: requests whose hold expired and that haven't ended yet. archived: files and records that left the log.
    from_hour: the first whose records are all there.
    """

    resolutions_to: int
    resolutions_after: int
    transfers_to: int
    reservations_to: int
    epoch: int
    ledger_began_ms: int | None
    archived: tuple[int, int]
    from_hour: int
    open_from: int
    pending: frozenset[str]


class Verification:
    """One pass over one database."""

    def __init__(self, connection: Connection, *, now_ms: int, chunk_count: int, progress: Progress) -> None:
        self._connection = connection
        self._now_ms = now_ms
        self._chunk_count = chunk_count
        self._progress = progress
        self._done = self._all = 0
        self._sums = Sums(connection)
        self.findings = Findings()
        self.notes: list[str] = []
        self.checked: defaultdict[str, int] = defaultdict(int)

    def run(self) -> None:
        """Everything, in the order in which differences are to be named: rows first, then sums, then guards."""
        connection = self._connection
        self._prices = {version.price.id: version.price for version in store.read_prices(connection)}
        snapshot = self._snapshot = self._take_snapshot()
        self._all = snapshot.reservations_to + 2 * (snapshot.resolutions_to - snapshot.resolutions_after)
        self._all += snapshot.transfers_to
        for after, to in self._chunks(snapshot.resolutions_after, snapshot.resolutions_to):
            self._check_resolutions(after, to)
        for after, to in self._chunks(0, snapshot.reservations_to):
            for (reservation_id,) in connection.execute(
                _UNRESOLVED, (after, min(to, snapshot.open_from - 1))
            ).fetchall():
                self.findings.add("reservations", reservation_id, "resolution", None, "one")
        for after, to in self._chunks(0, snapshot.transfers_to):
            self._check_transfers(after, to)
        try:
            self._check_hours()
        except DatabaseError as error:
            if not self.findings.count:  # a number that was made absurd is named by then, and no sum can hold it
                raise
            self.notes.append(f"the hourly sums could not be recomputed: {error}")
        if connection.execute(_ARCHIVED).fetchone() != snapshot.archived:
            raise Archived
        self._check_sums()
        self.checked["guards"] += check_guards(connection, self.findings)

    # -- the snapshot --------------------------------------------------------------------------------------------------

    def _take_snapshot(self) -> _Snapshot:
        """Bounds of the log, all cached sums and what is open: one short read transaction.

        Requests whose hold has expired and that are still running are looked for before it, so that within it only
        those few have to be looked at again.
        """
        connection = self._connection
        seen_to, after = connection.execute(_BOUNDS).fetchone()[:2]
        early: list[tuple[str, int]] = []
        for chunk_after, chunk_to in self._chunks(after, seen_to, is_counted=False):
            early += connection.execute(_PENDING, (chunk_after, chunk_to)).fetchall()
        connection.execute("BEGIN")
        try:
            to, after, transfers_to, reservations_to, epoch, began_ms = connection.execute(_BOUNDS).fetchone()
            archived = connection.execute(_ARCHIVED).fetchone()
            from_hour = store.read_state(connection, ARCHIVED_TO) or 0
            pending = {request_id for request_id, _ in connection.execute(_PENDING, (seen_to, to))}
            for _, resolution_id in early:
                found = connection.execute(_PENDING, (resolution_id - 1, resolution_id)).fetchall()
                pending |= {request_id for request_id, _ in found}
            open_from = store.read_state(connection, store.OPEN_FROM) or 1
            still_open = connection.execute(_OPEN, (open_from,)).fetchall()
            self._sums.take_stored()
        finally:
            connection.execute("COMMIT")
        for reservation_id, organization_id, amount_nanos, recorded in still_open:
            self.checked["open reservations"] += 1
            self._sums.add("balance", f"wallet/{organization_id}", -amount_nanos)
            self._sums.add("balance", f"held/{organization_id}", amount_nanos)
            if recorded is not None:
                self.findings.add("reservations", reservation_id, "resolution", None, f"of {recorded}")
        return _Snapshot(
            resolutions_to=to,
            resolutions_after=after,
            transfers_to=transfers_to,
            reservations_to=reservations_to,
            epoch=epoch,
            ledger_began_ms=began_ms,
            archived=archived,
            from_hour=from_hour,
            open_from=open_from,
            pending=frozenset(pending),
        )

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _check_resolutions(self, after: int, to: int) -> None:
        """Each ended request of a chunk, and what it adds to balances, caps and lots."""
        connection, sums = self._connection, self._sums
        calls: dict[str, list[Call]] = {}
        for request_id, *call in connection.execute(_CALLS, (after, to)).fetchall():
            calls.setdefault(request_id, []).append(Call._make((*call[:4], usage_of(tuple(call[4:])))))
        beside = {row[:2]: row[2] for row in connection.execute(_BESIDE, (after, to)).fetchall()}
        for row in connection.execute(_ENDED, (after, to)).fetchall():
            self.checked["resolutions"] += 1
            resolution_id, reservation_id, kind, charge_nanos, request_id = row[:5]
            if request_id is None:
                self.findings.add("resolutions", resolution_id, "reservation", None, f"reservation {reservation_id}")
                continue
            if charge_nanos > row[10]:
                self.findings.add("resolutions", resolution_id, "charge_nanos", charge_nanos, f"at most {row[10]}")
            is_pending = request_id in self._snapshot.pending
            late_nanos = 0 if is_pending else beside.get((request_id, "late_post"), 0)
            own_calls = calls.get(request_id, [])
            if is_pending or row[14] is None:
                if not is_pending or row[11] != self._snapshot.epoch:
                    self.findings.add("resolutions", resolution_id, "usage record", None, request_id)
            else:
                absorbed_nanos = beside.get((request_id, "absorb"), 0)
                ended = Ended._make((resolution_id, kind, charge_nanos, *row[4:11], absorbed_nanos, late_nanos))
                record = Record._make((*row[14:24], usage_of(row[24:])))
                check_ended(ended, record, own_calls, self._prices, self.findings)
                self.checked["attempts"] += len(own_calls)
                for call in own_calls:
                    if call.cost_nanos:
                        sums.add("balance", f"expense/{call.target}", call.cost_nanos)
                        sums.add("balance", f"payable/{call.target}", -call.cost_nanos)
            if charge_nanos:
                sums.add("balance", f"wallet/{row[5]}", -charge_nanos)
                sums.add("balance", f"revenue/{row[8]}", charge_nanos)
            if charge_nanos + late_nanos:
                self._spend(reservation_id, row[12], row[13], charge_nanos, late_nanos)
        sums.flush(above_count=SUMS_WAITING_MAX)

    def _spend(self, reservation_id: int, budgets: str | None, lots: str | None, charge_nanos: int, late: int) -> None:
        """Take a charge from the lots it was held from, and count it in the caps it was held under."""
        try:
            for grant_id, nanos in lots_spent(_lots(lots), charge_nanos):
                self._sums.add("lot", grant_id, -nanos)
            for budget_id, period in _budgets(budgets):
                self._sums.add("budget", f"{budget_id} {period}", charge_nanos + late)
        except msgspec.DecodeError as error:
            self.findings.add("reservations", reservation_id, "budgets and lots", f"{budgets} {lots}", str(error))

    def _check_transfers(self, after: int, to: int) -> None:
        """Each transfer of a chunk: its legs, and what it does to its grant's lot."""
        sums, findings = self._sums, self.findings
        for row in self._connection.execute(_TRANSFERS, (after, to)).fetchall():
            self.checked["transfers"] += 1
            transfer_id, kind, subject, part, organization_id, model, nanos, note = row
            if kind in ("absorb", "late_post"):
                gives = f"wallet/{organization_id}" if kind == "late_post" else f"absorbed/{organization_id}"
                sums.add("balance", gives, -nanos)
                sums.add("balance", f"revenue/{model}", nanos)
                for grant_id, spent in _lots(note) if kind == "late_post" else ():
                    sums.add("lot", grant_id, -spent)
                if not self._is_there("SELECT 1 FROM reservations WHERE request_id = ?", subject):
                    findings.add("transfers", transfer_id, "subject", subject, None)
            elif kind == "adjust":
                sums.add("balance", f"adjustments/{organization_id}", -nanos)
                sums.add("balance", f"wallet/{organization_id}", nanos)
            else:
                sign = 1 if kind == "grant" else -1
                sums.add("balance", f"grants/{organization_id}", -sign * nanos)
                sums.add("balance", f"wallet/{organization_id}", sign * nanos)
                sums.add("lot", subject, sign * nanos)
                self._check_grant(transfer_id, kind, subject, part, organization_id, nanos)
        sums.flush(above_count=SUMS_WAITING_MAX)

    def _check_grant(self, transfer_id: int, kind: str, grant_id: str, part: int, owner: str, nanos: int) -> None:
        """A grant is of its whole amount; what lapses with a reservation is what that one didn't spend."""
        row = self._connection.execute(
            "SELECT amount_nanos, organization_id FROM grants WHERE id = ?", (grant_id,)
        ).fetchone()
        if row is None or row[1] != owner:
            self.findings.add("transfers", transfer_id, "organization_id", owner, None if row is None else row[1])
        elif kind == "grant" and row[0] != nanos:
            self.findings.add("transfers", transfer_id, "amount_nanos", nanos, row[0])
        elif part:
            of_lapse = self._connection.execute(_OF_LAPSE, (part,)).fetchone()
            if of_lapse is not None:
                lots = _lots(of_lapse[0])
                spent = sum(amount for lot, amount in lots_spent(lots, of_lapse[1]) if lot == grant_id)
                back = sum(amount for lot, amount in lots if lot == grant_id) - spent
                if back != nanos:
                    self.findings.add("transfers", transfer_id, "amount_nanos", nanos, back)

    def _is_there(self, sql: str, value: object) -> bool:
        return self._connection.execute(sql, (value,)).fetchone() is not None

    # -- sums ----------------------------------------------------------------------------------------------------------

    def _check_hours(self) -> None:
        snapshot = self._snapshot
        check = HourCheck(self._connection, self._prices, self._sums, self.findings, chunk_count=self._chunk_count)
        check.run(
            from_hour=snapshot.from_hour,
            until_hour=self._now_ms // MS_PER_HOUR - 1,
            ledger_began_ms=snapshot.ledger_began_ms,
            progress=self._tell,
        )
        self.checked["usage records"] += check.records_count
        self.checked["hourly sums"] += check.hours_count

    def _check_sums(self) -> None:
        for kind, name, stored, recomputed in self._sums.compare():
            table, column = TABLES[kind]
            self.findings.add(table, name, column, stored, recomputed)
        self.checked["sums"] += self._sums.count()
        total = self._sums.balances_total()
        if total:
            self.findings.add("balances", "all", "sum", total, 0)
        for budget_id, name, spent, limit, is_changed in self._connection.execute(_OVER_LIMIT).fetchall():
            if is_changed:
                self.notes.append(f"budget {name}: spent {spent}, above its limit of {limit}, which was changed")
            else:
                self.findings.add("budget_periods", name, "spent_nanos", spent, f"at most {limit} ({budget_id})")

    # -- chunks --------------------------------------------------------------------------------------------------------

    def _chunks(self, after: int, to: int, *, is_counted: bool = True) -> Iterator[tuple[int, int]]:
        """(after, to] in parts; each is counted as progress once it has been gone over."""
        while after < to:
            end = min(after + self._chunk_count, to)
            yield after, end
            if is_counted:
                self._tell(end - after)
            after = end

    def _tell(self, rows: int) -> None:
        self._done += rows
        self._progress(min(self._done, self._all), self._all)


@lru_cache(maxsize=4096)
def _lots(text: str | None) -> Pairs:
    """[[grant id, nanos], …] of a row. Raises msgspec.DecodeError."""
    return () if text is None else msgspec.json.decode(text, type=Pairs)


@lru_cache(maxsize=4096)
def _budgets(text: str | None) -> tuple[tuple[str, str], ...]:
    """[[budget id, period key], …] of a row. Raises msgspec.DecodeError."""
    return () if text is None else msgspec.json.decode(text, type=tuple[tuple[str, str], ...])

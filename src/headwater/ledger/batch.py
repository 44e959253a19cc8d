"""What one submission to the writer holds: rows of the log, and what they add to the cached sums, added up. Pure.

However many requests a batch settles, each account, cap, grant and hour it touches is written once.
"""

from collections.abc import Iterable

from headwater.ledger import store
from headwater.ledger.rows import Delta, MarkRow, ReservationRow, ResolutionRow, Settlement, TransferRow, UsageRow
from headwater.ledger.store import Rows, Statement, Write

MS_PER_HOUR = 3_600_000


class Batch:
    """Collects rows, then says what to write. `settlements_count`: how many of them are settlements."""

    def __init__(self) -> None:
        self._reservations: list[tuple[object, ...]] = []
        self._records: list[tuple[object, ...]] = []
        self._attempts: list[tuple[object, ...]] = []
        self._resolutions: list[tuple[object, ...]] = []
        self._others: dict[Statement, list[tuple[object, ...]]] = {}
        self._balances: dict[str, int] = {}
        self._wallets: dict[
            str, list[int]
        ] = {}  # of each organization: what its wallet, and what is held for it, gains
        self._revenue: dict[str, int] = {}
        self._lots: dict[tuple[str, ...], int] = {}
        self._budgets: dict[tuple[str, ...], int] = {}
        self._hours: dict[tuple[int, str, str], list[int]] = {}
        self._owners: dict[str, tuple[str, str]] = {}
        self.settlements_count = 0

    def reserve(self, row: ReservationRow) -> None:
        """Money is held for a request."""
        self._reservations.append(row)
        amount_nanos = row.amount_nanos
        if amount_nanos:
            wallet = self._wallets.setdefault(row.organization_id, [0, 0])
            wallet[0] -= amount_nanos
            wallet[1] += amount_nanos

    def mark(self, row: MarkRow) -> None:
        """A stream has come so far."""
        self._add(store.PUT_MARK, row)

    def settle(self, settlement: Settlement) -> None:
        """A request has ended."""
        record, attempts, held, resolution = settlement[:4]
        self._records.append(store.usage_row(record))
        upstream_nanos = 0
        for attempt in attempts:
            self._attempts.append(store.attempt_row(attempt))
            if attempt.cost_nanos:
                upstream_nanos += attempt.cost_nanos
                self._move(f"payable/{attempt.target}", f"expense/{attempt.target}", attempt.cost_nanos)
        if held is not None:
            if resolution is not None:
                self._resolutions.append(resolution)
                if held.amount_nanos:
                    self._release(held, resolution.charge_nanos)
            if settlement.has_marks:
                self._add(store.DELETE_MARK, (held.id,))
        if settlement.transfers or settlement.lots:
            self.move(settlement.transfers, settlement.lots)
        for key, nanos in settlement.budgets:
            self._budgets[key] = self._budgets.get(key, 0) + nanos
        if settlement.answer is not None:
            self._add(store.PUT_ANSWER, settlement.answer)
        for notice in settlement.notices:
            self._add(store.INSERT_NOTICE, notice)
        self._add_to_hour(record, upstream_nanos)
        self.settlements_count += 1

    def expire(
        self, held: ReservationRow, resolution: ResolutionRow, transfers: Iterable[TransferRow], lots: Iterable[Delta]
    ) -> None:
        """A reservation's time is over before its request has ended; what it held goes back, or lapses."""
        self._resolutions.append(resolution)
        self._release(held, 0)
        self.move(transfers, lots)

    def move(self, transfers: Iterable[TransferRow], lots: Iterable[Delta] = ()) -> None:
        """Money moves beside reservations."""
        for row in transfers:
            self._add(store.INSERT_TRANSFER, row)
            self._move(*transfer_accounts(row), row.amount_nanos)
        for key, nanos in lots:
            self._lots[key] = self._lots.get(key, 0) + nanos

    def set_state(self, name: str, value: int) -> None:
        """Remember a number of the ledger's own; the last one said counts."""
        self._others[store.PUT_STATE] = [row for row in self._others.get(store.PUT_STATE, ()) if row[0] != name] + [
            (name, value)
        ]

    def rows(self) -> list[Rows]:
        """Everything to be written, rows and sums."""
        for organization_id, (wallet_nanos, held_nanos) in self._wallets.items():
            self._gain(f"wallet/{organization_id}", wallet_nanos)
            self._gain(f"held/{organization_id}", held_nanos)
        for model, nanos in self._revenue.items():
            self._gain(f"revenue/{model}", nanos)
        self._wallets, self._revenue = {}, {}
        found = [
            Rows(store.INSERT_RESERVATION, self._reservations),
            Rows(store.INSERT_USAGE, self._records),
            Rows(store.INSERT_ATTEMPT, self._attempts),
            Rows(store.INSERT_RESOLUTION, self._resolutions),
            Rows(store.ADD_TO_BALANCE, [(key, nanos) for key, nanos in self._balances.items() if nanos]),
            Rows(store.ADD_TO_LOT, [(*key, nanos) for key, nanos in self._lots.items() if nanos]),
            Rows(store.ADD_TO_BUDGET, [(*key, nanos) for key, nanos in self._budgets.items() if nanos]),
            Rows(
                store.ADD_TO_HOUR,
                [(*key, *self._owners[key[1]], *sums) for key, sums in self._hours.items()],
            ),
        ]
        found += [Rows(statement, rows) for statement, rows in self._others.items()]
        return [one for one in found if one.rows]

    def writes(self) -> list[Write]:
        """The same, row by row."""
        return [Write(one.statement, row) for one in self.rows() for row in one.rows]

    def _add(self, statement: Statement, row: tuple[object, ...]) -> None:
        self._others.setdefault(statement, []).append(row)

    def _gain(self, account: str, nanos: int) -> None:
        self._balances[account] = self._balances.get(account, 0) + nanos

    def _move(self, gives: str, takes: str, nanos: int) -> None:
        self._gain(gives, -nanos)
        self._gain(takes, nanos)

    def _release(self, held: ReservationRow, charge_nanos: int) -> None:
        amount_nanos, model = held.amount_nanos, held.model
        wallet = self._wallets.setdefault(held.organization_id, [0, 0])
        wallet[0] += amount_nanos - charge_nanos
        wallet[1] -= amount_nanos
        if charge_nanos:
            self._revenue[model] = self._revenue.get(model, 0) + charge_nanos

    def _add_to_hour(self, record: UsageRow, upstream_nanos: int) -> None:
        usage, cost_nanos, key_id = record.usage, record.cost_nanos, record.key_id
        key = ((record.received_at_ms + record.duration_ms) // MS_PER_HOUR, key_id, record.model)
        sums = self._hours.get(key)
        if sums is None:
            sums = self._hours[key] = [0] * 11
            self._owners[key_id] = (record.organization_id, record.project_id)
        sums[0] += 1
        sums[1] += record.outcome == "ok"
        sums[2] += cost_nanos is None
        sums[3] += usage.uncached_input
        sums[4] += usage.cache_read
        sums[5] += usage.cache_write
        sums[6] += usage.output
        sums[7] += usage.reasoning
        sums[8] += usage.cache_write_1h
        sums[9] += cost_nanos or 0
        sums[10] += upstream_nanos


def transfer_accounts(row: TransferRow) -> tuple[str, str]:
    """The account that gives and the one that takes, as the view `entries` has them."""
    organization_id = row.organization_id
    match row.kind:
        case "grant":
            return f"grants/{organization_id}", f"wallet/{organization_id}"
        case "grant_expire" | "grant_revoke":
            return f"wallet/{organization_id}", f"grants/{organization_id}"
        case "adjust":
            return f"adjustments/{organization_id}", f"wallet/{organization_id}"
        case "absorb":
            return f"absorbed/{organization_id}", f"revenue/{row.model}"
        case "late_post":
            return f"wallet/{organization_id}", f"revenue/{row.model}"


def settlement_writes(settlement: Settlement) -> list[Write]:
    """Everything one settlement writes, when it is written alone."""
    batch = Batch()
    batch.settle(settlement)
    return batch.writes()

"""A small till for tests: reserves, settles and moves money as the gateway does, with the product's book, batch and writer.

Its clock is turned by hand; ids are counted, so that two builds of the same books are the same.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headwater.ledger import admin_store, store
from headwater.ledger.admin_store import ChangeRow, GrantRow
from headwater.ledger.batch import Batch
from headwater.ledger.book import Book, Hold
from headwater.ledger.caps import Cap
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.recovery import recover
from headwater.ledger.rows import (
    AttemptRow,
    Delta,
    KeyRow,
    MarkRow,
    ReservationRow,
    ResolutionRow,
    Settlement,
    TransferKind,
    TransferRow,
    UsageRow,
)
from headwater.ledger.store import Write, open_reader, open_writer
from headwater.ledger.wallet import Lot
from headwater.ledger.writer import LedgerWriter
from headwater.money import Price, Units, calls_cost_nanos, cost_nanos
from headwater.usage import NO_USAGE, Outcome, Usage

WAIT_S = 20.0
TTL_MS = 600_000
UNDELIVERED: tuple[Outcome, ...] = ("upstream_error", "timeout", "rejected")


class Held:
    """A request under way."""

    def __init__(self, hold: Hold, row: ReservationRow, price: Price | None) -> None:
        self.hold = hold
        self.row = row
        self.price = price


class Till:
    """The books of one database, open. Use as a context manager."""

    def __init__(self, database: Path, *, now_ms: int, epoch: int = 1) -> None:
        self.database = database
        self.now_ms = now_ms
        self.epoch = epoch
        self.book = Book()
        self._writer = LedgerWriter(open_writer(database), on_fatal=lambda _: None)
        self._numbers = 0

    def __enter__(self) -> Self:
        self._writer.start()
        self.write([Write(store.INSERT_EPOCH, (self.epoch, "test", self.now_ms))])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._writer.close()

    def write(self, writes: list[Write]) -> None:
        """Write rows in one transaction and wait for it."""
        self._writer.submit(writes).result(WAIT_S)

    def number(self) -> int:
        """The next of a count that everything here is named by."""
        self._numbers += 1
        return self._numbers

    # -- what there is -------------------------------------------------------------------------------------------------

    def organization(self, organization_id: str, *, key_id: str, is_prepaid: bool = False, is_new: bool = True) -> None:
        """An organization with one project (prj_…) and one key."""
        suffix = organization_id.removeprefix("org_")
        if is_new:
            key = KeyRow(
                key_id, organization_id, f"prj_{suffix}", key_id, _hash(key_id), "hw-…", None, 1_000, None, None
            )
            self.write(
                [
                    Write(store.INSERT_ORGANIZATION, (organization_id, suffix, 1_000)),
                    Write(store.INSERT_PROJECT, (f"prj_{suffix}", organization_id, "default", 1_000)),
                    Write(store.INSERT_KEY, tuple(key)),
                    Write(admin_store.UPDATE_ORGANIZATION, (organization_id, suffix, None, is_prepaid)),
                ]
            )
        self.book.set_organization(organization_id, is_prepaid=is_prepaid)

    def budget(self, terms: BudgetTerms) -> None:
        """A cap; those of keys are loaded at once."""
        row = (*terms._replace(thresholds="[]"), self.now_ms, None)  # type: ignore[arg-type]
        self.write([Write(admin_store.INSERT_BUDGET, row)])
        if terms.scope == "key":
            self.book.load_key(terms.scope_id, [Cap(terms)], self.now_ms)
        else:
            self.book.set_budget(terms)

    def lower(self, terms: BudgetTerms) -> None:
        """An operator changes a cap's limit."""
        change = ChangeRow(self.now_ms, "budget", terms.id, "update", "{}")
        self.write(
            [
                Write(admin_store.UPDATE_BUDGET, (terms.id, terms.limit_nanos, "[]")),
                Write(admin_store.INSERT_CHANGE, tuple(change)),
            ]
        )
        self.book.set_budget(terms)

    def key(self, key_id: str) -> None:
        """A key without caps is used."""
        self.book.load_key(key_id, [], self.now_ms)

    def grant(self, grant_id: str, organization_id: str, nanos: int, *, expires_at_ms: int | None = None) -> None:
        """Credit."""
        grant = GrantRow(grant_id, organization_id, nanos, expires_at_ms, None, self.now_ms, None, nanos)
        batch = Batch()
        batch.move([self._transfer("grant", grant_id, organization_id, nanos)])
        rows = [Write(admin_store.INSERT_GRANT, tuple(grant[:-1])), Write(admin_store.INSERT_LOT, (grant_id, nanos))]
        self.write([*rows, *batch.writes()])
        self.book.add_lot(Lot(grant_id, organization_id, nanos, expires_at_ms))

    def revoke(self, grant_id: str, organization_id: str) -> None:
        """What is free of a grant is taken back."""
        free = self.book.revoke_lot(organization_id, grant_id)
        batch = Batch()
        if free:
            moved = self._transfer("grant_revoke", grant_id, organization_id, free)
            batch.move([moved], [Delta((grant_id,), -free)])
        self.write([Write(admin_store.REVOKE_GRANT, (grant_id, self.now_ms)), *batch.writes()])

    def adjust(self, organization_id: str, nanos: int) -> None:
        """A correction by hand."""
        batch = Batch()
        batch.move([self._transfer("adjust", f"adj_{self.number()}", organization_id, nanos)])
        self.write(batch.writes())

    # -- requests ------------------------------------------------------------------------------------------------------

    def reserve(
        self,
        key_id: str,
        organization_id: str,
        *,
        model: str = "m",
        price: Price | None,
        amount_nanos: int,
        is_stream: bool = True,
        tags: tuple[str, ...] = (),
        **changes: Any,
    ) -> Held:
        """Hold money for a request. changes: fields of its row."""
        project_id = f"prj_{organization_id.removeprefix('org_')}"
        hold = self.book.reserve(
            organization_id=organization_id,
            project_id=project_id,
            key_id=key_id,
            tags=tags,
            amount_nanos=0 if price is None else amount_nanos,
            now_ms=self.now_ms,
        )
        row = ReservationRow(
            id=hold.id,
            request_id=f"req_{self.number():06d}",
            epoch=self.epoch,
            organization_id=organization_id,
            project_id=project_id,
            key_id=key_id,
            model=model,
            price_id=None if price is None else price.id,
            amount_nanos=hold.amount_nanos,
            budgets=hold.budgets_json,
            lots=hold.lots_json,
            client_request_id=None,
            dialect="openai_chat",
            service_tier="standard",
            is_stream=is_stream,
            choices_count=1,
            tags=" ".join(tags) or None,
            received_at_ms=self.now_ms,
            expires_at_ms=self.now_ms + TTL_MS,
        )._replace(**changes)
        batch = Batch()
        batch.reserve(row)
        self.write(batch.writes())
        return Held(hold, row, price)

    def mark(self, held: Held, marks_json: str) -> None:
        """A stream has come so far."""
        batch = Batch()
        batch.mark(MarkRow(held.row.id, marks_json, self.now_ms))
        self.write(batch.writes())

    def expire(self, held: Held) -> None:
        """The hold's time is over."""
        settled = self.book.expire(held.hold, self.now_ms)
        batch = Batch()
        row = ResolutionRow(held.row.id, "expire", 0, self.now_ms)
        batch.expire(held.row, row, settled.transfers, settled.lots)
        self.write(batch.writes())

    def settle(
        self,
        held: Held,
        *usages: Usage,
        outcome: Outcome = "ok",
        upstream_cost: Price | None = None,
        target: str | None = None,
        **changes: Any,
    ) -> UsageRow:
        """End a request; one attempt for each usage. changes: fields of its record."""
        row, price = held.row, held.price
        is_void = not usages or (not row.is_stream and outcome in UNDELIVERED)
        cost = 0
        if price is not None and not is_void:
            units = Units(requests=int(any(usage != NO_USAGE for usage in usages)))
            cost = calls_cost_nanos(usages, price, service_tier=row.service_tier, units=units)
        settled = self.book.settle(held.hold, cost, self.now_ms)
        flags = ["unpriced"] if price is None else []
        transfers = list(settled.transfers)
        if settled.is_late:
            flags.append("late")
            if settled.charge_nanos:
                transfers.append(self._beside("late_post", row, settled.charge_nanos, settled.late_lots_json))
        if settled.absorbed_nanos:
            flags.append("absorbed")
            transfers.append(self._beside("absorb", row, settled.absorbed_nanos, None))
        kind = "void" if is_void and not settled.absorbed_nanos else "post"
        record = UsageRow(
            request_id=row.request_id,
            client_request_id=None,
            organization_id=row.organization_id,
            project_id=row.project_id,
            key_id=row.key_id,
            dialect=row.dialect,
            model=row.model,
            is_stream=bool(row.is_stream),
            choices_count=row.choices_count,
            outcome=outcome,
            error_code=None if outcome == "ok" else outcome,
            usage_source="reported",
            usage=sum(usages, NO_USAGE),
            price_id=row.price_id,
            cost_nanos=None if price is None else settled.charge_nanos,
            received_at_ms=row.received_at_ms,
            queue_ms=0,
            ttft_ms=1,
            duration_ms=self.now_ms - row.received_at_ms,
            service_tier=row.service_tier,
            tags=row.tags,
            flags=" ".join(flags),
        )._replace(**changes)
        attempts = tuple(
            self._attempt(row, choice, usage, outcome, upstream_cost, target or row.model)
            for choice, usage in enumerate(usages)
        )
        resolution = None if settled.is_late else ResolutionRow(row.id, kind, settled.charge_nanos, self.now_ms)  # type: ignore[arg-type]
        batch = Batch()
        batch.settle(
            Settlement(
                record, attempts, row, resolution, tuple(transfers), settled.lots, settled.budgets, has_marks=True
            )
        )
        self.write(batch.writes())
        return record

    def sweep_lots(self) -> None:
        """Credit whose time is over lapses."""
        lapsed = self.book.expire_lots(self.now_ms)
        batch = Batch()
        batch.move(lapsed, [Delta((row.subject,), -row.amount_nanos) for row in lapsed])
        self.write(batch.writes())

    def remember_open(self) -> None:
        """Write from which id on reservations may be open."""
        batch = Batch()
        batch.set_state(store.OPEN_FROM, self.book.oldest_open())
        self.write(batch.writes())

    def recover(self) -> None:
        """What the next start does about what is open."""
        reader = open_reader(self.database)
        recover(reader, self._writer, now_ms=self.now_ms)
        reader.close()

    def _attempt(
        self, row: ReservationRow, choice: int, usage: Usage, outcome: Outcome, cost: Price | None, target: str
    ) -> AttemptRow:
        taken = None
        if cost is not None:
            taken = 0 if usage == NO_USAGE else cost_nanos(usage, cost, units=Units(requests=1))
        return AttemptRow(
            id=f"att_{self.number():06d}",
            request_id=row.request_id,
            choice=choice,
            target=target,
            replica_id=None,
            outcome=outcome,
            error_code=None,
            usage_source="reported",
            usage=usage,
            started_at_ms=row.received_at_ms,
            duration_ms=self.now_ms - row.received_at_ms,
            cost_id=None if cost is None else cost.id,
            cost_nanos=taken,
        )

    def _transfer(self, kind: TransferKind, subject: str, organization_id: str, nanos: int) -> TransferRow:
        return TransferRow(kind, subject, 0, organization_id, None, nanos, None, self.now_ms)

    def _beside(self, kind: TransferKind, row: ReservationRow, nanos: int, note: str | None) -> TransferRow:
        return TransferRow(kind, row.request_id, 0, row.organization_id, row.model, nanos, note, self.now_ms)


def _hash(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")[:32]

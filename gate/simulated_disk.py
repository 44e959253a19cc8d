"""The disk of the simulation: what is durable, what still waits for a commit, and an audit that recomputes every sum.

`MemoryLog` stands for the writer and its database; `simulated_store.StoreLog` is the real one behind the same methods.
Both keep the order in which things were handed over; a crash leaves some first part of what waited, never a later one.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from gate.simulated_world import PRICE, World
from headwater.ledger.book import Book, Settled
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.price_list import PriceList
from headwater.ledger.recovery import last_settlement
from headwater.ledger.rows import Delta, MarkRow, ReservationRow, ResolutionRow, Settlement, TransferRow
from headwater.ledger.store import BudgetState, OpenReservation, PriceVersion
from headwater.ledger.wallet import Lot, LotState

MakeBook = Callable[[int], Book]
PRICES = PriceList([PriceVersion(PRICE, 0, "price", 0, "config", is_withdrawn=False)])


class Broken(Exception):
    """A promise was broken. metric: one of `gate.rows.ZERO`."""

    def __init__(self, metric: str, words: str) -> None:
        super().__init__(f"{metric}: {words}")
        self.metric = metric


class Ticket:
    """A wait for something to become durable. state: waiting, durable or failed; task: who waits."""

    __slots__ = ("state", "task")

    def __init__(self) -> None:
        self.state = "waiting"
        self.task: int | None = None


class Contents:
    """Everything durable: the log, its caches, and what an operator has decided."""

    def __init__(self, world: World) -> None:
        self.reservations: dict[int, ReservationRow] = {}
        self.resolutions: dict[int, ResolutionRow] = {}
        self.transfers: dict[tuple[str, str, int], TransferRow] = {}
        self.charged: dict[str, int | None] = {}  # by request: the cost on its usage record
        self.marks: dict[int, MarkRow] = {}
        self.lots = {grant.id: grant.amount_nanos for grant in world.grants}
        self.spent: Counter[tuple[str, str]] = Counter()
        self.revoked: set[str] = set()
        self.open_from = 1
        self.terms = {terms.id: terms for terms in world.budgets}

    def open_ids(self) -> list[int]:
        """The reservations that nothing has resolved."""
        return [one for one in self.reservations if one not in self.resolutions]

    def unended_ids(self, open_from: int = 0) -> list[int]:
        """The reservations from that id on whose requests have no usage record: open ones, and some that have expired."""
        return [
            one for one, row in self.reservations.items() if one >= open_from and row.request_id not in self.charged
        ]

    # -- what the writer's statements do, constraints included ---------------------------------------------------------

    def reserve(self, row: ReservationRow) -> None:
        """A reservation's row."""
        if row.id in self.reservations:
            raise Broken("doubled", f"reservation {row.id} was written before")
        self.reservations[row.id] = row

    def mark(self, row: MarkRow) -> None:
        """How far a stream has come."""
        self.marks[row.reservation_id] = row

    def settle(self, settlement: Settlement) -> None:
        """A settlement, whole."""
        record, held = settlement.record, settlement.reservation
        if record.request_id in self.charged:
            raise Broken("doubled", f"{record.request_id} has a usage record already")
        self.charged[record.request_id] = record.cost_nanos
        if settlement.resolution is not None:
            self._resolve(settlement.resolution)
        if held is not None:
            self.marks.pop(held.id, None)
        self.move(settlement.transfers, settlement.lots)
        for key, nanos in settlement.budgets:
            self.spent[key[0], key[1]] += nanos

    def expire(self, held: ReservationRow, resolution: ResolutionRow, settled: Settled) -> None:
        """A reservation's time is over."""
        del held
        self._resolve(resolution)
        self.move(settled.transfers, settled.lots)

    def lapse(self, transfers: list[TransferRow]) -> None:
        """Credit that nobody may spend any more."""
        self.move(transfers, [Delta((row.subject,), -row.amount_nanos) for row in transfers])

    def revoke(self, grant_id: str, transfers: list[TransferRow]) -> None:
        """A grant is taken back, and what was free of it lapses."""
        self.revoked.add(grant_id)
        self.lapse(transfers)

    def remember(self, open_from: int) -> None:
        """Below this id every reservation is resolved."""
        self.open_from = open_from

    def move(self, transfers: Iterable[TransferRow], lots: Iterable[Delta]) -> None:
        """Transfers, and what is taken from grants."""
        for row in transfers:
            identity = (row.subject, row.kind, row.part)
            if identity in self.transfers:
                raise Broken("doubled", f"transfer {identity} was written before")
            self.transfers[identity] = row
        for (grant_id,), nanos in lots:
            self.lots[grant_id] += nanos
            if self.lots[grant_id] < 0:
                raise Broken("overdrawn", f"{-self.lots[grant_id]} more than there was has gone from {grant_id}")

    def _resolve(self, row: ResolutionRow) -> None:
        held = self.reservations.get(row.reservation_id)
        if held is None:
            raise Broken("misstated", f"reservation {row.reservation_id} was resolved, but never written")
        if row.reservation_id in self.resolutions:
            raise Broken("doubled", f"reservation {row.reservation_id} was resolved twice")
        if not 0 <= row.charge_nanos <= held.amount_nanos:
            raise Broken(
                "misstated", f"reservation {row.reservation_id}: {row.charge_nanos} of {held.amount_nanos} charged"
            )
        self.resolutions[row.reservation_id] = row

    def has_lapsed(self, grant_id: str) -> bool:
        """Whether what was free of a grant has lapsed because its time was over."""
        return (grant_id, "grant_expire", 0) in self.transfers

    def lot_states(self, world: World) -> dict[str, LotState]:
        """Every grant with anything left, as the product reads it."""
        return {
            grant.id: LotState(
                grant.id,
                grant.organization_id,
                self.lots[grant.id],
                0 if self.has_lapsed(grant.id) else grant.expires_at_ms,
                grant.id in self.revoked,
            )
            for grant in world.grants
            if self.lots[grant.id]
        }

    def budgets_of(self, key_id: str) -> list[BudgetState]:
        """The budgets of a key, as they are read when it is first used."""
        return [
            BudgetState(terms, self._periods(terms))
            for terms in self.terms.values()
            if terms.scope == "key" and terms.scope_id == key_id
        ]

    def _periods(self, terms: BudgetTerms) -> dict[str, int]:
        return {key: nanos for (budget_id, key), nanos in self.spent.items() if budget_id == terms.id}

    def fill(self, book: Book, world: World) -> None:
        """Put everything into a new book, as `load_book` does from the database."""
        for organization_id, is_prepaid in world.is_prepaid.items():
            book.set_organization(organization_id, is_prepaid=is_prepaid)
        for state in self.lot_states(world).values():
            if not state.is_revoked:
                book.add_lot(Lot(state.grant_id, state.organization_id, state.remaining_nanos, state.expires_at_ms))
        for terms in self.terms.values():
            if terms.scope != "key":
                book.set_budget(terms, restored=self._periods(terms))


def first_part(share: float, count: int) -> int:
    """How many of those that wait are durable when a crash comes. share: from 0 to 1, 1 excluded."""
    return int(share * (count + 1))


class Log(Protocol):
    """What the simulated platform asks of its ledger. Everything handed over is written in that order."""

    def put(self, write: str, *what: object) -> Ticket:
        """Hand over: the name of a method of `Contents` and what it takes."""

    def decide(self, terms: BudgetTerms, *, is_archived: bool = False) -> None:
        """An operator's change of a budget; it is durable on return, since memory is told afterwards."""

    async def start(self, make: MakeBook) -> Book:
        """The book of the first start. make: an empty one, from the next id."""

    async def commit(self) -> list[Ticket]:
        """Make everything that waits durable; returns the tickets to be resolved."""

    async def fail(self) -> list[Ticket]:
        """Let the disk fail at the next commit; returns the tickets of all who are told so. Then comes `die`."""

    async def die(self, share: float, now_ms: int, make: MakeBook) -> tuple[Contents, Book]:
        """End as a crash would, with a first part of what waits durable; then start anew.

        Returns what was durable at the crash and the book of the new start.
        """

    def contents(self) -> Contents:
        """What is durable now."""

    async def close(self, now_ms: int) -> None:
        """The end. Raises Broken if the product's own check of its books finds a difference."""

    def read_key(self, key_id: str) -> list[BudgetState]:
        """The budgets of a key that are durable now."""


class MemoryLog:
    """A log that is a list, and a disk that is a few dictionaries."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._contents = Contents(world)
        self._waiting: list[tuple[str, tuple[object, ...], Ticket]] = []

    def put(self, write: str, *what: object) -> Ticket:
        """Hand over."""
        ticket = Ticket()
        self._waiting.append((write, what, ticket))
        return ticket

    def decide(self, terms: BudgetTerms, *, is_archived: bool = False) -> None:
        """Change a budget at once."""
        self._contents.terms[terms.id] = terms
        if is_archived:
            del self._contents.terms[terms.id]

    async def start(self, make: MakeBook) -> Book:
        """A book of the world as it was drawn."""
        book = make(1)
        self._contents.fill(book, self._world)
        return book

    async def commit(self) -> list[Ticket]:
        """Write everything that waits."""
        return self._write(len(self._waiting))

    async def fail(self) -> list[Ticket]:
        """Write nothing."""
        return [ticket for _, _, ticket in self._waiting]

    async def die(self, share: float, now_ms: int, make: MakeBook) -> tuple[Contents, Book]:
        """Write a part, lose the rest, resolve what is open, begin again."""
        self._write(first_part(share, len(self._waiting)))
        self._waiting = []
        contents = self._contents
        before = Contents(self._world)
        before.reservations, before.marks = dict(contents.reservations), dict(contents.marks)
        before.resolutions = dict(contents.resolutions)
        lots = contents.lot_states(self._world)
        for one in contents.unended_ids(contents.open_from):
            mark = contents.marks.get(one)
            found = OpenReservation(
                contents.reservations[one],
                None if mark is None else mark.attempts,
                is_expired=one in contents.resolutions,
            )
            contents.settle(last_settlement(found, PRICES, lots, now_ms))
        book = make(max(contents.reservations, default=0) + 1)
        contents.fill(book, self._world)
        return before, book

    def contents(self) -> Contents:
        """What is durable now; it changes with the next commit."""
        return self._contents

    def read_key(self, key_id: str) -> list[BudgetState]:
        """The budgets of a key that are durable now."""
        return self._contents.budgets_of(key_id)

    async def close(self, now_ms: int) -> None:
        """Nothing is left to do."""

    def _write(self, count: int) -> list[Ticket]:
        written, self._waiting = self._waiting[:count], self._waiting[count:]
        for write, what, _ in written:
            getattr(self._contents, write)(*what)
        return [ticket for _, _, ticket in written]


def audit(contents: Contents, world: World, limits_max: dict[str, int]) -> None:
    """Recompute what every cap has spent and every grant has left from the log alone. Raises Broken.

    limits_max: of each budget the highest limit it ever had.
    """
    spent: Counter[tuple[str, str]] = Counter()
    left = {grant.id: grant.amount_nanos for grant in world.grants}
    for one, row in contents.reservations.items():
        resolution = contents.resolutions.get(one)
        charge = 0 if resolution is None else resolution.charge_nanos
        late = contents.transfers.get((row.request_id, "late_post", 0))
        if late is not None:
            if charge or resolution is None or resolution.kind != "expire":
                raise Broken("doubled", f"{row.request_id} was charged when it ended and once more when it was late")
            charge = late.amount_nanos
        if charge > row.amount_nanos:
            raise Broken("misstated", f"{row.request_id} was charged {charge} of the {row.amount_nanos} reserved")
        if resolution is not None and contents.charged.get(row.request_id, charge) != charge:
            raise Broken(
                "misstated", f"{row.request_id}: its record says {contents.charged[row.request_id]}, the log {charge}"
            )
        for budget_id, period in json.loads(row.budgets or "[]"):
            spent[budget_id, period] += charge
        held: list[tuple[str, int]] = json.loads((row.lots if late is None else late.note) or "[]")
        for grant_id, nanos in held:
            part = min(nanos, charge)
            charge -= part
            left[grant_id] -= part
    for transfer in contents.transfers.values():
        if transfer.kind in ("grant_expire", "grant_revoke"):
            left[transfer.subject] -= transfer.amount_nanos
    if left != contents.lots:
        raise Broken("misstated", f"grants have {contents.lots} left, the log says {left}")
    if +spent != +contents.spent:
        raise Broken("misstated", f"budgets have spent {dict(contents.spent)}, the log says {dict(spent)}")
    for (budget_id, period), nanos in spent.items():
        if nanos > limits_max[budget_id]:
            raise Broken("overdrawn", f"{budget_id} has spent {nanos} of {limits_max[budget_id]} in {period}")

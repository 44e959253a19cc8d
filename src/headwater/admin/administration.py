"""Administration: what an operator may see and change, one verb at a time, whether the platform runs or not.

A verb reads, checks, writes in one transaction, and tells the running platform before it is confirmed to anybody.
"""

import json
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from headwater.admin.books import Books
from headwater.clock import Clock
from headwater.errors import OperatorError
from headwater.ledger import admin_store, store
from headwater.ledger.limit_store import LimitRow
from headwater.ledger.periods import BudgetTerms
from headwater.ledger.store import Connection, PriceKind, PriceVersion, Write
from headwater.ledger.writer import LedgerFailed

if TYPE_CHECKING:
    from headwater.admin.running import Operations

T = TypeVar("T")
W = TypeVar("W", bound=msgspec.Struct)
A = TypeVar("A")


class Live(Protocol):
    """What a running platform must be told. Each is called on its event loop; changes are on the disk by then.

    `revoke_grant` alone comes before the change is written: memory decides how much of a grant nobody holds.
    """

    def forget_key(self, key_hash: bytes) -> None:
        """A key was changed or revoked: the next request with it reads the store again."""

    def forget_project(self, project_id: str) -> None:
        """A project was changed."""

    def set_organization(self, organization_id: str, *, is_prepaid: bool, currency: str | None) -> None:
        """An organization exists, or its way of paying changed. currency: None is the platform's; it never changes."""

    def add_grant(self, grant_id: str, organization_id: str, amount_nanos: int, expires_at_ms: int | None) -> None:
        """Credit may be spent."""

    def revoke_grant(self, organization_id: str, grant_id: str) -> int:
        """Take back what nobody holds of a grant; returns how much that is."""

    def set_budget(self, terms: BudgetTerms) -> None:
        """A budget exists, or its limit or thresholds changed."""

    def drop_budget(self, terms: BudgetTerms) -> None:
        """A budget is archived."""

    def set_limit(self, limit: LimitRow) -> None:
        """A rate limit exists, or limits otherwise now."""

    def drop_limit(self, limit: LimitRow) -> None:
        """A rate limit is lifted."""

    def weigh_organization(self, organization_id: str, weight: int) -> None:
        """An organization has another weight."""

    def weigh_key(self, key_id: str, weight: int) -> None:
        """A key has another weight."""

    def set_prices(self, versions: Sequence[PriceVersion]) -> None:
        """Prices or costs changed; versions: all there are."""


@dataclass(frozen=True, slots=True)
class Verb(Generic[W, A]):
    """One thing an operator can do. `wish` and `answer` are what travels; `work` runs in a thread, one verb at a time."""

    name: str
    wish: type[W]
    answer: type[A]
    work: "Callable[[Administration, W], A]"


class Administration:
    """The one owner of changes to organizations, projects, keys, budgets, grants and prices."""

    def __init__(
        self,
        books: Books,
        *,
        clock: Clock,
        model_names: Sequence[str] = (),
        currency: str = "USD",
        priced_in_file: Collection[tuple[PriceKind, str]] = (),
        live: Live | None = None,
    ) -> None:
        """model_names: what can be called. priced_in_file: prices that belong to the configuration file.

        live: the running platform, reached from any thread; None when none runs on these books.
        """
        self.books = books
        self.model_names = model_names
        self.currency = currency
        self.priced_in_file = frozenset(priced_in_file)
        self.live = live
        self.operations: Operations | None = None
        """What only a running platform can do; None when none runs, or while it starts."""
        self._clock = clock
        self._one_at_a_time = threading.Lock()

    @property
    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return int(self._clock.now_s() * 1000)

    def perform(self, verb: Verb[W, A], wish: W) -> A:
        """Do it; what a verb has read is still so when it writes, since no other runs meanwhile. Raises OperatorError."""
        with self._one_at_a_time:
            return verb.work(self, wish)

    def read(self, look: Callable[[Connection], T]) -> T:
        """What a reader finds now."""
        return self.books.read(look)

    def write(self, writes: Sequence[Write]) -> None:
        """Write together, durably, or not at all. Raises OperatorError when the ledger is gone."""
        try:
            self.books.writer.submit(writes).result()
        except LedgerFailed as error:
            raise OperatorError(
                "The change could not be written; nothing was changed.",
                why=f"The ledger has failed: {error}.",
                now="Check the disk with `headwater doctor`.",
            ) from error

    def change(self, noun: str, object_id: str, verb: str, **detail: object) -> Write:
        """The row that tells later what was changed, to be written with the change itself."""
        row = admin_store.ChangeRow(self.now_ms, noun, object_id, verb, json.dumps(detail, ensure_ascii=False))
        return Write(admin_store.INSERT_CHANGE, row)

    def prices_changed(self) -> None:
        """Hand the running platform every version there is now."""
        if self.live is not None:
            self.live.set_prices(self.read(store.read_prices))

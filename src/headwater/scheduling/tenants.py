"""Who is waiting, by what they have been served: an account for each organization and key, and their order. Pure.

A counter only grows, so the heap's entries may be too small but never too large: the top is corrected when it is looked
at, and charging a tenant touches no heap at all.
"""

import heapq
from collections.abc import Generator
from typing import Generic, TypeVar

from headwater.scheduling.bands import BANDS_COUNT


class Account:
    """What one tenant of one level has been served. Owned by the queue.

    counter: virtual tokens, charged tokens divided by weight. credit: what was charged too much, in virtual tokens; the
    next charges use it up, so that the counter never falls. waiting: asks queued, by band. in_heap: by band.
    """

    __slots__ = ("counter", "credit", "id", "in_flight_count", "in_heap", "waiting", "weight")

    def __init__(self, account_id: str, weight: int) -> None:
        self.id = account_id
        self.weight = weight
        self.counter = 0.0
        self.credit = 0.0
        self.waiting = [0] * BANDS_COUNT
        self.in_heap = [False] * BANDS_COUNT
        self.in_flight_count = 0

    @property
    def is_idle(self) -> bool:
        """Whether it neither waits nor is being served."""
        return not self.in_flight_count and not any(self.waiting)

    @property
    def queued_count(self) -> int:
        """Asks queued in all bands."""
        return sum(self.waiting)

    def charge(self, tokens: float) -> None:
        """Count tokens served, credit first."""
        amount = tokens / self.weight
        if self.credit:
            used = min(self.credit, amount)
            self.credit -= used
            amount -= used
        self.counter += amount

    def lift(self, counter: float) -> None:
        """No banked credit: who comes back from idleness starts where the others are."""
        if self.counter < counter:
            self.counter = counter
            self.credit = 0.0


AccountT = TypeVar("AccountT", bound=Account)


class FairOrder(Generic[AccountT]):
    """The accounts that wait in one band, least counter first; among equals who came into the order last: it was idle."""

    __slots__ = ("_arrivals", "_band", "_heap", "weight")

    def __init__(self, band: int) -> None:
        """weight: of all accounts waiting here, in sum."""
        self._band = band
        self._heap: list[tuple[float, int, AccountT]] = []
        self._arrivals = 0
        self.weight = 0

    def enter(self, account: AccountT) -> None:
        """An account's first ask of this band waits now."""
        self.weight += account.weight
        if not account.in_heap[self._band]:
            account.in_heap[self._band] = True
            self._arrivals += 1
            heapq.heappush(self._heap, (account.counter, -self._arrivals, account))

    def leave(self, account: AccountT) -> None:
        """Its last ask of this band has gone; the heap forgets it when it comes to the top."""
        self.weight -= account.weight

    def least(self) -> AccountT | None:
        """Who is next, None when nobody waits."""
        heap, band = self._heap, self._band
        while heap:
            counter, arrival, account = heap[0]
            if not account.waiting[band]:
                heapq.heappop(heap)
                account.in_heap[band] = False
            elif account.counter > counter:
                heapq.heapreplace(heap, (account.counter, arrival, account))
            else:
                return account
        return None

    def accounts(self) -> list[AccountT]:
        """Those who wait, in no order."""
        return [account for _, _, account in self._heap if account.waiting[self._band]]

    def clean(self) -> None:
        """Forget those who don't wait."""
        band = self._band
        for _, _, account in self._heap:
            account.in_heap[band] = account.waiting[band] > 0
        self._heap = [entry for entry in self._heap if entry[2].in_heap[band]]
        heapq.heapify(self._heap)

    def walk(self) -> Generator[AccountT, None, None]:
        """All who wait, in order; close the iterator when it isn't used up. Whoever it has passed is not seen again."""
        aside: list[tuple[float, int, AccountT]] = []
        try:
            while (account := self.least()) is not None:
                aside.append(heapq.heappop(self._heap))
                yield account
        finally:
            for entry in aside:
                heapq.heappush(self._heap, entry)

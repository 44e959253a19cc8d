"""Other orders than the fair one: to compare with, and what a test of fairness must catch."""

from collections.abc import Callable
from typing import Any

from headwater.scheduling.bands import Band
from headwater.scheduling.fair_queue import Ask, FairQueue, PlacedT, Ticket

PER_DISPATCH = 1000.0


class FirstCome(FairQueue[PlacedT]):
    """First come, first served, whoever it is."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self._line: dict[int, Ticket] = {}

    def put(self, ask: Ask, waiter: Any = None) -> Ticket:
        """At the end of the one line."""
        ticket = super().put(ask, waiter)
        self._line[ticket.arrival] = ticket
        return ticket

    def take(
        self,
        place: Callable[[Ticket], PlacedT | None],
        warmth: Callable[[Ticket], int] | None = None,
    ) -> tuple[Ticket, PlacedT] | None:
        """The first of the line that can be placed."""
        for ticket in self._line.values():
            placed = place(ticket)
            if placed is not None:
                self._grant(ticket, placed, is_contended=False)
                return ticket, placed
        return None

    def evictable(self, ask: Ask) -> Ticket | None:
        """Nobody makes room for anybody."""
        return None

    def _pull(self, ticket: Ticket, at: int) -> None:
        super()._pull(ticket, at)
        del self._line[ticket.arrival]


class RoundRobin(FairQueue[PlacedT]):
    """Every tenant in turn, one request each, however long."""

    def _begin(self, ticket: Ticket, warm_tokens: int) -> None:
        super()._begin(ticket, warm_tokens)
        ticket.organization.charge(PER_DISPATCH)
        ticket.key.charge(PER_DISPATCH)

    def _charge(self, ticket: Ticket, tokens: float) -> None:
        """Tokens don't count."""


class WarmestFirst(FairQueue[PlacedT]):
    """Whoever has the longest warm prefix, wherever it waits: the most that a preference for warm prefixes can win."""

    def _within_window(self, band: Band) -> list[Ticket]:
        waiting = [one for one in self._organizations.values() if one.waiting[band]]
        return [entry[2] for one in waiting for key in one.keys.values() for entry in key.queues[band]]

"""Budgets in memory: each cap with the counters of its latest periods. Pure; owned by the book (`book.py`)."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple
from zoneinfo import ZoneInfo

from headwater.ledger.periods import BudgetTerms, Period, period_at

PERIODS_KEPT = 4
"""Counters of a budget that are kept as such; of older periods only what they spent, should the clock be put back."""


class Spent(NamedTuple):
    """A threshold that spending has reached: percent of the limit, in which period."""

    terms: BudgetTerms
    period: Period
    percent: int
    spent_nanos: int


class Counter:
    """What one budget has spent and holds in one period.

    unsettled_count: the requests under it that may still be charged; those whose hold has expired are among them.
    """

    __slots__ = ("announced_percent", "held_nanos", "json", "period", "spent_nanos", "terms", "unsettled_count")

    def __init__(self, terms: BudgetTerms, period: Period, spent_nanos: int) -> None:
        self.terms = terms
        self.period = period
        self.spent_nanos = spent_nanos
        self.held_nanos = 0
        self.unsettled_count = 0
        self.json = f'["{terms.id}","{period.key}"]'
        self.announced_percent = self._reached_percent()

    @property
    def available_nanos(self) -> int:
        """What may still be reserved; never negative, though a limit that was lowered may lie below what is spent."""
        return max(0, self.terms.limit_nanos - self.spent_nanos - self.held_nanos)

    def spend(self, held_nanos: int, charge_nanos: int) -> list[Spent]:
        """A hold ends with a charge; returns the thresholds that are reached by it for the first time."""
        self.held_nanos -= held_nanos
        self.spent_nanos += charge_nanos
        reached = [p for p in self.terms.thresholds if p > self.announced_percent and self._has_reached(p)]
        if reached:
            self.announced_percent = reached[-1]
        return [Spent(self.terms, self.period, percent, self.spent_nanos) for percent in reached]

    def change(self, terms: BudgetTerms) -> None:
        """New limit or thresholds; those that a raised limit has put out of reach again are announced again."""
        self.terms = terms
        self.announced_percent = min(self.announced_percent, self._reached_percent())

    def _reached_percent(self) -> int:
        return max((p for p in self.terms.thresholds if self._has_reached(p)), default=0)

    def _has_reached(self, percent: int) -> bool:
        return self.spent_nanos > 0 and self.spent_nanos * 100 >= self.terms.limit_nanos * percent


class Cap:
    """One budget with the counters of its latest periods."""

    __slots__ = ("_counters", "_current", "_restored", "_zone", "terms")

    def __init__(self, terms: BudgetTerms) -> None:
        self.terms = terms
        self._counters: OrderedDict[str, Counter] = OrderedDict()
        self._current: Counter | None = None
        self._restored: dict[str, int] = {}
        # Kept, since zones that nobody keeps are read from their files again: `period_at` must find it in memory.
        self._zone = ZoneInfo(terms.time_zone)

    def restore(self, spent_nanos: Mapping[str, int]) -> None:
        """What periods had spent, by their keys, as the disk knows it."""
        self._restored = dict(spent_nanos)

    def counter(self, now_ms: int) -> Counter:
        """The counter of the period that this moment falls into."""
        current = self._current
        if current is not None and current.period.holds(now_ms):
            return current
        period = period_at(self.terms, now_ms)
        counter = self._counters.get(period.key)
        if counter is None:
            spent_nanos = self._restored.pop(period.key, 0)
            counter = self._counters[period.key] = Counter(self.terms, period, spent_nanos)
            self._forget_oldest()
        self._current = counter
        return counter

    def change(self, terms: BudgetTerms) -> None:
        """New limit or thresholds, from now on; the periods stay."""
        self.terms = terms
        for counter in self._counters.values():
            counter.change(terms)

    @property
    def is_idle(self) -> bool:
        """Whether no request under it is still to be settled."""
        return not any(counter.unsettled_count for counter in self._counters.values())

    def _forget_oldest(self) -> None:
        for key in list(self._counters)[:-PERIODS_KEPT]:
            if not self._counters[key].unsettled_count:
                self._restored[key] = self._counters.pop(key).spent_nanos

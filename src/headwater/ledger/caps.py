"""Budgets in memory: each cap with the counters of its latest periods. Pure; owned by the book (`book.py`)."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

from headwater.ledger.periods import MS_MAX, BudgetTerms, Period, period_at
from headwater.money import NANOS_MAX

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

    left_nanos: limit − spent − held, below 0 where a limit was lowered under what is spent. key: its name in the books.
    unsettled_count: the requests under it that may still be charged; those whose hold has expired are among them.
    """

    __slots__ = (
        *("announced_percent", "held_nanos", "json", "key", "left_nanos", "period", "spent_nanos", "terms"),
        *("unsettled_count", "_announce_nanos"),
    )

    def __init__(self, terms: BudgetTerms, period: Period, spent_nanos: int) -> None:
        self.terms = terms
        self.period = period
        self.spent_nanos = spent_nanos
        self.held_nanos = 0
        self.left_nanos = terms.limit_nanos - spent_nanos
        self.unsettled_count = 0
        self.key = (terms.id, period.key)
        self.json = f'["{terms.id}","{period.key}"]'
        self.announced_percent = self._reached_percent()
        self._announce_nanos = self._next_announcement_nanos()

    @property
    def available_nanos(self) -> int:
        """What may still be reserved; never negative, though a limit that was lowered may lie below what is spent."""
        return max(0, self.left_nanos)

    def hold(self, nanos: int) -> None:
        """One more request is under way that may cost so much."""
        self.held_nanos += nanos
        self.left_nanos -= nanos
        self.unsettled_count += 1

    def spend(self, held_nanos: int, charge_nanos: int) -> Sequence[Spent]:
        """A hold ends with a charge; returns the thresholds that are reached by it for the first time."""
        self.held_nanos -= held_nanos
        self.left_nanos += held_nanos - charge_nanos
        self.spent_nanos += charge_nanos
        return self._announce() if self.spent_nanos >= self._announce_nanos else ()

    def change(self, terms: BudgetTerms) -> None:
        """New limit or thresholds; those that a raised limit has put out of reach again are announced again."""
        self.left_nanos += terms.limit_nanos - self.terms.limit_nanos
        self.terms = terms
        self.announced_percent = min(self.announced_percent, self._reached_percent())
        self._announce_nanos = self._next_announcement_nanos()

    def _announce(self) -> list[Spent]:
        reached = [p for p in self.terms.thresholds if p > self.announced_percent and self._has_reached(p)]
        if reached:
            self.announced_percent = reached[-1]
        self._announce_nanos = self._next_announcement_nanos()
        return [Spent(self.terms, self.period, percent, self.spent_nanos) for percent in reached]

    def _next_announcement_nanos(self) -> int:
        """From how much spending on a threshold may be reached that was not announced; beyond all money when none is left."""
        percent = min((p for p in self.terms.thresholds if p > self.announced_percent), default=None)
        return NANOS_MAX + 1 if percent is None else max(1, -(-self.terms.limit_nanos * percent // 100))

    def _reached_percent(self) -> int:
        return max((p for p in self.terms.thresholds if self._has_reached(p)), default=0)

    def _has_reached(self, percent: int) -> bool:
        return self.spent_nanos > 0 and self.spent_nanos * 100 >= self.terms.limit_nanos * percent


class Cap:
    """One budget with the counters of its latest periods."""

    __slots__ = ("_counters", "_current", "_restored", "_zone", "on_forget", "terms")

    def __init__(self, terms: BudgetTerms) -> None:
        self.terms = terms
        self.on_forget: Callable[[], None] = _nobody
        """Called when a counter of an old period is let go: nobody may keep it."""
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
                self.on_forget()


class Stack:
    """The caps over one organization, project and key together, and their counters at the latest moment asked for.

    counters, json (as a reservation's row has them): of the moment of the latest `move`; replaced, never changed.
    """

    __slots__ = ("_from_ms", "_until_ms", "caps", "counters", "json")

    def __init__(self, caps: Sequence[Cap]) -> None:
        self.caps = tuple(caps)
        self.counters: list[Counter] = []
        self.json: str | None = None
        self._from_ms = self._until_ms = 0

    def move(self, now_ms: int) -> None:
        """Make the counters those of this moment."""
        if self._from_ms <= now_ms < self._until_ms:
            return
        self.counters = [cap.counter(now_ms) for cap in self.caps]
        self.json = counters_json(self.counters)
        periods = [counter.period for counter in self.counters]
        self._from_ms = max([period.starts_ms for period in periods], default=0)
        self._until_ms = min([period.ends_ms for period in periods if period.ends_ms is not None], default=MS_MAX)


def counters_json(counters: Sequence[Counter]) -> str | None:
    """The caps that something is held under, as a reservation's row has them; None: under none."""
    return f"[{','.join([counter.json for counter in counters])}]" if counters else None


def _nobody() -> None:
    """Nobody keeps counters."""

"""What fairness must come to, as figures with their bounds. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from gate.rows import Row, rows_of, twin_row


class Goal(NamedTuple):
    """One figure. limit: what it must not pass; is_least: it must be at least that, else at most.

    twin: a broken build of this name was run and must miss; None for the product.
    """

    name: str
    value: float
    limit: float
    is_least: bool = True
    unit: str = ""
    twin: str | None = None

    @property
    def is_met(self) -> bool:
        """Whether it is as it must be; of a twin, whether it was caught."""
        holds = self.value >= self.limit if self.is_least else self.value <= self.limit
        return holds if self.twin is None else not holds

    def __str__(self) -> str:
        if math.isinf(self.limit):
            return f"{self.name} {self.value:.4g}{self.unit}"
        sign = "≥" if self.is_least else "≤"
        text = f"{self.name} {self.value:.4g}{self.unit} (must be {sign} {self.limit:.4g}{self.unit})"
        return text if self.twin is None else f"{self.name} of {self.twin} {self.value:.4g}{self.unit}"


def at_most(name: str, value: float, limit: float, unit: str = "") -> Goal:
    """A figure with an upper bound."""
    return Goal(name, value, limit, is_least=False, unit=unit)


def told(name: str, value: float, unit: str = "") -> Goal:
    """A figure without a bound, for whoever wants to know how another one came about."""
    return Goal(name, value, -math.inf, unit=unit)


def rows(test: str, goals: Sequence[Goal]) -> list[Row]:
    """As the gate's result files have them: every figure, how many goals were missed, every twin."""
    figures: dict[str, float] = {goal.name: goal.value for goal in goals if goal.twin is None}
    figures["misstated"] = sum(not goal.is_met for goal in goals if goal.twin is None)
    twins = [
        twin_row(test, f"{goal.twin}:{goal.name}", is_caught=goal.is_met) for goal in goals if goal.twin is not None
    ]
    return [*rows_of(test, figures, backend="scheduler"), *twins]


def sentence(goals: Sequence[Goal], duration_s: float) -> str:
    """All figures in one sentence, what was missed first."""
    missed = [str(goal) for goal in goals if not goal.is_met]
    met = ", ".join(str(goal) for goal in goals if goal.is_met and goal.twin is None)
    twins = [goal for goal in goals if goal.twin is not None]
    caught = sum(goal.is_met for goal in twins)
    said = f"MISSED {'; '.join(missed)}. Met: {met}" if missed else f"every goal met: {met}"
    return f"fair: {said}; {caught} of {len(twins)} broken orders caught; {duration_s:.0f} s."

"""Rows of a result, and whether they meet the goals. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypedDict

Size = Literal["full", "short"]
Figures = Mapping[str, int | float]

ZERO: dict[str, str] = {
    "lost": "acknowledged, and not in the ledger",
    "doubled": "in the ledger more often than it happened",
    "overdrawn": "spent beyond a budget",
    "leaked": "left behind half done: half a settlement, a hold nobody ends",
    "corrupt": "database files that SQLite calls damaged",
    "misstated": "anything else that an audit found",
    "unsaid": "failures that somebody was not told of",
    "beyond": "figures that miss their bound; what was said names them",
    "down": "platforms or replicas that did not serve again after their restart",
    "orphans": "engine processes that nobody owns any more",
    "lies": "times that /ready said what was not so",
    "unfound": "dead engines that were not found in time",
    "killed_alive": "engines that were ended although they advanced",
}
"""Metrics whose goal is 0, each with what it counts. A rig reports those that it looks for."""
TWIN_CAUGHT = "twin_caught"


class Row(TypedDict):
    """One figure. test: the rig's name; for a twin `RIG/TWIN`. A twin's row carries `twin_caught` and nothing else."""

    test: str
    backend: str
    metric: str
    value: int | float


def rows_of(test: str, figures: Figures, *, backend: str = "sqlite") -> list[Row]:
    """One row for each figure of a test."""
    return [{"test": test, "backend": backend, "metric": metric, "value": value} for metric, value in figures.items()]


def twin_row(test: str, twin: str, *, is_caught: bool, backend: str = "sqlite") -> Row:
    """The row of a deliberately broken build: whether the test noticed."""
    return {"test": f"{test}/{twin}", "backend": backend, "metric": TWIN_CAUGHT, "value": int(is_caught)}


def add(*many: Figures) -> dict[str, int | float]:
    """The sums by metric, in the order the metrics first came."""
    sums: dict[str, int | float] = {}
    for figures in many:
        for metric, value in figures.items():
            sums[metric] = sums.get(metric, 0) + value
    return sums


def missed(rows: Sequence[Row]) -> list[str]:
    """A sentence for each goal that these rows miss; a run that looked for nothing or caught no twin misses too."""
    said = [
        f"{row['test']}: {row['metric']} is {row['value']:g}; it must be 0 ({ZERO[row['metric']]})."
        for row in rows
        if row["metric"] in ZERO and row["value"] != 0
    ]
    twins = [row for row in rows if row["metric"] == TWIN_CAUGHT]
    said += [f"{row['test']}: the broken build was not caught." for row in twins if row["value"] != 1]
    if not any(row["metric"] in ZERO for row in rows):
        said.append("No figure that must be 0 was measured.")
    if not twins:
        said.append("No broken build was run, so nothing shows that the test can fail.")
    return said


def sentence(test: str, rows: Iterable[Row], duration_s: float) -> str:
    """All figures of a test in one sentence; the twins' at its end."""
    rows = list(rows)
    figures = [f"{row['metric']} {row['value']:g}" for row in rows if row["metric"] != TWIN_CAUGHT]
    twins = [row for row in rows if row["metric"] == TWIN_CAUGHT]
    caught = sum(row["value"] == 1 for row in twins)
    return f"{test}: {', '.join(figures)}; {caught} of {len(twins)} twins caught; {duration_s:.0f} s."

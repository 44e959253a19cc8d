"""How much load to refuse when the gateway itself is short of time or memory: bands one after another. Pure.

The state is one number, the level: 0 refuses nothing, 1 all of batch, 2 all of batch and standard, 3 everything; a level
between two whole numbers refuses that share of the band between them. A share and not a switch, because refusing a whole
band at once empties the machine, lets it back in at once, and so on for ever. Guards have two thresholds: over the first
the level rises, under the second it falls, between them it stays.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

LEVEL_MAX: Final = 3.0
RISE_PER_S: Final = 0.5
"""How fast the level rises at a pressure of twice the first threshold; less for less, at most four times as fast."""
FALL_PER_S: Final = 0.5
"""How fast it falls: from everything to nothing in six seconds."""
HASTE_MAX: Final = 4.0


class Guard(NamedTuple):
    """One measure with its thresholds: shedding begins over `high`, and ends under `low`; at `full` everything is refused.

    value, high, low and full have one unit, whichever; full None means that there is no such point.
    """

    value: float
    high: float
    low: float
    full: float | None = None


def next_level(level: float, guards: Iterable[Guard], *, passed_s: float) -> float:
    """The level after `passed_s` more seconds with these readings; the worst guard decides. From 0 it rises to 1 at once."""
    pressure, is_calm = 0.0, True
    for guard in guards:
        if guard.full is not None and guard.value >= guard.full:
            return LEVEL_MAX
        pressure = max(pressure, guard.value / guard.high)
        is_calm = is_calm and guard.value < guard.low
    if pressure > 1.0:
        rise = RISE_PER_S * min(HASTE_MAX, max(0.25, pressure - 1.0)) * passed_s
        return min(LEVEL_MAX, max(1.0, level + rise))
    if is_calm:
        lower = level - FALL_PER_S * passed_s
        return max(0.0, lower)
    return level


def refused_share(level: float, band: int) -> float:
    """The share of a band that is refused, from 0 to 1. band: 0 interactive, 1 standard, 2 batch."""
    return min(1.0, max(0.0, level - (2 - band)))


def back_in_s(level: float, band: int) -> float:
    """Seconds until none of the band is refused any more if the level falls from now on; at least 1."""
    return max(1.0, (level - (2 - band)) / FALL_PER_S)

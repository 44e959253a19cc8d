"""How long an ask will wait, from what is ahead of it and from measured means. Pure."""

from typing import Final

from headwater.scheduling.bands import Band
from headwater.scheduling.floors import FLOORS

MEAN_WEIGHT: Final = 0.2
"""Weight of the newest value in a running mean."""


def running_mean(mean: float | None, value: float) -> float:
    """The mean with one more value; the first value is the mean."""
    return value if mean is None else mean + MEAN_WEIGHT * (value - mean)


def asks_ahead(
    band: Band,
    *,
    own_count: int,
    band_count: int,
    higher_count: int,
    weight: int,
    weights_sum: int,
    cost_ratio: float = 1.0,
) -> float:
    """How many asks will be given a place before the next ask of one tenant, if nobody else comes.

    own_count: the tenant's own asks waiting in the band; band_count: everybody's; higher_count: in the bands above.
    weights_sum: of all tenants waiting in the band, this one included. cost_ratio: what one of the tenant's asks costs beside
    the mean one. While the tenant is given own_count + 1 places the others are given their weights' part, and never more than
    they ask for; the bands above go first, but for the floor.
    """
    turns = own_count + 1
    others = min(band_count - own_count, turns * cost_ratio * (weights_sum - weight) / weight)
    within = own_count + others
    ahead = higher_count + within
    floor = FLOORS[band]
    return min(ahead, (within + 1) / floor) if floor else ahead


def wait_s(ahead_count: float, *, places_count: int, service_mean_s: float | None) -> float:
    """Seconds until the ask after `ahead_count` others has a place; 0 when no service time is known yet.

    One of `places_count` busy places comes free every service_mean_s / places_count.
    """
    if service_mean_s is None:
        return 0.0
    return (ahead_count + 1) * service_mean_s / max(1, places_count)

"""What a request costs its caller, from what its calls used. Pure; the same for a request that ends and one recovered."""

from collections.abc import Sequence

from headwater.money import NO_UNITS, STANDARD, Price, Units, calls_cost_nanos
from headwater.usage import NO_USAGE, Outcome, Usage

ONE_REQUEST = Units(requests=1)
COST_NANOS_MAX = 10**16
"""Ten million units for one request: sums of that many requests' costs, borne by us, stay within 63 bits."""


def is_void(outcome: Outcome, *, is_stream: bool) -> bool:
    """Whether nothing is owed, whatever was used.

    A caller who doesn't stream and whom we had to refuse the answer (the engine failed, the time ran out) received
    nothing and pays nothing; the tokens stay on the record. One who left pays for what was made until then.
    """
    return not is_stream and outcome in ("upstream_error", "timeout", "rejected")


def call_cost_nanos(usage: Usage, cost: Price) -> int:
    """What an upstream takes for one call; 0 for one that used nothing, at most `COST_NANOS_MAX`."""
    if usage == NO_USAGE:
        return 0
    try:
        return min(calls_cost_nanos((usage,), cost, units=ONE_REQUEST), COST_NANOS_MAX)
    except OverflowError:
        return COST_NANOS_MAX


def request_cost_nanos(
    calls: Sequence[Usage],
    price: Price | None,
    *,
    outcome: Outcome,
    is_stream: bool,
    service_tier: str = STANDARD,
) -> int | None:
    """The cost by the price; None when no price is known. It may be above what was reserved: see `Book.settle`.

    A cost beyond `COST_NANOS_MAX`, which only a false report of an upstream makes, is cut to that.
    """
    if price is None:
        return None
    if is_void(outcome, is_stream=is_stream):
        return 0
    units = NO_UNITS
    for usage in calls:
        if usage != NO_USAGE:
            units = ONE_REQUEST
    try:
        return min(calls_cost_nanos(calls, price, service_tier=service_tier, units=units), COST_NANOS_MAX)
    except OverflowError:
        return COST_NANOS_MAX

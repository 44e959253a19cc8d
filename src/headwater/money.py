"""Money as integers: nano-units of the organization's currency (1 unit = 10^9), prices per million tokens."""

import re

import msgspec

from headwater.usage import Usage

NANOS_PER_UNIT = 10**9
TOKENS_PER_PRICE = 10**6
PRICE_UNITS_MAX = 10**6
"""The dearest price of a million tokens, in whole units: one unit a token."""
NANOS_MAX = 2**63 - 1
"""SQLite and PostgreSQL keep 64-bit integers; a sum beyond this is refused, never wrapped."""

_DECIMAL = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))?")


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What one million tokens of each kind cost, in nano-units. A version is immutable: a change is a new id."""

    id: str
    model: str
    currency: str
    uncached_input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int


def parse_nanos(text: str) -> int:
    """Exact nano-units of a decimal string such as "0.10".

    Raises ValueError when it isn't a plain non-negative decimal with at most 9 fractional digits, or beyond 63 bits.
    """
    found = _DECIMAL.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a non-negative decimal number")
    fraction = (found[2] or "").rstrip("0")
    if len(fraction) > 9:
        raise ValueError(f"{text!r} has more than 9 fractional digits")
    nanos = int(found[1]) * NANOS_PER_UNIT + int(fraction.ljust(9, "0"))
    if nanos > NANOS_MAX:
        raise ValueError(f"{text!r} is beyond {NANOS_MAX} nano-units")
    return nanos


def format_nanos(nanos: int) -> str:
    """A decimal string of whole units, exact, without trailing zeros: 1_230_000_000 → "1.23"."""
    sign, magnitude = ("-", -nanos) if nanos < 0 else ("", nanos)
    whole, fraction = divmod(magnitude, NANOS_PER_UNIT)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def cost_nanos(usage: Usage, price: Price) -> int:
    """Cost of a request: the sum of tokens times price, divided by a million once, half up.

    Reasoning tokens are a part of output and are charged at their own price instead of output's, not on top of it.
    Raises OverflowError beyond 63 bits.
    """
    total = (
        usage.uncached_input * price.uncached_input
        + usage.cache_read * price.cache_read
        + usage.cache_write * price.cache_write
        + (usage.output - usage.reasoning) * price.output
        + usage.reasoning * price.reasoning
    )
    cost = (total + TOKENS_PER_PRICE // 2) // TOKENS_PER_PRICE
    if cost > NANOS_MAX:
        raise OverflowError(f"a cost of {cost} nano-units does not fit 63 bits")
    return cost

"""Money as integers: nano-units of the organization's currency (1 unit = 10^9), prices per million, and what use costs."""

import re
from collections.abc import Iterable

import msgspec

from headwater.usage import Usage

NANOS_PER_UNIT = 10**9
TOKENS_PER_PRICE = 10**6
PRICE_UNITS_MAX = 10**6
"""The dearest price of a million tokens, in whole units: one unit a token."""
NANOS_MAX = 2**63 - 1
"""SQLite and PostgreSQL keep 64-bit integers; a sum beyond this is refused, never wrapped."""
PARTS_PER_MILLION = 10**6
"""A multiplier of 1: a service tier that costs what the price says."""
STANDARD = "standard"
"""The service tier of a request that names none."""

_DECIMAL = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))?")
_MS_PER_SECOND = 1000
_DIVISOR = TOKENS_PER_PRICE * _MS_PER_SECOND * PARTS_PER_MILLION


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of a call whose whole input is above a number of tokens: all its tokens cost these, not only the further ones.

    Nano-units per million tokens, as in `Price`. Source: long-context prices as Google (Gemini) and Anthropic bill them.
    """

    above_input_tokens: int
    uncached_input: int
    cache_read: int
    cache_write: int
    cache_write_1h: int | None = None
    output: int
    reasoning: int


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What one million tokens of each kind cost, in nano-units. A version is immutable: a change is a new id.

    cache_write_1h: of the cache writes that live an hour; None: as cache_write.
    request, second, image, character: of a million of each, beside the tokens.
    tiers: of calls with a long input; ascending (any order is taken), the largest threshold exceeded counts.
    multipliers: service tier (such as "batch", "flex", "priority") to parts per million of the price, 500_000 being half
    of it; by name (any order is taken). A service tier without one costs the price as it is.
    Raises ValueError when a number is negative or beyond 63 bits, or a threshold or a service tier comes twice.
    """

    id: str
    model: str
    currency: str
    uncached_input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    cache_write_1h: int | None = None
    request: int = 0
    second: int = 0
    image: int = 0
    character: int = 0
    tiers: tuple[Tier, ...] = ()
    multipliers: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no price can be; put tiers and multipliers in order, so that equal prices compare equal."""
        for part in (self, *self.tiers):
            for name in part.__struct_fields__:
                number = getattr(part, name)
                if isinstance(number, int) and not 0 <= number <= NANOS_MAX:
                    raise ValueError(f"{name} of {number} is not from 0 to {NANOS_MAX} nano-units")
        for service_tier, multiplier in self.multipliers:
            if not 0 <= multiplier <= NANOS_MAX:
                raise ValueError(f'the multiplier of "{service_tier}" is {multiplier}, not from 0 to {NANOS_MAX}')
        if len({tier.above_input_tokens for tier in self.tiers}) < len(self.tiers):
            raise ValueError("two tiers begin above the same number of input tokens")
        if len(dict(self.multipliers)) < len(self.multipliers):
            raise ValueError("two multipliers are for the same service tier")
        if len(self.tiers) > 1:
            in_order = tuple(sorted(self.tiers, key=lambda tier: tier.above_input_tokens))
            msgspec.structs.force_setattr(self, "tiers", in_order)
        if len(self.multipliers) > 1:
            msgspec.structs.force_setattr(self, "multipliers", tuple(sorted(self.multipliers)))


class Units(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was used besides tokens. Each is ≥ 0; time is in milliseconds, priced by the second without rounding."""

    requests: int = 0
    milliseconds: int = 0
    images: int = 0
    characters: int = 0


NO_UNITS = Units()


class _Terms(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """What a price says beyond its five prices of tokens, as it is stored."""

    cache_write_1h: int | None = None
    request: int = 0
    second: int = 0
    image: int = 0
    character: int = 0
    tiers: tuple[Tier, ...] = ()
    multipliers: dict[str, int] = msgspec.field(default_factory=dict)


def price_terms_json(price: Price) -> str | None:
    """What a price says beyond its five prices of tokens, as one JSON object of integers; None when that is nothing."""
    terms = _Terms(
        cache_write_1h=price.cache_write_1h,
        request=price.request,
        second=price.second,
        image=price.image,
        character=price.character,
        tiers=price.tiers,
        multipliers=dict(price.multipliers),
    )
    text = msgspec.json.encode(terms).decode()
    return None if text == "{}" else text


def with_terms(price: Price, json_text: str | None) -> Price:
    """The price with exactly these terms, whatever terms it had: the other way round of `price_terms_json`. None: none.

    Raises ValueError when the text isn't such an object.
    """
    try:
        terms = msgspec.json.decode(json_text, type=_Terms) if json_text is not None else _Terms()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"the terms of price {price.id} can't be read: {error}") from error
    return msgspec.structs.replace(
        price,
        cache_write_1h=terms.cache_write_1h,
        request=terms.request,
        second=terms.second,
        image=terms.image,
        character=terms.character,
        tiers=terms.tiers,
        multipliers=tuple(terms.multipliers.items()),
    )


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


def cost_nanos(usage: Usage, price: Price, *, service_tier: str = STANDARD, units: Units = NO_UNITS) -> int:
    """Cost of one call: the sum of units times price, times the service tier's multiplier, divided once, half up.

    Reasoning tokens are a part of output and are charged at their own price instead of output's, not on top of it;
    cache writes of an hour likewise. A request of several calls whose price has tiers: `calls_cost_nanos`.
    Raises OverflowError beyond 63 bits.
    """
    return calls_cost_nanos((usage,), price, service_tier=service_tier, units=units)


def calls_cost_nanos(
    calls: Iterable[Usage], price: Price, *, service_tier: str = STANDARD, units: Units = NO_UNITS
) -> int:
    """Cost of a request of several calls (its n choices): each priced by the tier of its own input, divided once, half up.

    Without tiers it is the cost of the calls' sum. Three prompts of 100,000 tokens are no prompt of 300,000.
    Raises OverflowError beyond 63 bits.
    """
    per_million = sum([_tokens_cost(usage, price) for usage in calls]) + _other_units_cost(units, price)
    if not price.multipliers and not units.milliseconds:
        return _within_63_bits((per_million + TOKENS_PER_PRICE // 2) // TOKENS_PER_PRICE)
    thousandths = per_million * _MS_PER_SECOND + units.milliseconds * price.second
    total = thousandths * dict(price.multipliers).get(service_tier, PARTS_PER_MILLION)
    return _within_63_bits((total + _DIVISOR // 2) // _DIVISOR)


def worst_case_nanos(
    price: Price,
    *,
    input_tokens: int,
    output_tokens: int,
    choices_count: int = 1,
    requests: int = 1,
    service_tier: str = STANDARD,
) -> int:
    """The most a request of choices_count calls can cost, each of at most so many input and output tokens; rounded up.

    Every token at the dearest price of its side, in the dearest tier the input can reach; a multiplier below 1 is no
    discount here. requests: as `Units.requests`, for all calls together. Time, images and characters are not in it.
    Raises OverflowError beyond 63 bits.
    """
    if not price.tiers and not price.multipliers:
        dearest = input_tokens * max(
            price.uncached_input, price.cache_read, price.cache_write, price.cache_write_1h or 0
        ) + output_tokens * max(price.output, price.reasoning)
        return _within_63_bits(-(-(choices_count * dearest + requests * price.request) // TOKENS_PER_PRICE))
    dearest = 0
    reachable: list[Price | Tier] = [price]
    reachable += (tier for tier in price.tiers if tier.above_input_tokens < input_tokens)
    for rates in reachable:
        dearest_input = max(rates.uncached_input, rates.cache_read, rates.cache_write, rates.cache_write_1h or 0)
        dearest_output = max(rates.output, rates.reasoning)
        dearest = max(dearest, input_tokens * dearest_input + output_tokens * dearest_output)
    multiplier = max(dict(price.multipliers).get(service_tier, PARTS_PER_MILLION), PARTS_PER_MILLION)
    total = (choices_count * dearest + requests * price.request) * multiplier
    return _within_63_bits(-(-total // (TOKENS_PER_PRICE * PARTS_PER_MILLION)))


def _tokens_cost(usage: Usage, price: Price) -> int:
    """Tokens of one call times the prices of its tier, in millionths of a nano-unit."""
    rates: Price | Tier = price
    for tier in price.tiers:  # ascending
        if usage.input > tier.above_input_tokens:
            rates = tier
    write_1h = rates.cache_write if rates.cache_write_1h is None else rates.cache_write_1h
    return (
        usage.uncached_input * rates.uncached_input
        + usage.cache_read * rates.cache_read
        + (usage.cache_write - usage.cache_write_1h) * rates.cache_write
        + usage.cache_write_1h * write_1h
        + (usage.output - usage.reasoning) * rates.output
        + usage.reasoning * rates.reasoning
    )


def _other_units_cost(units: Units, price: Price) -> int:
    """Requests, images and characters times their prices, in millionths of a nano-unit."""
    return units.requests * price.request + units.images * price.image + units.characters * price.character


def _within_63_bits(nanos: int) -> int:
    if nanos > NANOS_MAX:
        raise OverflowError(f"{nanos} nano-units do not fit 63 bits")
    return nanos

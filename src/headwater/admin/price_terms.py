"""A price as a person writes it, decimal strings for a million of each, and the exact price it is."""

from collections.abc import Mapping
from typing import cast

import msgspec

from headwater.errors import OperatorError
from headwater.ids import PRICE, new_id
from headwater.money import PARTS_PER_MILLION, Price, Tier, parse_nanos
from headwater.settings import values

_FIELDS = {
    "input": "uncached_input",
    "cached_input": "cache_read",
    "cache_write": "cache_write",
    "cache_write_1h": "cache_write_1h",
    "output": "output",
    "reasoning": "reasoning",
    "request": "request",
    "second": "second",
    "image": "image",
    "character": "character",
}
"""What people write, as the configuration file has it, and the field of `Price` that it is."""
_FOLLOWS = {"cached_input": "input", "cache_write": "input", "reasoning": "output"}
"""A price that isn't said is as this one."""
_KIND = values.Price()
_NANOS_PER_PART = 1_000


class TierTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of calls with more input tokens than above_input_tokens; not set as in `PriceTerms` at a creation."""

    above_input_tokens: int
    input: str
    output: str
    cached_input: str | None = None
    cache_write: str | None = None
    cache_write_1h: str | None = None
    reasoning: str | None = None


class PriceTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a price says, decimal strings for a million of each; None: not said.

    multipliers: service tier to a decimal string, such as {"batch": "0.5"}; those named replace those there were.
    tiers: replace those there were; None leaves them.
    """

    input: str | None = None
    cached_input: str | None = None
    cache_write: str | None = None
    cache_write_1h: str | None = None
    output: str | None = None
    reasoning: str | None = None
    request: str | None = None
    second: str | None = None
    image: str | None = None
    character: str | None = None
    multipliers: dict[str, str] = {}
    tiers: list[TierTerms] | None = None


def priced(model: str, currency: str, terms: PriceTerms, *, before: Price | None = None) -> Price:
    """The price that the terms say, its id empty. before: where what isn't said is taken from; None: a first price.

    Without a price before, input and output must be said; cached input and cache writes cost as input, reasoning as
    output unless they are. Raises OperatorError.
    """
    said = _said(terms)
    if before is None:
        missing = [f"--{name}" for name in ("input", "output") if name not in said]
        if missing:
            raise OperatorError(
                f"A price of {model!r} needs {' and '.join(missing)}.",
                now='Write decimal strings for a million tokens, such as --input 0.10 --output 0.30; "0" is free.',
            )
        base = _completed(said)
        multipliers: dict[str, int] = {}
        tiers: tuple[Tier, ...] = ()
    else:
        base = {field: getattr(before, field) for field in _FIELDS.values()}
        base |= {_FIELDS[name]: nanos for name, nanos in said.items()}
        multipliers, tiers = dict(before.multipliers), before.tiers
    multipliers |= {name: _parts(name, text) for name, text in terms.multipliers.items()}
    if terms.tiers is not None:
        tiers = tuple(_tier(one) for one in terms.tiers)
    try:
        return Price(
            id="",
            model=model,
            currency=currency,
            multipliers=tuple((name, parts) for name, parts in multipliers.items() if parts != PARTS_PER_MILLION),
            tiers=tiers,
            **cast("dict[str, int]", base),  # but cache_write_1h, which may be None
        )
    except ValueError as error:
        raise OperatorError(f"The price of {model!r} can't be.", why=f"{error}.") from error


def next_price_id(last_id: str) -> str:
    """An id above this one (`prc_` alone: the first), so that versions stay in order in one millisecond, and when the clock
    was put back: of two versions from one date the one with the higher id is in force."""
    digits = last_id.removeprefix(PRICE)
    return max(new_id(PRICE), f"{PRICE}{int(digits or '0', 16) + 1:032x}")


def _said(terms: PriceTerms | TierTerms) -> dict[str, int]:
    """Nano-units of what is said, by the names people write."""
    given = {name: getattr(terms, name, None) for name in _FIELDS}
    return {name: _nanos(name, text) for name, text in given.items() if text is not None}


def _completed(said: Mapping[str, int]) -> dict[str, int | None]:
    """Fields of a price or tier of which only input and output must be said."""
    base: dict[str, int | None] = {}
    for name, field in _FIELDS.items():
        if name in said:
            base[field] = said[name]
        elif name in _FOLLOWS:
            base[field] = said[_FOLLOWS[name]]
        else:
            base[field] = None if name == "cache_write_1h" else 0
    return base


def _tier(terms: TierTerms) -> Tier:
    if terms.above_input_tokens < 1:
        raise OperatorError(f"A tier begins above 1 or more input tokens; given: {terms.above_input_tokens}.")
    base = _completed(_said(terms))
    fields = {name: nanos for name, nanos in base.items() if name in Tier.__struct_fields__}
    return msgspec.convert({"above_input_tokens": terms.above_input_tokens, **fields}, Tier)


def _nanos(name: str, text: str) -> int:
    try:
        return parse_nanos(_KIND.parse(text, {}))
    except values.BadValue as error:
        option = f"--{name.replace('_', '-')}"
        raise OperatorError(f"{option} can't be {text[:60]!r}.", why=f"Expected {error.expected}.") from error


def _parts(service_tier: str, text: str) -> int:
    try:
        nanos = parse_nanos(text)
    except ValueError as error:
        raise OperatorError(f"The multiplier of {service_tier!r} can't be {text[:60]!r}.", why=f"{error}.") from error
    if nanos % _NANOS_PER_PART:
        raise OperatorError(
            f"The multiplier of {service_tier!r} can't be {text!r}.", why="It has at most 6 digits after the point."
        )
    return nanos // _NANOS_PER_PART

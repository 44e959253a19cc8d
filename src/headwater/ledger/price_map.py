"""Read prices out of LiteLLM's price map (`model_prices_and_context_window.json`), exactly or not at all. Pure.

The map gives US dollars for one token (second, image, …) as JSON numbers such as 1e-07; they are read as decimals, never
as floats. What our prices can't say is named: an entry that would be billed wrongly is skipped with the reason, one that
would be billed rightly but for an extra keeps a note. Source of the fields' meaning: LiteLLM's `get_model_info` and cost
calculation, release 1.109.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final, NamedTuple

import msgspec

from headwater.money import PARTS_PER_MILLION, PRICE_UNITS_MAX, Price, Tier

CURRENCY: Final = "USD"
"""Of every price in the map."""

_INPUT, _OUTPUT, _REASONING = "input_cost_per_token", "output_cost_per_token", "output_cost_per_reasoning_token"
_READ, _WRITE = "cache_read_input_token_cost", "cache_creation_input_token_cost"
_WRITE_1H = "cache_creation_input_token_cost_above_1hr"
_READ_ALIAS = "input_cost_per_token_cache_hit"  # DeepSeek's word, beside the usual one
_KINDS: Final = (_WRITE_1H, _INPUT, _OUTPUT, _REASONING, _READ, _WRITE)
_TOKEN_FIELD: Final = re.compile(
    rf"(?P<kind>{'|'.join(_KINDS)})(?:_above_(?P<above>[0-9]{{1,9}})(?P<k>k?)_tokens)?(?:_(?P<variant>batches|flex|priority))?"
)
_SERVICE_TIERS: Final = {"batches": "batch", "flex": "flex", "priority": "priority"}
_UNIT_FIELDS: Final = {
    "request": ("input_cost_per_request",),
    "second": ("input_cost_per_second", "output_cost_per_second"),
    "image": ("input_cost_per_image", "output_cost_per_image"),
    "character": ("input_cost_per_character", "output_cost_per_character"),
}
_MONEY_WORDS: Final = ("cost", "price", "pricing", "multiplier")
_MODES_OF_TOKENS: Final = (None, "chat", "completion", "responses", "embedding")
"""What such a model is asked for is tokens; a price in another unit is for an extra."""
_ABOVE_INCLUDES_IT: Final = ("xai",)
"""Providers whose long price begins at the threshold, not above it."""
_MULTIPLIER_MAX: Final = 100
_THRESHOLD_MAX: Final = 10**12
_FINEST: Final = Fraction(1, 10**15)  # a nano-unit per million

_Level = dict[str, Decimal]


class MappedPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What the map says of one model, ready to be a price.

    model: our name of it; source: its name in the map. provider, mode: as in the map; None: not said.
    draft: the price, its id empty: `price` gives it one.
    notes: what the map says and the price doesn't, or what was assumed; a sentence each.
    """

    model: str
    source: str
    provider: str | None
    mode: str | None
    draft: Price
    notes: tuple[str, ...] = ()

    def price(self, price_id: str) -> Price:
        """The price under an id."""
        return msgspec.structs.replace(self.draft, id=price_id)


class Skipped(NamedTuple):
    """A model whose price is not taken over, and why."""

    model: str
    source: str
    reason: str


class PriceMap(NamedTuple):
    """What was read: in the map's order, or in that of the models asked for."""

    prices: tuple[MappedPrice, ...]
    skipped: tuple[Skipped, ...]


class _NotImportable(Exception):
    """Carries the reason for a `Skipped`; never leaves `read_price_map`."""


def read_price_map(data: bytes, *, models: Mapping[str, str] | None = None) -> PriceMap:
    """Prices of models: our name to the name in the map. None: all of the map, each under its own name.

    Raises ValueError when the data is no such map.
    """
    entries = _entries(data)
    wanted = {name: name for name in entries if name != "sample_spec"} if models is None else models
    prices, skipped = [], []
    for model, source in wanted.items():
        try:
            if source not in entries:
                raise _NotImportable("the map has no entry of that name")
            prices.append(_mapped(model, source, entries[source]))
        except _NotImportable as reason:
            skipped.append(Skipped(model, source, str(reason)))
    return PriceMap(tuple(prices), tuple(skipped))


def _entries(data: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.Decoder(float_hook=Decimal).decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"the price map is not JSON: {error}") from error
    except (InvalidOperation, ValueError) as error:
        raise ValueError("the price map has a number that can't be read") from error
    if not isinstance(decoded, dict):
        raise ValueError("the price map is not a JSON object with an entry for each model")
    if decoded and not any(isinstance(entry, dict) for entry in decoded.values()):
        raise ValueError("the price map has no entry that is a JSON object: it is another file")
    return decoded


def _mapped(model: str, source: str, entry: object) -> MappedPrice:
    if not isinstance(entry, dict):
        raise _NotImportable("the entry is not a JSON object")
    fields = {name: value for name, value in entry.items() if value is not None}
    provider, mode = fields.get("litellm_provider"), fields.get("mode")
    has_table = bool(fields.get("tiered_pricing"))
    levels = _table(fields) if has_table else _levels(fields, is_inclusive=provider in _ABOVE_INCLUDES_IT)
    units = {unit: _unit(unit, names, fields) for unit, names in _UNIT_FIELDS.items()}
    is_by_tokens = any(any(level.values()) for level in levels.values())
    left_out = [name for name in _unread(fields) if name != "tiered_pricing"]
    if left_out and not (is_by_tokens and mode in _MODES_OF_TOKENS):
        raise _NotImportable(f"it is priced in what can't be billed here: {', '.join(left_out)}")
    if not any(levels.values()) and not any(units.values()):
        raise _NotImportable("it has no price")
    if _INPUT not in levels[0] and any(levels.values()):
        raise _NotImportable(f"it has no {_INPUT}")
    if _OUTPUT not in levels[0] and is_by_tokens and mode != "embedding" and not any(units.values()):
        raise _NotImportable(f"it has no {_OUTPUT}")
    multipliers, notes = _multipliers(fields, levels)
    if left_out:
        notes.append(f"not in the price: {', '.join(left_out)}")
    first, *higher = (_rates(level) for level in levels.values())
    draft = Price(
        id="",
        model=model,
        currency=CURRENCY,
        **first,
        **units,
        tiers=tuple(
            Tier(above_input_tokens=above, **rates) for above, rates in zip([*levels][1:], higher, strict=True)
        ),
        multipliers=tuple(multipliers),
    )
    return MappedPrice(
        model=model,
        source=source,
        provider=provider if isinstance(provider, str) else None,
        mode=mode if isinstance(mode, str) else None,
        draft=draft,
        notes=tuple(notes),
    )


def _token_fields(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, int, str | None]]:
    """(field, kind, input tokens it is above, variant or None) of each price of tokens."""
    for name in fields:
        if found := _TOKEN_FIELD.fullmatch(name):
            above = int(found["above"] or 0) * (1000 if found["k"] else 1)
            yield name, found["kind"], above, found["variant"]


def _levels(fields: Mapping[str, Any], *, is_inclusive: bool) -> dict[int, _Level]:
    """Input tokens that a level is above → its prices. What a level doesn't say holds on from the one below."""
    said: dict[int, _Level] = {0: {}}
    for name, kind, above, variant in _token_fields(fields):
        if variant is None:
            said.setdefault(above, {})[kind] = _number(name, fields[name])
    levels: dict[int, _Level] = {}
    below: _Level = {}
    for above in sorted(said):
        if below.get(_REASONING) == below.get(_OUTPUT) and _REASONING not in said[above]:
            below.pop(_REASONING, None)  # no price of its own: it follows the output's
        below = below | said[above]
        levels[above - 1 if is_inclusive and above else above] = below
    return levels


def _table(fields: Mapping[str, Any]) -> dict[int, _Level]:
    """The levels of `tiered_pricing`: a list of ranges of input tokens, each with all its prices."""
    table = fields["tiered_pricing"]
    levels: dict[int, _Level] = {}
    end = Decimal(0)
    if not isinstance(table, list):
        raise _NotImportable("tiered_pricing is not a list")
    for row in table:
        bounds = row.get("range") if isinstance(row, dict) else None
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise _NotImportable("tiered_pricing has a row without a range of two numbers")
        unknown = sorted(name for name in row if name != "range" and name not in _KINDS)
        start, next_end = (_number("range", bound) for bound in bounds)
        if unknown or start != end or start != int(start) or not start < next_end <= _THRESHOLD_MAX:
            raise _NotImportable(
                f"tiered_pricing has what can't be read: {', '.join(unknown) or f'a range from {start}'}"
            )
        end = next_end
        own = {kind: _number(kind, row[kind]) for kind in _KINDS if row.get(kind) is not None}
        if _OUTPUT not in own and fields.get(_OUTPUT) is not None:
            own[_OUTPUT] = _number(_OUTPUT, fields[_OUTPUT])
        if _INPUT not in own or _OUTPUT not in own:
            raise _NotImportable(f"tiered_pricing has a row without {_INPUT if _INPUT not in own else _OUTPUT}")
        levels[int(start)] = own
    return levels


def _rates(level: _Level) -> dict[str, Any]:
    """One level as the fields of a price or tier: what the map doesn't say costs as plain input or output."""
    plain, output = level.get(_INPUT, Decimal(0)), level.get(_OUTPUT, Decimal(0))
    return {
        "uncached_input": _nanos(_INPUT, plain),
        "cache_read": _nanos(_READ, level.get(_READ, plain)),
        "cache_write": _nanos(_WRITE, level.get(_WRITE, plain)),
        "cache_write_1h": _nanos(_WRITE_1H, level[_WRITE_1H]) if _WRITE_1H in level else None,
        "output": _nanos(_OUTPUT, output),
        "reasoning": _nanos(_REASONING, level.get(_REASONING, output)),
    }


def _multipliers(fields: Mapping[str, Any], levels: Mapping[int, _Level]) -> tuple[list[tuple[str, int]], list[str]]:
    """Service tiers that cost the same part of every kind of token, and notes on those that don't."""
    ratios: dict[str, dict[str, Fraction | None]] = {}
    for name, kind, above, variant in _token_fields(fields):
        if variant is not None:
            standard = levels[max(level for level in levels if level <= above)].get(kind)
            number = _number(name, fields[name])
            if standard or number:
                ratios.setdefault(variant, {})[name] = Fraction(number) / Fraction(standard) if standard else None
    found, notes = [], []
    for variant, of_fields in ratios.items():
        service_tier = _SERVICE_TIERS[variant]
        shared = set(of_fields.values())
        needed = [f"{kind}_{variant}" for kind in (_INPUT, _OUTPUT) if levels[0].get(kind)]
        ratio = shared.pop() if len(shared) == 1 else None
        if ratio is None or any(name not in of_fields for name in needed):
            notes.append(f'"{service_tier}" is not one multiplier of the price: {", ".join(of_fields)}')
        elif ratio > _MULTIPLIER_MAX:
            notes.append(f'"{service_tier}" at more than {_MULTIPLIER_MAX} times the price is absurd')
        elif (ratio * PARTS_PER_MILLION).denominator != 1:
            notes.append(f'"{service_tier}" at {ratio} times the price is finer than a millionth')
        else:
            found.append((service_tier, int(ratio * PARTS_PER_MILLION)))
            unsaid = [kind for kind in _KINDS if levels[0].get(kind) and f"{kind}_{variant}" not in of_fields]
            if unsaid:
                notes.append(f'"{service_tier}" is taken to hold for {", ".join(unsaid)} too: the map doesn\'t say')
    return found, notes


def _unit(unit: str, names: tuple[str, ...], fields: Mapping[str, Any]) -> int:
    prices = {_nanos(name, _number(name, fields[name])) for name in names if name in fields} - {0}
    if len(prices) > 1:
        raise _NotImportable(f"it has two prices for a {unit}: {' and '.join(names)}")
    return prices.pop() if prices else 0


def _unread(fields: Mapping[str, Any]) -> list[str]:
    """Fields about money, above 0, that are neither tokens' nor another unit's price we read."""
    read = {name for names in _UNIT_FIELDS.values() for name in names}
    return [
        name
        for name, value in fields.items()
        if any(word in name for word in _MONEY_WORDS)
        and name not in read
        and not _TOKEN_FIELD.fullmatch(name)
        and value not in (0, False, {}, [], "")
        and not (name == _READ_ALIAS and value == fields.get(_READ))
    ]


def _number(name: str, value: object) -> Decimal:
    """A number as it stands in the map, of a size that arithmetic can't choke on."""
    if not isinstance(value, Decimal | int) or isinstance(value, bool):
        raise _NotImportable(f"{name} is not a number")
    number = Decimal(value)
    if number < 0:
        raise _NotImportable(f"{name} is negative")
    if number and not -60 < number.adjusted() < 20:
        raise _NotImportable(f"{name} is absurd")
    return number


def _nanos(name: str, number: Decimal) -> int:
    """Nano-units for a million of what the number is for one of."""
    if Fraction(number) * 10**6 > PRICE_UNITS_MAX:
        raise _NotImportable(f"{name} of {number} is dearer than {PRICE_UNITS_MAX} units per million")
    nanos = Fraction(number) / _FINEST
    if nanos.denominator != 1:
        raise _NotImportable(f"{name} of {number} is finer than a nano-unit per million")
    return int(nanos)

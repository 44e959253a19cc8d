"""How prices are shown: versions of them, and what a price map says."""

from typing import TYPE_CHECKING

from headwater.cli.administering import Facts, iso, show_all
from headwater.cli.output import print_json, print_table

if TYPE_CHECKING:
    from headwater.admin.prices import PriceView
    from headwater.ledger.price_map import PriceMap
    from headwater.money import Price


def show_versions(views: "list[PriceView]", *, as_json: bool) -> None:
    """Print versions: what most people ask of them, or everything for a script."""
    columns = {
        "Model": "model",
        "Kind": "kind",
        "State": "state",
        "From": "effective_at",
        "Input": "input",
        "Cached input": "cached_input",
        "Output": "output",
        "Reasoning": "reasoning",
        "Currency": "currency",
        "Set by": "source",
        "Id": "id",
    }
    numbers = ["Input", "Cached input", "Output", "Reasoning"]
    show_all([price_facts(view) for view in views], columns, as_json=as_json, numbers=numbers)


def show_map(found: "PriceMap", views: "list[PriceView]", *, as_json: bool) -> None:
    """What the map says of each model; with its version where it became a new one."""
    ids = {view.price.model: view.price.id for view in views}
    taken = [
        {
            "model": one.model,
            "source": one.source,
            **_rates(one.draft),
            "currency": one.draft.currency,
            "notes": [*one.notes],
            "version": ids.get(one.model),
        }
        for one in found.prices
    ]
    skipped = [one._asdict() for one in found.skipped]
    if as_json:
        print_json({"prices": taken, "skipped": skipped})
        return
    columns = ["Model", "In the file", "Input", "Cached input", "Output", "Reasoning", "Currency", "Version", "Notes"]
    notes_of = [one.notes for one in found.prices]
    names = ["model", "source", "input", "cached_input", "output", "reasoning", "currency", "version"]
    rows = [
        (*(one[name] for name in names), "; ".join(notes) or None) for one, notes in zip(taken, notes_of, strict=True)
    ]
    print_table("Taken over", columns, rows, numbers=columns[2:6])
    if skipped:
        print_table("Left out", ["Model", "In the file", "Why"], [tuple(one.values()) for one in skipped])


def _rates(price: "Price") -> Facts:
    from headwater.money import format_nanos

    write_1h = price.cache_write if price.cache_write_1h is None else price.cache_write_1h
    return {
        "input": format_nanos(price.uncached_input),
        "cached_input": format_nanos(price.cache_read),
        "cache_write": format_nanos(price.cache_write),
        "cache_write_1h": format_nanos(write_1h),
        "output": format_nanos(price.output),
        "reasoning": format_nanos(price.reasoning),
        "request": format_nanos(price.request),
        "second": format_nanos(price.second),
        "image": format_nanos(price.image),
        "character": format_nanos(price.character),
    }


def price_facts(view: "PriceView") -> Facts:
    """One version as it is shown; amounts are decimal strings for a million of each."""
    from headwater.money import NANOS_PER_UNIT, PARTS_PER_MILLION, format_nanos

    price = view.price
    return {
        "id": price.id,
        "model": price.model,
        "kind": view.kind,
        "state": f"{view.state}, withdrawn" if view.is_withdrawn else view.state,
        "source": view.source,
        "currency": price.currency,
        **_rates(price),
        "multipliers": {
            name: format_nanos(parts * (NANOS_PER_UNIT // PARTS_PER_MILLION)) for name, parts in price.multipliers
        },
        "tiers": [
            {
                "above_input_tokens": tier.above_input_tokens,
                "input": format_nanos(tier.uncached_input),
                "cached_input": format_nanos(tier.cache_read),
                "cache_write": format_nanos(tier.cache_write),
                "cache_write_1h": format_nanos(
                    tier.cache_write if tier.cache_write_1h is None else tier.cache_write_1h
                ),
                "output": format_nanos(tier.output),
                "reasoning": format_nanos(tier.reasoning),
            }
            for tier in price.tiers
        ],
        "effective_at": iso(view.effective_at_ms),
        "created_at": iso(view.created_at_ms),
    }

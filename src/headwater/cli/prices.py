"""`headwater prices`: what callers pay for a model and what upstreams take, whether the platform runs or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import Facts, iso, optional, parse_moment_ms, perform, show_all, show_one
from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import print_json, print_table
from headwater.errors import OperatorError

if TYPE_CHECKING:
    from headwater.admin.price_terms import PriceTerms, TierTerms
    from headwater.admin.prices import PriceView
    from headwater.ledger.price_map import PriceMap
    from headwater.money import Price
    from headwater.settings.model import Settings

app = typer.Typer(
    no_args_is_help=True, help="Prices: what callers pay for a model, and what upstreams take for it, per million."
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The name callers ask for.", show_default=False)]
EffectiveOption = Annotated[
    str | None,
    typer.Option("--effective", metavar="WHEN", help="In force from this date or time on (UTC).", show_default="now"),
]
CostOption = Annotated[bool, typer.Option("--cost", help="What the upstream takes, not what callers pay.")]


def _rate(name: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, metavar="AMOUNT", help=what, show_default=False)
    return option


InputOption = Annotated[str | None, _rate("--input", "A million prompt tokens.")]
CachedInputOption = Annotated[str | None, _rate("--cached-input", "Of those, tokens read from a cache.")]
CacheWriteOption = Annotated[str | None, _rate("--cache-write", "Of those, tokens written to a cache.")]
CacheWrite1hOption = Annotated[str | None, _rate("--cache-write-1h", "Of those, tokens kept for an hour.")]
OutputOption = Annotated[str | None, _rate("--output", "A million output tokens.")]
ReasoningOption = Annotated[str | None, _rate("--reasoning", "Of those, tokens spent on reasoning.")]
RequestOption = Annotated[str | None, _rate("--request", "A million requests, beside their tokens.")]
SecondOption = Annotated[str | None, _rate("--second", "A million seconds.")]
ImageOption = Annotated[str | None, _rate("--image", "A million images.")]
CharacterOption = Annotated[str | None, _rate("--character", "A million characters.")]
BatchOption = Annotated[
    str | None,
    typer.Option("--batch-multiplier", metavar="FACTOR", help="What a batch costs of it: 0.5.", show_default=False),
]
FlexOption = Annotated[
    str | None,
    typer.Option("--flex-multiplier", metavar="FACTOR", help="The same for the tier flex.", show_default=False),
]
PriorityOption = Annotated[
    str | None,
    typer.Option("--priority-multiplier", metavar="FACTOR", help="The same for the tier priority.", show_default=False),
]
TierOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tier",
        metavar="TERMS",
        help='Prices of calls with a long input: "above=200000,input=2.50,output=15"; repeatable.',
        show_default=False,
    ),
]


@app.command("create")
def create_price(
    model: ModelArgument,
    input_rate: InputOption = None,
    output_rate: OutputOption = None,
    cached_input: CachedInputOption = None,
    cache_write: CacheWriteOption = None,
    cache_write_1h: CacheWrite1hOption = None,
    reasoning: ReasoningOption = None,
    request: RequestOption = None,
    second: SecondOption = None,
    image: ImageOption = None,
    character: CharacterOption = None,
    batch: BatchOption = None,
    flex: FlexOption = None,
    priority: PriorityOption = None,
    tiers: TierOption = None,
    currency: Annotated[
        str | None, typer.Option("--currency", metavar="CODE", help="ISO 4217.", show_default="the platform's")
    ] = None,
    effective: EffectiveOption = None,
    is_cost: CostOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model its first price: --input and --output at least; the other token prices follow those."""
    from headwater.admin import prices as admin

    terms = _terms(
        _multipliers(batch, flex, priority),
        tiers,
        input=input_rate,
        output=output_rate,
        cached_input=cached_input,
        cache_write=cache_write,
        cache_write_1h=cache_write_1h,
        reasoning=reasoning,
        request=request,
        second=second,
        image=image,
        character=character,
    )
    wish = admin.CreatePrice(model, terms, currency, _moment_ms(effective), is_cost)
    show_one(_facts(perform(admin.CREATE, wish, config, overrides)), as_json=as_json)


@app.command("list")
def list_prices(
    with_all: Annotated[bool, typer.Option("--all", help="Every version: past, scheduled and withdrawn too.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the prices and costs in force."""
    from headwater.admin import prices as admin

    _show_versions(perform(admin.LIST, admin.ListPrices(with_all), config, overrides), as_json=as_json)


@app.command("show")
def show_price(
    model: ModelArgument,
    is_cost: CostOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every version of one model's price, and all that the one in force says."""
    from headwater.admin import prices as admin

    views = perform(admin.SHOW, admin.ShowPrice(model, is_cost), config, overrides)
    _show_versions(views, as_json=as_json)
    in_force = [view for view in views if view.state == "in force"]
    if in_force and not as_json:
        show_one(_facts(in_force[0]), as_json=False)


@app.command("update")
def update_price(
    model: ModelArgument,
    input_rate: InputOption = None,
    output_rate: OutputOption = None,
    cached_input: CachedInputOption = None,
    cache_write: CacheWriteOption = None,
    cache_write_1h: CacheWrite1hOption = None,
    reasoning: ReasoningOption = None,
    request: RequestOption = None,
    second: SecondOption = None,
    image: ImageOption = None,
    character: CharacterOption = None,
    batch: BatchOption = None,
    flex: FlexOption = None,
    priority: PriorityOption = None,
    tiers: TierOption = None,
    effective: EffectiveOption = None,
    is_cost: CostOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model a new version of its price; what isn't given is as in the version before."""
    from headwater.admin import prices as admin

    terms = _terms(
        _multipliers(batch, flex, priority),
        tiers,
        input=input_rate,
        output=output_rate,
        cached_input=cached_input,
        cache_write=cache_write,
        cache_write_1h=cache_write_1h,
        reasoning=reasoning,
        request=request,
        second=second,
        image=image,
        character=character,
    )
    wish = admin.UpdatePrice(model, terms, _moment_ms(effective), is_cost)
    show_one(_facts(perform(admin.UPDATE, wish, config, overrides)), as_json=as_json)


@app.command("archive")
def archive_price(
    model: ModelArgument,
    effective: EffectiveOption = None,
    is_cost: CostOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a model's price away: from then on its use is recorded as unpriced, or refused (`billing.unpriced`)."""
    from headwater.admin import prices as admin

    wish = admin.ArchivePrice(model, _moment_ms(effective), is_cost)
    show_one(_facts(perform(admin.ARCHIVE, wish, config, overrides)), as_json=as_json)


@app.command("import")
def import_prices(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="LiteLLM's model_prices_and_context_window.json.", show_default=False),
    ],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="OURS=THEIRS",
            help="A model here and its name in the file; repeatable.",
            show_default="upstreams' models under their names there",
        ),
    ] = None,
    effective: EffectiveOption = None,
    is_cost: CostOption = False,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be taken over and what not; change nothing.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take prices over from LiteLLM's price map. What our prices can't say exactly is left out, with the reason."""
    from headwater.admin import prices as admin
    from headwater.ledger.price_map import read_price_map

    settings = load_settings(config, overrides).settings
    wanted = dict(map(_pair, models)) if models else _models_of_upstreams(settings, is_cost=is_cost)
    try:
        found = read_price_map(file.read_bytes(), models=wanted)
    except OSError as error:
        raise OperatorError(f"{file} can't be read.", why=f"{error.strerror}.", now="Check the path.") from error
    except ValueError as error:
        raise OperatorError(
            f"{file} holds no prices.", why=f"{error}.", now="Give LiteLLM's model_prices_and_context_window.json."
        ) from error
    if is_dry_run:
        _show_map(found, [], as_json=as_json)
        return
    if not found.prices or (models and found.skipped):
        raise OperatorError(
            "Nothing was imported.",
            why="\n".join(f"{one.model} ({one.source}): {one.reason}." for one in found.skipped)
            or "No upstream's model is left to price: the configuration file prices them, or there is none.",
            now="Name what to take over with --model OURS=THEIRS; --dry-run shows what would be.",
        )
    prices = [one.price("") for one in found.prices]
    views = perform(admin.IMPORT, admin.ImportPrices(prices, _moment_ms(effective), is_cost), config, overrides)
    _show_map(found, views, as_json=as_json)


def _pair(text: str) -> tuple[str, str]:
    ours, sign, theirs = text.partition("=")
    if not (ours and sign and theirs):
        raise OperatorError(
            f"--model {text!r} is no pair of names.", now="Write OURS=THEIRS, such as acme/large-1=gpt-4o."
        )
    return ours, theirs


def _models_of_upstreams(settings: "Settings", *, is_cost: bool) -> dict[str, str]:
    """Every upstream's model that the configuration file doesn't price, with its name there."""
    own = {entry.model for entry in (settings.costs if is_cost else settings.prices)}
    names = {f"{upstream.name}/{model}": model for upstream in settings.upstreams for model in upstream.models}
    return {ours: theirs for ours, theirs in names.items() if ours not in own}


def _moment_ms(text: str | None) -> int | None:
    return optional(lambda written: parse_moment_ms(written, "--effective"), text)


def _multipliers(batch: str | None, flex: str | None, priority: str | None) -> dict[str, str]:
    given = {"batch": batch, "flex": flex, "priority": priority}
    return {name: text for name, text in given.items() if text is not None}


def _terms(multipliers: dict[str, str], tiers: list[str] | None, **rates: str | None) -> "PriceTerms":
    from headwater.admin.price_terms import PriceTerms

    return PriceTerms(
        multipliers=multipliers, tiers=None if tiers is None else [_tier(text) for text in tiers], **rates
    )


def _tier(text: str) -> "TierTerms":
    import msgspec

    from headwater.admin.price_terms import TierTerms

    fields = dict(part.strip().replace("-", "_").partition("=")[::2] for part in text.split(","))
    try:
        above = int(fields.pop("above"))
        return msgspec.convert({"above_input_tokens": above, **fields}, TierTerms)
    except (KeyError, ValueError) as error:  # msgspec's own is a ValueError
        raise OperatorError(
            f"--tier {text!r} can't be read.",
            why=f"{error}.",
            now="Write above=200000,input=2.50,output=15, and if they differ cached-input, cache-write, "
            "cache-write-1h and reasoning.",
        ) from error


def _show_versions(views: "list[PriceView]", *, as_json: bool) -> None:
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
    show_all([_facts(view) for view in views], columns, as_json=as_json, numbers=numbers)


def _show_map(found: "PriceMap", views: "list[PriceView]", *, as_json: bool) -> None:
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


def _facts(view: "PriceView") -> Facts:
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

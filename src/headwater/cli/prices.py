"""`headwater prices`: what callers pay for a model and what upstreams take, whether the platform runs or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import optional, parse_moment_ms, perform, show_one
from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.price_options import (
    BatchOption,
    CachedInputOption,
    CacheWrite1hOption,
    CacheWriteOption,
    CharacterOption,
    CostOption,
    EffectiveOption,
    FlexOption,
    ImageOption,
    InputOption,
    ModelArgument,
    OutputOption,
    PriorityOption,
    ReasoningOption,
    RequestOption,
    SecondOption,
    TierOption,
    multipliers_of,
    price_terms,
)
from headwater.cli.price_shown import price_facts, show_map, show_versions
from headwater.errors import OperatorError

if TYPE_CHECKING:
    from headwater.settings.model import Settings

app = typer.Typer(
    no_args_is_help=True, help="Prices: what callers pay for a model, and what upstreams take for it, per million."
)


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

    terms = price_terms(
        multipliers_of(batch, flex, priority),
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
    show_one(price_facts(perform(admin.CREATE, wish, config, overrides)), as_json=as_json)


@app.command("list")
def list_prices(
    with_all: Annotated[bool, typer.Option("--all", help="Every version: past, scheduled and withdrawn too.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the prices and costs in force."""
    from headwater.admin import prices as admin

    show_versions(perform(admin.LIST, admin.ListPrices(with_all), config, overrides), as_json=as_json)


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
    show_versions(views, as_json=as_json)
    in_force = [view for view in views if view.state == "in force"]
    if in_force and not as_json:
        show_one(price_facts(in_force[0]), as_json=False)


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

    terms = price_terms(
        multipliers_of(batch, flex, priority),
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
    show_one(price_facts(perform(admin.UPDATE, wish, config, overrides)), as_json=as_json)


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
    show_one(price_facts(perform(admin.ARCHIVE, wish, config, overrides)), as_json=as_json)


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
        show_map(found, [], as_json=as_json)
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
    show_map(found, views, as_json=as_json)


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

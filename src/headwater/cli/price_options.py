"""How a price is written on the command line: an option for each of its parts."""

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.errors import OperatorError

if TYPE_CHECKING:
    from headwater.admin.price_terms import PriceTerms, TierTerms

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


def multipliers_of(batch: str | None, flex: str | None, priority: str | None) -> dict[str, str]:
    """The service tiers that were given a factor."""
    given = {"batch": batch, "flex": flex, "priority": priority}
    return {name: text for name, text in given.items() if text is not None}


def price_terms(multipliers: dict[str, str], tiers: list[str] | None, **rates: str | None) -> "PriceTerms":
    """What the options say. Raises OperatorError."""
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

"""`headwater limits`: how often, and how much, may be asked in each minute, hour and day; whether the platform runs or not."""

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import Facts, OrganizationOption, ProjectOption, iso, perform, show_all, show_one
from headwater.cli.options import ConfigOption, JsonOption, SetOption
from headwater.errors import OperatorError

if TYPE_CHECKING:
    from headwater.admin.limits import LimitView, Numbers

app = typer.Typer(
    no_args_is_help=True,
    help="Rate limits: how many requests and tokens an organization, project, key or model may take in each minute, hour or day.",
)

LimitArgument = Annotated[str, typer.Argument(metavar="LIMIT_ID", help="The limit's id (lim_…).", show_default=False)]


def _number(name: str, means: str) -> object:
    return typer.Option(f"--{name}", metavar="N", help=means, show_default=False)


RequestsPerMinute = Annotated[str | None, _number("requests-per-minute", "Requests in each minute; none: any number.")]
RequestsPerHour = Annotated[str | None, _number("requests-per-hour", "Requests in each hour; none: any number.")]
RequestsPerDay = Annotated[str | None, _number("requests-per-day", "Requests in each day (UTC); none: any number.")]
TokensPerMinute = Annotated[
    str | None, _number("tokens-per-minute", "Prompt and output tokens in each minute; none: any number.")
]
TokensPerHour = Annotated[
    str | None, _number("tokens-per-hour", "Prompt and output tokens in each hour; none: any number.")
]
TokensPerDay = Annotated[
    str | None, _number("tokens-per-day", "Prompt and output tokens in each day (UTC); none: any number.")
]
Concurrency = Annotated[
    str | None, _number("concurrency", "Requests at once, those that wait included; none: any number.")
]


@app.command("create")
def create_limit(
    organization: OrganizationOption = None,
    project: ProjectOption = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY_ID", help="A key, by id or name; not the key.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Count only requests to this model; alone: limit the model, for everybody together.",
            show_default=False,
        ),
    ] = None,
    requests_per_minute: RequestsPerMinute = None,
    requests_per_hour: RequestsPerHour = None,
    requests_per_day: RequestsPerDay = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_hour: TokensPerHour = None,
    tokens_per_day: TokensPerDay = None,
    concurrency: Concurrency = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Limit what an organization, a project, a key or a model may take from now on."""
    from headwater.admin import limits as admin

    numbers = _numbers(
        requests_per_minute,
        requests_per_hour,
        requests_per_day,
        tokens_per_minute,
        tokens_per_hour,
        tokens_per_day,
        concurrency,
    )
    wish = admin.CreateLimit(numbers, organization, project, key, model)
    show_one(_facts(perform(admin.CREATE, wish, config, overrides)), as_json=as_json)


@app.command("list")
def list_limits(
    organization: OrganizationOption = None,
    with_archived: Annotated[bool, typer.Option("--all", help="Archived ones too.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every limit."""
    from headwater.admin import limits as admin

    views = perform(admin.LIST, admin.ListLimits(organization, with_archived), config, overrides)
    columns = {"Id": "id", "Organization": "organization", "Limits": "limits", "Model": "model", "To": "to"}
    show_all([_facts(view) for view in views], columns, as_json=as_json)


@app.command("show")
def show_limit(
    limit: LimitArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show one limit."""
    from headwater.admin import limits as admin

    show_one(_facts(perform(admin.SHOW, admin.ShowLimit(limit), config, overrides)), as_json=as_json)


@app.command("update")
def update_limit(
    limit: LimitArgument,
    requests_per_minute: RequestsPerMinute = None,
    requests_per_hour: RequestsPerHour = None,
    requests_per_day: RequestsPerDay = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_hour: TokensPerHour = None,
    tokens_per_day: TokensPerDay = None,
    concurrency: Concurrency = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a limit; what isn't given stays. What its windows have used stays used."""
    from headwater.admin import limits as admin

    numbers = _numbers(
        requests_per_minute,
        requests_per_hour,
        requests_per_day,
        tokens_per_minute,
        tokens_per_hour,
        tokens_per_day,
        concurrency,
    )
    show_one(_facts(perform(admin.UPDATE, admin.UpdateLimit(limit, numbers), config, overrides)), as_json=as_json)


@app.command("archive")
def archive_limit(
    limit: LimitArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Lift a limit: from the moment this returns it refuses nothing."""
    from headwater.admin import limits as admin

    show_one(_facts(perform(admin.ARCHIVE, admin.ArchiveLimit(limit), config, overrides)), as_json=as_json)


def _numbers(*texts: str | None) -> "Numbers":
    """What was written, in the order of the columns that limit something: a number, `none`, or nothing."""
    from msgspec import UNSET

    from headwater.admin.limits import Numbers
    from headwater.ledger.limit_store import LIMITS

    given: dict[str, int | None] = {}
    for name, text in zip(LIMITS, texts, strict=True):
        if text == "none":
            given[name] = None
        elif text is not None:
            if not (text.isascii() and text.isdigit()):
                option = name.removesuffix("_max").replace("_", "-")
                raise OperatorError(f"--{option} {text[:40]!r} is no whole number.", now="Write it as 10000, or none.")
            given[name] = int(text)
    return Numbers(**{name: given.get(name, UNSET) for name in LIMITS})


def _facts(view: "LimitView") -> Facts:
    from headwater.ledger.limit_store import LIMITS

    numbers = {name: getattr(view, name) for name in LIMITS}
    shown = [_phrase(name, number) for name, number in numbers.items() if number is not None]
    return {
        "id": view.id,
        "state": "active" if view.archived_at_ms is None else "archived",
        "organization": view.organization,
        "organization_id": view.organization_id,
        "limits": f"{view.scope} {view.scope_name}",
        "scope": view.scope,
        "scope_id": view.scope_id,
        "model": view.model,
        "to": "; ".join(shown),
        **numbers,
        "created_at": iso(view.created_at_ms),
        "archived_at": iso(view.archived_at_ms),
    }


def _phrase(name: str, number: int) -> str:
    return f"{number} at once" if name == "concurrency_max" else f"{number} {name.replace('_', ' ')}"

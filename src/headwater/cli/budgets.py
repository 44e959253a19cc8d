"""`headwater budgets`: how much may be spent, by whom, in each period; whether the platform runs or not."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headwater.cli.administering import (
    Facts,
    OrganizationOption,
    ProjectOption,
    iso,
    money,
    perform,
    show_all,
    show_one,
)
from headwater.cli.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from headwater.admin.budgets import BudgetView

app = typer.Typer(
    no_args_is_help=True, help="Budgets: how much an organization, project, key or tag may spend in each period."
)

BudgetArgument = Annotated[
    str, typer.Argument(metavar="BUDGET_ID", help="The budget's id (bud_…).", show_default=False)
]


@app.command("create")
def create_budget(
    limit: Annotated[
        str, typer.Option("--limit", metavar="AMOUNT", help="The most that may be spent.", show_default=False)
    ],
    per: Annotated[
        Literal["total", "day", "week", "month", "custom"],
        typer.Option("--per", help="When it starts over; total never does.", show_default=False),
    ],
    organization: OrganizationOption = None,
    project: ProjectOption = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY_ID", help="A key, by id or name; not the key.", show_default=False),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option("--tag", metavar="TAG", help="A tag that requests of the organization name.", show_default=False),
    ] = None,
    days: Annotated[
        int | None, typer.Option("--days", metavar="N", help="Days of a custom period.", show_default=False)
    ] = None,
    zone: Annotated[
        str, typer.Option("--zone", metavar="NAME", help="The time zone whose days count, such as Asia/Shanghai.")
    ] = "UTC",
    thresholds: Annotated[
        list[int] | None,
        typer.Option(
            "--threshold",
            metavar="PERCENT",
            help="Announce when this part of the limit is spent; repeatable.",
            show_default="80 and 100",
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cap what an organization, a project, a key or a tag may spend from now on."""
    from headwater.admin import budgets as admin

    wish = admin.CreateBudget(
        limit=limit,
        period=per,
        organization=organization,
        project=project,
        key=key,
        tag=tag,
        period_days=days,
        time_zone=zone,
        thresholds=thresholds or [*admin.THRESHOLDS_DEFAULT],
    )
    show_one(_facts(perform(admin.CREATE, wish, config, overrides)), as_json=as_json)


@app.command("list")
def list_budgets(
    organization: OrganizationOption = None,
    with_archived: Annotated[bool, typer.Option("--all", help="Archived ones too.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every budget with what its period has spent."""
    from headwater.admin import budgets as admin

    views = perform(admin.LIST, admin.ListBudgets(organization, with_archived), config, overrides)
    columns = {
        "Id": "id",
        "Organization": "organization",
        "Caps": "caps",
        "Limit": "limit",
        "Spent": "spent",
        "Held": "held",
        "Remaining": "remaining",
        "Currency": "currency",
        "Per": "per",
        "Resets": "resets_at",
    }
    numbers = ["Limit", "Spent", "Held", "Remaining"]
    show_all([_facts(view) for view in views], columns, as_json=as_json, numbers=numbers)


@app.command("show")
def show_budget(
    budget: BudgetArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show one budget: what its period has spent, what open requests hold, what remains, and when it starts over."""
    from headwater.admin import budgets as admin

    show_one(_facts(perform(admin.SHOW, admin.ShowBudget(budget), config, overrides)), as_json=as_json)


@app.command("update")
def update_budget(
    budget: BudgetArgument,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="AMOUNT", help="The new limit.", show_default=False)
    ] = None,
    thresholds: Annotated[
        list[int] | None,
        typer.Option(
            "--threshold", metavar="PERCENT", help="The new thresholds, in place of the old.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a budget's limit or thresholds; what isn't given stays. What was spent stays spent."""
    from msgspec import UNSET

    from headwater.admin import budgets as admin

    wish = admin.UpdateBudget(budget, UNSET if limit is None else limit, thresholds or UNSET)
    show_one(_facts(perform(admin.UPDATE, wish, config, overrides)), as_json=as_json)


@app.command("archive")
def archive_budget(
    budget: BudgetArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Lift a budget: from the moment this returns it caps nothing."""
    from headwater.admin import budgets as admin

    show_one(_facts(perform(admin.ARCHIVE, admin.ArchiveBudget(budget), config, overrides)), as_json=as_json)


def _facts(view: "BudgetView") -> Facts:
    per = f"{view.period_days} days" if view.period == "custom" else view.period
    return {
        "id": view.id,
        "state": "active" if view.archived_at_ms is None else "archived",
        "organization": view.organization,
        "organization_id": view.organization_id,
        "caps": f"{view.scope} {view.scope_name}",
        "scope": view.scope,
        "scope_id": view.scope_id,
        "currency": view.currency,
        **money("limit", view.limit_nanos),
        **money("spent", view.spent_nanos),
        **money("held", view.held_nanos),
        **money("remaining", view.remaining_nanos),
        "per": per,
        "period": view.period_key,
        "time_zone": view.time_zone,
        "resets_at": iso(view.resets_at_ms),
        "thresholds": view.thresholds,
        "created_at": iso(view.created_at_ms),
        "archived_at": iso(view.archived_at_ms),
    }

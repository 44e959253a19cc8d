"""`headwater organizations`: who pays, whether the platform runs or not."""

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import Facts, WeightOption, iso, money, perform, show_all, show_one
from headwater.cli.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from headwater.admin.organizations import OrganizationView

app = typer.Typer(no_args_is_help=True, help="Organizations: who pays, before or after use.")

OrganizationArgument = Annotated[
    str, typer.Argument(metavar="ORG", help="The organization, by name or id.", show_default=False)
]


@app.command("create")
def create_organization(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.", show_default=False)],
    is_prepaid: Annotated[
        bool, typer.Option("--prepaid/--postpaid", help="Whether its requests must be covered by credit.")
    ] = False,
    currency: Annotated[
        str | None,
        typer.Option("--currency", metavar="CODE", help="ISO 4217; it stays.", show_default="the platform's"),
    ] = None,
    weight: WeightOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an organization, with a project `default` for its keys."""
    from headwater.admin import organizations as admin

    wish = admin.CreateOrganization(name, is_prepaid, currency, 1 if weight is None else weight)
    show_one(_facts(perform(admin.CREATE, wish, config, overrides)), as_json=as_json)


@app.command("list")
def list_organizations(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show every organization with its balance, archived ones too."""
    from headwater.admin import organizations as admin

    facts = [_facts(view) for view in perform(admin.LIST, admin.ListOrganizations(), config, overrides)]
    columns = {
        "Id": "id",
        "Name": "name",
        "State": "state",
        "Pays": "pays",
        "Balance": "balance",
        "Held": "held",
        "Credit": "credit",
        "Currency": "currency",
        "Weight": "weight",
        "Created": "created_at",
    }
    show_all(facts, columns, as_json=as_json, numbers=["Balance", "Held", "Credit", "Weight"])


@app.command("show")
def show_organization(
    organization: OrganizationArgument,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one organization. A balance below 0 is owed; credit is what is left of its grants."""
    from headwater.admin import organizations as admin

    view = perform(admin.SHOW, admin.ShowOrganization(organization), config, overrides)
    show_one(_facts(view), as_json=as_json)


@app.command("update")
def update_organization(
    organization: OrganizationArgument,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its new name.", show_default=False)
    ] = None,
    is_prepaid: Annotated[
        bool | None,
        typer.Option(
            "--prepaid/--postpaid", help="Whether its requests must be covered by credit.", show_default="as it is"
        ),
    ] = None,
    weight: WeightOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change an organization; what isn't given stays."""
    from msgspec import UNSET

    from headwater.admin import organizations as admin

    wish = admin.UpdateOrganization(
        organization,
        UNSET if name is None else name,
        UNSET if is_prepaid is None else is_prepaid,
        UNSET if weight is None else weight,
    )
    show_one(_facts(perform(admin.UPDATE, wish, config, overrides)), as_json=as_json)


@app.command("archive")
def archive_organization(
    organization: OrganizationArgument,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Archive an organization with its projects, and revoke its keys. What it used stays in the books."""
    from headwater.admin import organizations as admin

    view = perform(admin.ARCHIVE, admin.ArchiveOrganization(organization), config, overrides)
    show_one(_facts(view), as_json=as_json)


def _facts(view: "OrganizationView") -> Facts:
    return {
        "id": view.id,
        "name": view.name,
        "state": "active" if view.archived_at_ms is None else "archived",
        "pays": "before use" if view.is_prepaid else "after use",
        "is_prepaid": view.is_prepaid,
        "currency": view.currency,
        **money("balance", view.wallet_nanos),
        **money("held", view.held_nanos),
        **money("credit", view.credit_nanos),
        "weight": view.weight,
        "created_at": iso(view.created_at_ms),
        "archived_at": iso(view.archived_at_ms),
    }

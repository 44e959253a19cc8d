"""`headwater grants`: credit that is spent, expires or is taken back; whether the platform runs or not."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import (
    Facts,
    NoteOption,
    OrganizationOption,
    iso,
    money,
    parse_end,
    perform,
    show_all,
    show_one,
)
from headwater.cli.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from headwater.admin.grants import GrantView

app = typer.Typer(no_args_is_help=True, help="Grants: credit of an organization, and corrections of its balance.")

GrantArgument = Annotated[str, typer.Argument(metavar="GRANT_ID", help="The grant's id (grt_…).", show_default=False)]
PayerOption = Annotated[
    str, typer.Option("--organization", metavar="ORG", help="The organization, by name or id.", show_default=False)
]


@app.command("create")
def create_grant(
    organization: PayerOption,
    amount: Annotated[
        str, typer.Option("--amount", metavar="AMOUNT", help="In the organization's currency.", show_default=False)
    ],
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="WHEN", help="After this long (90d) or at a date (UTC).", show_default=False),
    ] = None,
    note: NoteOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an organization credit; it can be spent from the moment this returns."""
    from headwater.admin import grants as admin

    in_s, at_ms = parse_end(expires)
    wish = admin.CreateGrant(organization, amount, in_s, at_ms, note)
    show_one(_facts(perform(admin.CREATE, wish, config, overrides)), as_json=as_json)


@app.command("list")
def list_grants(
    organization: OrganizationOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every grant and what is left of it, spent, expired and archived ones too."""
    from headwater.admin import grants as admin

    facts = [_facts(view) for view in perform(admin.LIST, admin.ListGrants(organization), config, overrides)]
    columns = {
        "Id": "id",
        "Organization": "organization",
        "State": "state",
        "Amount": "amount",
        "Remaining": "remaining",
        "Held": "held",
        "Currency": "currency",
        "Expires": "expires_at",
        "Note": "note",
        "Created": "created_at",
    }
    show_all(facts, columns, as_json=as_json, numbers=["Amount", "Remaining", "Held"])


@app.command("show")
def show_grant(
    grant: GrantArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show one grant: what is left of it, and how much of that open requests hold."""
    from headwater.admin import grants as admin

    show_one(_facts(perform(admin.SHOW, admin.ShowGrant(grant), config, overrides)), as_json=as_json)


@app.command("update")
def update_grant(
    grant: GrantArgument,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="The new note.", show_default=False)],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a grant's note. Its amount and its end stay as they were given."""
    from headwater.admin import grants as admin

    show_one(_facts(perform(admin.UPDATE, admin.UpdateGrant(grant, note), config, overrides)), as_json=as_json)


@app.command("archive")
def archive_grant(
    grant: GrantArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Take back what is left of a grant. What open requests hold stays theirs; what they don't spend goes back too."""
    from headwater.admin import grants as admin

    show_one(_facts(perform(admin.ARCHIVE, admin.ArchiveGrant(grant), config, overrides)), as_json=as_json)


@app.command("adjust")
def adjust_balance(
    organization: PayerOption,
    amount: Annotated[
        str,
        typer.Option(
            "--amount", metavar="AMOUNT", help="Added to the balance; negative takes away.", show_default=False
        ),
    ],
    note: NoteOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Correct an organization's balance. It is no credit: a prepaid organization can't spend it."""
    from headwater.admin import grants as admin

    view = perform(admin.ADJUST, admin.Adjust(organization, amount, note), config, overrides)
    facts: Facts = {
        "id": view.id,
        "organization": view.organization,
        "organization_id": view.organization_id,
        "currency": view.currency,
        **money("amount", view.amount_nanos),
        **money("balance", view.wallet_nanos),
        "note": view.note,
        "created_at": iso(view.created_at_ms),
    }
    show_one(facts, as_json=as_json)


def _facts(view: "GrantView") -> Facts:
    return {
        "id": view.id,
        "organization": view.organization,
        "organization_id": view.organization_id,
        "state": view.state(time.time() * 1000),
        "currency": view.currency,
        **money("amount", view.amount_nanos),
        **money("remaining", view.remaining_nanos),
        **money("held", view.held_nanos),
        "expires_at": iso(view.expires_at_ms),
        "note": view.note,
        "created_at": iso(view.created_at_ms),
        "archived_at": iso(view.revoked_at_ms),
    }

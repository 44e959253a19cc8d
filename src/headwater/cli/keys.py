"""`headwater keys`: create, list, show, change and revoke API keys, whether the platform runs or not."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import (
    Facts,
    OrganizationOption,
    ProjectOption,
    WeightOption,
    iso,
    parse_end,
    perform,
    show_all,
    show_one,
)
from headwater.cli.options import ConfigOption, JsonOption, SetOption
from headwater.cli.output import print_json

if TYPE_CHECKING:
    from headwater.admin.keys import KeyView

app = typer.Typer(no_args_is_help=True, help="API keys: who may call, which models, until when.")

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY_ID", help="The key's id (key_…) or name, not the key.", show_default=False)
]


@app.command("create")
def create_key(
    name: Annotated[str, typer.Option("--name", help="What the key is for; shown in lists.")] = "unnamed",
    project: ProjectOption = None,
    organization: OrganizationOption = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Limit the key to this model; repeatable.", show_default=False),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="WHEN",
            help="Expire after this long (30m, 12h, 90d) or at a date (UTC).",
            show_default=False,
        ),
    ] = None,
    weight: WeightOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once; only its hash is kept."""
    from headwater.admin import keys as admin

    in_s, at_ms = parse_end(expires)
    wish = admin.CreateKey(name, models or None, in_s, at_ms, project, organization, 1 if weight is None else weight)
    made = perform(admin.CREATE, wish, config, overrides)
    if as_json:
        print_json({"key": made.key, **_facts(made.details)})
        return
    typer.echo(made.key)
    typer.echo(
        f"This key is shown once; only its hash is kept. Revoke it with: headwater keys revoke {made.details.id}",
        err=True,
    )


@app.command("list")
def list_keys(
    project: ProjectOption = None,
    organization: OrganizationOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every key, revoked ones too: their usage still refers to them."""
    from headwater.admin import keys as admin

    views = perform(admin.LIST, admin.ListKeys(project, organization), config, overrides)
    columns = {
        "Id": "id",
        "Name": "name",
        "Begins with": "hint",
        "State": "state",
        "Organization": "organization",
        "Project": "project",
        "Models": "models",
        "Weight": "weight",
        "Created": "created_at",
        "Expires": "expires_at",
    }
    show_all(
        [_facts(view) | ({} if as_json else {"models": _models(view)}) for view in views], columns, as_json=as_json
    )


@app.command("show")
def show_key(
    key: KeyArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Show one key."""
    from headwater.admin import keys as admin

    show_one(_facts(perform(admin.SHOW, admin.ShowKey(key), config, overrides)), as_json=as_json)


@app.command("update")
def update_key(
    key: KeyArgument,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its new name.", show_default=False)
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME", help="Limit the key to this model from now on; repeatable.", show_default=False
        ),
    ] = None,
    has_all_models: Annotated[bool, typer.Option("--all-models", help="Limit the key to no model.")] = False,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="WHEN",
            help="Expire after this long from now (90d), at a date (UTC), or never.",
            show_default=False,
        ),
    ] = None,
    weight: WeightOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a key; what isn't given stays. Requests are held to it from the moment this returns."""
    from msgspec import UNSET

    from headwater.admin import keys as admin

    if models and has_all_models:
        raise typer.BadParameter("--model and --all-models contradict each other.")
    in_s, at_ms = (None, None) if expires == "never" else parse_end(expires)
    wish = admin.UpdateKey(
        key,
        name=UNSET if name is None else name,
        allowed_models=None if has_all_models else models or UNSET,
        expires_in_s=in_s,
        expires_at_ms=at_ms if at_ms is not None or expires == "never" else UNSET,
        weight=UNSET if weight is None else weight,
    )
    show_one(_facts(perform(admin.UPDATE, wish, config, overrides)), as_json=as_json)


@app.command("revoke")
def revoke_key(
    key: KeyArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Revoke a key: it opens nothing from the moment this returns."""
    _revoke(key, config, overrides, as_json=as_json)


@app.command("archive")
def archive_key(
    key: KeyArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """The same as `headwater keys revoke`."""
    _revoke(key, config, overrides, as_json=as_json)


def _revoke(key: str, config: Path | None, overrides: list[str] | None, *, as_json: bool) -> None:
    from headwater.admin import keys as admin

    view = perform(admin.REVOKE, admin.RevokeKey(key), config, overrides)
    if as_json:
        print_json(_facts(view))
    else:
        typer.echo(f"{view.id} ({view.name}) is revoked; requests with it get 401 from now on.")


def _models(view: "KeyView") -> str:
    return "all" if view.allowed_models is None else ", ".join(view.allowed_models)


def _facts(view: "KeyView") -> Facts:
    return {
        "id": view.id,
        "name": view.name,
        "hint": view.hint,
        "state": view.state(time.time() * 1000),
        "organization": view.organization,
        "organization_id": view.organization_id,
        "project": view.project,
        "project_id": view.project_id,
        "allowed_models": view.allowed_models,
        "weight": view.weight,
        "created_at": iso(view.created_at_ms),
        "expires_at": iso(view.expires_at_ms),
        "revoked_at": iso(view.revoked_at_ms),
    }

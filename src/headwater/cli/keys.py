"""`headwater keys`: create, list and revoke API keys, whether the platform runs or not."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import print_json, print_table
from headwater.errors import OperatorError

if TYPE_CHECKING:
    from headwater.admin.client import Admin
    from headwater.admin.wire import KeyView

app = typer.Typer(no_args_is_help=True, help="API keys: who may call, which models, until when.")

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@app.command("create")
def create_key(
    name: Annotated[str, typer.Option("--name", help="What the key is for; shown in lists.")] = "unnamed",
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Limit the key to this model; repeatable.", show_default=False),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="SPAN", help="Expire after this long: 30m, 12h, 90d.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once; only its hash is kept."""
    from headwater.admin.wire import CreateKey

    wish = CreateKey(name, models or None, None if expires is None else parse_span_s(expires))
    made = _admin(config, overrides).create_key(wish)
    if as_json:
        print_json({"key": made.key, **_facts(made.details)})
        return
    typer.echo(made.key)
    typer.echo(
        f"This key is shown once; only its hash is kept. Revoke it with: headwater keys revoke {made.details.id}",
        err=True,
    )


@app.command("list")
def list_keys(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show every key, revoked ones too: their usage still refers to them."""
    keys = [_facts(view) for view in _admin(config, overrides).list_keys()]
    if as_json:
        print_json(keys)
        return
    rows = [
        (
            key["id"],
            key["name"],
            key["hint"],
            key["state"],
            ", ".join(key["allowed_models"]) if isinstance(key["allowed_models"], list) else "all",
            key["created_at"],
            key["expires_at"],
        )
        for key in keys
    ]
    print_table("", ["Id", "Name", "Begins with", "State", "Models", "Created", "Expires"], rows)


@app.command("revoke")
def revoke_key(
    key_id: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="The key's id (key_…), not the key.", show_default=False)
    ],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: it opens nothing from the moment this returns."""
    view = _admin(config, overrides).revoke_key(key_id)
    if as_json:
        print_json(_facts(view))
    else:
        typer.echo(f"{view.id} ({view.name}) is revoked; requests with it get 401 from now on.")


def parse_span_s(text: str) -> float:
    """Seconds of a span such as 90d or 12h. Raises OperatorError."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise OperatorError(
            f"{text!r} is not a span of time.", now="Write a number and a unit: 45s, 30m, 12h, 90d, 4w."
        )
    return int(match[1]) * _UNITS_S[match[2]]


def _admin(config: Path | None, overrides: list[str] | None) -> "Admin":
    from headwater.admin.client import find_admin

    return find_admin(load_settings(config, overrides).settings)


def _facts(view: "KeyView") -> dict[str, object]:
    return {
        "id": view.id,
        "name": view.name,
        "hint": view.hint,
        "state": view.state(time.time() * 1000),
        "organization_id": view.organization_id,
        "project_id": view.project_id,
        "allowed_models": view.allowed_models,
        "created_at": _iso(view.created_at_ms),
        "expires_at": _iso(view.expires_at_ms),
        "revoked_at": _iso(view.revoked_at_ms),
    }


def _iso(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")

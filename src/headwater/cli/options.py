"""The options every command shares, and how a command gets its settings from them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headwater.settings import Loaded

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="PATH",
        help="Configuration file; else $HEADWATER_CONFIG, else ./headwater.toml.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one setting, such as gateway.listen; repeatable.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]


def load_settings(config: Path | None, overrides: list[str] | None) -> "Loaded":
    """Return the settings of this invocation, or raise ConfigError: file, environment and command line, read now."""
    from headwater.settings import load

    return load(config_path=config, environ=os.environ, overrides=overrides or ())

"""`headwater config explain [KEY]`: each setting's value, where it comes from and what it hides."""

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import print_json, print_table

if TYPE_CHECKING:
    from headwater.settings.explain import Explanation

app = typer.Typer(no_args_is_help=True, help="The configuration in force.")


@app.callback()
def config_group() -> None:
    """Keep `config` a noun with verbs, though it has only one."""


@app.command("explain")
def explain_settings(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="A setting, a table or a list: gateway.listen, gateway, deployments[0]."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each setting's value, where it comes from and what it hides; secrets show as ***."""
    from headwater.settings.explain import explain

    loaded = load_settings(config, overrides)
    explanations = explain(loaded, key)
    if as_json:
        print_json([explanation.as_json() for explanation in explanations])
        return
    if len(explanations) == 1:
        _print_one(explanations[0])
        return
    rows = [
        (e.key, e.in_force.text, e.in_force.origin, "; ".join(f"{h.text} ({h.origin})" for h in e.hides))
        for e in explanations
    ]
    title = f"Settings (file: {loaded.path})" if loaded.path else "Settings (no file)"
    print_table(title, ["Key", "Value", "Origin", "Hides"], rows)


def _print_one(explanation: "Explanation") -> None:
    typer.echo(f"{explanation.key} = {explanation.in_force.text}")
    typer.echo(f"  from:     {explanation.in_force.origin}")
    for hidden in explanation.hides:
        typer.echo(f"  hides:    {hidden.text} ({hidden.origin})")
    typer.echo(f"  means:    {explanation.meaning}")
    typer.echo(f"  expected: {explanation.expected}")

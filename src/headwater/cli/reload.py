"""`headwater reload`: the running platform takes the configuration as it is now, without dropping a stream."""

import typer

from headwater.cli.administering import perform
from headwater.cli.options import ConfigOption, JsonOption, SetOption
from headwater.cli.output import print_json
from headwater.errors import ConfigError


def reload(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Make a changed configuration true: the running platform reads its file again. An impossible one changes nothing.

    --config and --set only say which platform; what it reads is what it was started with.
    """
    from msgspec import to_builtins

    from headwater.admin import running as admin

    try:
        done = perform(admin.RELOAD, admin.Reload(), config, overrides)
    except ConfigError as error:  # found here already, where the file says which platform is meant
        raise admin.refused(error) from error
    if as_json:
        print_json(to_builtins(done))
        return
    for change in done.changed:
        typer.echo(f"changed: {change}")
    for key in done.kept:
        typer.echo(f"needs a restart, stays as it was: {key}")
    if not done.changed and not done.kept:
        typer.echo("nothing changed")

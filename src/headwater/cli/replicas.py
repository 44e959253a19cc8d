"""`headwater replicas`: what the engines of the running platform do, and starting one again."""

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import Facts, perform, show_all
from headwater.cli.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from headwater.admin.running import ReplicaView

app = typer.Typer(no_args_is_help=True, help="Replicas: the engine processes of the running platform.")

COLUMNS = {
    "Id": "id",
    "Deployment": "deployment",
    "State": "state",
    "Restarts": "restarts_count",
    "Pid": "pid",
    "Reason": "reason",
}


@app.command("list")
def list_replicas(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show every replica, how it is doing, and why it isn't ready."""
    from headwater.admin import running as admin

    _show(perform(admin.LIST, admin.ListReplicas(), config, overrides), as_json=as_json)


@app.command("restart")
def restart_replica(
    replica: Annotated[
        str,
        typer.Argument(
            metavar="REPLICA",
            help="A replica's id (rep_…), or a deployment's name: all of its replicas that aren't ready.",
            show_default=False,
        ),
    ],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a failed replica again, its earlier ends forgotten. A ready one first ends the calls that it serves."""
    from headwater.admin import running as admin

    _show(perform(admin.RESTART, admin.RestartReplica(replica), config, overrides), as_json=as_json)


def _show(views: "list[ReplicaView]", *, as_json: bool) -> None:
    from msgspec import to_builtins

    facts: list[Facts] = to_builtins(views)
    show_all(facts, COLUMNS, as_json=as_json, numbers=["Restarts", "Pid"])

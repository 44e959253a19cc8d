"""The `headwater` command: every noun is registered here, and every error a person meets leaves through `main`.

A command imports what it needs when it runs, so that `headwater --help` stays quick.
"""

import sys
from typing import Annotated

import typer

from headwater import __version__
from headwater.cli import (
    budgets,
    config,
    db,
    doctor,
    grants,
    keys,
    ledger,
    limits,
    models,
    organizations,
    prices,
    projects,
    reload,
    replicas,
    up,
    usage,
)
from headwater.cli.output import exit_code, print_error
from headwater.errors import OperatorError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    no_args_is_help=True,
    help="Large models as a service, self-hosted: one command, a real model, exact books.",
    # A traceback with local variables could show prompts and keys.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"headwater {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Large models as a service, self-hosted: one command, a real model, exact books."""


app.command("up")(up.up)
app.add_typer(organizations.app, name="organizations")
app.add_typer(projects.app, name="projects")
app.add_typer(keys.app, name="keys")
app.add_typer(budgets.app, name="budgets")
app.add_typer(limits.app, name="limits")
app.add_typer(grants.app, name="grants")
app.add_typer(prices.app, name="prices")
app.add_typer(usage.app, name="usage")
app.add_typer(ledger.app, name="ledger")
app.add_typer(replicas.app, name="replicas")
app.command("reload")(reload.reload)
app.add_typer(models.app, name="models")
app.add_typer(config.app, name="config")
app.add_typer(db.app, name="db")
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed, 2 bad configuration or usage, 130 interrupted."""
    try:
        app(prog_name="headwater")
    except OperatorError as error:
        print_error(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)

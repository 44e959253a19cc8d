"""`headwater up`: the whole platform in the foreground, from an empty directory to a first streamed answer."""

import asyncio
import gc
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import ConfigOption, SetOption, load_settings
from headwater.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rich.console import Console

    from headwater.catalogue.resolve import ResolvedModel
    from headwater.platform import Platform
    from headwater.settings.model import Settings

KEY_VARIABLE = "HEADWATER_API_KEY"
GC_OBJECTS = 10_000
"""So many more objects than before, and the collector of cycles looks at the young ones: Python's 700 is one busy moment."""


def up(
    config: ConfigOption = None,
    overrides: SetOption = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Where to serve; short for --set gateway.listen=…", show_default=False
        ),
    ] = None,
    first_question: Annotated[
        bool,
        typer.Option("--first-question/--no-first-question", help="Ask the first model something when it is ready."),
    ] = True,
) -> None:
    """Start everything: fetch missing models, serve the API, run the engines. Ctrl-C drains and stops it all."""
    from headwater.admin.ownership import Ownership
    from headwater.gateway.server import bind_tcp
    from headwater.log import configure_logging

    extra = [f"gateway.listen={listen}"] if listen is not None else []

    def read_settings() -> "Settings":
        return load_settings(config, [*(overrides or []), *extra]).settings

    settings = read_settings()
    configure_logging(settings.log)
    with Ownership(settings.store.data_directory):
        # The address is claimed before a long download, so that a taken one is known at once.
        listener = bind_tcp(settings.gateway.host, settings.gateway.port)
        with listener:
            models = fetch_models(settings)
            sys.exit(_run(settings, models, listener, read_settings=read_settings, is_asking=first_question))


def fetch_models(settings: "Settings") -> "list[ResolvedModel]":
    """The checked file of each deployment's model, in their order; what is missing is fetched, with a progress bar."""
    from headwater.catalogue.resolve import missing_entry
    from headwater.cli.pulling import pull_shown
    from headwater.operations import resolve_models

    for name in dict.fromkeys(deployment.model for deployment in settings.deployments):
        entry = missing_entry(name, settings.models)
        if entry is not None:
            pull_shown(entry, settings.models)
    return resolve_models(settings)


def _run(
    settings: "Settings",
    models: "list[ResolvedModel]",
    listener: socket.socket,
    *,
    read_settings: "Callable[[], Settings]",
    is_asking: bool,
) -> int:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, models, listener, read_settings=read_settings, is_asking=is_asking))


async def _serve(
    settings: "Settings",
    models: "list[ResolvedModel]",
    listener: socket.socket,
    *,
    read_settings: "Callable[[], Settings]",
    is_asking: bool,
) -> int:
    """Run the platform until a signal or a failed ledger; returns the exit code. Raises OperatorError if no model starts."""
    from rich.console import Console

    from headwater.admin.ownership import SOCKET_NAME
    from headwater.clock import SystemClock
    from headwater.gateway.server import bind_unix
    from headwater.platform import Platform

    console = Console(highlight=False, soft_wrap=True)
    stopping, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stopping.is_set() else stopping).set()

    on_loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        on_loop.add_signal_handler(number, on_signal)
    on_loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is something to reload
    admin_socket = settings.store.data_directory / SOCKET_NAME
    platform = Platform(settings, models, clock=SystemClock(), read_settings=read_settings)
    platform.start_ledger()
    reloads: set[asyncio.Task[None]] = set()
    try:
        await platform.start(listener, bind_unix(admin_socket))
        on_loop.add_signal_handler(signal.SIGHUP, lambda: _begin(platform.reload(), reloads))
        gc.freeze()  # what is here now stays: with many keys and budgets, going over it takes tens of milliseconds
        gc.set_threshold(GC_OBJECTS)  # requests are let go by counting; few leave cycles
        greeting = asyncio.ensure_future(_greet(platform, settings, console, is_asking=is_asking))
        stopped = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait((greeting, stopped, platform.ledger_failure), return_when=asyncio.FIRST_COMPLETED)
            if greeting.done():
                greeting.result()  # a start that can't work ends the platform with its reason
            await asyncio.wait((stopped, platform.ledger_failure), return_when=asyncio.FIRST_COMPLETED)
        finally:
            greeting.cancel()
            stopped.cancel()
        if not platform.ledger_failure.done():
            console.print(
                "\nStopping: those being served may finish, nothing new is taken. Ctrl-C again cuts them off."
            )
    finally:
        stopping.set()
        await platform.stop(drain_timeout_s=platform.settings.gateway.drain_timeout_s, hurry=hurry)
        if admin_socket.is_socket():  # what else may have that name is somebody's own
            admin_socket.unlink()
    if platform.ledger_failure.done():  # said at the very end: a cause that other lines follow is not found
        _print_ledger_failure(platform.ledger_failure.result())
        return 1
    return 0


def _begin(work: "Coroutine[Any, Any, None]", tasks: "set[asyncio.Task[None]]") -> None:
    """Run it beside the rest; tasks holds it until it is done."""
    task = asyncio.ensure_future(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _print_ledger_failure(failure: BaseException) -> None:
    from headwater.cli.output import print_error

    print_error(
        OperatorError(
            "The ledger could not be written, so the platform stops: nothing may be served that can't be recorded.",
            why=f"{type(failure).__name__}: {failure}.",
            now="Check the disk with `headwater doctor`, then start again; what was acknowledged is safe.",
        )
    )


async def _greet(platform: "Platform", settings: "Settings", console: "Console", *, is_asking: bool) -> None:
    """Tell the operator what runs and how to use it, once the engines are up. Raises OperatorError if none came up.

    A platform that has no key yet gets its first one, shown here and never again.
    """
    from headwater.admin import keys
    from headwater.cli import welcome
    from headwater.replica import ReplicaState

    if settings.deployments:
        with welcome.loading(console, [deployment.name for deployment in settings.deployments]):
            await platform.engines_settled()
    failed = [status for status in platform.replica_statuses() if status.state is ReplicaState.FAILED]
    if failed and len(failed) == len(platform.replica_statuses()) and not settings.upstreams:
        first = failed[0]
        raise OperatorError(
            f"No model could be started; the first was {first.deployment!r}.",
            why=f"{first.reason}.",
            now="`headwater doctor` checks memory, disk and files.",
        )
    for status in failed:
        console.print(f"[bold red]{status.deployment}: a replica failed[/]: ", end="")
        console.print(f"{status.reason}", markup=False)
    secret = None
    administration = platform.administration
    if not await asyncio.to_thread(administration.perform, keys.LIST, keys.ListKeys()):
        wish = keys.CreateKey(name="first key")
        secret = (await asyncio.to_thread(administration.perform, keys.CREATE, wish)).key
    key = secret or os.environ.get(KEY_VARIABLE)
    base_url = platform.base_url
    model = welcome.first_model(settings)
    if is_asking and key is not None and settings.deployments:
        await welcome.ask(console, base_url, key, model)
    welcome.show(console, base_url, model, new_key=secret, has_key=key is not None)

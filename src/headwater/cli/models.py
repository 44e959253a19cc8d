"""`headwater models`: the models that can be had, and those that are here."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import print_facts, print_json, print_table

if TYPE_CHECKING:
    from headwater.catalogue.entries import Entry
    from headwater.catalogue.progress import PullEvent
    from headwater.catalogue.store import Holding

app = typer.Typer(no_args_is_help=True, help="Models: the catalogue and the files on this machine.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A model of the catalogue.", show_default=False)]


@app.command("list")
def list_models(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show every model of the catalogue: licence, size, context, and whether it is here."""
    from headwater.catalogue.entries import load_catalogue
    from headwater.catalogue.store import ModelStore

    settings = load_settings(config, overrides).settings.models
    store = ModelStore(Path(settings.directory))
    found = [(entry, store.holding(entry)) for entry in load_catalogue(settings).values()]
    if as_json:
        print_json([_as_json(entry, holding) for entry, holding in found])
        return
    rows = [
        (
            entry.name,
            entry.licence,
            f"{entry.size_bytes / 1e6:,.0f} MB",
            f"{entry.context_tokens:,}",
            _state(entry, holding),
        )
        for entry, holding in found
    ]
    print_table("", ["Name", "Licence", "Size", "Context", "State"], rows, numbers=["Size", "Context"])
    for entry, holding in found:  # below the table, whole: a path folded into a column can't be copied
        if holding.state == "ready":
            typer.echo(f"{entry.name}: {holding.path.absolute()}")


@app.command("pull")
def pull_model(
    name: NameArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Fetch a model, or go on with one that is half here; sources are tried in the catalogue's order."""
    from headwater.catalogue.entries import find_entry
    from headwater.catalogue.progress import SourceLeft
    from headwater.catalogue.store import ModelStore
    from headwater.cli.pulling import pull_shown

    settings = load_settings(config, overrides).settings.models
    entry = find_entry(name, settings)
    left: list[SourceLeft] = []

    def remember(event: "PullEvent") -> None:
        if isinstance(event, SourceLeft):
            left.append(event)

    started_s = time.monotonic()
    path = pull_shown(entry, settings, also=remember)
    manifest = ModelStore(Path(settings.directory)).manifest(entry.name)
    facts = {
        "name": entry.name,
        "path": str(path.absolute()),
        "size_bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "source": manifest.source if manifest else None,
        "licence": entry.licence,
    }
    if as_json:
        skipped = [{"source": event.source, "reason": event.reason} for event in left]
        print_json({**facts, "took_s": round(time.monotonic() - started_s, 3), "skipped_sources": skipped})
        return
    print_facts(facts)


@app.command("verify")
def verify_models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One model; all that are here unless told.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hash the stored files and compare them with the catalogue; exit code 1 if one differs."""
    from headwater.catalogue.entries import find_entry, load_catalogue
    from headwater.catalogue.store import ModelStore, not_here

    settings = load_settings(config, overrides).settings.models
    store = ModelStore(Path(settings.directory))
    entries = [find_entry(name, settings)] if name else list(load_catalogue(settings).values())
    here = [entry for entry in entries if store.holding(entry).state in ("ready", "damaged")]
    if name and not here:
        raise not_here(entries[0])
    verdicts = [_verdict(store.verify(entry), entry) for entry in here]
    if as_json:
        print_json(verdicts)
    elif not verdicts:
        typer.echo("No model is here yet; `headwater models pull NAME` fetches one.")
    for verdict in verdicts if not as_json else ():
        typer.echo(
            f"{verdict['name']}: "
            + ("ok" if verdict["is_intact"] else f"WRONG, its SHA-256 is {verdict['found_sha256']}")
        )
    for entry, verdict in zip(here, verdicts, strict=True):
        if not verdict["is_intact"]:
            typer.echo(f"`headwater models rm {entry.name}`, then pull it again.", err=True)
    if not all(verdict["is_intact"] for verdict in verdicts):
        raise typer.Exit(1)


@app.command("rm")
def remove_model(
    name: NameArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Delete a model's file, or what is half here of it."""
    from headwater.catalogue.entries import find_entry
    from headwater.catalogue.store import ModelStore

    settings = load_settings(config, overrides).settings.models
    entry = find_entry(name, settings)
    store = ModelStore(Path(settings.directory))
    was = store.holding(entry)
    freed_bytes = store.remove(entry)
    if as_json:
        print_json({"name": entry.name, "was": was.state, "freed_bytes": freed_bytes})
    elif freed_bytes:
        typer.echo(f"Removed {entry.name} ({was.state}): {freed_bytes / 1e6:,.1f} MB freed.")
    elif was.state == "missing":
        typer.echo(f"{entry.name} was not here; nothing to remove.")
    else:
        typer.echo(f"Removed the name {entry.name}; its file stays, since another model of the same bytes uses it.")


def _state(entry: "Entry", holding: "Holding") -> str:
    if holding.state == "partial":
        return f"partial {100 * holding.here_bytes // entry.size_bytes} %"
    return holding.state


def _as_json(entry: "Entry", holding: "Holding") -> dict[str, object]:
    return {
        "name": entry.name,
        "title": entry.title,
        "licence": entry.licence,
        "attribution": entry.attribution,
        "publisher_url": entry.publisher_url,
        "size_bytes": entry.size_bytes,
        "context_tokens": entry.context_tokens,
        "capabilities": list(entry.capabilities),
        "sha256": entry.sha256,
        "sources": [str(source) for source in entry.sources],
        "state": holding.state,
        "here_bytes": holding.here_bytes,
        "path": str(holding.path.absolute()) if holding.state == "ready" else None,
    }


def _verdict(found_sha256: str, entry: "Entry") -> dict[str, object]:
    return {
        "name": entry.name,
        "is_intact": found_sha256 == entry.sha256,
        "found_sha256": found_sha256,
        "expected_sha256": entry.sha256,
    }

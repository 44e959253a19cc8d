"""`headwater db`: upgrade, check, back up, restore and archive the database."""

import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headwater.cli.administering import iso, parse_span_s
from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import EXIT_FAILED, print_facts, print_json, print_table
from headwater.errors import OperatorError

if TYPE_CHECKING:
    from headwater.ledger.archive import Archived
    from headwater.ledger.backup import Progress
    from headwater.ledger.check import Checked
    from headwater.settings.model import Settings

app = typer.Typer(no_args_is_help=True, help="The database: upgrade, check, back up, restore, archive.")

LOCK_WAIT_S = 1.0
DAY_S = 86_400


@app.command("upgrade")
def upgrade_database(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Bring the database of an earlier version up to date, after a backup. The platform must not run."""
    from headwater.admin.ownership import Ownership
    from headwater.ledger.migrate import current_revision, upgrade

    settings = load_settings(config, overrides).settings
    current_revision(settings.store.path)  # what is no database of ours is refused before a directory is made
    with Ownership(settings.store.data_directory, wait_s=LOCK_WAIT_S), _shown() as progress:
        done = upgrade(settings.store.path, now=datetime.now(UTC), progress=progress)
    backup = None if done.backup is None else str(done.backup)
    if as_json:
        print_json({"from_schema": done.from_revision, "to_schema": done.to_revision, "backup": backup})
    elif backup is None:
        typer.echo(f"The database has schema {done.to_revision} already; nothing was done.")
    else:
        typer.echo(f"The database went from schema {done.from_revision} to {done.to_revision}.")
        typer.echo(f"As it was before it is in {backup}. Start the platform with: headwater up")


@app.command("check")
def check(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Examine the database: schema, integrity, foreign keys, sizes. Reads only; exit 1 when something is wrong."""
    from headwater.ledger.check import check_database

    settings = load_settings(config, overrides).settings
    _require_database(settings)
    with _shown() as progress:
        found = check_database(settings.store.path, is_whole=not _is_running(settings), progress=progress)
    if as_json:
        facts = found._asdict() | {
            "path": str(settings.store.path),
            "oldest_record_at": iso(found.oldest_record_at_ms),
        }
        print_json(facts)
    else:
        _print_checked(found)
    if found.problems:
        raise typer.Exit(EXIT_FAILED)


@app.command("backup")
def backup_database(
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="PATH",
            help="The new file, or the directory to put it in.",
            show_default="backups/ beside the database",
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database as it is at one moment, check the copy, and write its manifest. The platform may run."""
    from headwater.ledger.backup import backup_path, make_backup, manifest_path
    from headwater.ledger.migrate import current_revision

    settings = load_settings(config, overrides).settings
    _require_database(settings)
    database = settings.store.path
    current_revision(database)
    now = datetime.now(UTC)
    target = backup_path(database, now)
    if to is not None:
        target = to / target.name if to.is_dir() else to
    with _shown() as progress:
        made = make_backup(database, target, now=now, progress=progress)
    if as_json:
        import msgspec

        print_json({"path": str(made.path), **msgspec.to_builtins(made.manifest)})
        return
    typer.echo(str(made.path))
    typer.echo(
        f"{_megabytes(made.manifest.bytes)}, schema {made.manifest.schema}; its manifest is {manifest_path(made.path).name}. "
        "Keep both, on another disk. Files of archives/ are not in it.",
        err=True,
    )


@app.command("restore")
def restore_database(
    backup: Annotated[Path, typer.Argument(metavar="PATH", help="The backup's .db file.", show_default=False)],
    is_bare_allowed: Annotated[
        bool, typer.Option("--force", help="Take a copy without a manifest too, if it is sound.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the database's place; what is there is kept aside. The platform must not run."""
    from headwater.admin.ownership import Ownership
    from headwater.ledger.migrate import HEAD
    from headwater.ledger.restore import restore

    settings = load_settings(config, overrides).settings
    with Ownership(settings.store.data_directory, wait_s=LOCK_WAIT_S), _shown() as progress:
        done = restore(
            backup, settings.store.path, is_bare_allowed=is_bare_allowed, now=datetime.now(UTC), progress=progress
        )
    aside = None if done.aside is None else str(done.aside)
    if as_json:
        print_json({"database": str(settings.store.path), "schema": done.revision, "aside": aside})
        return
    typer.echo(f"{settings.store.path} is now what {backup} was.")
    if aside is not None:
        typer.echo(f"What it was before is in {aside}; delete it when you are sure.")
    typer.echo("Keys revoked and budgets changed since the backup are as they were then: look at headwater keys list.")
    typer.echo(f"Now: headwater {'up' if done.revision == HEAD else 'db upgrade'}")


@app.command("archive")
def archive_usage(
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="SPAN",
            help="Move records older than this: 90d, 26w.",
            show_default="store.archive_after_days",
        ),
    ] = None,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be moved, and move nothing.")] = False,
    format_name: Annotated[Literal["jsonl"], typer.Option("--format", help="Gzipped JSON lines.")] = "jsonl",
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move old usage records, with their part of the ledger, to files in archives/. The platform must not run.

    While it runs it does the same by itself if store.archive_after_days is set; --dry-run may be asked at any time.
    """
    import asyncio

    from headwater.ledger.archive import plan

    settings = load_settings(config, overrides).settings
    after_days = _after_days(older_than, settings)
    _require_database(settings)
    if is_dry_run:
        planned = asyncio.run(plan(settings.store.path, after_days, int(time.time() * 1000)))
        times = {"first_received_at": planned.first_received_at_ms, "last_received_at": planned.last_received_at_ms}
        facts = {"requests_count": planned.requests_count, **{name: iso(value) for name, value in times.items()}}
        print_facts(facts, as_json=as_json)
        return
    with _shown() as progress:
        progress("Archiving", 0, 0)
        done = asyncio.run(_archive(settings, after_days))
    if as_json:
        print_json({**done._asdict(), "format": format_name})
        return
    typer.echo(f"{done.requests_count:,} requests moved to {len(done.files)} files.")
    for file in done.files:
        typer.echo(str(settings.store.data_directory / "archives" / file))


async def _archive(settings: "Settings", after_days: float) -> "Archived":
    from headwater.admin.ownership import Ownership
    from headwater.clock import SystemClock
    from headwater.ledger.archive import DIRECTORY, Archiver
    from headwater.ledger.migrate import ensure_schema
    from headwater.ledger.store import open_writer
    from headwater.ledger.writer import LedgerWriter

    directory = settings.store.data_directory
    with Ownership(directory, wait_s=LOCK_WAIT_S):
        ensure_schema(settings.store.path)
        writer = LedgerWriter(open_writer(settings.store.path), on_fatal=lambda _: None)
        writer.start()
        try:
            archiver = Archiver(settings.store.path, writer, directory / DIRECTORY, after_days, SystemClock())
            return await archiver.run_once()
        finally:
            writer.close()


def _after_days(older_than: str | None, settings: "Settings") -> float:
    if older_than is None:
        if settings.store.archive_after_days is None:
            raise OperatorError("How old is old?", now="Say it with --older-than 90d, or set store.archive_after_days.")
        return settings.store.archive_after_days
    days = parse_span_s(older_than) / DAY_S
    if days < 1:
        raise OperatorError(
            f"Records of the last {older_than} can't be archived: it takes a day at least.",
            why="A request of today may still be settled.",
            now="Write it as 1d or longer.",
        )
    return days


def _require_database(settings: "Settings") -> None:
    if not settings.store.path.exists():
        raise OperatorError(f"There is no database at {settings.store.path}.", now="`headwater up` makes one.")


def _is_running(settings: "Settings") -> bool:
    from headwater.admin.ownership import AlreadyOwned, Ownership

    try:
        with Ownership(settings.store.data_directory):
            return False
    except AlreadyOwned:
        return True


def _print_checked(found: "Checked") -> None:
    facts = {
        "schema": found.revision,
        "checked": "the whole file" if found.is_whole else "each table; the whole file when no platform runs",
        "database": _megabytes(found.database_bytes),
        "write-ahead log": _megabytes(found.log_bytes),
        "reusable": _megabytes(found.reusable_bytes),
        "disk free": _megabytes(found.free_bytes),
        "oldest record": iso(found.oldest_record_at_ms),
        "archived": f"{found.archived_records_count:,} requests",
    }
    print_facts(facts)
    rows = [(name, "can't be read" if count is None else f"{count:,}") for name, count in found.rows.items()]
    print_table("", ["Table", "Rows"], rows, numbers=["Rows"])
    for problem in found.problems:
        typer.echo(typer.style("fail", fg=typer.colors.RED) + f"  {problem}")
    if not found.problems:
        typer.echo(typer.style("ok", fg=typer.colors.GREEN) + "  The database is sound.")


@contextlib.contextmanager
def _shown() -> "Iterator[Progress]":
    """A bar on a terminal while something takes long; nothing where standard error is not one."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield show


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"

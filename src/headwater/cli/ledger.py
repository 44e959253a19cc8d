"""`headwater ledger`: prove the books, print statements, compare with what upstreams say."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headwater.cli.ledger_output import (
    RECONCILED_COLUMNS,
    STATEMENT_COLUMNS,
    print_csv,
    reconciled_json,
    reconciled_rows,
    show_reconciled,
    show_statement,
    statement_json,
    statement_rows,
)
from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import EXIT_FAILED, print_json
from headwater.errors import OperatorError

if TYPE_CHECKING:
    from headwater.ledger.reconcile import Tolerance
    from headwater.ledger.store import Connection

app = typer.Typer(no_args_is_help=True, help="The books: prove them, print statements, compare with an upstream's.")

CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]


@contextlib.contextmanager
def reading(database: Path) -> "Iterator[Connection]":
    """A reading connection on books of this version's schema. Raises OperatorError when there are none."""
    from headwater.ledger.store import open_reader
    from headwater.ledger.verify import check_readable

    check_readable(database)
    with contextlib.closing(open_reader(database)) as connection:
        yield connection


# -- verify ----------------------------------------------------------------------------------------------------------------


@app.command("verify")
def verify_books(
    database: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]", help="Another database file, such as a backup; else the platform's.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every charge, balance and budget from the log; exit 1 and name the first row that differs, 2 if unreadable."""
    path = database or load_settings(config, overrides).settings.store.path
    command = [sys.executable, "-m", "headwater.ledger.verify", str(path), *(["--json"] if as_json else [])]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


# -- statement -------------------------------------------------------------------------------------------------------------


@app.command("statement")
def print_statement(
    organization: Annotated[
        str, typer.Option("--organization", metavar="ORG", help="An organization, by name or id.", show_default=False)
    ],
    month: Annotated[
        str | None,
        typer.Option("--month", metavar="YYYY-MM", help="Which month (UTC).", show_default="this month"),
    ] = None,
    by: Annotated[
        Literal["project", "key", "model"], typer.Option("--by", help="What to break the charges down by.")
    ] = "model",
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show an organization's month: opening balance, credit, charges, closing balance. Reads only."""
    from headwater.ledger.statement import find_organization, read_statement

    settings = load_settings(config, overrides).settings
    start, end = _month(month)
    with reading(settings.store.path) as connection:
        found = find_organization(connection, organization)
        if found is None:
            raise OperatorError(
                f"There is no organization {organization!r}.", now="See them with: headwater organizations list"
            )
        statement = read_statement(connection, found, start_ms=_milliseconds(start), end_ms=_milliseconds(end), by=by)
    currency = statement.currency or settings.billing.currency
    if as_json:
        print_json(statement_json(statement, currency))
    elif as_csv:
        print_csv(STATEMENT_COLUMNS, statement_rows(statement, currency))
    else:
        show_statement(statement, currency)
    if statement.unproved_nanos:
        from headwater.money import format_nanos

        raise OperatorError(
            "This statement does not agree with the books.",
            why=f"The balance of {statement.organization} is {format_nanos(statement.unproved_nanos)} {currency} "
            "more than all that moved adds up to.",
            now="See which row differs with: headwater ledger verify",
        )


def _month(text: str | None) -> tuple[datetime, datetime]:
    """The first moments of the month and of the next one."""
    if text is None:
        now = datetime.now(UTC)
        year, month = now.year, now.month
    else:
        match = re.fullmatch(r"(\d{4})-(\d{2})", text, re.ASCII)
        year, month = (int(match[1]), int(match[2])) if match else (0, 0)
        if not (1970 <= year < 9999 and 1 <= month <= 12):
            raise OperatorError(f"--month {text!r} is no month.", now="Write it as 2026-11.")
    return datetime(year, month, 1, tzinfo=UTC), datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# -- reconcile -------------------------------------------------------------------------------------------------------------


@app.command("reconcile")
def reconcile_upstream(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The upstream's usage export, CSV or JSON.", show_default=False)
    ],
    upstream: Annotated[
        str, typer.Option("--upstream", metavar="NAME", help="The upstream's name here.", show_default=False)
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="OURS=THEIRS",
            help="What the export calls a column: day, model, requests, input_tokens, cached_tokens, output_tokens, cost; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="THEIRS=OURS",
            help="A model the export calls by another name than we do; repeatable.",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        str,
        typer.Option(
            "--tolerance",
            metavar="AMOUNT",
            help="Allow costs to differ by this on a day and model, or all figures by N%.",
        ),
    ] = "0",
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Compare what an upstream says it was used with our records, by day and model; exit 1 when they differ."""
    from headwater.ledger.reconcile import reconcile
    from headwater.ledger.usage_export import parse_export

    allowed = parse_tolerance(tolerance)
    settings = load_settings(config, overrides).settings
    export = parse_export(_text_of(file), columns=_pairs(columns, "--column"))
    with reading(settings.store.path) as connection:
        result = reconcile(connection, upstream, export, names=_pairs(models, "--model"), tolerance=allowed)
    known = [one.name for one in settings.upstreams]
    if upstream not in known and all(row.ours is None for row in result.rows):
        raise OperatorError(
            f"There is no upstream {upstream!r} here, and none of that name was used on these days.",
            why=f"Configured are: {', '.join(known) or 'none'}.",
        )
    if as_json:
        print_json(reconciled_json(result, settings.billing.currency))
    elif as_csv:
        print_csv(RECONCILED_COLUMNS, reconciled_rows(result))
    else:
        show_reconciled(result, upstream, settings.billing.currency)
    if result.exceeding:
        raise typer.Exit(EXIT_FAILED)


def parse_tolerance(text: str) -> "Tolerance":
    """What `0.01` (an amount) or `0.5%` allows. Raises OperatorError."""
    from headwater.ledger.reconcile import Tolerance
    from headwater.money import parse_nanos

    try:
        if text.endswith("%"):
            part = Decimal(text.removesuffix("%")) / 100
            if not 0 <= part <= 1:
                raise ValueError
            return Tolerance(part=part)
        return Tolerance(nanos=parse_nanos(text))
    except (ValueError, InvalidOperation):
        raise OperatorError(
            f"--tolerance {text!r} is neither an amount nor a percentage.", now="Write it as 0.01 or 0.5%."
        ) from None


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OperatorError(f"{file} is not a text file.", why=f"{error}.", now="Save it as UTF-8.") from error
    except OSError as error:
        raise OperatorError(f"{file} can't be read.", why=f"{error.strerror}.") from error


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise OperatorError(f"{option} {text!r} is not NAME=NAME.")
        pairs[name] = value
    return pairs

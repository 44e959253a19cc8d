"""What commands print: tables for people, JSON for scripts, errors that say what, why and what now.

Rich is imported where a table is printed, not before: `--help` and `--json` do without it.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from headwater.errors import ConfigError, OperatorError

PIPED_COLUMNS = 200
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2  # a usage error of the command line exits with 2 as well


def print_json(value: object) -> None:
    """Print one JSON document on standard output; non-ASCII text stands as it is."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    as_json: bool = False,
    numbers: Sequence[str] = (),
) -> None:
    """Print rows under columns as a table; with as_json as a list of objects keyed by the columns in snake_case.

    rows: one value for each column; None prints as — and is null in JSON. numbers: the columns to align right.
    """
    if as_json:
        keys = [json_key(column) for column in columns]
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        # Text, not str: a name in square brackets is a name, not markup.
        table.add_row(*(Text("—" if value is None else str(value)) for value in row))
    # A pipe has no width; 80 columns would fold what `grep` looks for.
    is_piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=PIPED_COLUMNS if is_piped else None).print(table)


def json_key(column: str) -> str:
    """Return a column's heading as a JSON key: `Last used` → `last_used`."""
    return column.lower().replace(" ", "_")


def print_facts(facts: Mapping[str, object], *, as_json: bool = False) -> None:
    """Print one object: a line for each fact, or a JSON object."""
    if as_json:
        print_json(dict(facts))
        return
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        sys.stdout.write(f"{name:<{width}}  {'—' if value is None else value}\n")


def print_error(error: OperatorError, stream: TextIO | None = None) -> None:
    """Print what happened, why and what now, each on its own line; stream: standard error unless told."""
    lines = [f"error: {error.what}", *error.why.splitlines(), *error.now.splitlines()]
    (stream or sys.stderr).write("\n".join([lines[0], *(f"  {line}" for line in lines[1:])]) + "\n")


def exit_code(error: OperatorError) -> int:
    """Return 2 for a configuration that can't be, 1 for any other failure."""
    return EXIT_CONFIGURATION if isinstance(error, ConfigError) else EXIT_FAILED

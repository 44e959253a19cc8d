"""How statements and reconciliations are printed: tables for people, CSV and JSON for scripts."""

import csv
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from headwater.cli.administering import iso, money
from headwater.cli.output import print_table

if TYPE_CHECKING:
    from headwater.ledger.reconcile import Reconciled
    from headwater.ledger.statement import Statement
    from headwater.ledger.usage_export import Figure


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a heading and rows on standard output."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


# -- statements ------------------------------------------------------------------------------------------------------------

STATEMENT_COLUMNS = (
    *("kind", "group", "name", "requests_count", "unpriced_count", "input_tokens", "cached_input_tokens"),
    *("output_tokens", "amount", "currency"),
)


def statement_rows(statement: "Statement", currency: str) -> list[tuple[object, ...]]:
    """Signed amounts: the opening balance and all that follows add up to the closing one."""
    from headwater.money import format_nanos

    def row(kind: str, nanos: int) -> tuple[object, ...]:
        return (kind, *([""] * 7), format_nanos(nanos), currency)

    return [
        row("opening", statement.opening_nanos),
        row("grants", statement.grants_nanos),
        row("adjustments", statement.adjustments_nanos),
        row("lapsed", -statement.lapsed_nanos),
        *(
            (
                "charge",
                line.group,
                line.name,
                line.requests_count,
                line.unpriced_count,
                line.input_tokens,
                line.cached_input_tokens,
                line.output_tokens,
                format_nanos(-line.amount_nanos),
                currency,
            )
            for line in statement.lines
        ),
        row("closing", statement.closing_nanos),
    ]


_MOVEMENTS = (
    *("opening", "grants", "adjustments", "lapsed", "charges", "late", "closing", "absorbed", "held"),
    "unproved",
)


def statement_json(statement: "Statement", currency: str) -> dict[str, object]:
    """Every amount as a decimal string and in nano-units."""
    amounts: dict[str, object] = {}
    for name in _MOVEMENTS:
        amounts |= money(name, getattr(statement, f"{name}_nanos"))
    return {
        "organization_id": statement.organization_id,
        "organization": statement.organization,
        "currency": currency,
        "start": iso(statement.start_ms),
        "end": iso(statement.end_ms),
        **amounts,
        "is_archived": statement.is_archived,
        "by": statement.by,
        "lines": [
            {
                "id": line.group,
                "name": line.name,
                "requests_count": line.requests_count,
                "unpriced_count": line.unpriced_count,
                "input_tokens": line.input_tokens,
                "cached_input_tokens": line.cached_input_tokens,
                "output_tokens": line.output_tokens,
                **money("amount", line.amount_nanos),
            }
            for line in statement.lines
        ],
    }


def show_statement(statement: "Statement", currency: str) -> None:
    """Two tables: what moved, and what was charged for."""
    from headwater.money import format_nanos

    month = datetime.fromtimestamp(statement.start_ms / 1000, UTC)
    amount = f"Amount {currency}"
    moved = [
        ("Opening balance", statement.opening_nanos),
        ("Credit granted", statement.grants_nanos),
        ("Adjustments", statement.adjustments_nanos),
        ("Credit lapsed", -statement.lapsed_nanos),
        ("Charges", -statement.charges_nanos),
        ("Late charges", -statement.late_nanos),
        ("Closing balance", statement.closing_nanos),
    ]
    typer.echo(f"Statement of {statement.organization} for {month:%B %Y} (UTC)")
    print_table(
        "",
        ["", amount],
        [(what, format_nanos(nanos)) for what, nanos in moved],
        numbers=[amount],
    )
    columns = [
        statement.by.capitalize(),
        "Requests",
        "Input tokens",
        "of them cached",
        "Output tokens",
        amount,
        "Unpriced",
    ]
    print_table(
        f"Charges by {statement.by}",
        columns,
        [
            (
                line.name if statement.by == "model" else f"{line.name} ({line.group})",
                f"{line.requests_count:,}",
                f"{line.input_tokens:,}",
                f"{line.cached_input_tokens:,}",
                f"{line.output_tokens:,}",
                format_nanos(line.amount_nanos),
                f"{line.unpriced_count:,}",
            )
            for line in statement.lines
        ],
        numbers=columns[1:],
    )
    notes = []
    if statement.absorbed_nanos:
        notes.append(
            f"Used and not charged, borne by the platform: {format_nanos(statement.absorbed_nanos)} {currency}."
        )
    if statement.held_nanos:
        notes.append(f"Held by open requests now: {format_nanos(statement.held_nanos)} {currency}.")
    if statement.is_archived:
        notes.append("Older requests are archived: of them the sums are exact, and count by the hour they ended in.")
    for note in notes:
        typer.echo(note)


# -- reconciliations -------------------------------------------------------------------------------------------------------

RECONCILED_COLUMNS = ("day", "model", "figure", "ours", "theirs", "difference")
_LABELS: "dict[Figure, str]" = {
    "requests": "Requests",
    "input_tokens": "Input tokens",
    "cached_tokens": "Cached tokens",
    "output_tokens": "Output tokens",
    "cost": "Cost",
}


def _figure(figure: "Figure", number: int) -> str:
    from headwater.money import format_nanos

    return format_nanos(number) if figure == "cost" else f"{number:,}"


def reconciled_rows(result: "Reconciled") -> list[tuple[object, ...]]:
    """A row for each day, model and figure; exact numbers, empty where a side doesn't know the pair."""
    from headwater.money import format_nanos

    def exact(figure: "Figure", number: int) -> str:
        return format_nanos(number) if figure == "cost" else str(number)

    return [
        (
            row.day.isoformat(),
            row.model,
            figure,
            *("" if side is None else exact(figure, side[figure]) for side in (row.ours, row.theirs)),
            exact(figure, row.difference(figure)),
        )
        for row in result.rows
        for figure in result.figures
    ]


def reconciled_json(result: "Reconciled", currency: str) -> dict[str, object]:
    """Every day and model with both sides and their difference."""

    def side(sums: "dict[Figure, int] | None") -> dict[str, object] | None:
        if sums is None:
            return None
        facts: dict[str, object] = {figure: sums[figure] for figure in result.figures if figure != "cost"}
        return facts | (money("cost", sums["cost"]) if "cost" in result.figures else {})

    return {
        "currency": currency,
        "is_equal": not result.exceeding,
        "is_archived": result.is_archived,
        "rows": [
            {
                "day": row.day.isoformat(),
                "model": row.model,
                "ours": side(row.ours),
                "theirs": side(row.theirs),
                "difference": side({figure: row.difference(figure) for figure in result.figures}),
                "unpriced_count": row.unpriced_count,
                "exceeding": [figure for one, figure in result.exceeding if one is row],
            }
            for row in result.rows
        ],
    }


def show_reconciled(result: "Reconciled", upstream: str, currency: str) -> None:
    """One table, the totals last, and a sentence that says how it stands."""
    exceeding = {(row.day, row.model, figure) for row, figure in result.exceeding}
    rows: list[tuple[object, ...]] = []
    for row in result.rows:
        for figure in result.figures:
            sides = [None if side is None else _figure(figure, side[figure]) for side in (row.ours, row.theirs)]
            mark = "differs" if (row.day, row.model, figure) in exceeding else ""
            rows.append(
                (row.day.isoformat(), row.model, _LABELS[figure], *sides, _figure(figure, row.difference(figure)), mark)
            )
    for figure in result.figures:
        ours, theirs = result.total(figure)
        rows.append(
            ("all", "all", _LABELS[figure], *(_figure(figure, one) for one in (ours, theirs, ours - theirs)), "")
        )
    columns = ["Day", "Model", "Figure", "Ours", "Theirs", "Difference", ""]
    print_table(f"{upstream}, costs in {currency}", columns, rows, numbers=columns[3:6])
    if unpriced := sum(row.unpriced_count for row in result.rows):
        typer.echo(f"{unpriced:,} of our calls have no known cost: no cost was set for their model then.")
    if result.is_archived:
        typer.echo("Some days are archived here: of them our hourly sums are compared, by the hour a request ended in.")
    typer.echo(
        f"{len(result.exceeding):,} figures differ by more than is allowed."
        if result.exceeding
        else "Nothing differs by more than is allowed."
    )

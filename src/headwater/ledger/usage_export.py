"""An upstream's usage export, whoever made it: CSV or JSON in, one row for each day (UTC) and model out. Pure.

Columns are found by the names that providers use (`NAMES`); which of them an export has is kept, so that only those are
compared. Money stays decimal until it is summed: an export may have more digits than our nano-units.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple, get_args

from headwater.errors import OperatorError
from headwater.money import NANOS_PER_UNIT

Figure = Literal["requests", "input_tokens", "cached_tokens", "output_tokens", "cost"]
FIGURES: tuple[Figure, ...] = get_args(Figure)

NAMES: dict[str, tuple[str, ...]] = {
    "day": ("date", "day", "start_time", "start_time_iso", "bucket_start", "usage_date", "timestamp", "time"),
    "model": ("model", "model_name", "model_id", "line_item"),
    "requests": ("requests", "num_model_requests", "num_requests", "request_count", "n_requests"),
    "input_tokens": ("input_tokens", "prompt_tokens", "n_context_tokens_total"),
    "cached_tokens": (
        *("cached_tokens", "input_cached_tokens", "cached_input_tokens", "cache_read_input_tokens"),
        "n_cached_context_tokens_total",
    ),
    "output_tokens": ("output_tokens", "completion_tokens", "n_generated_tokens_total"),
    "cost": ("cost", "amount", "cost_usd", "amount_usd", "amount_value", "total_cost"),
}
"""What we call a column, and what providers call it; the first that is there counts."""

_EXACT = Context(prec=80, rounding=ROUND_HALF_UP)
_DIGITS_MAX = 30
"""Of a number before its decimal point; no true one comes near."""
_UNIX_MS_FROM = 10**11
"""Numbers from here on are milliseconds: as seconds they would be the year 5138."""


class ExportRow(NamedTuple):
    """Sums of one day and model. figures: those the export has; cost in nano-units, rounded half up once."""

    day: date
    model: str
    figures: dict[Figure, int]


class Export(NamedTuple):
    """A whole export. figures: those that every row has."""

    rows: list[ExportRow]
    figures: tuple[Figure, ...]


def parse_export(text: str, *, columns: Mapping[str, str] | None = None) -> Export:
    """Read an export. columns: names of our columns (`NAMES`) to the export's, where they differ from all known ones.

    JSON: a list of objects, an object with such a list in `data`, one object a line, or pages of OpenAI's usage and costs
    (buckets with `results`). Raises OperatorError naming the line or record that can't be read.
    """
    text = text.removeprefix("\ufeff")
    records = list(_json_records(text) if text.lstrip()[:1] in ("{", "[") else _csv_records(text))
    if not records:
        raise OperatorError("The export has no rows.", now="Export a span of time in which the upstream was used.")
    found = _columns(records[0][1], columns or {})
    figures: tuple[Figure, ...] = tuple(figure for figure in FIGURES if figure in found)
    sums: dict[tuple[date, str], dict[Figure, Decimal]] = {}
    for place, record in records:
        key = (_day(record, found["day"], place), _model(record, found["model"], place))
        of_key = sums.setdefault(key, dict.fromkeys(figures, Decimal(0)))
        for figure in figures:
            of_key[figure] = _EXACT.add(of_key[figure], _number(record, found[figure], figure, place))
    rows = [
        ExportRow(day, model, {figure: _whole(number, figure) for figure, number in of_key.items()})
        for (day, model), of_key in sorted(sums.items())
    ]
    return Export(rows, figures)


# -- records -------------------------------------------------------------------------------------------------------------

Record = Mapping[str, Any]


def _csv_records(text: str) -> Iterator[tuple[str, Record]]:
    """(where, record) of each line below the heading; commas, semicolons or tabs between."""
    heading = text.partition("\n")[0]
    delimiter = max(",;\t", key=heading.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise _unreadable(place, "has another number of columns than the heading")
            if any(value.strip() for value in row.values()):
                yield place, {_plain(name): value.strip() for name, value in row.items()}
    except csv.Error as error:
        raise _unreadable(f"line {reader.line_num + 1}", f"is no CSV: {error}") from error


def _json_records(text: str) -> Iterator[tuple[str, Record]]:
    try:
        document = json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError as error:
        if text.lstrip()[:1] == "{" and "\n" in text.strip():
            yield from _json_lines(text)
            return
        raise _unreadable(f"line {error.lineno}", f"is no JSON: {error.msg}") from error
    yield from _flat(document, "")


def _json_lines(text: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield from _flat(json.loads(line, parse_float=Decimal), f"line {number}")
            except json.JSONDecodeError as error:
                raise _unreadable(f"line {number}", f"is no JSON: {error.msg}") from error


def _flat(document: Any, place: str) -> Iterator[tuple[str, Record]]:
    """Every record of a document: pages and lists are opened, the begin of a bucket goes to each of its results."""
    if isinstance(document, list):
        for number, one in enumerate(document, 1):
            yield from _flat(one, f"{place} record {number}".strip())
    elif not isinstance(document, dict):
        raise _unreadable(place or "the document", "is not a JSON object")
    elif document.get("has_more") is True:
        raise OperatorError(
            "The export is not complete.", why='It says "has_more": true.', now="Export its other pages into it too."
        )
    elif isinstance(document.get("data"), list):
        yield from _flat(document["data"], place)
    elif isinstance(document.get("results"), list):
        for number, result in enumerate(document["results"], 1):
            if not isinstance(result, dict):
                raise _unreadable(f"{place} result {number}", "is not a JSON object")
            yield f"{place} result {number}", _named({**document, **result})
    else:
        yield place or "the document", _named(document)


def _named(record: Record) -> Record:
    """With plain names, and amounts written as {"value": 1.5, "currency": "usd"} opened."""
    return {
        _plain(name): value["value"] if isinstance(value, dict) and "value" in value else value
        for name, value in record.items()
    }


# -- values --------------------------------------------------------------------------------------------------------------


def _columns(record: Record, given: Mapping[str, str]) -> dict[str, str]:
    """Which of the export's columns each of ours is."""
    if unknown := sorted(set(given) - set(NAMES)):
        raise OperatorError(f"There is no column {unknown[0]!r}.", now=f"Columns are {', '.join(NAMES)}.")
    found: dict[str, str] = {}
    for name, known in NAMES.items():
        wanted = (_plain(given[name]),) if name in given else known
        column = next((one for one in wanted if one in record and record[one] is not None), None)
        if column is not None:
            found[name] = column
        elif name in given:
            raise OperatorError(f"The export has no column {given[name]!r}.", why=f"It has {', '.join(record)}.")
    for name in ("day", "model"):
        if name not in found:
            raise OperatorError(
                f"The export has no column for the {name}.",
                why=f"Looked for {', '.join(NAMES[name])}; it has {', '.join(record)}.",
                now=f"Name it: --column {name}=THEIR_NAME.",
            )
    if not set(found) & set(FIGURES):
        raise OperatorError(
            "The export has nothing to compare.",
            why=f"It has {', '.join(record)}.",
            now="Name it: --column cost=THEIR_NAME.",
        )
    return found


def _day(record: Record, column: str, place: str) -> date:
    value = record.get(column)
    try:
        if isinstance(value, int | Decimal) or (isinstance(value, str) and re.fullmatch(r"\d{9,14}", value)):
            seconds = int(value) / 1000 if int(value) >= _UNIX_MS_FROM else int(value)
            return datetime.fromtimestamp(seconds, UTC).date()
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date()
    except (ValueError, OverflowError, OSError):
        pass  # said below, with the others
    raise _unreadable(place, f"has {column} {value!r}, which is no date: write 2026-11-01, or Unix seconds")


def _model(record: Record, column: str, place: str) -> str:
    value = record.get(column)
    if not isinstance(value, str) or not value:
        raise _unreadable(place, f"has no {column}")
    # OpenAI's costs have a line for each kind of token: "large-1, input".
    return value.partition(", ")[0] if column == "line_item" else value


def _number(record: Record, column: str, figure: Figure, place: str) -> Decimal:
    value = record.get(column)
    text = str(value).removeprefix("$") if not isinstance(value, bool) else "?"
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    is_sane = number.is_finite() and -_DIGITS_MAX < number.adjusted() < _DIGITS_MAX
    is_whole = is_sane and number == number.to_integral_value()
    if not is_sane or (figure != "cost" and not (is_whole and number >= 0)):
        kind = "an amount" if figure == "cost" else "a whole number"
        raise _unreadable(place, f"has {column} {value!r}, which is not {kind}")
    return number


def _whole(number: Decimal, figure: Figure) -> int:
    scaled = _EXACT.multiply(number, Decimal(NANOS_PER_UNIT)) if figure == "cost" else number
    return int(scaled.to_integral_value(rounding=ROUND_HALF_UP))


def _plain(name: str) -> str:
    """A column's name as it is compared: `Input Tokens` → `input_tokens`."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def _unreadable(place: str, problem: str) -> OperatorError:
    return OperatorError(f"The export can't be read: {place} {problem}.", now="Mend it, or export it again.")


def days_of(rows: Iterable[ExportRow]) -> tuple[date, date]:
    """The first and the last day of an export."""
    days = [row.day for row in rows]
    return min(days), max(days)

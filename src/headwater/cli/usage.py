"""`headwater usage`: what was used and what it cost, by model, key or day; and the receipt of one request."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import print_json, print_table
from headwater.errors import OperatorError

DAYS_DEFAULT = 30

app = typer.Typer(invoke_without_command=True)


@app.callback()
def usage(
    context: typer.Context,
    by: Annotated[Literal["model", "key", "day"], typer.Option("--by", help="What to sum by.")] = "model",
    start: Annotated[
        str | None,
        typer.Option("--start", metavar="WHEN", help="From this date or time on (UTC).", show_default="30 days ago"),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--end", metavar="WHEN", help="Before this date or time (UTC).", show_default="now")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show requests, tokens and cost. Reads beside the running platform; changes nothing."""
    if context.invoked_subcommand is not None:
        return
    from headwater.ledger.migrate import current_revision, require_head
    from headwater.ledger.reports import reader_engine, usage_by
    from headwater.money import format_nanos

    settings = load_settings(config, overrides).settings
    until = _moment(end, "--end") or datetime.now(UTC) + timedelta(seconds=1)
    since = _moment(start, "--start") or until - timedelta(days=DAYS_DEFAULT)
    if since >= until:
        raise OperatorError(f"--start ({since.isoformat()}) must be before --end ({until.isoformat()}).")
    database = settings.store.path
    revision = current_revision(database)
    if revision is None:
        raise OperatorError(
            f"There is no usage yet: {database} doesn't exist.", now="Start the platform first: headwater up."
        )
    require_head(database, revision)
    engine = reader_engine(database)
    try:
        sums = usage_by(engine, by, start=since, end=until)
    finally:
        engine.dispose()
    currency = settings.billing.currency
    if as_json:
        rows = [
            {by: one.group, **one._asdict(), "cost": format_nanos(one.cost_nanos), "currency": currency} for one in sums
        ]
        for row in rows:
            del row["group"]
        print_json(rows)
        return
    columns = [
        by.capitalize(),
        "Requests",
        "Ok",
        "Input tokens",
        "of them cached",
        "Output tokens",
        f"Cost {currency}",
        "Unpriced",
    ]
    print_table(
        f"Usage from {since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} UTC",
        columns,
        [
            (
                one.group,
                f"{one.requests_count:,}",
                f"{one.ok_count:,}",
                f"{one.input_tokens:,}",
                f"{one.cached_input_tokens:,}",
                f"{one.output_tokens:,}",
                format_nanos(one.cost_nanos),
                f"{one.unpriced_count:,}",
            )
            for one in sums
        ],
        numbers=columns[1:],
    )


@app.command("receipt")
def receipt(
    request_id: Annotated[
        str,
        typer.Argument(metavar="REQUEST_ID", help="The answer's x-request-id (req_…).", show_default=False),
    ],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one request: who, what, how it was counted, what it cost and why, and where the money went."""
    from headwater.cli.ledger import reading
    from headwater.cli.receipt_output import receipt_text
    from headwater.ledger.receipt import read_receipt

    settings = load_settings(config, overrides).settings
    with reading(settings.store.path) as connection:
        found = read_receipt(connection, request_id)
    if found is None:
        raise OperatorError(
            f"The books have no request {request_id!r}.",
            why="A request leaves a record once it was authenticated, complete and resolved. Old ones are archived.",
            now="Its id is in the answer's header x-request-id and in the log line request_settled.",
        )
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
    else:
        typer.echo(receipt_text(found, settings.billing.currency))


def _moment(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise OperatorError(
            f"{option} {text!r} is not a date or time.", now="Write it as 2026-11-01 or 2026-11-01T12:00."
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

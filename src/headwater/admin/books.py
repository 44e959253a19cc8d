"""The ledger's file as one thing: schema ensured, writer running, default organization and prices in place."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from headwater.clock import Clock
from headwater.ids import ORGANIZATION, PRICE, PROJECT, new_id
from headwater.ledger import store
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.writer import LedgerWriter
from headwater.money import Price, parse_nanos
from headwater.settings.model import PriceSettings


class Books(NamedTuple):
    """An opened ledger. organization_id, project_id: the default ones, where keys go unless told otherwise."""

    database: Path
    writer: LedgerWriter
    organization_id: str
    project_id: str

    def close(self) -> None:
        """Write what waits and close."""
        self.writer.close()


def open_books(database: Path, *, clock: Clock, on_fatal: Callable[[BaseException], None]) -> Books:
    """Open the database at `database`, whose directory the caller owns. Raises OperatorError when it can't be."""
    ensure_schema(database)
    writer = LedgerWriter(store.open_writer(database), on_fatal=on_fatal)
    writer.start()
    reader = store.open_reader(database)
    try:
        found = store.read_default_project(reader)
    finally:
        reader.close()
    if found is None:
        found = (new_id(ORGANIZATION), new_id(PROJECT))
        now_ms = int(clock.now_s() * 1000)
        writer.submit(
            [
                store.Write(store.INSERT_ORGANIZATION, (found[0], "default", now_ms)),
                store.Write(store.INSERT_PROJECT, (found[1], found[0], "default", now_ms)),
            ]
        ).result()
    return Books(database, writer, *found)


def publish_prices(books: Books, settings: Sequence[PriceSettings], *, currency: str, clock: Clock) -> dict[str, Price]:
    """Current price of each configured model; a price that differs from the stored one becomes a new version.

    A model whose price was taken out of the configuration has none from now on; its versions stay for its records.
    """
    reader = store.open_reader(books.database)
    try:
        latest = {price.model: price for price in store.read_latest_prices(reader)}
    finally:
        reader.close()
    current: dict[str, Price] = {}
    writes: list[store.Write] = []
    for setting in settings:
        wished = _price(setting, currency)
        stored = latest.get(setting.model)
        if stored is not None and msgspec.structs.replace(wished, id=stored.id) == stored:
            current[setting.model] = stored
        else:
            current[setting.model] = wished
            writes.append(store.price_write(wished, int(clock.now_s() * 1000)))
    if writes:
        books.writer.submit(writes).result()
    return current


def _price(setting: PriceSettings, currency: str) -> Price:
    uncached_input, output = parse_nanos(setting.input), parse_nanos(setting.output)

    def or_else(text: str | None, default: int) -> int:
        return default if text is None else parse_nanos(text)

    return Price(
        id=new_id(PRICE),
        model=setting.model,
        currency=currency,
        uncached_input=uncached_input,
        cache_read=or_else(setting.cached_input, uncached_input),
        cache_write=or_else(setting.cache_write, uncached_input),
        output=output,
        reasoning=or_else(setting.reasoning, output),
    )

"""The ledger's file as one thing: schema ensured, writer running, default organization and prices in place."""

import contextlib
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from headwater.admin.price_terms import next_price_id
from headwater.clock import Clock
from headwater.ids import ORGANIZATION, PRICE, PROJECT, new_id
from headwater.ledger import store
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.price_list import PriceList
from headwater.ledger.recovery import Recovered, recover
from headwater.ledger.writer import LedgerWriter
from headwater.money import Price, parse_nanos
from headwater.settings.model import PriceSettings

T = TypeVar("T")


class Books(NamedTuple):
    """An opened ledger. organization_id, project_id: the default ones, where keys go unless told otherwise.

    recovered: what opening it did about the requests that an earlier process left unfinished.
    """

    database: Path
    writer: LedgerWriter
    organization_id: str
    project_id: str
    recovered: Recovered

    def read(self, look: Callable[[store.Connection], T]) -> T:
        """What a reader finds, on a connection of its own."""
        with contextlib.closing(store.open_reader(self.database)) as reader:
            return look(reader)

    def begin_epoch(self, *, clock: Clock) -> int:
        """Note the start of a gateway; returns its number, which its reservations carry."""
        epoch = self.read(store.read_next_epoch)
        row = (epoch, f"{platform.node()}:{os.getpid()}", int(clock.now_s() * 1000))
        self.writer.submit([store.Write(store.INSERT_EPOCH, row)]).result()
        return epoch

    def close(self) -> None:
        """Write what waits and close."""
        self.writer.close()


def open_books(database: Path, *, clock: Clock, on_fatal: Callable[[BaseException], None]) -> Books:
    """Open the database at `database`, whose directory the caller owns. Raises OperatorError when it can't be."""
    ensure_schema(database)
    writer = LedgerWriter(store.open_writer(database), on_fatal=on_fatal)
    writer.start()
    with contextlib.closing(store.open_reader(database)) as reader:
        now_ms = int(clock.now_s() * 1000)
        recovered = recover(reader, writer, now_ms=now_ms)
        found = store.read_default_project(reader)
    if found is None:
        found = (new_id(ORGANIZATION), new_id(PROJECT))
        writer.submit(
            [
                store.Write(store.INSERT_ORGANIZATION, (found[0], "default", now_ms)),
                store.Write(store.INSERT_PROJECT, (found[1], found[0], "default", now_ms)),
            ]
        ).result()
    return Books(database, writer, *found, recovered)


def publish_prices(
    books: Books,
    prices: Sequence[PriceSettings],
    costs: Sequence[PriceSettings] = (),
    *,
    currency: str,
    clock: Clock,
) -> None:
    """Make the configuration's prices and costs the ones in force; one that differs becomes a new version.

    A model that was taken out of the configuration has none from now on; its versions stay for its records. What an
    administrator set for a model that the configuration doesn't name stays as it is; for one that it names, it loses its
    force, a version with a date to come too.
    """
    versions = books.read(store.read_prices)
    known = PriceList(versions)
    now_ms = int(clock.now_s() * 1000)
    last_id = max((version.price.id for version in versions), default=PRICE)
    writes: list[store.Write] = []
    kinds: tuple[tuple[store.PriceKind, Sequence[PriceSettings]], ...] = (("price", prices), ("cost", costs))
    for kind, settings in kinds:
        wished = {setting.model: _price(setting, currency) for setting in settings}
        dates: dict[str, set[int]] = {model: {now_ms} for model in wished}
        for version in versions:
            if version.kind == kind:
                dates.setdefault(version.price.model, {now_ms}).add(max(now_ms, version.effective_at_ms))
        for model, at_ms in [(model, at_ms) for model, times_ms in sorted(dates.items()) for at_ms in sorted(times_ms)]:
            new = _replacement(wished.get(model), known.in_force(model, at_ms, kind))
            if new is not None:
                last_id = next_price_id(last_id)
                price = msgspec.structs.replace(new, id=last_id)
                is_withdrawn = model not in wished
                writes.append(
                    store.price_write(price, now_ms, kind=kind, effective_at_ms=at_ms, is_withdrawn=is_withdrawn)
                )
    if writes:
        books.writer.submit(writes).result()


def _replacement(wished: Price | None, stored: store.PriceVersion | None) -> Price | None:
    """What the file puts in place of the version in force at some moment; None: nothing, it may stay.

    wished: None when the file doesn't name the model, so that what it said before is to be withdrawn.
    """
    is_files = stored is not None and stored.source == "config" and not stored.is_withdrawn
    if stored is None or not is_files:
        return wished
    if wished is None:
        return stored.price
    return None if msgspec.structs.replace(wished, id=stored.price.id) == stored.price else wished


def _price(setting: PriceSettings, currency: str) -> Price:
    uncached_input, output = parse_nanos(setting.input), parse_nanos(setting.output)

    def or_else(text: str | None, default: int) -> int:
        return default if text is None else parse_nanos(text)

    return Price(
        id="",
        model=setting.model,
        currency=currency,
        uncached_input=uncached_input,
        cache_read=or_else(setting.cached_input, uncached_input),
        cache_write=or_else(setting.cache_write, uncached_input),
        cache_write_1h=None if setting.cache_write_1h is None else parse_nanos(setting.cache_write_1h),
        output=output,
        reasoning=or_else(setting.reasoning, output),
        request=or_else(setting.request, 0),
    )

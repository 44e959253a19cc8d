"""Step 11: what the request leaves in the books becomes durable, once, whatever happens to its own task meanwhile.

Everything that is written goes through one queue in the order it was decided: reservations, marks, settlements. So if a
reservation is on the disk, everything that had made room for it is there too.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import structlog

from headwater.errors import LedgerUnavailable
from headwater.ledger.batch import Batch
from headwater.ledger.book import Settled
from headwater.ledger.rows import Delta, MarkRow, ReservationRow, ResolutionRow, Settlement, TransferRow
from headwater.ledger.writer import UNSOUND, LedgerWriter

log = structlog.get_logger()

LAZY_S = 0.25
"""What nobody waits for (reservations, marks) goes with the next submission, or alone after this time."""


class _Item(NamedTuple):
    """One thing to be written: `add(batch, *what)`. done: None when nobody waits for it."""

    add: Callable[..., None]
    what: tuple[Any, ...]
    request_id: str
    done: "asyncio.Future[None] | None"


class Settler:
    """Hands reservations, marks and settlements to the ledger writer, those of one turn of the event loop together.

    At most one submission is under way; what comes meanwhile goes with the next. So the writer commits as often as the
    disk allows and no oftener, and a lone settlement is submitted at once.
    """

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Item] = []
        self._is_under_way = False
        self._alone_count = 0
        self._is_idle = asyncio.Event()
        self._is_urgent = False
        self._lazy: asyncio.TimerHandle | None = None

    def reserve(self, row: ReservationRow) -> "asyncio.Future[None]":
        """Write a stream's reservation; the future resolves when it is on the disk, or fails with LedgerUnavailable."""
        return self._add(Batch.reserve, (row,), row.request_id, is_urgent=True)

    def reserve_with_next(self, row: ReservationRow) -> None:
        """Write a reservation with whatever comes next: its request is told nothing before its settlement."""
        self._put(_Item(Batch.reserve, (row,), row.request_id, None), is_urgent=False)

    def mark(self, request_id: str, row: MarkRow) -> "asyncio.Future[None]":
        """Write how far a stream has come with whatever comes next; the future is for who can't wait longer, after `hurry`."""
        return self._add(Batch.mark, (row,), request_id, is_urgent=False)

    def hurry(self) -> None:
        """Write now what would go with whatever comes next."""
        self._submit_lazily()

    def settle(self, settlement: Settlement) -> "asyncio.Future[None]":
        """Write a settlement; the future resolves when it is on the disk, or fails with LedgerUnavailable.

        Cancelling the wait cancels nothing here: it only forgets the future, which is the waiter's alone.
        """
        return self._add(Batch.settle, (settlement,), settlement.record.request_id, is_urgent=True)

    def expire(self, held: ReservationRow, resolution: ResolutionRow, settled: Settled) -> "asyncio.Future[None]":
        """Write that a reservation's time is over."""
        what = (held, resolution, settled.transfers, settled.lots)
        return self._add(Batch.expire, what, held.request_id, is_urgent=True)

    def lapse(self, transfers: list[TransferRow]) -> None:
        """Write credit that nobody may spend any more."""
        lots = [Delta((row.subject,), -row.amount_nanos) for row in transfers]
        self._put(_Item(Batch.move, (transfers, lots), transfers[0].subject, None), is_urgent=True)

    def remember(self, name: str, value: int) -> None:
        """Write a number of the ledger's own, with what comes next."""
        self._put(_Item(Batch.set_state, (name, value), name, None), is_urgent=False)

    async def flush(self) -> None:
        """Wait until everything handed over so far has an answer."""
        self._submit_lazily()
        while self._waiting or self._is_under_way or self._alone_count:
            self._is_idle.clear()
            await self._is_idle.wait()

    def _add(
        self, add: Callable[..., None], what: tuple[Any, ...], request_id: str, *, is_urgent: bool
    ) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = self._loop.create_future()
        self._put(_Item(add, what, request_id, done), is_urgent=is_urgent)
        return done

    def _put(self, item: _Item, *, is_urgent: bool) -> None:
        self._waiting.append(item)
        if not is_urgent:
            if self._lazy is None:
                self._lazy = self._loop.call_later(LAZY_S, self._submit_lazily)
        elif not self._is_urgent:
            self._is_urgent = True
            if not self._is_under_way:
                self._loop.call_soon(self._submit)

    def _submit_lazily(self) -> None:
        if self._waiting and not self._is_urgent:
            self._is_urgent = True
            if not self._is_under_way:
                self._submit()

    def _submit(self) -> None:
        items, self._waiting = self._waiting, []
        self._is_urgent = False
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if not items:
            return
        self._is_under_way = True
        batch = _batch(items)
        if batch is None:
            self._submit_alone(items)
            self._submitted()
            return
        committed = self._writer.submit(batch.rows(), settlements_count=batch.settlements_count)
        committed.add_done_callback(lambda future: self._loop.call_soon_threadsafe(self._committed, items, future))

    def _committed(self, items: list[_Item], committed: "Future[None]") -> None:
        error = committed.exception()
        if isinstance(error, UNSOUND) and len(items) > 1:
            self._submit_alone(items)
        else:
            self._resolve(items, error)
        self._submitted()

    def _submit_alone(self, items: list[_Item]) -> None:
        """One of them is unsound; it must not take the others with it."""
        for item in items:
            batch = _batch([item])
            if batch is None:
                self._resolve([item], ValueError("it can't be written down"))
                continue
            alone = self._writer.submit(batch.rows(), settlements_count=batch.settlements_count)
            self._alone_count += 1
            alone.add_done_callback(partial(self._committed_alone, item))

    def _submitted(self) -> None:
        self._is_under_way = False
        if self._is_urgent:
            self._submit()
        if not self._is_under_way:
            self._is_idle.set()

    def _committed_alone(self, item: _Item, committed: "Future[None]") -> None:
        self._loop.call_soon_threadsafe(self._resolve_alone, item, committed.exception())

    def _resolve_alone(self, item: _Item, error: BaseException | None) -> None:
        self._alone_count -= 1
        self._resolve([item], error)
        self._is_idle.set()

    def _resolve(self, items: list[_Item], error: BaseException | None) -> None:
        for _, _, request_id, done in items:
            if error is not None:
                log.error("settlement_failed", request_id=request_id, error=f"{type(error).__name__}: {error}")
            if done is None or done.cancelled():
                continue
            if error is None:
                done.set_result(None)
            else:
                failure = LedgerUnavailable(
                    f"The usage of {request_id} could not be recorded, so the answer is not given."
                )
                failure.__cause__ = error
                done.set_exception(failure)
                done.exception()  # a rejected request's settlement is not waited for


def _batch(items: list[_Item]) -> Batch | None:
    """What the items write together; None when one of them can't even be put into rows."""
    batch = Batch()
    try:
        for item in items:
            item.add(batch, *item.what)
    except Exception:
        log.exception("batch_failed", items_count=len(items))
        return None
    return batch

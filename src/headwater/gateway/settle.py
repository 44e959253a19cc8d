"""Step 11: the request's record becomes durable, once, whatever happens to the request's own task meanwhile."""

import asyncio
from concurrent.futures import Future
from functools import partial

import structlog

from headwater.errors import LedgerUnavailable
from headwater.ledger.rows import Settlement
from headwater.ledger.store import IntegrityError, Write, settlement_writes
from headwater.ledger.writer import LedgerWriter
from headwater.money import Price, cost_nanos
from headwater.usage import Outcome, Usage

log = structlog.get_logger()


def charge_nanos(usage: Usage, price: Price | None, *, outcome: Outcome, is_stream: bool) -> int | None:
    """What a request costs its caller; None when no price is known. Pure.

    A caller who doesn't stream and whom we had to refuse the answer (the engine failed, the time ran out) received
    nothing and pays nothing; the tokens stay on the record. One who left pays for what was made until then.
    """
    if price is None:
        return None
    if not is_stream and outcome in ("upstream_error", "timeout", "rejected"):
        return 0
    return cost_nanos(usage, price)


class Settler:
    """Hands settlements to the ledger writer, those of one turn of the event loop together.

    At most one submission is under way; what is settled meanwhile goes with the next. So the writer commits as often
    as the disk allows and no oftener, and a lone settlement is submitted at once.
    """

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Settlement, asyncio.Future[None]]] = []
        self._open: set[asyncio.Future[None]] = set()
        self._is_under_way = False

    def settle(self, settlement: Settlement) -> "asyncio.Future[None]":
        """Hand over; the future resolves when the record is on the disk, or fails with LedgerUnavailable.

        Whoever waits should shield it: cancelling the wait must not look like cancelling the settlement.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        self._open.add(done)
        done.add_done_callback(self._open.discard)
        self._waiting.append((settlement, done))
        if len(self._waiting) == 1 and not self._is_under_way:
            self._loop.call_soon(self._submit)
        return done

    async def flush(self) -> None:
        """Wait until everything handed over so far has an answer."""
        if self._open:
            await asyncio.wait(set(self._open))

    def _submit(self) -> None:
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        self._is_under_way = True
        writes: list[Write] = []
        for settlement, _ in batch:
            writes += settlement_writes(settlement)
        committed = self._writer.submit(writes, settlements_count=len(batch))
        committed.add_done_callback(lambda future: self._loop.call_soon_threadsafe(self._committed, batch, future))

    def _committed(self, batch: "list[tuple[Settlement, asyncio.Future[None]]]", committed: "Future[None]") -> None:
        error = committed.exception()
        if isinstance(error, IntegrityError) and len(batch) > 1:
            # One of them breaks a constraint; it must not take the others with it.
            for one in batch:
                alone = self._writer.submit(settlement_writes(one[0]), settlements_count=1)
                alone.add_done_callback(partial(self._committed_alone, one))
        else:
            self._resolve(batch, error)
        self._is_under_way = False
        if self._waiting:
            self._submit()

    def _committed_alone(self, one: "tuple[Settlement, asyncio.Future[None]]", committed: "Future[None]") -> None:
        self._loop.call_soon_threadsafe(self._resolve, [one], committed.exception())

    def _resolve(self, batch: "list[tuple[Settlement, asyncio.Future[None]]]", error: BaseException | None) -> None:
        for settlement, done in batch:
            if done.cancelled():
                continue
            if error is None:
                done.set_result(None)
            else:
                request_id = settlement.record.request_id
                log.error("settlement_failed", request_id=request_id, error=f"{type(error).__name__}: {error}")
                failure = LedgerUnavailable(
                    f"The usage of {request_id} could not be recorded, so the answer is not given."
                )
                failure.__cause__ = error
                done.set_exception(failure)
                done.exception()  # a rejected request's settlement is not waited for

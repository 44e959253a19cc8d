"""What the ledger does on a disk: start-up, settlements a second, and a key's usage; run as a process of its own.

The book, the settler, the batches and the writer are the platform's. Callers come back at once with their next request,
so the rate is what the ledger can take; each request costs what `bench/ledger_load.py` says. Prints one JSON object.

Run: python -m bench.ledger_writer DATABASE [--callers 64] [--seconds 3]
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

import uvloop

from bench.disk import sync_times_s
from bench.ledger_load import AMOUNT_NANOS, COST_NANOS, KEYS_EACH, MODEL, ORGANIZATIONS, PRICE, PROJECTS_EACH
from bench.load import quantile
from headwater.gateway.settle import Settler
from headwater.ids import ATTEMPT, REQUEST, new_id
from headwater.ledger import store
from headwater.ledger.book import Book, Hold, Settled
from headwater.ledger.hours import read_usage
from headwater.ledger.load_book import key_caps, load_book
from headwater.ledger.migrate import ensure_schema
from headwater.ledger.recovery import recover
from headwater.ledger.rows import AttemptRow, ReservationRow, ResolutionRow, Settlement, UsageRow
from headwater.ledger.store import open_reader, open_writer
from headwater.ledger.writer import LedgerWriter
from headwater.usage import Usage

USAGE = Usage(uncached_input=60, output=10)
QUERIES_COUNT = 50
SPAN_MS = 7 * 86_400_000
USED_KEY = 0
"""The key whose usage is asked for, over days in which the history holds nothing: the same work in every database."""
WARM_S = 0.5


class Counting:
    """Callers that reserve and settle without a pause; what they count."""

    def __init__(self, book: Book, settler: Settler, writer: LedgerWriter, epoch: int) -> None:
        self._book, self._settler, self._writer, self._epoch = book, settler, writer, epoch
        self._pick = random.Random(1)
        self.reserve_ns: list[int] = []
        self.is_over = False

    async def measure(self, callers_count: int, seconds: float, *, is_stream: bool) -> dict[str, float]:
        """Rates and counts over a window, after a short one that isn't counted."""
        self.is_over = False
        tasks = [asyncio.create_task(self._call(is_stream=is_stream)) for _ in range(callers_count)]
        await asyncio.sleep(WARM_S)
        self.reserve_ns.clear()
        start = self._state()
        await asyncio.sleep(seconds)
        end = self._state()
        self.is_over = True
        await asyncio.gather(*tasks)
        self._settler.remember(store.OPEN_FROM, self._book.oldest_open())  # as `Cashier.sweep` does every few seconds
        await self._settler.flush()
        settled, commits, cpu_s, wall_s = (after - before for before, after in zip(start, end, strict=True))
        name = "stream" if is_stream else "settle"
        reserve_us = [time_ns / 1000 for time_ns in self.reserve_ns]
        return {
            f"{name}_per_s": settled / wall_s,
            f"{name}_fsyncs_each": commits / settled,
            f"{name}_cpu_us": cpu_s / settled * 1e6,
            f"{name}_reserve_cpu_p50_us": quantile(reserve_us, 0.5),
            f"{name}_reserve_cpu_p99_us": quantile(reserve_us, 0.99),
        }

    def _state(self) -> tuple[float, ...]:
        return self._writer.settlements_count, self._writer.commits_count, time.process_time(), time.monotonic()

    async def _call(self, *, is_stream: bool) -> None:
        while not self.is_over:
            key = self._pick.randrange(ORGANIZATIONS * KEYS_EACH)
            now_ms = time.time_ns() // 1_000_000
            start = time.thread_time_ns()
            hold = self._book.reserve(**_caller(key), amount_nanos=AMOUNT_NANOS, now_ms=now_ms)
            row = _reservation(key, hold, self._epoch, now_ms, is_stream=is_stream)
            self.reserve_ns.append(time.thread_time_ns() - start)
            if is_stream:
                await self._settler.reserve(row)
            else:
                self._settler.reserve_with_next(row)
            settled = self._book.settle(hold, COST_NANOS, now_ms)
            await self._settler.settle(_settlement(row, settled, now_ms))


def _caller(key: int) -> dict[str, str]:
    organization = key // KEYS_EACH
    project_id = f"prj_{organization:04}_{key % PROJECTS_EACH}"
    return {"organization_id": f"org_{organization:04}", "project_id": project_id, "key_id": f"key_{key:04}"}


def _reservation(key: int, hold: Hold, epoch: int, now_ms: int, *, is_stream: bool) -> ReservationRow:
    return ReservationRow(
        id=hold.id,
        request_id=new_id(REQUEST),
        epoch=epoch,
        **_caller(key),
        model=MODEL,
        price_id=PRICE.id,
        amount_nanos=AMOUNT_NANOS,
        budgets=hold.budgets_json,
        lots=hold.lots_json,
        client_request_id=None,
        dialect="openai_chat",
        service_tier="standard",
        is_stream=is_stream,
        choices_count=1,
        tags=None,
        received_at_ms=now_ms,
        expires_at_ms=now_ms + 660_000,
    )


def _settlement(row: ReservationRow, settled: Settled, now_ms: int) -> Settlement:
    record = UsageRow(
        request_id=row.request_id,
        client_request_id=None,
        organization_id=row.organization_id,
        project_id=row.project_id,
        key_id=row.key_id,
        dialect=row.dialect,
        model=row.model,
        is_stream=row.is_stream,
        choices_count=1,
        outcome="ok",
        error_code=None,
        usage_source="reported",
        usage=USAGE,
        price_id=row.price_id,
        cost_nanos=settled.charge_nanos,
        received_at_ms=row.received_at_ms,
        queue_ms=1,
        ttft_ms=20,
        duration_ms=30,
    )
    attempt = AttemptRow(new_id(ATTEMPT), row.request_id, 0, MODEL, "rep_1", "ok", None, "reported", USAGE, now_ms, 29)
    return Settlement(
        record,
        (attempt,),
        reservation=row,
        resolution=ResolutionRow(row.id, "post", settled.charge_nanos, now_ms),
        transfers=settled.transfers,
        lots=settled.lots,
        budgets=settled.budgets,
    )


async def run(database: Path, callers_count: int, seconds: float) -> dict[str, float]:
    """Start as the platform does, load, and ask."""
    now_ms = time.time_ns() // 1_000_000
    began_s = time.perf_counter()
    ensure_schema(database)
    writer = LedgerWriter(open_writer(database), on_fatal=lambda error: print(error, file=sys.stderr))
    writer.start()
    with contextlib.closing(open_reader(database)) as reader:
        recover(reader, writer, now_ms=now_ms)
        book = load_book(reader, keys_count_max=50_000)
        start_s = time.perf_counter() - began_s
        epoch = store.read_next_epoch(reader)
        writer.submit([store.Write(store.INSERT_EPOCH, (epoch, "gw", now_ms))]).result()
        for key in range(ORGANIZATIONS * KEYS_EACH):
            key_id = f"key_{key:04}"
            book.load_key(key_id, key_caps(store.read_budgets(reader, key_id)), now_ms)
    counting = Counting(book, Settler(writer), writer, epoch)
    figures = await counting.measure(callers_count, seconds, is_stream=False)
    figures |= await counting.measure(callers_count, seconds, is_stream=True)
    queries_s = [_query_s(database) for _ in range(QUERIES_COUNT)]
    syncs_s = sync_times_s(os.fdatasync, database.parent)
    writer.close()
    return {
        **figures,
        "start_ms": start_s * 1000,
        "usage_query_ms": statistics.median(queries_s) * 1000,
        "fdatasync_p50_ms": quantile(syncs_s, 0.5) * 1000,
        "fdatasync_p99_ms": quantile(syncs_s, 0.99) * 1000,
    }


def _query_s(database: Path) -> float:
    """Seconds that `GET /v1/usage` needs for the sums of a key over a week."""
    now_ms = time.time_ns() // 1_000_000
    start = time.perf_counter()
    with contextlib.closing(open_reader(database)) as reader:
        rows = read_usage(reader, "model", start_ms=now_ms - SPAN_MS, end_ms=now_ms + 1, key_id=f"key_{USED_KEY:04}")
    assert sum(row.requests_count for row in rows), "the key was used"
    return time.perf_counter() - start


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger_writer")
    parser.add_argument("database", type=Path)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(run(options.database, options.callers, options.seconds))
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

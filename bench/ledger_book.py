"""What a reservation and its settlement cost in memory, with a million keys there; run as a process of its own.

Prints one JSON object of figures. CPU is the thread's own clock, read before and after each call; reading it is in the
figures (`clock_us`). A wait would show as a voluntary context switch, a block read, a major fault or an audit event.

Run: python -m bench.ledger_book [--keys 1000000] [--organizations 10000] [--calls 200000]
"""

import argparse
import json
import random
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.load import quantile
from headwater.ledger.book import Book, Hold
from headwater.ledger.caps import Cap
from headwater.ledger.periods import BudgetTerms, PeriodKind, ScopeKind
from headwater.ledger.wallet import Lot
from headwater.money import NANOS_MAX

NOW_MS = 1_795_000_000_000
PROJECTS_PER_ORGANIZATION = 3
CAPPED_KEYS = 10
"""One key of so many has a budget of its own."""
OPEN_COUNT = 64
"""Requests under way at once."""
AMOUNT_NANOS = 1_000_000
WATCHED = ("open", "os.", "socket.", "sqlite3.", "subprocess.", "shutil.", "tempfile.", "import")
"""Audit events (by how they begin) that reach outside the process's memory."""


def build(keys_count: int, organizations_count: int) -> Book:
    """A book with every key loaded, a budget on each organization and project and on some keys, and credit."""
    book = Book(keys_count_max=keys_count)
    for number in range(organizations_count):
        organization_id = f"org_{number:06}"
        book.set_organization(organization_id, is_prepaid=number % 2 == 0)
        book.set_budget(_terms("organization", organization_id, organization_id, "month"))
        for project in range(PROJECTS_PER_ORGANIZATION):
            project_id = f"prj_{number:06}_{project}"
            book.set_budget(_terms("project", project_id, organization_id, "day", "Europe/Berlin"))
        book.add_lot(Lot(f"gnt_{number:06}_a", organization_id, 10**9, NOW_MS + 10**9))
        book.add_lot(Lot(f"gnt_{number:06}_b", organization_id, 10**15, None))
    for number in range(keys_count):
        key_id = f"key_{number:08}"
        is_capped = number % CAPPED_KEYS == 0
        organization_id = f"org_{number % organizations_count:06}"
        caps = [Cap(_terms("key", key_id, organization_id, "total"))] if is_capped else []
        book.load_key(key_id, caps, NOW_MS)
    return book


def _terms(
    scope: ScopeKind, scope_id: str, organization_id: str, period: PeriodKind, time_zone: str = "UTC"
) -> BudgetTerms:
    return BudgetTerms(
        f"bud_{scope_id}", organization_id, scope, scope_id, NANOS_MAX // 2, period, None, NOW_MS, time_zone, (80, 100)
    )


class Waits:
    """Counts what could have waited for something outside this thread."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.switches_count = 0
        self.blocks_count = 0
        self.faults_count = 0
        self._is_on = False
        sys.addaudithook(self._hear)

    @property
    def parts(self) -> dict[str, int]:
        """How often each kind came."""
        return {
            "audit_event": self.events.total(),
            "voluntary_switch": self.switches_count,
            "block": self.blocks_count,
            "major_fault": self.faults_count,
        }

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count while this lasts."""
        before = resource.getrusage(resource.RUSAGE_THREAD)
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False
            after = resource.getrusage(resource.RUSAGE_THREAD)
            self.switches_count = after.ru_nvcsw - before.ru_nvcsw
            self.blocks_count = after.ru_inblock - before.ru_inblock + after.ru_oublock - before.ru_oublock
            self.faults_count = after.ru_majflt - before.ru_majflt

    def _hear(self, event: str, _arguments: tuple[object, ...]) -> None:
        if self._is_on and event.startswith(WATCHED):
            self.events[event] += 1


def run(keys_count: int, organizations_count: int, calls_count: int) -> dict[str, float]:
    """Build, then reserve and settle; microseconds and counts by name."""
    before_mb = _rss_mb()
    book = build(keys_count, organizations_count)
    memory_mb = _rss_mb() - before_mb
    pick = random.Random(1)
    numbers = [pick.randrange(keys_count) for _ in range(calls_count)]
    callers = [
        {
            "organization_id": f"org_{number % organizations_count:06}",
            "project_id": f"prj_{number % organizations_count:06}_{number % PROJECTS_PER_ORGANIZATION}",
            "key_id": f"key_{number:08}",
        }
        for number in numbers
    ]
    reserve_ns: list[int] = []
    settle_ns: list[int] = []
    held: deque[Hold] = deque()
    cpu_ns, waits = time.thread_time_ns, Waits()
    with waits.counted():
        for number, caller in enumerate(callers):
            now_ms = NOW_MS + number // 10
            start = cpu_ns()
            hold = book.reserve(**caller, amount_nanos=AMOUNT_NANOS, now_ms=now_ms)
            _ = (hold.budgets_json, hold.lots_json)  # as its row has them
            reserve_ns.append(cpu_ns() - start)
            held.append(hold)
            if len(held) > OPEN_COUNT:
                hold = held.popleft()
                start = cpu_ns()
                book.settle(hold, AMOUNT_NANOS // 2, now_ms)
                settle_ns.append(cpu_ns() - start)
    clock_ns = [-(cpu_ns() - cpu_ns()) for _ in range(1000)]
    return {
        **_figures("reserve", reserve_ns),
        **_figures("settle", settle_ns),
        "clock_us": quantile(clock_ns, 0.5) / 1000,
        "io_waits_count": waits.count,
        **{f"io_{name}_count": count for name, count in waits.parts.items()},
        "calls_count": len(reserve_ns) + len(settle_ns),
        "memory_mb": memory_mb,
    }


def _figures(name: str, times_ns: list[int]) -> dict[str, float]:
    times_us = [time_ns / 1000 for time_ns in times_ns]
    return {
        f"{name}_cpu_p50_us": quantile(times_us, 0.5),
        f"{name}_cpu_p99_us": quantile(times_us, 0.99),
        f"{name}_cpu_mean_us": sum(times_us) / len(times_us),
        f"{name}_cpu_max_us": max(times_us),
    }


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger_book")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--organizations", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=200_000)
    options = parser.parse_args()
    print(json.dumps(run(options.keys, options.organizations, options.calls)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

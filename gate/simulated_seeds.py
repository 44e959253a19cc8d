"""Runs seeds of the simulation one after another and tells, as one line of JSON, what came of them.

Run: python -m gate.simulated_seeds FIRST COUNT [--store] [--twin NAME]

With --store over real SQLite files, each seed beside the same seed in memory: both must see the same history. With
--twin until the broken build is caught. A seed that failed is looked at again with `python -m gate.simulated_seeds SEED 1`.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from gate.broken_books import TWINS
from gate.simulated_disk import Log, MemoryLog
from gate.simulated_run import PRODUCT, Outcome, Parts, simulate
from gate.simulated_store import StoreLog, write_template
from gate.simulated_world import World

REPLAYED_EVERY = 50
"""Of so many seeds one is run twice: the same things must happen."""
TOLD_MAX = 5
MEMORY_DISK = Path("/dev/shm")
"""A disk without a disk, where there is one: durability is what other tests are about."""


class Told(msgspec.Struct):
    """What came of some seeds: how often each promise was broken, what was looked at, and the first failures in words."""

    lost: int = 0
    doubled: int = 0
    overdrawn: int = 0
    leaked: int = 0
    misstated: int = 0
    unsaid: int = 0
    seeds: int = 0
    requests: int = 0
    acknowledged: int = 0
    crashes: int = 0
    replayed: int = 0
    words: list[str] = []

    @property
    def is_caught(self) -> bool:
        """Whether any promise was broken."""
        return bool(self.words)

    def add(self, outcome: Outcome) -> None:
        """Count a seed."""
        self.seeds += 1
        self.requests += outcome.requests_count
        self.acknowledged += outcome.acknowledged_count
        self.crashes += outcome.crashes_count
        if outcome.metric is not None:
            self.blame(outcome.metric, str(outcome.broken))

    def blame(self, metric: str, words: str) -> None:
        """Count a broken promise."""
        setattr(self, metric, getattr(self, metric) + 1)
        if len(self.words) < TOLD_MAX:
            self.words.append(words)


async def in_memory(first: int, count: int, parts: Parts = PRODUCT, *, is_until_caught: bool = False) -> Told:
    """Run seeds over the simulated disk."""
    told = Told()
    for seed in range(first, first + count):
        outcome = await simulate(seed, parts, MemoryLog)
        told.add(outcome)
        if is_until_caught and told.is_caught:
            break
        if seed % REPLAYED_EVERY == 0:
            told.replayed += 1
            if await simulate(seed, parts, MemoryLog) != outcome:
                told.blame("misstated", f"seed {seed} went another way the second time")
    return told


async def over_the_store(first: int, count: int, parts: Parts = PRODUCT, *, is_until_caught: bool = False) -> Told:
    """Run seeds over real database files, each beside itself in memory."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )  # commits fail on purpose
    told = Told()
    with tempfile.TemporaryDirectory(prefix="hw-", dir=_fast_directory()) as folder:
        template = Path(folder) / "template.db"
        write_template(template)
        for seed in range(first, first + count):
            with tempfile.TemporaryDirectory(dir=folder) as files:
                outcome = await simulate(seed, parts, _store_in(Path(files), template))
            told.add(outcome)
            if is_until_caught and told.is_caught:
                break
            if outcome.metric is None:
                told.replayed += 1
                if (await simulate(seed, parts, MemoryLog)).trace != outcome.trace:
                    told.blame("misstated", f"seed {seed} went another way over the store than in memory")
    return told


def _fast_directory() -> Path | None:
    return MEMORY_DISK if MEMORY_DISK.is_dir() else None


def _store_in(directory: Path, template: Path) -> Callable[[World], Log]:
    return lambda world: StoreLog(world, template, directory)


def main() -> int:
    """The command line; prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m gate.simulated_seeds", description="Run seeds of the simulation.")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--store", action="store_true", help="over real SQLite files")
    parser.add_argument("--twin", choices=tuple(TWINS), help="a broken build, until it is caught")
    given = parser.parse_args()
    run = over_the_store if given.store else in_memory
    parts = TWINS[given.twin] if given.twin else PRODUCT
    told = asyncio.run(run(given.first, given.count, parts, is_until_caught=given.twin is not None))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

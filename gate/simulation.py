"""T8: the book and the ledger through any order of requests, commits, clock steps, changes and crashes a seed can draw.

A virtual clock and a scheduler of its own (gate/simulated_run.py) make each seed one interleaving that replays
identically. Most seeds run in memory; some over real SQLite files with the product's settler, writer and recovery,
where the same history must come out. Broken books (gate/broken_books.py) must be caught.
"""

import asyncio
import os
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gate.broken_books import STORE_TWINS, TWINS
from gate.children import lines_of
from gate.progress import Progress
from gate.rows import Row, Size, rows_of, twin_row
from gate.simulated_seeds import Told
from gate.state import State

NAME = "t8"
MEMORY, STORE = "memory", "sqlite"
SEEDS = {"full": {MEMORY: 100_000, STORE: 2_000}, "short": {MEMORY: 2_000, STORE: 20}}
ROUND_SEEDS = {MEMORY: 2_500, STORE: 50}
TWIN_SEEDS_MAX = {MEMORY: 2_000, STORE: 50}
SEEDS_APART = 10_000_000
"""The first seeds of two runs are so far apart."""


class Round(NamedTuple):
    """Seeds that one process runs. twin: the broken build it runs them with."""

    name: str
    backend: str
    first: int
    seeds_count: int
    twin: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """As `gate.simulated_seeds` takes them."""
        options = ["--store"] if self.backend == STORE else []
        options += ["--twin", self.twin] if self.twin else []
        return ("-m", "gate.simulated_seeds", str(self.first), str(self.seeds_count), *options)


def plan(size: Size, seed: int) -> Iterator[Round]:
    """Every round of a run."""
    first = seed * SEEDS_APART
    for backend, count in SEEDS[size].items():
        step = ROUND_SEEDS[backend]
        for at in range(0, count, step):
            yield Round(f"{backend}-{at}", backend, first + at, min(step, count - at))
    for backend, twins in ((MEMORY, TWINS), (STORE, STORE_TWINS)):
        for twin in twins:
            yield Round(f"twin-{backend}-{twin}", backend, first, TWIN_SEEDS_MAX[backend], twin)


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every round that isn't done, as many at once as there are cores."""
    rounds = list(plan(size, seed))
    waiting = [one for one in rounds if not state.is_done(one.name)]
    progress.begin("rounds of seeds", len(rounds), done=len(rounds) - len(waiting))
    cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def do(one: Round) -> None:
        async with cores:
            told = Told()
            async for line in lines_of(*one.arguments):
                told = msgspec.json.decode(line, type=Told)
        if one.twin is not None:
            state.save(one.name, {"caught": int(told.is_caught), "seeds": told.seeds})
        else:
            for words in told.words:
                progress.say(f"{one.backend}: {words}")
            state.save(
                one.name, {name: figure for name, figure in msgspec.to_builtins(told).items() if name != "words"}
            )
        progress.advance()

    async with asyncio.TaskGroup() as group:
        for one in waiting:
            group.create_task(do(one))
    rows = [row for backend in SEEDS[size] for row in rows_of(NAME, state.sums(f"{backend}-"), backend=backend)]
    for one in rounds:
        if one.twin is not None:
            is_caught = state.figures(one.name)["caught"] == 1
            rows.append(twin_row(NAME, one.twin, is_caught=is_caught, backend=one.backend))
    return rows

"""T4: after a power cut at any moment, everything acknowledged is in the ledger, once and whole.

A small real program commits settlements under strace; its log is replayed into a disk that keeps only what was synced
(gate/disk.py), cut at every sync, every acknowledgement and many points between, opened with SQLite and compared.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gate.children import lines_of, require_strace
from gate.children import run as run_program
from gate.cut_images import LOG, Sums, recorded
from gate.progress import Progress
from gate.rows import Row, Size, rows_of, twin_row
from gate.state import State
from gate.strace_log import OPTIONS, Ack, Sync

NAME = "t4"
COMMITS = {"full": 1000, "short": 40}
SEEDS = {"full": 5, "short": 1}
TWIN_COMMITS = 40
IMAGES_PER_COMMIT = 3
"""About; for the progress bar."""

TWINS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "synchronous_normal": (("--synchronous", "NORMAL"), (), "lost"),
    "syncs_ignored": ((), ("--ignore-syncs",), "lost"),
    "two_transactions": (("--split",), (), "leaked"),
}
"""Broken builds: (how the program runs, how its log is replayed, the metric that must notice)."""


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every seed, then every twin. Raises OperatorError where strace can't run."""
    require_strace()
    seeds = [seed + index for index in range(SEEDS[size])]
    state.use_seeds(seeds)
    for one in seeds:
        if not state.is_done(name := f"seed-{one}"):
            state.save(name, await one_seed(COMMITS[size], one, progress))
    for twin, (program, replay, metric) in TWINS.items():
        if not state.is_done(name := f"twin-{twin}"):
            progress.begin(f"twin {twin}", TWIN_COMMITS * IMAGES_PER_COMMIT)
            with record_directory() as record:
                await make_record(record, TWIN_COMMITS, seed, *program)
                sums = await examine(record, seed, progress, *replay)
            state.save(name, {metric: getattr(sums, metric)})
    rows = rows_of(NAME, state.sums("seed-"))
    for twin, (*_, metric) in TWINS.items():
        rows.append(twin_row(NAME, twin, is_caught=state.figures(f"twin-{twin}")[metric] > 0))
    return rows


async def one_seed(commits_count: int, seed: int, progress: Progress) -> dict[str, int]:
    """Record one run and examine its images; tells of every bad one."""
    progress.begin(f"seed {seed}, recording {commits_count} commits", 1)
    with record_directory() as record:
        await make_record(record, commits_count, seed)
        progress.begin(f"seed {seed}, images", commits_count * IMAGES_PER_COMMIT)
        sums = await examine(record, seed, progress)
        operations, plan = await asyncio.to_thread(recorded, record)
    for words in sums.evidence:
        progress.say(words)
    begun = next((at for at, operation in enumerate(operations) if isinstance(operation, Ack)), 0)
    return {
        "lost": sums.lost,
        "doubled": sums.doubled,
        "leaked": sums.leaked,
        "corrupt": sums.corrupt,
        "images": sums.images,
        "commits": commits_count,
        "submissions": len(plan.submissions),
        "checkpoints": operations[begun:].count(Sync("")),
    }


async def make_record(record: Path, commits_count: int, seed: int, *program: str) -> None:
    """Run the program under strace; its log, journal and plan are in `record` then."""
    strace = ["strace", *OPTIONS, "-o", str(record / LOG)]
    options = ["--commits", str(commits_count), "--seed", str(seed), *program]
    await run_program("-m", "gate.ledger_program", str(record), *options, wrapper=strace)


async def examine(record: Path, seed: int, progress: Progress, *replay: str) -> Sums:
    """Cut, build and examine, with one process for each core."""
    parts = len(os.sched_getaffinity(0))
    total = Sums()

    async def share(part: int) -> None:
        options = ["--seed", str(seed), "--share", f"{part}/{parts}", *replay]
        async for line in lines_of("-m", "gate.cut_images", str(record), *options):
            told = msgspec.json.decode(line)
            if set(told) == {"images"}:
                progress.advance(told["images"])
            else:
                total.include(msgspec.convert(told, Sums))

    async with asyncio.TaskGroup() as group:
        for part in range(parts):
            group.create_task(share(part))
    return total


@contextlib.contextmanager
def record_directory() -> Iterator[Path]:
    """A directory for one recorded run, without links in its path, gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="hw-")).resolve()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)

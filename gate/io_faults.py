"""T9: when the disk fails at the k-th write, nothing is acknowledged any more, everybody is told, and nothing is lost.

The real platform serves ten clients; one of its writes or syncs fails with EIO or ENOSPC. It must end in words, and on
the healed disk its books must be right. Each restart is the next fault's platform.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from gate import full_disk
from gate.children import require_strace
from gate.failing_platform import FailingPlatform
from gate.injection import Fault
from gate.progress import Progress
from gate.rows import Figures, Row, Size, add, rows_of, twin_row
from gate.state import State

NAME = "t9"
KS = {"full": range(1, 201), "short": (1, 6, 16, 61)}
LANES = 2
"""Platforms at once, each with its own directory and engine."""
FAULTS_PER_DIRECTORY = 25
"""A directory's books grow with each fault, and so does the audit of them."""
HELD_EVERY = 16
"""At these faults the end is held up, so that `/ready` can be asked."""
NEAR_CHECKPOINT_AT = (5, 6)
"""These of every eight faults, one at a sync and one at a write, count from the first checkpoint, not from the start."""
TWIN = "acknowledge_before_commit"
ALONE = ("full-disk", f"twin-{TWIN}")
"""Rounds with a platform of their own."""
TWIN_FAULTS = tuple(Fault("EIO", "fsync,fdatasync", at, is_lasting=True) for at in (9, 14, 11, 17, 20))
"""One after another until the twin is caught: it is wrong only where the commit that fails holds a settlement."""


class Planned(NamedTuple):
    """One round: a fault, and what happens around it (`FailingPlatform.suffer`)."""

    name: str
    fault: Fault
    is_held: bool
    is_near_checkpoint: bool


def plan(ks: Iterable[int], seed: int) -> list[Planned]:
    """The rounds of a run: for each k EIO and then ENOSPC.

    At the k-th write; of every fourth k at a sync instead, as far into the run as that.
    """
    draw, rounds = random.Random(f"faults {seed}"), list[Planned]()
    for k in ks:
        for error in ("EIO", "ENOSPC"):
            is_lasting = draw.random() < 0.5
            # A commit under this load is some twenty writes and one sync.
            is_near_checkpoint = k % 8 in NEAR_CHECKPOINT_AT
            # One of the last commits before the checkpoint, and then some sixty pages that it copies between two syncs.
            at_sync = Fault(error, "fsync,fdatasync", 1 + (k // 8 % 6 if is_near_checkpoint else k // 16), is_lasting)
            at_write = Fault(error, "pwrite64", 20 + k // 3 if is_near_checkpoint else k, is_lasting)
            fault = at_sync if k % 4 == 1 else at_write
            is_held = k % HELD_EVERY == 0 and error == "EIO"
            rounds.append(Planned(f"fault-{error.lower()}-{k}", fault, is_held, is_near_checkpoint))
    return rounds


async def run(size: Size, seed: int, state: State, progress: Progress) -> list[Row]:
    """Every fault, a full disk and the twin, two at a time. Raises OperatorError where strace can't run."""
    require_strace()
    rounds = plan(KS[size], seed)
    waiting = [one for one in reversed(rounds) if not state.is_done(one.name)]
    total = len(rounds) + len(ALONE)
    jobs: list[Callable[[], Awaitable[None]]] = []

    def done(name: str, figures: Figures, platform: FailingPlatform) -> None:
        for words in platform.complaints:
            progress.say(f"{name}: {words}")
        state.save(name, figures)
        progress.advance()

    async def faults() -> None:
        if waiting:
            async with FailingPlatform.open(seed) as platform:
                for _ in range(FAULTS_PER_DIRECTORY):
                    if not waiting:
                        return
                    name, fault, is_held, is_near_checkpoint = waiting.pop()
                    figures = await platform.suffer(fault, is_held=is_held, is_near_checkpoint=is_near_checkpoint)
                    done(name, figures, platform)

    async def fill_disk() -> None:
        namespace = full_disk.namespace()
        async with FailingPlatform.open(seed) as platform:
            if namespace is None:
                platform.complaints.append("no mount namespace may be made here, so no disk was filled")
                done("full-disk", {"full_disks": 0}, platform)
            else:
                done("full-disk", await platform.suffer_full_disk(namespace), platform)

    async def twin() -> None:
        async with FailingPlatform.open(seed, twin=TWIN) as platform:
            lost = 0
            for fault in TWIN_FAULTS:
                lost = lost or (await platform.suffer(fault))["lost"]
            platform.complaints.clear()  # they are what it is for
            done(f"twin-{TWIN}", {"lost": lost}, platform)

    async def lane() -> None:
        while jobs:
            await jobs.pop()()

    jobs += [faults] * max(LANES, -(-len(waiting) // FAULTS_PER_DIRECTORY))
    jobs += [job for name, job in zip(ALONE, (fill_disk, twin), strict=True) if not state.is_done(name)]
    progress.begin("faults", total, done=total - len(waiting) - sum(not state.is_done(name) for name in ALONE))
    async with asyncio.TaskGroup() as group:
        for _ in range(LANES):
            group.create_task(lane())
    figures = add(state.sums("fault-"), state.figures("full-disk"))
    return [*rows_of(NAME, figures), twin_row(NAME, TWIN, is_caught=state.figures(f"twin-{TWIN}")["lost"] > 0)]

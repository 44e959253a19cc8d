"""Cuts the power at many points of a recorded run, and examines what the disk may hold then.

Run by gate/power_cut.py, one process a core: python -m gate.cut_images RECORD --seed N --share I/N [--ignore-syncs]
It prints JSON lines: `{"images": N}` as it goes, and the sums at its end.
"""

import argparse
import gc
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from gate.disk import STYLES, Disk, Style
from gate.ledger_program import ACKS, DATABASE, PLAN
from gate.strace_log import Ack, Operation, Sync, Write, read
from gate.submissions import Examiner, Found, Plan

LOG = "strace.txt"
TELL_EVERY = 50
EVIDENCE_MAX = 20
"""More than so many bad images tell nothing new."""

BETWEEN_SHARE = 0.03
"""So many of the points that are neither a sync nor an acknowledgement: some for each commit, some for each checkpoint."""


class Cut(NamedTuple):
    """The power goes after so many operations; what is unsynced then survives in that style."""

    after: int
    style: Style


class Sums(msgspec.Struct, kw_only=True):
    """What the images of one share held. evidence: the worst, in words."""

    images: int = 0
    lost: int = 0
    doubled: int = 0
    leaked: int = 0
    corrupt: int = 0
    evidence: list[str] = []

    def add(self, cut: Cut, found: Found) -> None:
        """Count one image."""
        self.images += 1
        self.lost += len(found.lost)
        self.doubled += found.doubled_count
        self.leaked += len(found.half) + len(found.unequal)
        self.corrupt += bool(found.corrupt)
        if not found.is_clean and len(self.evidence) < EVIDENCE_MAX:
            self.evidence.append(f"{cut.style} after operation {cut.after}: {found}")

    def include(self, other: "Sums") -> None:
        """Add another share's."""
        self.images += other.images
        self.lost += other.lost
        self.doubled += other.doubled
        self.leaked += other.leaked
        self.corrupt += other.corrupt
        self.evidence = [*self.evidence, *other.evidence][:EVIDENCE_MAX]


def cuts(operations: Sequence[Operation], seed: int) -> list[Cut]:
    """Where to cut: at every acknowledgement, before and after every sync, and at a share of the points between.

    Each point gets one style by lot. A point where nothing was acknowledged and nothing written since the last is left out.
    """
    draw, chosen = random.Random(f"cuts {seed}"), list[Cut]()
    for at, (before, after) in enumerate(zip(operations, [*operations[1:], None], strict=True)):
        is_told = isinstance(before, Ack) and not isinstance(after, Ack)
        is_at_sync = isinstance(after, Sync)
        is_restart = isinstance(before, Write) and before.name == "-wal" and before.offset == 0
        is_synced = isinstance(before, Sync) and not isinstance(after, Ack)
        if is_told or is_at_sync or is_synced or is_restart or draw.random() < BETWEEN_SHARE:
            chosen.append(Cut(at + 1, draw.choice(STYLES)))
    return chosen


def examine(
    operations: Sequence[Operation], plan: Plan, chosen: Iterable[Cut], *, seed: int, folder: Path
) -> Iterator[tuple[Cut, Found]]:
    """Build the image of every cut in `folder`, in order, and look into it."""
    examiner, disk, acknowledged, done = Examiner(plan), Disk(), set[int](), 0
    for cut in chosen:
        for operation in operations[done : cut.after]:
            disk.apply(operation)
            if isinstance(operation, Ack):
                acknowledged.add(operation.number)
        done = cut.after
        image = disk.image(random.Random(f"image {seed} {cut}"), cut.style)
        yield cut, examiner.examine(lay_out(image, folder), acknowledged)


def lay_out(image: dict[str, bytes], folder: Path) -> Path:
    """Write an image's files into an emptied `folder`; returns the database's path."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in image.items():
        (folder / (DATABASE + name)).write_bytes(data)
    return folder / DATABASE


def recorded(record: Path, *, ignore_syncs: bool = False) -> tuple[list[Operation], Plan]:
    """The operations and the plan of a recorded run. ignore_syncs: as if the disk lied about every sync of data."""
    with (record / LOG).open("rb") as lines:
        operations = list(read(lines, str(record / DATABASE), str(record / ACKS)))
    if ignore_syncs:
        operations = [operation for operation in operations if not isinstance(operation, Sync)]
    return operations, Plan.read(record / PLAN)


def scratch() -> Path:
    """A new folder for images: in memory where there is such a place, since an image lives for milliseconds."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="hw-", dir=memory if memory.is_dir() else None))


def main() -> int:
    """Examine one share of the cuts."""
    parser = argparse.ArgumentParser(prog="python -m gate.cut_images")
    parser.add_argument("record", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--share", required=True, metavar="I/N")
    parser.add_argument("--ignore-syncs", action="store_true")
    options = parser.parse_args()
    part, parts = map(int, options.share.split("/"))
    operations, plan = recorded(options.record, ignore_syncs=options.ignore_syncs)
    chosen = cuts(operations, options.seed)[part::parts]
    sums, folder = Sums(), scratch()
    gc.disable()  # nothing here is cyclic, and each image makes some ten thousand tuples
    try:
        for cut, found in examine(operations, plan, chosen, seed=options.seed, folder=folder):
            sums.add(cut, found)
            if sums.images % TELL_EVERY == 0:
                print(msgspec.json.encode({"images": TELL_EVERY}).decode(), flush=True)
    finally:
        shutil.rmtree(folder)
    print(msgspec.json.encode(sums).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a rig has done so far, on the disk, so that an interrupted run goes on where it stopped."""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from gate.rows import Figures, Size, add


class _File(msgspec.Struct, kw_only=True):
    test: str
    size: Size
    seed: int
    seeds: list[int]
    started_at: str
    elapsed_s: float = 0.0
    rounds: dict[str, dict[str, int | float]] = {}


class State:
    """The rounds that are done, each with its figures. One owner: the process that runs the rig.

    A round is whatever a rig can repeat from its name, the seed and the size alone; what it leaves is figures.
    """

    def __init__(self, path: Path | None, file: _File) -> None:
        """path: where it is kept; None keeps it in memory. Use `open` and `in_memory`."""
        self._path, self._file = path, file
        self._resumed_s, self._began_s = file.elapsed_s, time.monotonic()

    @classmethod
    def open(cls, directory: Path, test: str, size: Size, seed: int, *, is_fresh: bool = False) -> Self:
        """The state of that test, size and seed: what an interrupted run left, or an empty one."""
        path = directory / f"{test}-{size}-{seed}.json"
        if path.exists() and not is_fresh:
            return cls(path, msgspec.json.decode(path.read_bytes(), type=_File))
        directory.mkdir(parents=True, exist_ok=True)
        return cls(path, _begin(test, size, seed))

    @classmethod
    def in_memory(cls, test: str, size: Size, seed: int) -> Self:
        """A state that is kept nowhere, for a run that is not resumed."""
        return cls(None, _begin(test, size, seed))

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier run left rounds."""
        return self._resumed_s > 0

    @property
    def seed(self) -> int:
        """The seed that was asked for."""
        return self._file.seed

    @property
    def started_at(self) -> str:
        """When the first run began, in UTC."""
        return self._file.started_at

    @property
    def elapsed_s(self) -> float:
        """Seconds spent on it, those of interrupted runs up to their last round included."""
        return self._resumed_s + time.monotonic() - self._began_s

    @property
    def seeds(self) -> list[int]:
        """The seeds that the result names; the given one unless the rig says otherwise."""
        return self._file.seeds

    def use_seeds(self, seeds: Sequence[int]) -> None:
        """Say which seeds the rig draws from."""
        self._file.seeds = list(seeds)

    def is_done(self, name: str) -> bool:
        """Whether that round has been done."""
        return name in self._file.rounds

    def figures(self, name: str) -> Figures:
        """The figures of a round that is done. Raises KeyError otherwise."""
        return self._file.rounds[name]

    def sums(self, prefix: str = "") -> dict[str, int | float]:
        """The sums by metric over the rounds whose name begins so."""
        return add(*(figures for name, figures in self._file.rounds.items() if name.startswith(prefix)))

    def save(self, name: str, figures: Figures) -> None:
        """Keep a round's figures; on return they survive the end of this process."""
        self._file.rounds[name] = dict(figures)
        self._file.elapsed_s = self.elapsed_s
        if self._path is not None:
            beside = self._path.with_suffix(".new")
            beside.write_bytes(msgspec.json.format(msgspec.json.encode(self._file), indent=1))
            os.replace(beside, self._path)  # noqa: PTH105 the rename that replaces

    def discard(self) -> None:
        """Forget it: the result is written, and the next run starts over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _begin(test: str, size: Size, seed: int) -> _File:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return _File(test=test, size=size, seed=seed, seeds=[seed], started_at=now)

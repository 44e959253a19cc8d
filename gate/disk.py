"""A disk that keeps only what was synced, and what it may hold after a power cut.

The model: a write is in memory until a sync of its file returns. Whatever is not synced may or may not have reached the
disk, sector by sector, in any order; but a sector holds what it held after some write, never something that never was.
The size of a file is a fact of its own, and may be older or newer than the data. Names are made and taken away in
order, as a journaling file system does, and are durable after a sync of the directory or of the file itself.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from gate.strace_log import Ack, Create, Operation, Remove, Rename, Sync, SyncDirectory, Truncate, Write

SECTOR_BYTES = 512
Style = Literal["dropped", "kept", "writes", "sectors", "first", "last"]
"""What survives of the unsynced: nothing; all; whole writes by lot; sectors by lot; the first writes, then half a one; only
the last ones."""
STYLES: tuple[Style, ...] = get_args(Style)


@dataclass(slots=True)
class File:
    """What is durable, and what came after the last sync, in order."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)

    def sync(self) -> None:
        """Everything is durable."""
        for operation in self.pending:
            _apply(self.durable, operation)
        self.pending.clear()

    def image(self, draw: random.Random, style: Style) -> bytes:
        """What the disk may hold of it."""
        if not self.pending or style == "dropped":
            return bytes(self.durable)
        data = bytearray(self.durable)
        if style == "kept":
            for operation in self.pending:
                _apply(data, operation)
            return bytes(data)
        newest = _survivors(self.pending, draw, style)
        for index, operation in enumerate(self.pending):
            if isinstance(operation, Truncate):
                if newest.get(None, -1) >= index and operation.size < len(data):
                    del data[operation.size :]
                continue
            for sector, piece in _pieces(operation):
                if index <= newest.get(sector, -1):
                    _apply(data, piece)
        if draw.random() < 0.5:
            _resize(data, draw.choice(self._sizes()))
        return bytes(data)

    def _sizes(self) -> list[int]:
        """Every size it had since the last sync, and then."""
        sizes = [len(self.durable)]
        for operation in self.pending:
            if isinstance(operation, Truncate):
                sizes.append(operation.size)
            else:
                sizes.append(max(sizes[-1], operation.offset + len(operation.data)))
        return sizes


@dataclass(frozen=True, slots=True)
class _Name:
    """A change of the directory: `name` now stands for `file`, or for nothing."""

    name: str
    file: File | None


class Disk:
    """The files of one directory. Feed it the operations in order; ask for images at any point between."""

    def __init__(self) -> None:
        self._seen: dict[str, File] = {}
        self._durable: dict[str, File] = {}
        self._pending: list[_Name] = []

    def apply(self, operation: Operation) -> None:
        """Go on by one operation."""
        match operation:
            case Write(name) | Truncate(name):
                self._seen[name].pending.append(operation)
            case Create(name):
                if name not in self._seen:
                    self._point(name, File())
            case Remove(name):
                self._point(name, None)
            case Rename(name, to):
                self._point(to, self._seen[name])
                self._point(name, None)
            case Sync(name):
                self._seen[name].sync()
                self._settle_names(self._last_change_of(self._seen[name]) + 1)
            case SyncDirectory():
                self._settle_names(len(self._pending))
            case Ack():
                pass

    @property
    def is_clean(self) -> bool:
        """Whether nothing is unsynced, so that every image is the same."""
        return not self._pending and not any(file.pending for file in self._durable.values())

    def image(self, draw: random.Random, style: Style) -> dict[str, bytes]:
        """What the directory may hold after a cut now: contents by name."""
        survivors = {"dropped": 0, "kept": len(self._pending)}.get(style, draw.randint(0, len(self._pending)))
        names = dict(self._durable)
        for change in self._pending[:survivors]:
            _change(names, change)
        return {name: file.image(draw, style) for name, file in names.items()}

    def _point(self, name: str, file: File | None) -> None:
        change = _Name(name, file)
        _change(self._seen, change)
        self._pending.append(change)

    def _last_change_of(self, file: File) -> int:
        return max((index for index, change in enumerate(self._pending) if change.file is file), default=-1)

    def _settle_names(self, count: int) -> None:
        for change in self._pending[:count]:
            _change(self._durable, change)
        del self._pending[:count]


def _change(names: dict[str, File], change: _Name) -> None:
    if change.file is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.file


def _apply(data: bytearray, operation: Write | Truncate) -> None:
    if isinstance(operation, Truncate):
        _resize(data, operation.size)
        return
    end = operation.offset + len(operation.data)
    if end > len(data):
        _resize(data, end)
    data[operation.offset : end] = operation.data


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _pieces(write: Write) -> Iterable[tuple[int, Write]]:
    """The write by sectors of the file: (sector's number, that part of the write)."""
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        sector = at // SECTOR_BYTES
        until = min(end, (sector + 1) * SECTOR_BYTES)
        yield sector, Write(write.name, at, write.data[at - write.offset : until - write.offset])
        at = until


def _survivors(pending: list[Write | Truncate], draw: random.Random, style: Style) -> dict[int | None, int]:
    """For each sector the index of the newest operation that it shows; under None, of the newest truncation that held."""
    count = len(pending)
    border = draw.randrange(count)
    share = draw.random()
    survives: Callable[[int], bool]
    match style:
        case "first":
            survives = border.__gt__
        case "last":
            survives = border.__le__
        case _:
            lots = [draw.random() < share for _ in pending]
            survives = lots.__getitem__
    newest: dict[int | None, int] = {}
    touched: dict[int, list[int]] = {}
    for index, operation in enumerate(pending):
        if isinstance(operation, Truncate):
            if survives(index):
                newest[None] = index
            continue
        is_torn = style == "sectors" or (style == "first" and index == border)
        for sector, _ in _pieces(operation):
            if is_torn:
                touched.setdefault(sector, []).append(index)
            elif survives(index):
                newest[sector] = index
    for sector, indexes in touched.items():
        drawn = draw.choice([newest.get(sector, -1), *indexes])
        newest[sector] = max(drawn, newest.get(sector, -1))
    return newest

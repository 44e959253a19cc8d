"""Files that are whole or not there: written beside their place, synced, checked, and only then renamed into it."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from headwater.errors import OperatorError

BLOCK_BYTES = 4 * 2**20
SPARE_BYTES = 64 * 2**20
"""Disk space that is left to the platform's own log whatever else is written."""
PARTIAL = ".partial"
"""Ends the name of a file that isn't whole yet."""


def sync_directory(directory: Path) -> None:
    """Make the directory's own entries durable: names that were added, renamed or removed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable, and forget what memory holds of it: whoever reads it next reads the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, *, done: Callable[[int], None] = lambda _: None) -> bytes:
    """The SHA-256 of a file; done: told the bytes read so far."""
    digest = hashlib.sha256()
    count = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            count += len(block)
            done(count)
    return digest.digest()


def require_space(directory: Path, needed_bytes: int, *, what: str) -> None:
    """Raise OperatorError unless the disk has so much room, and some to spare. what: begins the message."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes + SPARE_BYTES:
        raise OperatorError(
            f"{what} needs {_megabytes(needed_bytes + SPARE_BYTES)} of disk space.",
            why=f"{_megabytes(free_bytes)} are free where {directory} is.",
            now="Make room there, then try again; nothing was changed.",
        )


def make_directory(directory: Path) -> None:
    """Make a directory that only its user may enter, its entry durable; one that is there stays as it is."""
    if not directory.is_dir():
        directory.mkdir(parents=True, mode=0o700)
        sync_directory(directory.parent)


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """A new empty file (0600) beside `target`, to be filled and renamed to it within the block; gone afterwards if it wasn't.

    It is locked while the block lasts, so that leftovers of killed processes can be told from it (`sweep_partial`).
    """
    partial = target.with_name(f".{target.name}{PARTIAL}")
    sweep_partial(target.parent, partial.name)
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise OperatorError(f"Another process is writing {target} right now.", now="Wait for it to end.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def sweep_partial(directory: Path, pattern: str = f".*{PARTIAL}") -> None:
    """Remove unfinished files of processes that are gone; a file that is being written is locked, and stays."""
    for path in directory.glob(pattern):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink(missing_ok=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"

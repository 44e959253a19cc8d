"""What the disk costs: the time of an fdatasync, and the size of an installation."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

WRITE_BYTES = 4096 + 24  # one page and its header, as a commit of one page adds to SQLite's write-ahead log


def sync_times_s(sync: Callable[[int], None], directory: Path, count: int = 100) -> list[float]:
    """Time `count` writes of a WAL frame in `directory`, each followed by `sync` (os.fdatasync or os.fsync).

    The file is written in full first and then overwritten in order, as a write-ahead log is after its first
    checkpoint: no write makes the file longer.
    """
    path, times = directory / "sync.probe", []
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        frame = os.urandom(WRITE_BYTES)
        os.pwrite(descriptor, bytes(WRITE_BYTES * count), 0)
        os.fsync(descriptor)
        for index in range(count):
            os.pwrite(descriptor, frame, index * WRITE_BYTES)
            start = time.perf_counter()
            sync(descriptor)
            times.append(time.perf_counter() - start)
    finally:
        os.close(descriptor)
        path.unlink()
    return times


def size_mb(directory: Path) -> float:
    """Disk blocks used under `directory`, in MB (10^6 bytes), hard links once: what `du -s --block-size=MB` adds up."""
    seen, blocks = set(), 0
    for path in [directory, *directory.rglob("*")]:
        stat = path.lstat()
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            blocks += stat.st_blocks
    return blocks * 512 / 1e6


def install_mb(project: Path, extra: str, target: Path) -> float:
    """Install the project (with `[extra]` unless it is empty) into a fresh directory and return its size.

    Uses pip with its own configuration; what it compiles to bytecode is counted, pip itself is not.
    """
    requirement = f"{project}[{extra}]" if extra else str(project)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--target", str(target), requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not install {requirement}:\n{done.stderr[-2000:]}")
    return size_mb(target)

"""What ran it: facts of the machine that a result needs, without its name or paths."""

import os
import platform
import statistics
import tempfile
from pathlib import Path

from bench.disk import sync_times_s
from headwater.ledger.store import SQLITE_VERSION


def describe() -> dict[str, str | int | float]:
    """CPU, cores that may be used, kernel, Python, SQLite, and what an fsync costs in the temporary directory."""
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:
        fsync_s = statistics.median(sync_times_s(os.fsync, Path(folder), count=50))
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": SQLITE_VERSION,
        "fsync_p50_ms": round(fsync_s * 1000, 3),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []

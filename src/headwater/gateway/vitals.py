"""What this process uses of the machine, and what it may use: memory and file descriptors (Linux: /proc, cgroups)."""

import ctypes
import os
import resource
from pathlib import Path
from typing import Final

_STATM: Final = "/proc/self/statm"
_CGROUP_FILES: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MEMORY_SHARE: Final = 0.25
"""The engines live on the same machine; the gateway's own part of it is a quarter."""
MEMORY_BYTES_MIN: Final = 512 * 2**20


def resident_bytes() -> int | None:
    """Memory this process holds in RAM now; None where the kernel doesn't say it (no /proc)."""
    try:
        with open(_STATM, "rb") as file:  # noqa: PTH123 a path object costs more than the read
            return int(file.read().split()[1]) * _PAGE_BYTES
    except FileNotFoundError:
        return None


def memory_limit_bytes() -> int:
    """What the control group, else the machine, has in all: the smaller of the two."""
    limit = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    for name in _CGROUP_FILES:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue  # the other version of cgroups, or none
        if text.isdigit():  # not "max"
            limit = min(limit, int(text))
    return limit


def derived_memory_bytes_max() -> int:
    """The bound of a gateway that none was configured for: a share of what there is, but no less than it needs to live."""
    limit = memory_limit_bytes()
    return min(limit, max(MEMORY_BYTES_MIN, int(limit * MEMORY_SHARE)))


def give_memory_back() -> None:
    """Hand freed memory back to the kernel: the allocator keeps it otherwise, and a guard would see a peak for ever."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl hasn't
    if trim is not None:
        trim(0)


def raise_descriptor_limit() -> int:
    """Set the soft limit of file descriptors to the hard one, which needs no privilege; returns what holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

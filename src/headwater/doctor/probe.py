"""The doctor's instruments: each measures one thing of this machine and judges nothing."""

import errno
import os
import re
import resource
import shutil
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import Final

from headwater.doctor.checks import DirectoryFacts, PortState

SYNC_COUNT: Final = 50
SYNC_BLOCK: Final = b"\0" * 4096  # a page of the write-ahead log
_PROC: Final = Path("/proc")
_TCP_LISTEN: Final = "0A"  # its code in /proc/net/tcp


def directory_facts(path: Path) -> DirectoryFacts:
    """Look at a directory, or at the closest ancestor that exists; nothing is made."""
    absolute = path.absolute()
    nearest = nearest_existing(absolute)
    is_directory = nearest.is_dir()  # not so for a link to nowhere, which has no mode to follow either
    return DirectoryFacts(
        path=absolute,
        nearest=nearest,
        is_directory=is_directory,
        is_writable=os.access(nearest, os.W_OK | os.X_OK),
        mode=nearest.stat().st_mode & 0o7777 if is_directory else 0,
    )


def nearest_existing(path: Path) -> Path:
    """Return path, or its closest ancestor that exists."""
    return next(candidate for candidate in (path, *path.parents) if os.path.lexists(candidate))


def free_bytes(path: Path) -> int:
    """Return the bytes you may still write on the disk where path is, or will be."""
    return shutil.disk_usage(nearest_existing(path.absolute())).free


def port_state(host: str, port: int, owner_pid: int | None) -> tuple[PortState, str]:
    """Return who has an address, and the system's words when it can't be had; owner_pid: of the running platform."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            # As the server does: an address in TIME_WAIT is free, one that is listened on is not.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            is_ours = owner_pid is not None and is_listening(owner_pid, port)
            return PortState.OURS if is_ours else PortState.TAKEN, error.strerror or str(error)
        return PortState.UNUSABLE, error.strerror or str(error)
    return PortState.FREE, ""


def platform_pid(data_directory: Path) -> int | None:
    """Return the process that serves the admin socket of a data directory, or None when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(data_directory / "admin.sock"))
        except OSError:
            # No socket, nobody behind it, or not ours to open: in each case no platform of ours is known to run.
            return None
        size = struct.calcsize("3i")
        pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return int(pid)


def is_listening(pid: int, port: int) -> bool:
    """Whether a process holds a TCP socket that listens on a port (Linux: /proc; False where that can't be read)."""
    inodes = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (_PROC / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in (line.split() for line in lines):
            if row[3] == _TCP_LISTEN and int(row[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{row[9]}]")
    try:
        return any(_link(entry) in inodes for entry in (_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:  # closed since it was listed
        return ""


def sync_latencies_s(directory: Path, count: int = SYNC_COUNT) -> list[float]:
    """Time fdatasync after each of some 4 KiB appends to a temporary file there; raises OSError."""
    sync = getattr(os, "fdatasync", os.fsync)
    latencies_s = []
    with tempfile.TemporaryFile(dir=nearest_existing(directory.absolute())) as file:
        for _ in range(count):
            file.write(SYNC_BLOCK)
            file.flush()
            began_s = time.perf_counter()
            sync(file.fileno())
            latencies_s.append(time.perf_counter() - began_s)
    return latencies_s


def available_memory_bytes() -> int | None:
    """Return what new processes may take: the system's MemAvailable, or the control group's limit if that is less.

    None where the system has no /proc/meminfo.
    """
    try:
        text = (_PROC / "meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        return None
    available = int(found[1]) * 1024
    limit = _control_group_limit_bytes()
    return available if limit is None else min(available, limit)


def _control_group_limit_bytes() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def open_files_limit() -> int | None:
    """Return how many files this process may open, None for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft

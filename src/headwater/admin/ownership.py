"""Who owns a data directory: the one process that holds the lock on it."""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from headwater.errors import OperatorError

SOCKET_NAME = "admin.sock"
RETRY_S = 0.02


class AlreadyOwned(OperatorError):
    """Another process owns the data directory; pid is its process id, or None when it can't be read."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"The data directory {directory} is in use.",
            why=f"A platform runs on it already ({who}).",
            now=f"Use that one, or stop it first (Ctrl-C in its terminal, or `kill {pid or 'PID'}`); "
            "for a second platform choose another directory with `--set store.url=sqlite:///./other/headwater.db`.",
        )
        self.pid = pid


class Ownership:
    """The lock (`flock`) on a data directory, held as a context; the kernel lets go of it however the process ends."""

    def __init__(self, directory: Path, *, wait_s: float = 0.0) -> None:
        """wait_s: how long to wait for another process to let go, for verbs that hold the lock for a moment."""
        self._directory = directory
        self._wait_s = wait_s
        self._fd: int | None = None

    def __enter__(self) -> Self:
        """Take the lock. Raises AlreadyOwned, or OperatorError when the directory can't be made or written."""
        path = self._directory / "lock"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(
                f"The data directory {self._directory} can't be used.",
                why=f"{error.strerror}: {error.filename}.",
                now="Give this user the right to write there, or choose another with `--set store.url=sqlite:///PATH/headwater.db`.",
            ) from error
        if not self._lock(fd):
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise AlreadyOwned(self._directory, int(pid) if pid.isdigit() else None)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._fd = fd
        return self

    def _lock(self, fd: int) -> bool:
        until_s = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    return False
                time.sleep(RETRY_S)  # flock has no time-out of its own
            else:
                return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

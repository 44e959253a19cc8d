"""Faults of the disk, injected into the system calls of a running process with strace."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from gate.children import ProgramFailed

ATTACH_TIMEOUT_S = 20.0
INJECTED = "(INJECTED)"
Call = Literal["pwrite64", "fsync,fdatasync"]


class Fault(NamedTuple):
    """The `at`-th call of that kind on the database's files fails. is_lasting: so do all after it.

    Each thread counts for itself; all that the platform commits is written by one.
    """

    error: Literal["EIO", "ENOSPC"]
    call: Call
    at: int
    is_lasting: bool

    @property
    def expression(self) -> str:
        """As strace's `-e inject=`."""
        return f"{self.call}:error={self.error}:when={self.at}{'+' if self.is_lasting else ''}"


class Injection:
    """A fault that lies in wait. What it has hit so far is read from strace's log."""

    def __init__(self, log: Path, database: Path) -> None:
        self._log, self._database = log, database
        self._read_bytes, self._seen = 0, list[str]()

    def hits(self) -> list[str]:
        """The lines of the calls that failed."""
        return [line for line in self._lines() if INJECTED in line]

    @property
    def is_checkpoint_hit(self) -> bool:
        """Whether the first failed call was a checkpoint's: on the database itself, or a sync of the log with nothing new in it.

        Such a failure takes nothing back that was committed: SQLite keeps the log and will copy it again.
        """
        lines = self._lines()
        hit = next((at for at, line in enumerate(lines) if INJECTED in line), None)
        if hit is None:
            return False
        thread = lines[hit].split()[0]
        before = next((line for line in reversed(lines[:hit]) if line.split()[0] == thread), "")
        return f"<{self._database}>" in lines[hit] or ("sync(" in lines[hit] and "sync(" in before)

    def _lines(self) -> list[str]:
        """All whole lines so far; only what is new is read."""
        if self._log.exists():
            with self._log.open("rb") as file:
                file.seek(self._read_bytes)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            self._seen += whole.decode(errors="replace").splitlines()
        return self._seen


@asynccontextmanager
async def injected(pid: int, database: Path, fault: Fault, log: Path) -> AsyncIterator[Injection]:
    """Let the fault happen to that process, counting from now, until it ends or the block does.

    Raises ProgramFailed when strace can't attach.
    """
    database = database.resolve()
    files = [option for suffix in ("", "-wal", "-journal") for option in ("-P", f"{database}{suffix}")]
    log.unlink(missing_ok=True)
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-y", "-p", str(pid), "-o", str(log), *files, "-e", "signal=none"),
        *("-e", "trace=pwrite64,fsync,fdatasync", "-s", "0", "-e", f"inject={fault.expression}"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert strace.stderr is not None
        said = await asyncio.wait_for(strace.stderr.readline(), ATTACH_TIMEOUT_S)
        if b"attached" not in said:
            raise ProgramFailed(f"strace can't attach: {said.decode(errors='replace')}")
        yield Injection(log, database)
    finally:
        await _let_go(strace, pid)


async def _let_go(strace: asyncio.subprocess.Process, pid: int) -> None:
    """Wait until strace has ended, as it does with the process it follows; make it let go of one that lives on."""
    if Path(f"/proc/{pid}").exists():
        with contextlib.suppress(ProcessLookupError):
            # Not terminate(): that looks for the exit status first, and the loop's own watcher then finds none.
            os.kill(strace.pid, signal.SIGTERM)
    await strace.wait()

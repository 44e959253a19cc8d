"""Programs that a rig runs to their end: ours, ended by their own pid whatever happens to the rig."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from headwater.errors import OperatorError

ROOT = Path(__file__).resolve().parent.parent
STDERR_MAX = 3000


class ProgramFailed(Exception):
    """A rig's own program ended with an error; nothing can be said about the platform."""


def environment() -> dict[str, str]:
    """This process's environment for a program of the gate: it finds the packages, and no coverage is measured in it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HEADWATER_", "COVERAGE_"))}
    return own | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "NO_COLOR": "1"}


async def lines_of(*arguments: str, wrapper: Sequence[str] = ()) -> AsyncIterator[str]:
    """Run `python ARGUMENTS` (under a wrapper) and yield the lines it prints. Raises ProgramFailed with what it said."""
    process = await asyncio.create_subprocess_exec(
        *wrapper,
        sys.executable,
        *arguments,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said = asyncio.ensure_future(process.stderr.read())
    try:
        while line := await process.stdout.readline():
            yield line.decode()
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors = (await said).decode(errors="replace")
    if status:
        raise ProgramFailed(f"{' '.join(arguments)} ended with {status}: {errors[-STDERR_MAX:]}")


async def run(*arguments: str, wrapper: Sequence[str] = ()) -> None:
    """Run `python ARGUMENTS` to its end. Raises ProgramFailed."""
    async for _ in lines_of(*arguments, wrapper=wrapper):
        pass


def strace_refusal() -> str | None:
    """Why no program can be traced here; None when it can."""
    try:
        done = subprocess.run(
            ["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True, check=False, timeout=30
        )
    except FileNotFoundError:
        return "strace is not installed"
    return None if done.returncode == 0 else done.stderr.strip() or f"strace ended with {done.returncode}"


def require_strace() -> None:
    """Raises OperatorError when no program can be traced here."""
    if (refusal := strace_refusal()) is not None:
        raise OperatorError(
            "This test follows a program's system calls, and can't here.",
            why=f"{refusal}.",
            now="Install it with `make apt`; in a container, allow ptrace.",
        )
